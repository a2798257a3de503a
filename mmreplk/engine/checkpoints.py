"""Checkpoints of a training run: written whole or not at all, and found again after a crash."""

import os
import os.path as osp
import re
import zipfile
from collections.abc import Callable
from glob import escape as glob_escape
from glob import glob

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..models.reading import UnsafeFileError, drop_code, read_any, read_checkpoint, trusted
from .paths import is_remote
from .resumable import not_resumable, own_files_alone
from .stand_ins import replace_default_hook
from .whole_files import DRAFT, write_whole

BACKEND = 'mmreplk_whole_files'
VALIDATED = 'validated_iter'  # in the message hub


@register_backend(BACKEND)
class WholeFileBackend(LocalBackend):
    """MMEngine's access to local files, but a file is never seen half-written."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes.

        Args:
            obj (bytes): The content.
            filepath (str): The file.
        """

        def write(draft):
            with open(draft, 'wb') as file:
                file.write(obj)

        write_whole(str(filepath), write)


class _RemovingLater:
    """A file backend that keeps in mind what to remove."""

    def __init__(self, backend):
        self._backend, self.removals = backend, []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self._backend.rmtree, path))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, for runs that may be killed at any moment.

    A checkpoint in a local folder appears whole or not at all, and older ones are removed after the
    new one is there, not before. A validation that a checkpoint knows nothing of, because the run
    was killed before or brought no new best, is made again when the run is resumed from it, so that
    no best checkpoint is missed. Nothing is removed but checkpoints in the folder of this run, and
    text in a resumed checkpoint is not executed. Arguments are those of ``CheckpointHook``.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep MMEngine from executing what stands in a checkpoint.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): The content of the file, changed in place.
        """
        drop_code(checkpoint)

    def before_train(self, runner) -> None:
        """Choose the backend, and remove what a killed run was writing.

        Args:
            runner (Runner): The runner.
        """
        self._folder = runner.work_dir
        if self.out_dir is not None and self.out_dir != runner.work_dir:
            self._folder = osp.join(self.out_dir, osp.basename(runner.work_dir.rstrip(os.sep)))
        own_files_alone(runner.message_hub.runtime_info, self._is_own)
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
            self.file_backend = WholeFileBackend()
            drafts = osp.join(glob_escape(str(self.out_dir)), DRAFT.format('*.pth'))
            for path in glob(drafts) if is_main_process() else ():
                os.remove(path)
        if runner._resume and _validation_is_due(runner):
            if runner.message_hub.runtime_info.get(VALIDATED) == runner.iter:
                return
            runner.logger.info(f'--resume: the validation at iteration {runner.iter} is not in the '
                               'checkpoint, so it is made again.')
            self.last_ckpt = runner._load_from  # there is one, to save again with a new best
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics) -> None:
        """Keep the best checkpoint, and note for --resume that there was a validation.

        Args:
            runner (Runner): The runner.
            metrics (dict): The results.
        """
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step, meta):
        self._and_remove_later(super()._save_checkpoint_with_step, runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        self._and_remove_later(super()._save_best_checkpoint, runner, metrics)

    def _and_remove_later(self, save: Callable, *args) -> None:
        """Save; the outermost of nested calls then removes what the inner ones would have."""
        backend = self.file_backend
        if isinstance(backend, _RemovingLater):
            save(*args)
            return
        self.file_backend = later = _RemovingLater(backend)
        try:
            save(*args)
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        wanted = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for remove, path in later.removals:
            if path not in wanted and self._is_own(path) and osp.exists(path):
                remove(path)

    def _is_own(self, path: str) -> bool:
        """Whether a path is a checkpoint of this hook, in its own folder."""
        folder, name = osp.split(path)
        start, _, end = self.filename_tmpl.partition('{}')
        named = re.fullmatch(f'(best_.+_)?{re.escape(start)}[0-9]+{re.escape(end)}', name)
        return named is not None and not osp.islink(path) and (
            is_remote(path) or _same(folder, self._folder))


def _validation_is_due(runner) -> bool:
    """Whether the loop has a validation right after what has been trained so far."""
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    if by_epoch and loop.iter != done * len(loop.dataloader):  # saved within an epoch
        return False
    loop._decide_current_val_interval()
    return 0 < done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


def use_safe_checkpoints(cfg: Config) -> None:
    """Put ``SafeCheckpointHook`` where a config has MMEngine's, or nothing; other hooks stay.

    Args:
        cfg (Config): The full config, changed in place.
    """
    replace_default_hook(cfg, 'checkpoint', CheckpointHook, 'SafeCheckpointHook', interval=1)


def resume_restarted(cfg: Config) -> None:
    """Go on from the last checkpoint of the work dir, if there is one, with or without --resume.

    For processes that torchrun has started again: the first start did not resume, or from a file
    that is older by now.

    Args:
        cfg (Config): The full config, changed in place.
    """
    if _named_by_pointer(cfg.work_dir)[0] or _numbered(cfg):
        cfg.resume, cfg.load_from = True, None


def find_resumable(cfg: Config) -> tuple[str | None, list[str]]:
    """Find the checkpoint that ``--resume`` goes on from: the last that can be read whole.

    MMEngine follows ``last_checkpoint`` and nothing else.

    Args:
        cfg (Config): The full config, with ``work_dir``.

    Returns:
        tuple[str | None, list[str]]: The file, None if the folder has no checkpoint; and a line for
        each that was passed over.

    Raises:
        ValueError: If there are checkpoints, and none can be gone on from.
        UnsafeFileError: If the last one needs more than weights to be read.
    """
    named, notes = _named_by_pointer(cfg.work_dir)
    files = _numbered(cfg)
    if named and (is_remote(named) or osp.isdir(named)):  # DeepSpeed's are folders
        return named, []
    if named and not osp.isfile(named):
        moved = osp.join(cfg.work_dir, osp.basename(named))
        if moved not in files:
            notes.append(f'--resume: {cfg.work_dir}/last_checkpoint names {named!r}, which is no '
                         'file.')
        named = moved if moved in files else None
    if named:
        files = [named, *(path for path in files if not _same(path, named))]
    for path in files:
        reason = unreadable(path)
        if reason is None:
            if notes:
                notes.append(f'--resume: goes on from {path!r} instead.')
            return path, notes
        notes.append(f'--resume: the checkpoint {path!r} {reason}.')
    if notes:
        raise ValueError('\n'.join(notes) + '\n--resume: none of them can be used. Name another '
                         'one with --resume FILE, or remove them to start anew.')
    return None, ['--resume: no checkpoint in the work dir, so the run starts at its beginning.']


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
    return wanted and (f'--resume: goes on with the seed {seed} of the checkpoint, not with '
                       f'randomness.seed={wanted} of the config.')


def _named_by_pointer(folder: str) -> tuple[str | None, list[str]]:
    """The file that ``last_checkpoint`` names, if it does; and a line where it holds no name."""
    pointer = osp.join(folder, 'last_checkpoint')
    if not osp.isfile(pointer):
        return None, []
    with open(pointer, 'rb') as file:
        content = file.read(1 << 16)
    # Empty if the run was killed, or the disk full, then; zeros after a loss of power.
    try:
        named = content.decode().strip()
    except UnicodeDecodeError:
        named = '\0'
    if not named.isprintable():
        return None, [f'--resume: {pointer!r} is damaged and names no checkpoint.']
    return named or None, []


def _numbered(cfg: Config) -> list[str]:
    """The checkpoints of a run, the newest first; not the best ones, which have no state."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = cfg.work_dir
    if hook.get('out_dir'):
        if is_remote(hook['out_dir']):
            return []
        folder = osp.join(hook['out_dir'], osp.basename(osp.normpath(folder)))
    template = hook.get('filename_tmpl') or '{}_{{}}.pth'.format(
        'epoch' if hook.get('by_epoch', True) else 'iter')
    start, _, end = template.partition('{}')
    pattern = re.compile(f'{re.escape(start)}([0-9]+){re.escape(end)}')
    found = [(int(match[1]), name) for name in (os.listdir(folder) if osp.isdir(folder) else ())
             if (match := pattern.fullmatch(name)) and not _is_special(osp.join(folder, name))]
    return [osp.join(folder, name) for _, name in sorted(found, reverse=True)]


def _is_special(path: str) -> bool:
    """Whether a path is a pipe or a device, from which reading may never return."""
    return osp.exists(path) and not osp.isfile(path) and not osp.isdir(path)


def _same(first: str, second: str) -> bool:
    return osp.realpath(first) == osp.realpath(second)


def unreadable(path: str) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can. Every byte is looked at.

    Args:
        path (str): A local file.

    Returns:
        str | None: The end of a sentence about the file.

    Raises:
        UnsafeFileError: If it needs more than weights to be read.
    """
    try:
        reason = not_resumable(read_checkpoint(path))
        if reason:
            return reason
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged:
                return f'is damaged (checksum of {damaged})'
    except UnsafeFileError:
        if not trusted():
            raise
        return not_resumable(read_any(path))
    except (ValueError, OSError, zipfile.BadZipFile, RuntimeError) as error:
        return str(error)
    return None
