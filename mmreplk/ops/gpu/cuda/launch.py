"""The convolution and the gradient of its weights by the CUDA kernels, on tensors.

What is not contiguous, channels-last maps too, or not at a multiple of 16 bytes is copied, a few
channels at a time.
"""

import torch
from torch import Tensor

from ...arithmetic import ceil_div
from ...problem import Problem
from .. import memory
from . import driver
from .grad_plan import GradLayout, plan_weight_grad
from .plan import Layout, plan_forward

WORKSPACE = 64 << 20  # bytes, or a tenth of input and output if that is more


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, mode: str,
            layout: Layout, cut: tuple[int, int]) -> Tensor:
    """The convolution.

    Args:
        x (Tensor): ``(N, C, H, W)``; float16, bfloat16 or float32; any strides.
        weight (Tensor): ``(C, 1, Kh, Kw)``.
        bias (Tensor, optional): ``(C, )``.
        problem (Problem): Of these tensors.
        mode (str): One of ``tiles.MODES``.
        layout (Layout): How the work is divided.
        cut (tuple[int, int]): Into how many parts the kernel is cut.

    Returns:
        Tensor: ``(N, C, H', W')``, in the memory format that the problem names.
    """
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if is_ready(x) and not problem.channels_last:
        y = memory.empty(x, problem.out_shape)
        _forward(x, weight, bias, y, problem, mode, layout, cut)
        return y
    batch, channels, height, width = problem.out_shape
    if problem.channels_last:
        y = memory.empty(x, (batch, height, width, channels)).permute(0, 3, 1, 2)
    else:
        y = memory.empty(x, problem.out_shape)
    for some in channel_blocks(problem):
        count = some.stop - some.start
        part = problem._replace(channels=count, channels_last=False)
        whole = count == channels and not problem.channels_last
        out = y if whole else memory.empty(x, part.out_shape)
        _forward(copied(x[:, some]), weight[some], None if bias is None else bias[some], out, part,
                 mode, layout, cut)
        if not whole:
            y[:, some] = out
    return y


def _forward(x, weight, bias, y, problem, mode, layout, cut) -> None:
    problem = problem._replace(channels_last=False, has_bias=bias is not None)
    driver.run(plan_forward(problem, mode, layout, cut), dict(x=x, w=weight, bias=bias, y=y))


def weight_grad(x: Tensor, grad: Tensor, problem: Problem, mode: str, layout: GradLayout) -> Tensor:
    """The gradient of the weights; partial sums are added in a fixed order, in float32.

    Args:
        x (Tensor): ``(N, C, H, W)``; float16, bfloat16 or float32; any strides.
        grad (Tensor): Gradient of the output, ``(N, C, H', W')``.
        problem (Problem): Of the forward pass.
        mode (str): One of ``tiles.MODES``.
        layout (GradLayout): How the work is divided.

    Returns:
        Tensor: ``(C, 1, Kh, Kw)`` in the dtype of x.
    """
    out = memory.empty(x, (problem.channels, 1, *problem.kernel))
    if is_ready(x) and is_ready(grad):
        _weight_grad(x, grad, out, problem, mode, layout)
        return out
    for some in channel_blocks(problem):
        part = problem._replace(channels=some.stop - some.start)
        _weight_grad(copied(x[:, some]), copied(grad[:, some]), out[some], part, mode, layout)
    return out


def _weight_grad(x, grad, out, problem, mode, layout) -> None:
    problem = problem._replace(channels_last=False, has_bias=False, relu=False)
    sums = None
    if layout.splits > 1:
        sums = memory.empty(x, (problem.channels, layout.splits, *problem.kernel), torch.float32)
    for launch in plan_weight_grad(problem, mode, layout):
        driver.run(launch, dict(x=x, g=grad, sums=sums, y=out))


def is_ready(x: Tensor) -> bool:
    """Whether the kernels can read a tensor where it is."""
    return x.is_contiguous() and x.data_ptr() % 16 == 0


def copied(x: Tensor) -> Tensor:
    """A tensor that the kernels can read: itself or a copy."""
    return x if is_ready(x) else memory.empty(x, x.shape).copy_(x)


def channel_blocks(p: Problem) -> list[slice]:
    """Channels whose copies of input and output fill no more than the workspace; one at least."""
    each = p.batch * (p.height * p.width + p.out_size[0] * p.out_size[1]) * p.dtype.itemsize
    step = max(max(WORKSPACE, each * p.channels // 10) // each, 1)
    step = ceil_div(p.channels, ceil_div(p.channels, step))
    return [slice(first, min(first + step, p.channels)) for first in range(0, p.channels, step)]
