"""How many training images a run sees, compared with its recipe."""

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from ..registry import HOOKS, register
from .internals import is_resuming

TOLERANCE = 0.01  # part of the recipe's samples: rounding to whole batches stays below it
META_KEY = 'samples_seen'


@register(HOOKS)
class RecipeSamplesHook(Hook):
    """Say in one line, when training starts, if a run sees more or fewer images than its recipe.

    A recipe made for many GPUs and started on one, its iterations unchanged, sees a fraction of the
    images and ends far below the published figure. In MMEngine an iteration is one forward pass on
    every process, whether or not the optimizer steps, so a run of ``max_iters`` iterations sees

        max_iters x processes x images per process

    images; gradient accumulation changes the total batch and not this number. A resumed run counts
    what it saw before, also with another number of processes: the checkpoint keeps it.

    Where the images agree, the line is about a schedule that ends before the run, or about a total
    batch below the one that the learning rate is meant for (``auto_scale_lr.base_batch_size``): an
    epoch has the same images on any number of GPUs.

    Args:
        samples (int, optional): Images that the recipe's training sees, repetitions counted.
            Defaults to None: the run has no recipe, and nothing is said.

    Raises:
        ValueError: If ``samples`` is not a positive int.
    """

    priority = 'VERY_LOW'

    def __init__(self, samples: int | None = None):
        if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool)
                                    or samples < 1):
            raise ValueError(f'RecipeSamplesHook: samples={samples!r} must be a positive int, the '
                             'images that the recipe sees, or None')
        self.samples = samples
        self._seen = None
        self._iter = 0

    def before_train(self, runner) -> None:
        """Compare, and log a warning if the numbers differ by more than a hundredth, or the batch.

        Args:
            runner (Runner): The runner, with its checkpoint loaded.
        """
        self._iter = runner.iter
        step = samples_per_iter(runner)
        if self._seen is None:
            self._seen = runner.iter * step
        if self.samples is None or step == 0:
            return
        left = runner.max_iters - runner.iter
        total = self._seen + left * step
        if abs(total - self.samples) > TOLERANCE * self.samples:
            runner.logger.warning(self._advice(runner, step, total))
            return
        length, end = _length(runner), _schedule_end(runner)
        if end < (1 - TOLERANCE) * length:
            runner.logger.warning(
                f'This run sees as many samples as the recipe, but param_scheduler ends at {end} '
                f'and the run at {length}: stretch its begin, end and milestones by '
                f'{length / end:.3g}{_rate_advice(runner.cfg, step)}, or expect a lower result.')
            return
        base, batch = _batches(runner.cfg, step)
        if base is not None and batch < base:
            runner.logger.warning(
                f'This run sees as many samples as the recipe, but {batch} in a batch and not '
                f'{base}: scale the learning rate (auto_scale_lr), or expect a lower result.')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the images seen so far in the checkpoint's ``meta``.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What will be saved.
        """
        if self._seen is None:
            return
        # By the checkpoint's own count: the runner's has not moved on yet in some loops.
        done = checkpoint['meta'].get('iter', runner.iter) - self._iter
        checkpoint['meta'][META_KEY] = self._seen + done * samples_per_iter(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Read them back when a run is resumed.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What was loaded.
        """
        if is_resuming(runner):
            self._seen = (checkpoint.get('meta') or {}).get(META_KEY)

    def _advice(self, runner, step: int, total: int) -> str:
        needed = runner.iter + max(self.samples - self._seen, 0) / step
        name = 'max_iters'
        if _by_epoch(runner):
            needed /= len(runner.train_dataloader)
            name = 'max_epochs'
        factor = needed / _schedule_end(runner)
        outcome = 'expect a lower result' if total < self.samples else 'expect a longer run'
        return (f'This run sees {_short(total)} samples, the recipe {_short(self.samples)}: '
                f'set train_cfg.{name}={round(needed)}, stretch begin, end and milestones of '
                f'param_scheduler by {factor:.3g}{_rate_advice(runner.cfg, step)}, or {outcome}.')


def samples_per_iter(runner) -> int:
    """Images that one iteration sees, over all processes.

    Args:
        runner (Runner): A runner whose train dataloader is built.

    Returns:
        int: Processes times images per process; 0 if the dataloader does not tell.
    """
    loader = runner.train_dataloader
    batch = getattr(loader, 'batch_size', None)
    if batch is None:  # a batch sampler decides
        batch = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None) or 0
    return get_world_size() * batch


def _by_epoch(runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _length(runner) -> int:
    return runner.max_epochs if _by_epoch(runner) else runner.max_iters


def _schedule_end(runner) -> int:
    """Where the last scheduler that counts as the loop does ends; without one, the run's end."""
    schedulers = runner.cfg.get('param_scheduler') or []
    ends = [item['end'] for item in ([schedulers] if isinstance(schedulers, dict) else schedulers)
            if item.get('end') and item.get('by_epoch', True) is _by_epoch(runner)]
    return max(ends, default=_length(runner))


def _batches(cfg, step: int) -> tuple[int | None, int]:
    """The total batch that the learning rate is meant for, None if it is scaled, and the run's."""
    scaling = cfg.get('auto_scale_lr') or {}
    batch = step * (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    return None if scaling.get('enable') else scaling.get('base_batch_size'), batch


def _rate_advice(cfg, step: int) -> str:
    base, batch = _batches(cfg, step)
    if base is None or batch == base:
        return ''
    return f', scale the learning rate from a batch of {base} to {batch} (auto_scale_lr)'


def _short(count: float) -> str:
    return f'{count / 1e6:.3g}M' if count >= 1e4 else f'{round(count)}'
