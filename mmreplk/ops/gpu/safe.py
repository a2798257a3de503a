"""Calls of GPU kernels such that what goes wrong costs a warning, never a run.

Before its first use a kernel is checked (selfcheck.py); what fails then or later marks its family
(health.py), and the caller, dispatch.py, goes on with another.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import caches
from ..problem import Problem
from . import families, health, measured, selfcheck
from .backend import allow_tf32
from .family import Family
from .tiles import mode_of

READY = 4096
# The variant for what has run before.
_ready: dict[tuple, object] = {}
forget = _ready.clear
caches.register(forget)


def forward(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            keep: bool = False) -> Tensor:
    """The convolution by a family of kernels; there is nothing to keep.

    Raises:
        health.Unusable: If it cannot serve, or has just failed. Nothing else but what says that
            memory is too small, that the device itself has failed, or that a capture has.
    """
    family = families.FAMILIES[name]
    return _run(family, 'forward', x.device, problem, lambda mode, variant: family.forward(
        x, weight, bias, problem, mode, variant))


def weight_grad(name: str, x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights by a family of kernels; raises as `forward`."""
    family = families.FAMILIES[name]
    return _run(family, 'weight_grad', x.device, problem, lambda mode, variant: family.weight_grad(
        x, grad, problem, mode, variant))


def _run(family: Family, task: str, device: torch.device, problem: Problem,
         call: Callable[[str, object], Tensor]) -> Tensor:
    why = health.why(device, family.name)
    if why:
        raise health.Unusable(why)
    mode = mode_of(problem.dtype, allow_tf32())
    key = family.name, task, device, problem, mode, measured.wanted(device)
    variant = _ready.get(key)
    if variant is not None:
        return guarded(family, device, lambda: call(mode, variant))

    def first() -> Tensor:
        chosen = measured.variant(family, problem, task, mode, device)
        checked = selfcheck.ensure(family, device, problem, task, mode, chosen)
        out = call(mode, chosen)
        selfcheck.loaded(checked)
        if len(_ready) >= READY:
            _ready.clear()
        _ready[key] = chosen
        return out

    return guarded(family, device, first)


def guarded(family: Family, device: torch.device, call: Callable[[], Tensor]) -> Tensor:
    """What a call returns; what it raises marks the family, but for what is no fault of it.

    Raises:
        health.Unusable: See `forward`.
    """
    try:
        return call()
    except health.Unusable:
        raise
    except Exception as error:
        # A capture that has failed fails everything that is called in it.
        if health.is_out_of_memory(error) or health.is_capturing(device):
            raise
        health.raise_if_broken(device)
        raise health.mark(device, family, error) from error
