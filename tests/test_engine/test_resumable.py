"""What a checkpoint may make of a run that goes on from it: nothing but a run that goes on."""

import os

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmreplk import config_scope
from mmreplk.engine import checkpoints, paths
from mmreplk.engine.resumable import not_resumable
from mmreplk.models.reading import load_from_local


class Toy(BaseModel):
    """One weight, pulled to 0."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.weight.square().sum()) if mode == 'loss' else [0]


class Score(BaseMetric):
    """Better with every evaluation."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        self.calls += 1
        return dict(mIoU=self.calls)


def train(work_dir, iterations, load_from=None):
    data = dict(dataset=[torch.zeros(1)] * 4, batch_size=1, num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False))
    runner = Runner(
        Toy(), str(work_dir), train_dataloader=data, val_dataloader=data,
        val_evaluator=Evaluator([Score()]),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=1), val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(
            type='SafeCheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2,
            save_best='mIoU', rule='greater')),
        load_from=load_from, resume=load_from is not None,
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}_{iterations}', log_level='ERROR')
    runner.train()


def edit(path, change):
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.fixture
def trained(tmp_path):
    """A run of two iterations, and the checkpoint to go on from."""
    train(tmp_path / 'a', 2)
    return tmp_path / 'a' / 'iter_2.pth'


def test_text_in_a_checkpoint_is_not_run(trained, tmp_path):
    program = f'open({str(tmp_path / "pwned")!r}, "w").close()\n'
    edit(trained, lambda checkpoint: checkpoint['meta'].update(config=program, cfg=program))
    train(tmp_path / 'b', 3, str(trained))
    assert (tmp_path / 'b' / 'iter_3.pth').exists()  # it did go on
    assert not (tmp_path / 'pwned').exists()
    assert 'config' not in load_from_local(str(trained))['meta']  # whoever resumes from it


def test_the_best_of_another_run_stays(trained, tmp_path):
    """Without malice: run B goes on from A's checkpoint and scores better."""
    best = tmp_path / 'a' / 'best_mIoU_iter_2.pth'
    assert best.exists()
    edit(trained, lambda checkpoint: checkpoint['message_hub']['runtime_info'].update(best_score=0))
    train(tmp_path / 'b', 3, str(trained))
    assert (tmp_path / 'b' / 'best_mIoU_iter_3.pth').exists()
    assert best.exists()


def test_its_own_best_is_replaced(trained, tmp_path):
    edit(trained, lambda checkpoint: checkpoint['message_hub']['runtime_info'].update(best_score=0))
    train(tmp_path / 'a', 3, str(trained))
    assert [path.name for path in (tmp_path / 'a').glob('best*')] == ['best_mIoU_iter_3.pth']


@pytest.mark.parametrize('where', ['{0}/victim', '{0}/victim/best_mIoU_iter_1.pth',
                                   '{0}/a/../victim/best_mIoU_iter_1.pth', '{0}/a/notes',
                                   '{0}/a/link/best_mIoU_iter_1.pth', 7])
def test_what_a_checkpoint_names_is_not_removed(trained, tmp_path, where):
    (tmp_path / 'victim').mkdir()
    (tmp_path / 'victim' / 'best_mIoU_iter_1.pth').write_text('precious')
    (tmp_path / 'a' / 'notes').write_text('precious')
    (tmp_path / 'a' / 'link').symlink_to(tmp_path / 'victim')
    where = where.format(tmp_path) if isinstance(where, str) else where
    edit(trained, lambda checkpoint: checkpoint['message_hub']['runtime_info'].update(
        best_ckpt=where, best_score=0, last_ckpt=where,
        keep_ckpt_ids=['../../victim/best_mIoU_iter_1', 1, 2]))
    train(tmp_path / 'a', 4, str(trained))
    assert (tmp_path / 'a' / 'iter_4.pth').exists()
    assert (tmp_path / 'victim' / 'best_mIoU_iter_1.pth').read_text() == 'precious'
    assert (tmp_path / 'a' / 'notes').read_text() == 'precious'


@pytest.mark.parametrize(('change', 'words'), [
    (lambda c: c.pop('optimizer'), 'no state of the optimizer.*load_from'),
    (lambda c: c.update(optimizer={}), 'no state of the optimizer'),
    (lambda c: c.update(optimizer='x'), 'no state of the optimizer'),
    (lambda c: c['meta'].update(iter=-5), 'the iter -5'),
    (lambda c: c['meta'].update(iter=float('nan')), 'the iter nan'),
    (lambda c: c['meta'].update(epoch='2'), "the epoch '2'"),
    (lambda c: c['meta'].pop('epoch'), 'the epoch None'),
    (lambda c: c['meta'].update(seed='x'), "the seed 'x'"),
    (lambda c: c.pop('message_hub'), 'no records'),
    (lambda c: c.update(message_hub=dict(runtime_info=3)), 'no records'),
    (lambda c: c.update(param_schedulers=3), 'schedules'),
    (lambda c: c.pop('meta'), 'weights alone'),
    (lambda c: c.pop('state_dict'), 'weights alone'),
])
def test_no_state_to_go_on_from(trained, change, words):
    """Refused where it is named, passed over where it is found."""
    good = torch.load(trained, weights_only=False)
    assert not_resumable(good) is None
    assert checkpoints.unreadable(str(trained)) is None
    edit(trained, change)
    reason = checkpoints.unreadable(str(trained))
    with pytest.raises(ValueError, match=words):
        raise ValueError(reason)
    cfg = checkpoints.Config(dict(work_dir=str(trained.parent), default_hooks=dict(
        checkpoint=dict(by_epoch=False))))
    path, notes = checkpoints.find_resumable(cfg)
    assert os.path.basename(path) == 'iter_1.pth'
    assert reason in notes[0]


@pytest.mark.parametrize('content', [b'\0' * 40, b'\xff\xfe\x00a', b'/nowhere/iter_9.pth', b'x\ny'])
def test_a_pointer_that_names_nothing(trained, content):
    (trained.parent / 'last_checkpoint').write_bytes(content)
    cfg = checkpoints.Config(dict(work_dir=str(trained.parent), default_hooks=dict(
        checkpoint=dict(by_epoch=False))))
    path, notes = checkpoints.find_resumable(cfg)
    assert os.path.basename(path) == 'iter_2.pth'
    assert 'last_checkpoint' in notes[0]


def test_pipes_are_not_read(trained):
    """Reading one waits for ever."""
    os.mkfifo(trained.parent / 'iter_7.pth')
    os.remove(trained.parent / 'last_checkpoint')
    os.mkfifo(trained.parent / 'last_checkpoint')
    cfg = checkpoints.Config(dict(work_dir=str(trained.parent), default_hooks=dict(
        checkpoint=dict(by_epoch=False))))
    assert os.path.basename(checkpoints.find_resumable(cfg)[0]) == 'iter_2.pth'
    with pytest.raises(FileNotFoundError, match='CHECKPOINT: .* no ordinary file'):
        paths.check_file(str(trained.parent / 'iter_7.pth'), 'CHECKPOINT', '')
    with pytest.raises(FileNotFoundError, match='CHECKPOINT: .* a folder'):
        paths.check_file(str(trained.parent), 'CHECKPOINT', '')


def test_where_a_run_cannot_write(tmp_path, monkeypatch):
    paths.check_writable(str(tmp_path / 'new' / 'run'), '--work-dir')
    assert not (tmp_path / 'new').exists()
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(NotADirectoryError, match='--work-dir: .* is a file'):
            paths.check_writable(str(path), '--work-dir')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match='--work-dir: .* cannot be written to'):
        paths.check_writable(str(tmp_path / 'run'), '--work-dir')


@pytest.mark.parametrize('name', ['../README', '../../x', '/etc/passwd', '..\\x', 'a/b', 'x\0', '',
                                  '_base_/../x', '..', '.'])
def test_names_of_packaged_configs_are_names(name):
    with pytest.raises(FileNotFoundError, match='mmreplk has no config'):
        config_scope.resolve(f'mmreplk::{name}')


def test_shared_pieces_have_names_too():
    assert config_scope.resolve('mmreplk::_base_/default_runtime').endswith('default_runtime.py')
