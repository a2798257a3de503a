"""Atomic writes: a file appears whole or not at all, whatever happens to process and disk.

:func:`write_whole` replaces a file of that name, :func:`write_new` refuses to.
"""

import os
import os.path as osp
import tempfile
from collections.abc import Callable
from typing import BinaryIO

DRAFT = '.{}.writing'  # hidden, and of no name that a tool takes for a checkpoint


def write_whole(path: str, write: Callable[[str], None],
                remedy: str = 'Make room there, or name another folder') -> None:
    """Replace a file at once: whoever looks sees the old one or the whole new one.

    Args:
        path (str): The file.
        write (Callable[[str], None]): Writes to the path that it is given, in the same folder.
        remedy (str): What to do if it cannot be written; ends the message.

    Raises:
        OSError: If it cannot be written, the disk being full for one. Names the file; an older one
            of this name is still there.
    """
    folder, name = osp.split(osp.abspath(path))
    draft = osp.join(folder, DRAFT.format(name))
    try:
        os.makedirs(folder, exist_ok=True)
        write(draft)
        _to_disk(draft)
        os.replace(draft, path)
        _to_disk(folder)
    except OSError as error:
        if osp.exists(draft):
            os.remove(draft)
        raise OSError(
            error.errno, f'{error.strerror or error}: {path!r} could not be written, and nothing '
            f'was changed: what was saved before is still valid. {remedy}') from error


def write_stream(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """:func:`write_whole` with a file that is open for writing in place of a path.

    Args:
        path (str | PathLike): The file.
        write (Callable[[BinaryIO], object]): Writes to the file that it is given.

    Raises:
        OSError: As there.
    """

    def write_draft(draft):
        with open(draft, 'wb') as file:
            write(file)

    write_whole(str(path), write_draft)


def write_new(path: str, write: Callable[[str], bool | None]) -> bool:
    """Write a file that must not exist yet; it appears whole or not at all.

    Args:
        path (str): The file.
        write (Callable[[str], bool | None]): Writes to the path that it is given; False if it has
            found that the file must not be.

    Returns:
        bool: Whether the file is there now.

    Raises:
        FileExistsError: If the file exists by then.
    """
    folder = osp.dirname(osp.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as inside:
        draft = osp.join(inside, osp.basename(path))
        if write(draft) is False:
            return False
        try:
            os.link(draft, path)  # unlike a renaming, refuses to replace a file
        except FileExistsError:
            raise FileExistsError(f'{path!r} exists; it is left as it is') from None
        except OSError:  # a file system without links
            if osp.exists(path):
                raise FileExistsError(f'{path!r} exists; it is left as it is') from None
            os.rename(draft, path)
    return True


def _to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
