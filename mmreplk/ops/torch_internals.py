"""The private names of PyTorch that are needed in several places, here alone.

PyTorch has no public names for these things. Tried with 2.5.1 and 2.12.1 (requirements/); install
nothing older than 2.5. The functions that a call asks every time are PyTorch's own under a readable
name: a Python frame around each would be felt.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

# Whether autocast is on for any device. A tenth of the time of asking for one device.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled
# The number of the innermost transform of torch.func (vmap, grad, ...); None outside of all.
functorch_level = torch._C._functorch.maybe_current_level
# Whether a tensor is one of the vmap from before torch.func (``is_grads_batched=True``).
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor

# Whether a tensor is all zeros without memory, as autograd makes them.
is_zerotensor = torch.Tensor._is_zerotensor
# What batch and instance norms derive from, synchronized ones too; and the former alone.
NormBase, BatchNorm = nn.modules.batchnorm._NormBase, nn.modules.batchnorm._BatchNorm
# What convolutions derive from.
ConvNd = nn.modules.conv._ConvNd
# A class to derive from, and a function for the innermost of its kind that is active, or None.
TorchDispatchMode = _python_dispatch.TorchDispatchMode
current_dispatch_mode = _python_dispatch._get_current_dispatch_mode
# The dicts of a module's own hooks of forward and backward.
HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')

_transforms = torch._C._functorch.TransformType
_interpreter_stack = torch._C._functorch.get_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_profiled = torch.autograd._profiler_enabled


def is_differentiated_by_func() -> bool:
    """Whether forward-mode AD is on, or a gradient transform of ``torch.func``."""
    if forward_ad._current_level >= 0:
        return True
    if functorch_level() is None:
        return False
    return any(layer.key() in (_transforms.Grad, _transforms.Jvp)
               for layer in _interpreter_stack() or ())


def is_observed() -> bool:
    """Whether every call has to pass PyTorch's dispatcher, beside that of autograd.

    So it is under a dispatch mode (fake tensors, FLOP counters, tracing), a profiler, a transform
    of ``torch.func`` or forward-mode AD.
    """
    return (_dispatch_modes() != 0 or _is_profiled() or functorch_level() is not None
            or forward_ad._current_level >= 0)


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The very dict of a module's children, places without one among them."""
    return module._modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The very dict of a module's own parameters, places without one among them."""
    return module._parameters


def mode_padding(conv: nn.Module) -> tuple[int, ...]:
    """How far a convolution pads, as ``F.pad`` takes it: for all modes but zeros.

    PyTorch settles it when a layer is built.
    """
    return tuple(conv._reversed_padding_repeated_twice)


def set_mode_padding(conv: nn.Module, padding: Sequence[int]) -> None:
    """Change what :func:`mode_padding` gives, to the type that PyTorch has it in."""
    conv._reversed_padding_repeated_twice = type(conv._reversed_padding_repeated_twice)(padding)


def forward_hooks(module: nn.Module) -> dict[int, Callable]:
    """The very dict of what is called behind a module's forward."""
    return module._forward_hooks


def forward_pre_hooks(module: nn.Module) -> dict[int, Callable]:
    """The very dict of what is called before a module's forward."""
    return module._forward_pre_hooks


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or behind a module's forward; not of those of all."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module itself has hooks of forward or backward."""
    return any(vars(module).get(name) for name in HOOKS)


def schema_of(packet):
    """The schema of an operator that has one overload."""
    return packet.default._schema


def packet_of(overload):
    """What an overload of an operator belongs to, under which PyTorch registers FLOP formulas."""
    return overload._overloadpacket


def linear_pointwise():
    """oneDNN's matrix product with an activation or sum: the one that its compiler uses."""
    return torch.ops.mkldnn._linear_pointwise
