"""The file of metrics that a test writes."""

import json
from types import SimpleNamespace

import pytest

from mmreplk.training import metrics_file


@pytest.mark.parametrize('rank', [0, 1])
def test_process_0_alone_writes(rank, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_file, 'is_main_process', lambda: rank == 0)
    lines = []
    runner = SimpleNamespace(
        timestamp='now',
        log_dir=str(tmp_path),
        test_dataloader=[1, 2],
        logger=SimpleNamespace(info=lines.append),
        log_processor=SimpleNamespace(
            get_log_after_epoch=lambda *_, **__: ({'mIoU': 1.5, 'IoU': (1, 2)}, 'mIoU: 1.5')))
    hook = metrics_file.SafeLoggerHook()
    hook.before_run(runner)
    hook.after_test_epoch(runner, {})
    assert lines == ['mIoU: 1.5']
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert files == ({'now.json': {'mIoU': 1.5, 'IoU': [1, 2]}} if rank == 0 else {})
