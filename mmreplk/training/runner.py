"""MMEngine's runners, with guarded data and checkpoints that may be damaged.

A config names them by ``runner_type``, which the tools of all codebases follow.
"""

from mmengine.runner import FlexibleRunner, Runner

from ..paths import is_remote
from ..registry import RUNNERS, register
from .guarded_dataset import GuardedDataset
from .labels import ignored_by, label_rules
from .resumable import find_resumable, is_sharded_checkpoint, use_seed_of
from .resumable_rng import NumberingSampler, RepeatableRandomHook


class _Safe:
    """What is the same for both runners.

    A loader that is an object already, and not a config, is left as it is.
    """

    def build_train_loop(self, loop):
        """Build the loop over guarded, numbered samples, seeded as the run that is resumed."""
        self._choose_checkpoint()
        self._guard('train')
        return super().build_train_loop(loop)

    def build_val_loop(self, loop):
        """Build the loop over guarded samples."""
        self._guard('val')
        return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        """Build the loop over guarded samples."""
        self._guard('test')
        return super().build_test_loop(loop)

    def _guard(self, phase: str) -> None:
        key = f'_{phase}_dataloader'  # MMEngine's own, private in 0.10: loops read it alone
        loader = getattr(self, key, None)
        if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict) or (
                loader['dataset'].get('type') is GuardedDataset):
            return
        loader = dict(loader)
        labels = label_rules(self.cfg, phase, ignored_by(loader['dataset']))
        dataset = dict(type=GuardedDataset, dataset=loader['dataset'], labels=labels)
        if phase == 'train' and self._repeats() and isinstance(loader.get('sampler'), dict):
            dataset['seed'] = self.seed
            loader['sampler'] = dict(type=NumberingSampler, sampler=loader['sampler'])
        loader['dataset'] = dataset
        setattr(self, key, loader)

    def _repeats(self) -> bool:
        return self.cfg.get('repeatable', True) and any(
            isinstance(hook, RepeatableRandomHook) for hook in self.hooks)

    def _choose_checkpoint(self) -> None:
        """Pass damaged checkpoints over, and take the seed before samplers are built with it."""
        if not self._resume or self._has_loaded:
            return
        self.cfg.work_dir, notes = self.work_dir, []
        if self._load_from is None:
            self._load_from, notes = find_resumable(self.cfg)
            self._resume = self._load_from is not None
        path = self._load_from
        if path and not is_remote(path) and not is_sharded_checkpoint(self.cfg, path):
            notes.append(use_seed_of(self.cfg, path))
            self._reseed(self.cfg.get('randomness') or {})
        for note in filter(None, notes):
            self.logger.warning(note)


@register(RUNNERS)
class SafeRunner(_Safe, Runner):
    """MMEngine's ``Runner`` for runs that may be killed, on data that may be broken.

    Samples that cannot be loaded, or have labels that the model has no class for, end the run with
    the names of their files (:class:`.guarded_dataset.GuardedDataset`). With
    :class:`.resumable_rng.RepeatableRandomHook` among the hooks and ``repeatable`` not False,
    training samples are random by their number, so that a resumed run repeats to the bit.
    ``resume = True`` goes on from the last checkpoint of the work dir that can be used, with its
    seed.
    """

    def _reseed(self, randomness: dict) -> None:
        if randomness.get('seed') not in (None, self.seed):
            self.set_randomness(**randomness)


@register(RUNNERS)
class SafeFlexibleRunner(_Safe, FlexibleRunner):
    """MMEngine's ``FlexibleRunner``, with strategies such as FSDP; else as :class:`SafeRunner`."""

    def _reseed(self, randomness: dict) -> None:
        if randomness.get('seed') not in (None, self.seed):
            self.strategy._set_randomness(**randomness)  # no public name in 0.10
