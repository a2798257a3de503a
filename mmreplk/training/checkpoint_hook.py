"""Checkpoints of a training run: written whole or not at all, and found again after a crash."""

import os
import os.path as osp
from collections.abc import Callable
from glob import escape as glob_escape, glob

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..files import DRAFT, write_whole
from ..paths import is_remote
from ..registry import HOOKS, register
from .internals import built_loops, is_resuming, resume_from, settle_val_interval, start_of
from .own_files import REMEDY, checkpoint_folder, forget_others, lies_in
from .resumable import find_resumable, is_sharded_checkpoint, use_seed_of

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

        write_whole(str(filepath), write, REMEDY)


class _RemovingLater:
    """A file backend that keeps in mind what to remove."""

    def __init__(self, backend):
        self._backend, self.removals = backend, []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.removals.append(('remove', path))

    def rmtree(self, path: str) -> None:
        self.removals.append(('rmtree', path))


@register(HOOKS)
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, for runs that may be killed at any moment.

    A checkpoint in a local folder appears whole or not at all, and older ones are removed after the
    new one is there, not before. Only what lies in that folder is removed, whatever paths the
    checkpoint names that a run was resumed from. A validation that a checkpoint knows nothing of,
    because the run was killed before or brought no new best, is made again when the run is resumed
    from it, so that no best checkpoint is missed. Where the Runner would follow ``last_checkpoint``
    to a file that is damaged, the last one that can be read is taken, and the order of the samples
    goes on with the seed in it (not with ``FlexibleRunner``, which has loaded it by then).
    Arguments are those of ``CheckpointHook``.
    """

    def before_run(self, runner) -> None:
        """Choose the checkpoint to resume from, before the Runner does.

        Args:
            runner (Runner): The runner.

        Raises:
            FileNotFoundError: If ``last_checkpoint`` is of no use, and there is no checkpoint.
            ValueError: If there are checkpoints, and none can be used.
        """
        super().before_run(runner)
        if not is_resuming(runner) or hasattr(runner, 'strategy') or (
                'train' not in built_loops(runner)):
            return
        cfg = Config(dict(
            work_dir=runner.work_dir,
            randomness=dict(runner.cfg.get('randomness') or {}),
            default_hooks=dict(checkpoint=dict(
                by_epoch=self.by_epoch, filename_tmpl=self.filename_tmpl,
                out_dir=self.out_dir and str(self.out_dir)))))
        path, notes = start_of(runner), []
        if not path:
            path, notes = find_resumable(cfg)
            resume_from(runner, path)
        if path and not is_remote(path) and not is_sharded_checkpoint(cfg, path):
            wanted = dict(cfg.randomness)
            notes.append(use_seed_of(cfg, path))
            if cfg.randomness.get('seed') not in (wanted.get('seed'), runner.seed):
                runner.set_randomness(**cfg.randomness)
        for note in filter(None, notes):
            runner.logger.info(note)

    def before_train(self, runner) -> None:
        """Choose the backend, and remove what a killed run was writing.

        Args:
            runner (Runner): The runner.
        """
        if is_resuming(runner):
            folder = checkpoint_folder(runner.work_dir, self.out_dir)
            for note in forget_others(runner.message_hub.runtime_info, folder, self.filename_tmpl,
                                      str(start_of(runner)),
                                      folders=hasattr(runner, 'strategy')):
                runner.logger.info(note)
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
            self.file_backend = WholeFileBackend()
            drafts = osp.join(glob_escape(str(self.out_dir)), DRAFT.format('*.pth'))
            for path in glob(drafts) if is_main_process() else ():
                if osp.isfile(path):
                    os.remove(path)
        if is_resuming(runner) and _validation_is_due(runner):
            if runner.message_hub.runtime_info.get(VALIDATED) == runner.iter:
                return
            runner.logger.info(f'resume: the validation at iteration {runner.iter} is not in the '
                               'checkpoint, so it is made again.')
            self.last_ckpt = start_of(runner)  # there is one, to save again with a new best
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics) -> None:
        """Keep the best checkpoint, and note for resuming that there was a validation.

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
            # Folders are DeepSpeed's, which a strategy writes.
            if remove == 'rmtree' and not hasattr(args[0], 'strategy'):
                continue
            if path not in wanted and lies_in(path, self.out_dir) and osp.exists(path):
                getattr(backend, remove)(path)

    def _publish_model(self, runner, ckpt_path: str | None) -> None:
        # Written beside the file, so not beside that of another run.
        if lies_in(ckpt_path, self.out_dir):
            super()._publish_model(runner, ckpt_path)


def _validation_is_due(runner) -> bool:
    """Whether the loop has a validation right after what has been trained so far."""
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    if by_epoch and loop.iter != done * len(loop.dataloader):  # saved within an epoch
        return False
    settle_val_interval(loop)
    return 0 < done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
