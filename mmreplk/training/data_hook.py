"""A hook that guards the data of a run: errors name their files, and samples can be drawn again."""

from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from ..registry import HOOKS, register
from .guarded_dataset import GuardedDataset
from .internals import built_loops, replace_loader
from .labels import ignored_by, label_rules
from .resumable_rng import is_repeatable


@register(HOOKS)
class GuardedDataHook(Hook):
    """Put :class:`.guarded_dataset.GuardedDataset` around the datasets of a run.

    For training, :class:`.resumable_rng.NumberingSampler` also numbers the samples, so that each is
    random by the seed and its number; ``repeatable = False`` in a config turns that off. A config
    keeps its ``train_dataloader.dataset`` and ``train_dataloader.sampler`` as they are: both are
    wrapped when the run begins, once the datasets are built and before a sample is loaded.
    """

    priority = 'LOWEST'  # the hook of the checkpoints takes the seed over, before

    def before_run(self, runner) -> None:
        """Exchange the data loaders of the loops that this run uses.

        Args:
            runner (Runner): The runner. Loaders that its config does not describe stay.
        """
        for phase, loop in built_loops(runner).items():
            cfg = runner.cfg.get(f'{phase}_dataloader')
            if not isinstance(cfg, dict) or not isinstance(cfg.get('dataset'), dict):
                continue
            if type(loop.dataloader) is DataLoader and not isinstance(
                    loop.dataloader.dataset, GuardedDataset):
                replace_loader(loop, _guarded(runner, phase, cfg, loop.dataloader.dataset))


def _guarded(runner, phase: str, cfg: dict, dataset) -> DataLoader:
    """The data loader of a config, around a dataset that has been built."""
    numbered = phase == 'train' and is_repeatable(runner.cfg) and isinstance(
        cfg.get('sampler'), dict)
    guarded = GuardedDataset(
        dataset, labels=label_rules(runner.cfg, phase, ignored_by(cfg['dataset'])),
        seed=runner.seed if numbered else None)
    cfg = dict(cfg)
    cfg.pop('num_batch_per_epoch', None)  # the dataset has been cut already
    # MMEngine copies the config, and must not copy the dataset in it.
    cfg['dataset'] = dict(type=lambda: guarded)
    if numbered:
        cfg['sampler'] = dict(type='mmreplk.NumberingSampler', sampler=cfg['sampler'])
    apart = (runner.cfg.get('randomness') or {}).get('diff_rank_seed', False)
    return runner.build_dataloader(cfg, seed=runner.seed, diff_rank_seed=apart)
