"""The private names of PyTorch that the operator needs, here alone.

PyTorch has no public names for these questions. Tried with 2.5.1 and 2.12.1 (requirements/);
install nothing older than 2.5. The functions that a call asks every time are PyTorch's own under a
readable name: a Python frame around each would be felt.
"""

import torch
from torch.autograd import forward_ad

# Whether autocast is on for any device. A tenth of the time of asking for one device.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled
# The number of the innermost transform of torch.func (vmap, grad, ...); None outside of all.
functorch_level = torch._C._functorch.maybe_current_level
# Whether a tensor is one of the vmap from before torch.func (``is_grads_batched=True``).
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor

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
