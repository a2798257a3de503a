"""One training run in a work dir at a time: a lock that ends with the process that holds it.

It is a POSIX record lock (``fcntl.lockf``) on a file in the folder. The kernel lets go of it when
the process ends, however it ends, so a killed run leaves a file behind but no lock. Data workers do
not have it: a fork inherits no such lock. On shared disks it holds between machines where the file
system passes locks on, as NFS from version 4 and most parallel file systems do; one that refuses is
noticed, one that keeps locks to each machine (such as NFS with ``local_lock``, Lustre with
``localflock``) is not.
"""

import errno
import os
import os.path as osp
import socket
import time
from contextlib import suppress

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ..paths import is_remote
from ..registry import HOOKS, register
from .internals import built_loops

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None

NAME = '.mmreplk.lock'
LONGEST = 200
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS, errno.EACCES}
_held = {}  # (process, folder) to the open file


def lock_work_dir(folder: str) -> str | None:
    """Take the lock of a work dir for this process; nothing happens if it has it.

    Args:
        folder (str): The folder; it exists.

    Returns:
        str | None: A line to log where there can be no lock.

    Raises:
        FileExistsError: If a process of another run has it. Names the process.
    """
    key = _key(folder)
    if key in _held or is_remote(folder):
        return None
    path = osp.join(folder, NAME)
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, 'no fcntl')
        _held[key] = _locked(path)
    except BlockingIOError as error:
        raise FileExistsError(
            f'work_dir: {folder!r} is in use by another run ({error.strerror}). Wait for its '
            'end, or name another work_dir.') from None
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return (f'{folder!r} cannot be locked ({error.strerror}): a second run in it would not '
                    'be noticed.')
        raise OSError(f'work_dir: {path!r} cannot be opened ({error.strerror}). Remove it by '
                      'hand, if no other run uses the folder.') from error
    return None


def unlock_work_dir(folder: str) -> None:
    """Let go of the lock, if this process has it, and remove its file.

    Args:
        folder (str): The folder.
    """
    file = _held.pop(_key(folder), None)
    if file is not None:
        with suppress(OSError):  # somebody may have removed the folder
            os.remove(osp.join(folder, NAME))
        file.close()


def _key(folder: str) -> tuple[int, str]:
    return os.getpid(), osp.realpath(folder)


def _locked(path: str):
    """The lock's file, open and locked; of somebody else a BlockingIOError that says whose."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        file = os.fdopen(number, 'r+b', buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking its owner may have removed it.
            if osp.exists(path) and osp.samestat(os.fstat(number), os.stat(path)):
                file.truncate()
                file.write(f'process {os.getpid()} on {socket.gethostname()}, since '
                           f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n'.encode())
                return file
        except OSError as error:
            owner = file.read(LONGEST).decode(errors='replace').strip()
            file.close()
            # Both mean so, by POSIX.
            if error.errno in (errno.EAGAIN, errno.EACCES):
                owner = owner if owner.isprintable() and owner else 'unknown'
                raise BlockingIOError(errno.EAGAIN, owner) from None
            raise
        file.close()


@register(HOOKS)
class WorkDirLockHook(Hook):
    """Refuse to train in a work dir in which another run trains.

    Process 0 has the lock, and all processes end with its message. Runs that only test take none.
    Our ``train.py`` takes the same lock before it writes anything; with the mm packages' tools, log
    and config are written by the time that a hook is called.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Take the lock.

        Args:
            runner (Runner): The runner.

        Raises:
            FileExistsError: If another run has it.
        """
        if 'train' not in built_loops(runner):
            return
        result = [None]
        if is_main_process():
            try:
                if note := lock_work_dir(runner.work_dir):
                    print_log(note, logger='current')
            except OSError as error:
                result = [error]
        broadcast_object_list(result)
        if result[0] is not None:
            raise result[0]

    def after_run(self, runner) -> None:
        """Let go of the lock.

        Args:
            runner (Runner): The runner.
        """
        unlock_work_dir(runner.work_dir)
