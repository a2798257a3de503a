"""A run removes checkpoints of its own alone, whatever the one that it goes on from names."""

import os
from types import SimpleNamespace

import pytest
from mmengine.logging import HistoryBuffer, MessageHub

from mmreplk.training import checkpoint_hook as checkpoints
from mmreplk.training.own_files import lies_in, number_pattern


class Training:
    """A resumed run in ``tmp_path/run``, with all of it but MMEngine's hook left out."""

    def __init__(self, tmp_path, start='run/iter_4.pth', max_keep_ckpts=2, **info):
        self.folder, (self.work_dir, self.iter, self.epoch) = tmp_path, (
            str(tmp_path / 'run'), 4, 0)
        self._resume, self._load_from = True, str(tmp_path / start)
        self.train_loop, self.val_loop, self.lines = None, None, []
        self.logger = SimpleNamespace(info=self.lines.append, warning=self.lines.append)
        self.message_hub = MessageHub(f'{tmp_path}', runtime_info={'best_score': 0.1, **info})
        os.makedirs(self.work_dir, exist_ok=True)
        self.hook = checkpoints.SafeCheckpointHook(
            by_epoch=False, interval=1, max_keep_ckpts=max_keep_ckpts, save_best='mIoU',
            rule='greater', published_keys=['state_dict'])

    def save_checkpoint(self, folder, filename, *args, **kwargs):
        with open(os.path.join(folder, filename), 'w') as file:
            file.write('new')

    def train(self):
        """Two more iterations, with a new best each."""
        self.hook.before_train(self)
        for number in (4, 5):
            self.iter = number
            self.hook._save_checkpoint(self)
            self.iter = number + 1
            self.hook.after_val_epoch(self, dict(mIoU=number))
        return {name for name in os.listdir(self.work_dir) if name.endswith('.pth')}


def make(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('old')


NEW = {'iter_5.pth', 'iter_6.pth', 'best_mIoU_iter_6.pth'}


def test_its_own_are_removed(tmp_path):
    make(tmp_path, 'run/iter_3.pth', 'run/iter_4.pth', 'run/best_mIoU_iter_4.pth')
    run = Training(tmp_path, keep_ckpt_ids=[3, 4],
                   best_ckpt=str(tmp_path / 'run/best_mIoU_iter_4.pth'))
    assert run.train() == NEW
    assert not any('--resume' in line for line in run.lines)


def test_a_moved_run(tmp_path):
    """The best of the folder it was copied from stays, the copy goes."""
    make(tmp_path, 'run/iter_4.pth', 'run/best_mIoU_iter_4.pth', 'old/best_mIoU_iter_4.pth')
    run = Training(tmp_path, best_ckpt=str(tmp_path / 'old/best_mIoU_iter_4.pth'))
    assert run.train() == NEW | {'iter_4.pth'}
    assert (tmp_path / 'old/best_mIoU_iter_4.pth').exists()


def test_another_run(tmp_path):
    """One that goes on from run A in a folder of its own, where a third had been before."""
    a = ('a/iter_3.pth', 'a/iter_4.pth', 'a/best_mIoU_iter_4.pth')
    make(tmp_path, *a, 'run/iter_3.pth', 'run/best_mIoU_iter_4.pth')
    run = Training(tmp_path, 'a/iter_4.pth', keep_ckpt_ids=[3, 4],
                   best_ckpt=str(tmp_path / a[2]))
    assert run.train() == NEW | {'iter_3.pth', 'best_mIoU_iter_4.pth'}
    assert {(tmp_path / name).read_text() for name in a} == {'old'}
    assert f'{str(tmp_path / a[2])!r} is not of this work dir' in ''.join(run.lines)


@pytest.mark.parametrize('path', [
    '{0}/out/file', '{0}/out', '{0}/run/../out', '{0}/run/link/file', '{0}/run/link', '../out',
    '{0}/run/notes.txt', '{0}/run', '{0}/run/.', '{0}/run/folder', '{0}/run/iter_4.pth', '/', '',
    '{0}/run/best_mIoU_iter_9.pth', '{0}/out/best_mIoU_iter_1.pth', 's3://bucket/best_a_iter_1.pth',
    '{0}/run/best_x\0_iter_1.pth', b'bytes', 7, ['{0}/out'], '{0}/run/link/best_mIoU_iter_1.pth',
    '{0}/run/best_mIoU_iter_8.pth'])
def test_nothing_else(tmp_path, path):
    make(tmp_path, 'out/file', 'out/best_mIoU_iter_1.pth', 'run/notes.txt', 'run/folder/x',
         'run/iter_4.pth', 'run/best_mIoU_iter_9.pth/x')
    (tmp_path / 'run/link').symlink_to(tmp_path / 'out')
    (tmp_path / 'run/best_mIoU_iter_8.pth').symlink_to(tmp_path / 'out/file')
    before = set(tmp_path.rglob('*'))
    path = path.format(tmp_path) if isinstance(path, str) else path
    Training(tmp_path, best_ckpt=path).train()
    assert before <= set(tmp_path.rglob('*'))
    assert (tmp_path / 'out/file').read_text() == 'old'


@pytest.mark.parametrize('ids', [
    ['../../out/x', 1, 2, 3], 'abc', 7, [-1, 0.5, None, True, 10**30, '1'], {'a': 1}, [b'x'],
    HistoryBuffer()])
def test_numbers_that_are_none(tmp_path, ids):
    make(tmp_path, 'out/x.pth', 'run/iter_4.pth', 'run/iter_-1.pth')
    before = set(tmp_path.rglob('*'))
    Training(tmp_path, keep_ckpt_ids=ids, max_keep_ckpts=9).train()
    assert before <= set(tmp_path.rglob('*'))


def test_fewer_are_kept_than_before(tmp_path):
    """MMEngine removes the surplus at once; what is no checkpoint of the run stays."""
    make(tmp_path, *(f'run/iter_{number}.pth' for number in (1, 3, 4)), 'run/iter_2.pth/x')
    run = Training(tmp_path, keep_ckpt_ids=[1, 2, 3, 4], max_keep_ckpts=1)
    assert run.train() == {'iter_2.pth', 'iter_6.pth', 'best_mIoU_iter_6.pth'}


def test_publishing_writes_beside_its_own(tmp_path, monkeypatch):
    published = []
    monkeypatch.setattr(checkpoints.CheckpointHook, '_publish_model',
                        lambda self, runner, path: published.append(path))
    make(tmp_path, 'a/iter_4.pth')
    run = Training(tmp_path, 'a/iter_4.pth', best_ckpt=str(tmp_path / 'a/best_mIoU_iter_4.pth'))
    run.hook.before_train(run)
    run.hook.last_ckpt = run._load_from
    run.hook.after_train(run)
    assert published == []
    run.train()
    run.hook.after_train(run)
    assert {os.path.basename(path) for path in published} == {'iter_6.pth', 'best_mIoU_iter_6.pth'}


def test_names_and_folders(tmp_path):
    assert number_pattern('iter_{:06d}.pth') == r'iter_([0-9]+)\.pth'
    assert lies_in('s3://b/run/a.pth', 's3://b/run/')
    assert not lies_in('s3://b/run/../a.pth', 's3://b/run')
    assert not lies_in('s3://b/a.pth', str(tmp_path))
