"""Which checkpoints a run may remove: those in its own folder, under the names that it gives.

MMEngine keeps the paths of what it will remove in the message hub, which a checkpoint carries on
into whatever run goes on from it.
"""

import os.path as osp
import re
from collections.abc import MutableMapping
from numbers import Integral

from ..paths import is_remote

REMEDY = 'Make room there, or name another folder, and resume the run'


def checkpoint_folder(work_dir: str, out_dir: str | None) -> str:
    """The folder to which ``CheckpointHook`` writes.

    Args:
        work_dir (str): The work dir of the run.
        out_dir (str, optional): The hook's ``out_dir``: a folder of the same name there.

    Returns:
        str: The folder.
    """
    if not out_dir or out_dir == work_dir:
        return work_dir
    return osp.join(out_dir, osp.basename(osp.normpath(work_dir)))


def number_pattern(template: str) -> str:
    """The regular expression of a ``filename_tmpl``; its only group is the number.

    Args:
        template (str): Such as ``iter_{}.pth`` or ``iter_{:06d}.pth``.
    """
    start, *end = re.split(r'\{[^{}]*\}', template, maxsplit=1)
    return f'{re.escape(start)}([0-9]+){re.escape("".join(end))}'


def lies_in(path, folder: str) -> bool:
    """Say whether a path is an entry of a folder, links and ``..`` resolved.

    Args:
        path (str): A path, whatever it is; a link itself is no file of a run.
        folder (str): A folder or an address.
    """
    if not isinstance(path, str) or '\0' in path or osp.basename(path) in ('', '.', '..'):
        return False
    head, folder = osp.dirname(path), str(folder)
    if is_remote(folder) or is_remote(path):
        return head.rstrip('/') == folder.rstrip('/')
    return osp.realpath(head or '.') == osp.realpath(folder) and not osp.islink(path)


def forget_others(info: MutableMapping, folder: str, template: str, start: str,
                  folders: bool = False) -> list[str]:
    """Take out of resumed runtime information what would have files of others removed.

    Args:
        info (MutableMapping): ``message_hub.runtime_info``, changed in place.
        folder (str): Where this run writes its checkpoints.
        template (str): Their names, with ``{}`` for the number.
        start (str): The checkpoint that the run goes on from. One of another folder is of another
            run, and so is what it names.
        folders (bool): Whether checkpoints may be folders, as DeepSpeed's. Defaults to False.

    Returns:
        list[str]: Lines to log about files that stay.
    """
    def removable(path):
        return lies_in(path, folder) and (folders or not osp.isdir(path))

    notes = []
    same_run = lies_in(osp.realpath(start) if not is_remote(start) else start, folder)
    ids = info.get('keep_ckpt_ids')
    if ids is not None:
        good = same_run and isinstance(ids, (list, tuple))
        info['keep_ckpt_ids'] = [
            int(number) for number in (ids if good else ())
            if isinstance(number, Integral) and 0 <= number < 2**63
            and removable(osp.join(folder, template.format(number)))]
    name = re.compile(rf'best_[^/\\\0]+_{number_pattern(template)}')
    for key in [key for key in info if str(key).startswith('best_ckpt')]:
        path = info.pop(key)
        if path is None:
            continue
        # By its name: the folder may have been moved, or copied from that of another run.
        base = osp.basename(path) if isinstance(path, str) else ''
        own = osp.join(folder, base)
        if same_run and name.fullmatch(base) and removable(own):
            info[key] = own
        else:
            notes.append(f'resume: the best checkpoint {path!r} is not of this work dir, and '
                         'stays when there is a better one.')
    return notes
