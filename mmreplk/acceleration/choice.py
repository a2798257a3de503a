"""Whether the operator is at least as fast as ``F.conv2d``: by its estimates, or by the clock."""

import statistics
import time
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import dispatch, explain, large_kernel_dwconv2d
from ..ops.functional import problem_of

# Seconds that one step of autograd through the operator takes longer than through PyTorch's
# convolution, measured on one core of AMD Zen 5.
_AUTOGRAD = 1.8e-4
_ROUNDS = 15


class Seen(NamedTuple):
    """An input of a layer: all that a choice depends on."""
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> 'Seen':
        return cls(x.shape, x.stride(), x.dtype, x.device)

    def __str__(self):
        return 'x'.join(map(str, self.shape))

    def make(self) -> Tensor:
        """Such a tensor, of random values."""
        x = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return x.normal_()


def estimated(conv: nn.Conv2d, seen: Seen, trained: bool) -> tuple[float, float] | str:
    """Seconds of the operator and of PyTorch, by the operator's estimates; or why there are none.

    Args:
        conv (nn.Conv2d): A depth-wise convolution.
        seen (Seen): Its input.
        trained (bool): Whether gradients of input and weights count too.
    """
    x = torch.empty_strided(seen.shape, seen.strides, dtype=seen.dtype, device=seen.device)
    x = x.unsqueeze(0) if x.dim() == 3 else x
    arguments = x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation
    problem = problem_of(*arguments)
    if problem is None:
        return 'the input is not one of the operator: PyTorch takes it'
    if explain(*arguments).backend == 'torch' and not trained:
        return "PyTorch's own is estimated to be the fastest"
    tasks = [(problem, 'forward')]
    if trained:
        tasks += [(problem.of_input_grad(), 'forward'), (problem, 'weight_grad')]
    ours, stock = (_AUTOGRAD if trained else 0.0), 0.0
    for each, task in tasks:
        times = dispatch.candidates(each, task)
        known = [time for time in times.values() if isinstance(time, float)]
        if not isinstance(times['torch'], float):
            return 'no time is known on this device'
        ours, stock = ours + min(known), stock + times['torch']
    return ours, stock


def measured(conv: nn.Conv2d, seen: Seen, trained: bool) -> tuple[float, float]:
    """Seconds of the operator and of PyTorch on random values, in turns: medians."""
    x = seen.make()
    weight, bias = (None if t is None else t.detach().clone() for t in (conv.weight, conv.bias))
    if trained:
        x.requires_grad_()
        weight.requires_grad_()

    def run(function, *groups):
        with torch.set_grad_enabled(trained):
            out = function(x, weight, bias, conv.stride, conv.padding, conv.dilation, *groups)
            if trained:
                torch.autograd.grad(out, (x, weight), torch.ones_like(out))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return _in_turns(lambda: run(large_kernel_dwconv2d), lambda: run(F.conv2d, conv.groups))


def clocked(layers: tuple[nn.Module, nn.Module], x: Tensor) -> tuple[float, float]:
    """Seconds of two layers in inference, in turns: medians."""
    with torch.no_grad():
        return _in_turns(*(partial(layer, x) for layer in layers))


def _in_turns(*ways) -> tuple[float, ...]:
    times = tuple([] for _ in ways)
    for turn in range(_ROUNDS + 2):
        for way, taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            if turn >= 2:
                taken.append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))
