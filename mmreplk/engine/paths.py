"""Paths that a user names: an address or a file, and whether it is there."""

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
    if not is_remote(path) and not osp.isfile(osp.expanduser(path)):
        raise FileNotFoundError(f'{argument}: no such file {path!r}. {remedy}')
