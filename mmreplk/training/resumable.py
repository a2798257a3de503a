"""Which checkpoint a run goes on from: the last of its work dir that can be used."""

import os
import os.path as osp
import re
import zipfile

from mmengine.config import Config

from ..paths import is_remote, kind_of
from ..weights.safe_load import UnsafeFileError, read_any
from .own_files import checkpoint_folder, lies_in, number_pattern
from .resume_state import check_resumable

POINTER = 'last_checkpoint'
LONGEST = 65536  # bytes of a pointer; no path is longer


def resume_restarted(cfg: Config) -> None:
    """Go on from the last checkpoint of the work dir, if there is one, asked to or not.

    For processes that torchrun has started again: the first start did not resume, or from a file
    that is older by now.

    Args:
        cfg (Config): The full config, changed in place.
    """
    if _pointed_to(cfg)[0] or _numbered(cfg):
        cfg.resume, cfg.load_from = True, None


def find_resumable(cfg: Config) -> tuple[str | None, list[str]]:
    """Find the checkpoint that a run resumes from: the last that can be used.

    MMEngine follows ``last_checkpoint`` and nothing else.

    Args:
        cfg (Config): The full config, with ``work_dir``.

    Returns:
        tuple[str | None, list[str]]: The file, None if the folder has no checkpoint; and a line for
        each that was passed over.

    Raises:
        FileNotFoundError: If ``last_checkpoint`` is of no use, and there is no checkpoint.
        ValueError: If there are checkpoints, and none can be used.
        UnsafeFileError: If the last one needs more than weights to be read.
    """
    named, notes = _pointed_to(cfg)
    files = _numbered(cfg)
    if named and (is_remote(named) or is_sharded_checkpoint(cfg, named)):
        return named, []
    if named:
        files = [named, *(path for path in files if not _same(path, named))]
    for path in files:
        reason = _unusable(path)
        if reason is None:
            if notes:
                notes.append(f'resume: goes on from {path!r} instead.')
            return path, notes
        notes.append(f'resume: the checkpoint {path!r} {reason}.')
    if notes and not files:
        raise FileNotFoundError(
            f'{notes[0]} There is no other checkpoint. Name one by load_from=FILE and resume=True, '
            'or remove that file to start anew.')
    if notes:
        raise ValueError('\n'.join(notes) + '\nresume: none of them can be used. Name another '
                         'one by load_from=FILE, or remove them to start anew.')
    return None, ['resume: no checkpoint in the work dir, so the run starts at its beginning.']


def is_sharded_checkpoint(cfg: Config, path: str) -> bool:
    """Whether a checkpoint is a folder with files of every process, as of DeepSpeed.

    Args:
        cfg (Config): The full config; other runners than ``FlexibleRunner`` know none.
        path (str): The checkpoint.
    """
    return osp.isdir(path) and 'FlexibleRunner' in str(cfg.get('runner_type'))


def use_seed_of(cfg: Config, path: str) -> str | None:
    """Go on with the seed of a checkpoint, so that the order of the samples does too.

    MMEngine takes the seed over as well, but after the samplers have been built with another.

    Args:
        cfg (Config): The full config, changed in place.
        path (str): The checkpoint, a local file.

    Returns:
        str | None: A line to log if the config asks for another seed.
    """
    seed = (read_any(path).get('meta') or {}).get('seed')
    randomness = dict(cfg.get('randomness') or {})
    wanted = randomness.get('seed')
    if seed is None or seed == wanted:
        return None
    cfg.randomness = dict(randomness, seed=seed)
    return wanted and (f'resume: goes on with the seed {seed} of the checkpoint, not with '
                       f'randomness.seed={wanted} of the config.')


def _pointed_to(cfg: Config) -> tuple[str | None, list[str]]:
    """What ``last_checkpoint`` names, None if it is no use; and a line on why it is not.

    The run writes its checkpoints to one folder, so one elsewhere is of another run.
    """
    pointer = osp.join(cfg.work_dir, POINTER)
    if not osp.isfile(pointer):
        return None, []
    with open(pointer, 'rb') as file:
        content = file.read(LONGEST)
    try:
        named = content.decode().strip()
    except UnicodeDecodeError:
        named = '\0'
    if not named:  # the run was killed, or the disk full, then
        return None, []
    if not named.isprintable():
        return None, [f'resume: {pointer!r} is damaged (it is no text), so it is passed over.']
    folder = _folder(cfg)
    if lies_in(named, folder) and (is_remote(named) or kind_of(named) in ('file', 'folder')):
        return named, []
    here = osp.join(folder, osp.basename(named))
    if not is_remote(folder) and osp.isfile(here) and lies_in(here, folder):
        if not is_remote(named) and not osp.lexists(named):  # the folder was moved
            return here, []
    else:
        here = None
    where = 'is not in the folder of this run' if is_remote(named) or osp.exists(
        named) else 'is gone: no such file'
    return here, [f'resume: {pointer!r} names {named!r}, which {where}, so it is passed over.']


def _folder(cfg: Config) -> str:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return checkpoint_folder(cfg.work_dir, hook.get('out_dir'))


def _numbered(cfg: Config) -> list[str]:
    """The checkpoints of a run, the newest first; not the best ones, which have no state."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = _folder(cfg)
    if is_remote(folder) or not osp.isdir(folder):
        return []
    pattern = re.compile(number_pattern(hook.get('filename_tmpl') or '{}_{{}}.pth'.format(
        'epoch' if hook.get('by_epoch', True) else 'iter')))
    found = [(int(match[1]), name) for name in os.listdir(folder)
             if (match := pattern.fullmatch(name))]
    return [osp.join(folder, name) for _, name in sorted(found, reverse=True)]


def _same(first: str, second: str) -> bool:
    return osp.realpath(first) == osp.realpath(second)


def _unusable(path: str) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can. Every byte is looked at."""
    if kind_of(path) != 'file':  # to read from some would wait for ever
        return f'is no file but a {kind_of(path)}'
    try:
        check_resumable(read_any(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged:
                return f'is damaged (checksum of {damaged})'
    except UnsafeFileError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, RuntimeError) as error:
        return str(error)
    return None
