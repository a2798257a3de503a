"""What happens when a loss is not a number: nothing of it reaches a checkpoint."""

from functools import partial

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper

from ..registry import HOOKS, register
from .internals import count_iteration

POLICIES = ('stop', 'skip')


@register(HOOKS)
class FiniteLossHook(Hook):
    """Stop a run whose loss is NaN or infinite, or leave such iterations out; name their files.

    A gradient that overflows in float16 is not meant: its loss is finite, and the scaler of
    ``AmpOptimWrapper`` leaves the step out and halves its factor.

    MMDetection's ``CheckInvalidLossHook`` looks at every 50th iteration, after the optimizer's
    step.

    Args:
        policy (str): ``'stop'`` ends the run with an error before another checkpoint is written.
            ``'skip'`` leaves the step out, on all processes together, with the whole accumulated
            step if it would have ended there, and restores the running statistics of the norms. It
            compares the processes in every iteration. Defaults to ``'stop'``.
        most (int): With ``'skip'``: how many iterations in a row may be left out before the run is
            stopped all the same. Defaults to 10.

    Raises:
        ValueError: If an argument is none of these.
    """

    priority = 'VERY_HIGH'  # before the averages of the weights and the checkpoint

    def __init__(self, policy: str = 'stop', most: int = 10):
        if policy not in POLICIES:
            raise ValueError(f'FiniteLossHook: policy={policy!r} must be one of '
                             f'{", ".join(POLICIES)}')
        if not isinstance(most, int) or most < 1:
            raise ValueError(f'FiniteLossHook: most={most!r} must be a positive int')
        self.policy, self.most = policy, most
        self._left_out = 0  # in a row
        self._skipped = self._gives_way = False
        self._buffers = {}

    def before_train(self, runner) -> None:
        """With ``'skip'``: check before the optimizer's step. With ``'stop'``: give way to that.

        Args:
            runner (Runner): The runner.

        Raises:
            ValueError: If there are several optimizers, of which this hook knows nothing.
        """
        if self.policy == 'stop':
            # The runtime of our configs has one that stops; a user's that goes on wins.
            self._gives_way = any(isinstance(hook, FiniteLossHook) and hook.policy == 'skip'
                                  for hook in runner.hooks)
            return
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise ValueError(f'FiniteLossHook: policy=\'skip\' needs one optimizer, not '
                             f'{type(wrapper).__name__}; use policy=\'stop\'')
        wrapper.update_params = partial(self._update, wrapper, wrapper.update_params)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """With ``'skip'``: keep the running statistics."""
        self._skipped = False
        if self.policy == 'skip':
            self._buffers = {name: buffer.clone() for name, buffer in _buffers(runner).items()}

    def _update(self, wrapper: OptimWrapper, update, loss: torch.Tensor, *args, **kwargs) -> None:
        bad = (~loss.detach().isfinite().all()).float()
        all_reduce(bad, op='max')  # in place: nobody waits for a gradient that will not come
        self._skipped = bool(bad)
        if not self._skipped:
            update(loss, *args, **kwargs)
            return
        count_iteration(wrapper)
        if wrapper.should_update():
            wrapper.zero_grad()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Stop, or restore the running statistics and say what was left out.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Unused.
            data_batch (dict): The batch, for the names of its files.
            outputs (dict): The losses.

        Raises:
            FloatingPointError: If the loss is not finite and the run must not go on.
        """
        if self._gives_way:
            return
        losses = {name: torch.as_tensor(value).item() for name, value in (outputs or {}).items()
                  if 'loss' in name and torch.as_tensor(value).numel() == 1}
        bad = {name: value for name, value in losses.items() if not abs(value) < float('inf')}
        if not (bad or self._skipped):
            self._left_out = 0
            return
        what = ', '.join(f'{name} = {value}' for name, value in bad.items()) or (
            'the loss of another process is not finite')
        text = (f'Iteration {runner.iter + 1}: {what}. Files of the batch: '
                f'{", ".join(batch_files(data_batch)) or "unknown"}.')
        self._left_out += 1
        if self._skipped and self._left_out <= self.most:
            for name, buffer in _buffers(runner).items():
                buffer.copy_(self._buffers[name])
            runner.logger.warning(f'{text} The iteration is left out.')
            return
        advice = ('Look at these files, lower the learning rate, clip gradients '
                  '(optim_wrapper.clip_grad)')
        if self.policy == 'stop':
            advice += (', or leave such iterations out: '
                       "custom_hooks=[dict(type='mmreplk.FiniteLossHook', policy='skip')]")
        raise FloatingPointError(
            f'{text} {"It is one too many in a row. " if self._skipped else ""}The run ends here; '
            f'its last checkpoint is from before. {advice}.')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite, over a good checkpoint perhaps.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What will be saved.

        Raises:
            FloatingPointError: If a weight or a running statistic is NaN or infinite.
        """
        for name, value in checkpoint.get('state_dict', {}).items():
            if value.is_floating_point() and not value.isfinite().all():
                raise FloatingPointError(
                    f'{name} is not finite at iteration {runner.iter + 1}, so no checkpoint was '
                    'written; the last one is from before. Lower the learning rate or clip '
                    'gradients (optim_wrapper.clip_grad), and resume from there.')


def batch_files(data_batch) -> list[str]:
    """The files of a batch, as far as its samples tell.

    Args:
        data_batch (dict | list | tuple): As it comes out of a data loader of the codebases.

    Returns:
        list[str]: Names of images, in quotes.
    """
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else data_batch
    if not isinstance(samples, (list, tuple)):
        return []
    return [repr(sample.img_path) for sample in samples if getattr(sample, 'img_path', None)]


def _buffers(runner) -> dict[str, torch.Tensor]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return dict(model.named_buffers())
