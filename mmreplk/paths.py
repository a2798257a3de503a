"""Paths that a user names: an address or a file, and whether it is there."""

import os
import os.path as osp
import re
import stat
import tempfile


def is_remote(path: str) -> bool:
    """Say whether a path is an address or names a storage backend, and so cannot be looked up."""
    # Two characters at least before the colon: `C:` is a drive.
    return '://' in path or re.match(r'[A-Za-z0-9+.-]{2,}:', path) is not None


def kind_of(path: str) -> str | None:
    """What a path leads to, links followed: such as 'file', 'folder', 'pipe'; None if nothing.

    Args:
        path (str): The path.
    """
    try:
        mode = os.stat(osp.expanduser(path)).st_mode
    except (OSError, ValueError):
        return None
    kinds = {stat.S_ISREG: 'file', stat.S_ISDIR: 'folder', stat.S_ISFIFO: 'pipe',
             stat.S_ISSOCK: 'socket'}
    return next((name for test, name in kinds.items() if test(mode)), 'device')


def check_file(path: str, argument: str, remedy: str) -> None:
    """Check that a file exists, unless it is an address.

    Args:
        path (str): The path or address.
        argument (str): What the user calls it.
        remedy (str): What to do about it.

    Raises:
        FileNotFoundError: If a local file is missing.
        OSError: If it is no file but a folder, a pipe or a device, which would never end.
    """
    kind = kind_of(path)
    if is_remote(path) or kind == 'file':
        return
    if kind is None:
        raise FileNotFoundError(f'{argument}: no such file {path!r}. {remedy}')
    raise OSError(f'{argument}: {path!r} is no file but a {kind}. {remedy}')


def make_folder(path: str, argument: str) -> None:
    """Make a folder, unless it is there, and check that files can be written to it.

    Args:
        path (str): The folder, or an address, which is left alone.
        argument (str): What the user calls it.

    Raises:
        OSError: If that is impossible; nothing is left of the attempt.
    """
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise OSError(f'{argument}: {path!r} is no folder that can be written to ({reason}). Name '
                      'another one.') from error
