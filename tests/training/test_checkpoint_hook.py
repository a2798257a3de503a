"""Checkpoints that are written whole or not at all, and found again after a crash."""

import errno
import os

import pytest
import torch
from mmengine.config import Config

from mmreplk import files as whole_files
from mmreplk.training import checkpoint_hook as checkpoints
from mmreplk.training.resumable import find_resumable, use_seed_of
from mmreplk.weights.safe_load import UnsafeFileError


class Run:
    """A work dir with checkpoints."""

    def __init__(self, folder, state):
        self.folder, self.state = folder, state
        self.cfg = Config(dict(work_dir=str(folder), default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False))))
        folder.mkdir()

    def save(self, name, pointer=True, **meta):
        path = self.folder / name
        meta = dict(epoch=0, iter=1) | meta
        torch.save(dict(self.state, meta=meta, state_dict={'w': torch.rand(5000)}), path)
        if pointer:
            (self.folder / 'last_checkpoint').write_text(str(path))
        return path

    def find(self):
        path, notes = find_resumable(self.cfg)
        return path and os.path.basename(path), notes


@pytest.fixture
def run(tmp_path, run_state):
    return Run(tmp_path / 'run', run_state)


def test_the_pointer_is_followed(run):
    run.save('iter_10.pth', pointer=False)
    run.save('iter_9.pth')
    assert run.find() == ('iter_9.pth', [])


@pytest.mark.parametrize('part', [0, 0.3, 0.9, 0.999])
def test_truncated(run, part):
    """The newest is named in a line, and the one before is used: by number, 10 after 9."""
    for number in (2, 9, 10):
        last = run.save(f'iter_{number}.pth')
    os.truncate(last, int(part * last.stat().st_size))
    path, (what, instead) = run.find()
    assert path == 'iter_9.pth'
    assert f"resume: the checkpoint '{last}' is truncated" in what
    assert 'iter_9.pth' in instead


def test_damaged_inside(run):
    """A block of zeros, as after a power failure: torch reads it without a word."""
    run.save('iter_1.pth')
    last = run.save('iter_2.pth')
    content = bytearray(last.read_bytes())
    content[8192:8192 + 512] = bytes(512)
    last.write_bytes(content)
    torch.load(last, weights_only=True)
    path, notes = run.find()
    assert path == 'iter_1.pth'
    assert 'is damaged (checksum of' in notes[0]


@pytest.mark.parametrize('content', ['', ' \n'])
def test_empty_pointer(run, content):
    """Killed while the pointer was being written."""
    run.save('iter_2.pth')
    (run.folder / 'last_checkpoint').write_text(content)
    assert run.find() == ('iter_2.pth', [])


def test_no_pointer_yet(run):
    assert run.find()[0] is None
    assert 'starts at its beginning' in run.find()[1][0]
    run.save('best_mIoU_iter_2.pth', pointer=False)  # has no state of the optimizer
    (run.folder / '.iter_4.pth.writing').write_bytes(b'PK')
    assert run.find()[0] is None
    run.save('iter_2.pth', pointer=False)
    assert run.find() == ('iter_2.pth', [])


def test_none_can_be_read(run):
    for name in ('iter_1.pth', 'iter_2.pth'):
        run.save(name).write_bytes(b'')
    with pytest.raises(ValueError, match=r'iter_2(.|\n)*iter_1(.|\n)*remove them to start anew'):
        run.find()


def test_unsafe_is_not_passed_over(run):
    """A file that could run code is no damaged file: to go back silently would be wrong."""
    run.save('iter_1.pth')
    last = run.save('iter_2.pth')
    torch.save(dict(meta=dict(hook=print), state_dict={}), last)
    with pytest.raises(UnsafeFileError, match='print'):
        run.find()


def test_other_names_and_folders(run, tmp_path):
    other = tmp_path / 'store/run'
    other.mkdir(parents=True)
    run.save('epoch_3.pth', pointer=False).rename(other / 'e3.ckpt')
    run.cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', filename_tmpl='e{}.ckpt', out_dir=str(tmp_path / 'store'))
    assert run.find() == ('e3.ckpt', [])


def test_a_run_that_was_moved(run, tmp_path):
    run.save('iter_2.pth')
    run.folder.rename(tmp_path / 'moved')
    run.cfg.work_dir = str(tmp_path / 'moved')
    assert find_resumable(run.cfg) == (str(tmp_path / 'moved/iter_2.pth'), [])


def test_the_seed_of_the_checkpoint(run):
    path = str(run.save('iter_1.pth', seed=77))
    assert use_seed_of(run.cfg, path) is None
    assert run.cfg.randomness.seed == 77
    run.cfg.randomness = dict(seed=5, deterministic=True)
    assert 'seed 77 of the checkpoint, not with randomness.seed=5' in use_seed_of(run.cfg, path)
    assert run.cfg.randomness == dict(seed=77, deterministic=True)


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    """The new content is on the disk before the name points to it, and the name after it."""
    path, order = tmp_path / 'a.pth', []
    path.write_bytes(b'old')
    to_disk = whole_files._to_disk
    monkeypatch.setattr(whole_files, '_to_disk', lambda name: (
        order.append((os.path.basename(name), path.read_bytes())), to_disk(name)))
    checkpoints.WholeFileBackend().put(b'new', str(path))
    assert order == [('.a.pth.writing', b'old'), (tmp_path.name, b'new')]
    assert os.listdir(tmp_path) == ['a.pth']


def test_full_disk(tmp_path, monkeypatch):
    """The old file stays, nothing is left over, and the message names file and remedy."""
    path = tmp_path / 'a.pth'
    path.write_bytes(b'old')

    def full(name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_files, '_to_disk', full)
    with pytest.raises(OSError, match=r"No space left .*a\.pth' could not be written.*resume"):
        checkpoints.WholeFileBackend().put(b'new', str(path))
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.pth']


class Disk:
    """Takes the place of the file backend; notes what is removed while which files exist."""

    def __init__(self):
        self.removed = []

    def __getattr__(self, name):
        return getattr(checkpoints.LocalBackend(), name)

    def remove(self, path):
        folder = os.path.dirname(path)
        self.removed.append((os.path.basename(path), sorted(os.listdir(folder))))
        os.remove(path)


def test_old_ones_are_removed_last(run):
    """With one checkpoint to keep there is one at any moment, and the same for the best."""

    class Runner:
        class message_hub:
            runtime_info = {}
            get_info = runtime_info.get

            def update_info(key, value):
                Runner.message_hub.runtime_info[key] = value

        class logger:
            info = warning = staticmethod(lambda text: None)

        work_dir, epoch, iter, _resume = str(run.folder), 0, 0, False

        def save_checkpoint(self, folder, filename, *args, **kwargs):
            run.save(filename, pointer=False)

    runner = Runner()
    hook = checkpoints.SafeCheckpointHook(
        by_epoch=False, interval=1, max_keep_ckpts=1, save_best='mIoU', rule='greater')
    hook.before_train(runner)
    assert type(hook.file_backend) is checkpoints.WholeFileBackend
    assert hook.backend_args == dict(backend=checkpoints.BACKEND)
    hook.file_backend = disk = Disk()
    for number in range(2):
        runner.iter = number
        hook._save_checkpoint(runner)
        runner.iter = number + 1
        hook.after_val_epoch(runner, dict(mIoU=number))
    assert [name for name, _ in disk.removed] == ['iter_1.pth', 'best_mIoU_iter_1.pth']
    assert 'iter_2.pth' in disk.removed[0][1]
    assert 'best_mIoU_iter_2.pth' in disk.removed[1][1]
    # The same best again, as when a validation is repeated: it is not removed as the old one.
    hook.best_ckpt_path = str(run.folder / 'best_mIoU_iter_2.pth')
    hook.after_val_epoch(runner, dict(mIoU=7))
    assert {'iter_2.pth', 'best_mIoU_iter_2.pth'} == {
        name for name in os.listdir(run.folder) if name.endswith('.pth')}
