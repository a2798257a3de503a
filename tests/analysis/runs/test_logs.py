"""Curves of a run from MMEngine's logs."""

import json

import cv2
import pytest

from mmreplk.analysis.runs.logs import metrics_to_show, read_run
from mmreplk.analysis.runs.plot import draw_runs


def write(folder, *lines, raw=''):
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines) + raw)


def test_a_resumed_run_is_one_curve(tmp_path):
    write(tmp_path / '20260101_000000',
          dict(loss=3.0, lr=0.1, step=10, iter=10), dict(loss=2.5, lr=0.2, step=20, iter=20),
          dict(mIoU=5.0, time=1.0, step=20), dict(loss=9.0, lr=0.3, step=30, iter=30),
          dict(mIoU=99.0, step=30), raw='{"loss": 1')  # killed while it wrote
    write(tmp_path / '20260102_000000',
          dict(loss=2.0, lr=0.3, step=25, iter=25), dict(mIoU=30.0, aAcc=60.0, step=40))
    write(tmp_path / '20260103_000000', dict(mIoU=1.0, step=0))  # an evaluation
    run = read_run(tmp_path)
    assert run.name == tmp_path.name
    assert run.train == dict(loss={10: 3.0, 20: 2.5, 25: 2.0}, lr={10: 0.1, 20: 0.2, 25: 0.3})
    assert run.metrics == dict(mIoU={20: 5.0, 40: 30.0}, aAcc={40: 60.0})


def test_validations_by_epoch_stand_at_the_end_of_their_epochs(tmp_path):
    write(tmp_path / 'a', dict(loss=3.0, step=5, iter=5, epoch=1),
          dict(loss=2.0, step=10, iter=10, epoch=1), {'coco/bbox_mAP': 0.1, 'step': 1},
          dict(loss=1.0, step=20, iter=20, epoch=2), {'coco/bbox_mAP': 0.2, 'step': 2})
    assert read_run(tmp_path).metrics == {'coco/bbox_mAP': {10: 0.1, 20: 0.2}}


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="WORK_DIR .*nowhere.*no such folder"):
        read_run(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='with a loss in it'):
        read_run(tmp_path)
    write(tmp_path / 'a', raw='nonsense\n{"loss": 1, "step": 1}\n')
    with pytest.raises(ValueError, match='line 1: it is not JSON'):
        read_run(tmp_path)


def test_which_metrics_and_the_figure(tmp_path):
    write(tmp_path / 'x/1', dict(loss=3.0, lr=0.1, step=10), dict(aAcc=50.0, mIoU=5.0, step=10))
    write(tmp_path / 'y/1', dict(loss=2.0, lr=0.1, step=10))
    runs = [read_run(tmp_path / name) for name in 'xy']
    assert metrics_to_show(runs) == ['mIoU']
    assert metrics_to_show(runs, ['aAcc', 'mIoU']) == ['aAcc', 'mIoU']
    assert metrics_to_show(runs[1:]) == []
    with pytest.raises(ValueError, match='metrics mDice: no run logged it. They have: aAcc, mIoU'):
        metrics_to_show(runs, ['mDice'])
    widths = []
    for metrics in (None, ['aAcc', 'mIoU']):
        path = tmp_path / f'{len(widths)}.png'
        draw_runs(runs, str(path), metrics)
        widths.append(cv2.imread(str(path)).shape[1])
    assert widths[1] * 3 == pytest.approx(widths[0] * 4, rel=0.01)  # a panel more
