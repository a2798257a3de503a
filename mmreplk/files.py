"""Files that are replaced whole or not at all, also when the process is killed or the disk full."""

import os
import os.path as osp
from collections.abc import Callable

DRAFT = '.{}.writing'  # hidden, and of no name that a tool takes for a checkpoint


def write_whole(path: str, write: Callable[[str], None]) -> None:
    """Replace a file at once: whoever looks sees the old one or the whole new one.

    Args:
        path (str): The file.
        write (Callable[[str], None]): Writes to the path that it is given, in the same folder.

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
            'was changed: what was saved before is still valid. Make room there, or name another '
            'folder, and go on with --resume') from error


def _to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
