"""One training run in a work dir: who is refused, and what a killed run leaves behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mmreplk.training import work_dir_lock
from mmreplk.training.work_dir_lock import (
    NAME,
    WorkDirLockHook,
    lock_work_dir,
    unlock_work_dir,
)

# Says so when it has the lock, then waits to be told to go on; a child of it sleeps beside it.
HOLDER = '''
import os, sys, time
from mmreplk.training.work_dir_lock import lock_work_dir, unlock_work_dir
lock_work_dir('run')
child = os.fork()
if not child:
    sys.stdout.close()
    time.sleep(120)
    os._exit(0)
print(os.getpid(), child, flush=True)
sys.stdin.read()
unlock_work_dir('run')
os.kill(child, 9)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    yield tmp_path / 'run'
    unlock_work_dir('run')


@pytest.fixture
def holder(folder):
    """Another process that has the lock, and the ids of it and of a child that it forked."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen([sys.executable, '-c', HOLDER], stdin=subprocess.PIPE, text=True,
                               stdout=subprocess.PIPE, env=environment, cwd=folder.parent)
    owner, child = map(int, process.stdout.readline().split())
    yield SimpleNamespace(process=process, owner=owner, child=child)
    process.kill()
    process.wait()
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_the_second_is_refused_and_told_whom_to_wait_for(holder):
    with pytest.raises(FileExistsError, match=f"'run' is in use.*process {holder.owner} on"):
        lock_work_dir('run')
    holder.process.communicate('')
    assert not os.path.exists(f'run/{NAME}')
    assert lock_work_dir('run') is None
    assert lock_work_dir('run') is None  # it is ours


def test_a_killed_run_leaves_no_lock(holder):
    """Though a process that it forked, as data workers are, lives on."""
    holder.process.kill()
    holder.process.wait()
    os.kill(holder.child, 0)
    assert os.path.exists(f'run/{NAME}')
    lock_work_dir('run')
    with open(f'run/{NAME}') as file:
        assert file.read().startswith(f'process {os.getpid()} on ')


def test_a_lock_whose_file_is_removed_meanwhile(folder, monkeypatch):
    """The owner removes the file between our opening and our locking it."""
    lockf, calls = work_dir_lock.fcntl.lockf, []

    def late(file, flags):
        if not calls:
            os.remove(f'run/{NAME}')
        calls.append(flags)
        lockf(file, flags)

    monkeypatch.setattr(work_dir_lock.fcntl, 'lockf', late)
    lock_work_dir('run')
    assert len(calls) == 2
    assert os.path.exists(f'run/{NAME}')


def test_disks_without_locks(folder, monkeypatch):

    def none(file, flags):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(work_dir_lock.fcntl, 'lockf', none)
    assert 'cannot be locked (No locks available)' in lock_work_dir('run')
    monkeypatch.setattr(work_dir_lock, 'fcntl', None)
    assert 'cannot be locked' in lock_work_dir('run')
    assert lock_work_dir('s3://bucket/run') is None


def test_a_link_is_not_followed(folder, tmp_path):
    (tmp_path / 'other').write_text('precious')
    (folder / NAME).symlink_to(tmp_path / 'other')
    with pytest.raises(OSError, match='cannot be opened'):
        lock_work_dir('run')
    assert (tmp_path / 'other').read_text() == 'precious'


def test_the_hook(holder):
    hook, loop = WorkDirLockHook(), SimpleNamespace(dataloader=None)
    trains = SimpleNamespace(_train_loop=loop, work_dir='run')
    with pytest.raises(FileExistsError, match='is in use'):
        hook.before_run(trains)
    hook.before_run(SimpleNamespace(_test_loop=loop, work_dir='run'))
    holder.process.communicate('')
    hook.before_run(trains)
    assert os.path.exists(f'run/{NAME}')
    hook.after_run(trains)
    assert not os.path.exists(f'run/{NAME}')


def test_two_at_once(folder):
    """Of many that begin together exactly one trains."""
    code = ('import time\nfrom mmreplk.training.work_dir_lock import lock_work_dir\n'
            'while time.time() < {0}: pass\nlock_work_dir("run"); print("mine"); time.sleep(2)')
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    start = time.time() + 12
    runs = [subprocess.Popen([sys.executable, '-c', code.format(start)], text=True, env=environment,
                             cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)]
    ends = [run.communicate() for run in runs]
    assert sorted(out for out, _ in ends) == ['', 'mine\n'], ends
    assert sum('is in use by another run' in error for _, error in ends) == 1
