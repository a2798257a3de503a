"""``accelerate`` from a config."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..registry import HOOKS, register
from .network import accelerate


@register(HOOKS)
class AccelerateHook(Hook):
    """Accelerate the network of a run before its first iteration, and log what became of it.

    ``custom_hooks=[dict(type='mmreplk.AccelerateHook')]``. Checkpoints are as without it.

    Args:
        input_size (Sequence[int], optional): As of `accelerate`; the network has to run on one
            tensor. Defaults to None: the operator chooses at each call.
        policy (str): As of `accelerate`. Defaults to 'estimate'.
        inference (bool): As of `accelerate`. Defaults to False.
    """

    def __init__(self, input_size: Sequence[int] | None = None, policy: str = 'estimate',
                 inference: bool = False):
        self.options = dict(input_size=input_size, policy=policy, inference=inference)
        self.done = None  # the network that was accelerated

    def _accelerate(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self.done is not model:
            table = accelerate(model, **self.options)
            self.done = model
            runner.logger.info(f'AccelerateHook: {table.summary()}.')

    before_train = before_val = before_test = _accelerate
