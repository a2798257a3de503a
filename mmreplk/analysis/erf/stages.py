"""Which feature map of a network is looked at: one of its outputs, or what a module makes."""

from collections.abc import Callable

import torch
from torch import nn


class StageError(ValueError):
    """A stage that a network does not have, or that is no feature map."""


def is_number(stage: str) -> bool:
    """Whether a stage is a number among the outputs, and not the name of a module."""
    return stage.removeprefix('-').isdigit()


def stage_words(stage: str) -> str:
    """A stage as readers of a table understand it."""
    return 'last' if stage == '-1' else stage


def output_number(network: Callable, stage: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that takes one of a network's outputs.

    Args:
        network (Callable): Gives a tensor, or a tuple or list of them.
        stage (str): The number.

    Returns:
        Callable: It raises StageError if there is no such output.
    """

    def forward(images):
        outputs = network(images)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        index = int(stage)
        if not -len(outputs) <= index < len(outputs):
            raise StageError(
                f'stage {index}: the backbone gives {len(outputs)} outputs, numbered from 0, or '
                'from -1 backwards. Name a module instead, or, in a config, other out_indices of '
                'the backbone')
        return outputs[index]

    return forward


def children_of(model: nn.Module, prefix: str = '') -> str:
    """The names of a module's parts, for an error message."""
    return ', '.join(prefix + name for name, _ in model.named_children())


def named_module(model: nn.Module, stage: str) -> nn.Module:
    """Find the module that a stage names.

    Args:
        model (nn.Module): The whole network.
        stage (str): Its dotted name.

    Returns:
        nn.Module: The module.

    Raises:
        StageError: If there is none.
    """
    module, found = model, []
    for part in stage.split('.'):
        inner = dict(module.named_children())
        if part not in inner:
            where = '.'.join(found) or 'the model itself'
            raise StageError(f'stage {stage}: there is no such module; {where} has '
                             f'{", ".join(inner) or "none"}.')
        module, found = inner[part], [*found, part]
    return module


class _Reached(Exception):  # noqa: N818  # no error
    """Raised to end a forward pass at the module whose output is wanted."""


def forward_to(module: nn.Module, run: Callable, take_input: bool = False
               ) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that runs a network up to one of its modules.

    Args:
        module (nn.Module): Where to end. If it runs several times, the first counts.
        run (Callable): Runs the network on images.
        take_input (bool): Whether to return what goes into the module, not what comes out.
            Defaults to False.

    Returns:
        Callable: It raises StageError if the module is not run.
    """

    def forward(images):
        caught = []

        def catch(_, inputs, output=None):
            caught.append(inputs[0] if take_input else output)
            raise _Reached

        register = module.register_forward_pre_hook if take_input else module.register_forward_hook
        handle = register(catch)
        try:
            run(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not caught:
            raise StageError('stage: this module is not called as a whole; name one inside it')
        result = caught[0]
        return result[-1] if isinstance(result, (list, tuple)) and result else result

    return forward
