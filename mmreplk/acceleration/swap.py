"""Another class for a module, and its own again; and which modules may have one.

A module stays the same object: whoever holds it, its parameters, its place in the state dict, a
module that stands in two places, optimizers and hooks are as before. What it was stands in the
module itself, so that a copy of a network can be put back as well.
"""

from torch import nn
from torch.nn.utils import parametrize

from ..ops.torch_internals import has_hooks, parameters_of

_ORIGIN = '_accelerated_from'
# Names with which an instance stands in for what its class does.
_OWN = ('forward', '_conv_forward', '__call__', '_call_impl', '_slow_forward')


def swap(module: nn.Module, kind: type[nn.Module], **attributes) -> None:
    """Make a module one of another class, which has these attributes besides."""
    vars(module)[_ORIGIN] = type(module), kind, tuple(attributes)
    for name, value in attributes.items():
        setattr(module, name, value)
    module.__class__ = kind


def is_swapped(module: nn.Module) -> bool:
    """Whether `swap` was here."""
    return _ORIGIN in vars(module)


def check_swapped(module: nn.Module, name: str) -> None:
    """That `unswap` can put a module back.

    Raises:
        RuntimeError: If its class was changed once more.
    """
    if type(module) is not vars(module)[_ORIGIN][1]:
        raise RuntimeError(f'restore: {name} has become a {type(module).__name__} since, as by a '
                           'parametrization: remove that first')


def unswap(module: nn.Module) -> None:
    """Make a module what it was before `swap`."""
    kind, _, names = vars(module).pop(_ORIGIN)
    module.__class__ = kind
    for name in names:
        delattr(module, name)


def why_not(module: nn.Module) -> str | None:
    """What somebody has done to a module that another class could upset; None for nothing."""
    if parametrize.is_parametrized(module):
        return 'has parametrizations'
    if has_hooks(module):
        return 'has hooks'
    if any(name in vars(module) for name in _OWN) or vars(module).get('_compiled_call_impl'):
        return 'has a forward of its own'
    if any(not isinstance(parameter, nn.Parameter)
           for parameter in parameters_of(module).values() if parameter is not None):
        return 'has weights that are no parameters'
    return None


def is_plain_conv(module: nn.Module) -> bool:
    """Whether a module is ``nn.Conv2d`` itself, or MMCV's, which differs on PyTorch 1.4 alone."""
    kind = type(module)
    return kind is nn.Conv2d or (kind.__name__, kind.__module__) == (
        'Conv2d', 'mmcv.cnn.bricks.wrappers')
