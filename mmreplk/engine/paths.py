"""Paths that a user names: an address or a file, and whether it is there."""

import os
import os.path as osp
import re


def is_remote(path: str) -> bool:
    """Say whether a path is an address or names a storage backend, and so cannot be looked up."""
    # Two characters at least before the colon: `C:` is a drive.
    return '://' in path or re.match(r'[A-Za-z0-9+.-]{2,}:', path) is not None


def check_file(path: str, argument: str, remedy: str) -> None:
    """Check that a file exists, unless it is an address.

    Args:
        path (str): The path or address.
        argument (str): What the user calls it.
        remedy (str): What to do about it.

    Raises:
        FileNotFoundError: If a local file is missing.
    """
    if is_remote(path):
        return
    file = osp.expanduser(path)
    # A pipe would be waited for, without end.
    if '\0' in file or (osp.exists(file) and not osp.isfile(file)):
        kind = 'a folder' if osp.isdir(file) else 'no ordinary file'
        raise FileNotFoundError(f'{argument}: {path!r} is {kind}. {remedy}')
    if not osp.isfile(file):
        raise FileNotFoundError(f'{argument}: no such file {path!r}. {remedy}')


def check_writable(folder: str, argument: str) -> None:
    """Check that a folder can be made, or written to, without touching it.

    Args:
        folder (str): The folder, which need not exist.
        argument (str): What the user calls it.

    Raises:
        NotADirectoryError: If there is a file in its way.
        PermissionError: If it, or the folder in which it is to be made, cannot be written to.
    """
    there = osp.abspath(osp.expanduser(folder))
    while not osp.lexists(there):
        there = osp.dirname(there)
    if not osp.isdir(there):
        raise NotADirectoryError(f'{argument}: {there!r} is a file, not a folder. Name another '
                                 'folder.')
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f'{argument}: {there!r} cannot be written to. Name another '
                              'folder, or change its permissions.')
