"""Calls like one that was met before, straight to a kernel: what is looked up is not asked again.

A small kernel on a small map takes a few microseconds, and the questions that `functional` asks of
a call a multiple of that.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from . import dispatch
from .arguments import check_memory
from .gpu import arch as gpu_arch
from .torch_internals import is_any_autocast_enabled, is_observed, is_zerotensor

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(x, weight, bias) -> bool:
    """Whether the kernels may be called without passing PyTorch's dispatcher.

    That saves about 15 us a call. It must not happen where someone listens: autograd, a dispatch
    mode (fake tensors, FLOP counters, tracing), a profiler, a ``torch.func`` transform or a tensor
    subclass; nor where memory does not hold the values: a lazy negation, or zeros without memory.
    """
    if type(x) not in _PLAIN or type(weight) not in _PLAIN:
        return False
    if _is_lazy(x) or _is_lazy(weight) or (bias is not None and _is_lazy(bias)):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad
                                    or (bias is not None and bias.requires_grad)):
        return False
    return not is_observed()


def _is_lazy(tensor: Tensor) -> bool:
    return tensor.is_neg() or is_zerotensor(tensor)


def is_unobserved(x, weight, bias) -> bool:
    """Whether nobody could tell a call from one that went straight to a kernel."""
    return (is_plain(x, weight, bias) and x.layout is weight.layout is torch.strided
            and not x.is_nested and not is_any_autocast_enabled() and not torch.jit.is_tracing())


def key_of(x, weight, bias, stride, padding, dilation, backend, relu, groups=None) -> tuple:
    """What the choice for a call depends on, for tables; without a hash where given as lists."""
    return (x.shape, x.stride(), x.dtype, x.device, x.layout, weight.shape, weight.dtype,
            weight.device, weight.layout, stride, padding, dilation, backend, relu, groups,
            x.device.type in gpu_arch.DEVICE_TYPES and dispatch.asks_to_measure(x.device),
            bias if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout))


def at_once(key: tuple, x, weight, bias) -> Tensor | None:
    """The result where such a call was met before and a kernel can take these tensors as they lie.

    None elsewhere. So a call of a known kind costs a few microseconds beside the kernel's.
    """
    try:
        run = dispatch.prepared_calls.get(key)
    except TypeError:
        return None
    if run is None or not (weight.is_contiguous() and (bias is None or bias.is_contiguous())):
        return None
    check_memory(x=x, weight=weight, bias=bias)
    return run(x, weight, bias)


def keep_call(key: tuple, run: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None) -> None:
    """Have `at_once` serve the next call like this one by ``run``, unless there is none."""
    if run is None:
        return
    if len(dispatch.prepared_calls) >= dispatch.PLANS:
        dispatch.prepared_calls.clear()
    with suppress(TypeError):
        dispatch.prepared_calls[key] = run
