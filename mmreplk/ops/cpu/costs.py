"""Estimated times of the CPU backends: which is the fastest, not how fast a machine is.

The constants were fitted to measurements of two threads of one machine (AMD Zen 5, PyTorch 2.12);
only their ratios matter to the choice. See plan.py for the compiled kernels' own.
"""

import torch

from ..arithmetic import ceil_div
from ..problem import Problem
from ..torch_fft import conv as fft
from . import kernels as native
from .plan import direct_cost, fft_cost, taps_inside


def pytorch(problem: Problem, task: str) -> float:
    """Seconds of PyTorch's convolution: oneDNN, where it has a fast kernel for the shape."""
    lanes = 16
    planes = problem.batch * ceil_div(problem.out_channels, lanes) * lanes
    macs = planes * problem.macs_per_plane
    pixels = planes * problem.out_size[0] * problem.out_size[1]
    taps = planes / problem.batch * problem.kernel[0] * problem.kernel[1]
    cold = max(0.0, problem.bytes_moved - 16e6)
    # oneDNN's kernels for NCHW stop at a padding of 6 columns. What takes over is far slower.
    narrow = problem.kernel[1] <= 13
    if problem.dtype == torch.float64:
        return 4e-5 + macs * 3e-10
    if problem.dtype == torch.float16:
        return 5e-5 + macs * 2e-9
    if task == 'weight_grad':
        if problem.kernel[1] <= 3:
            return 3e-5 + macs * 2.6e-11 + taps * 3e-8 + cold * 2e-10
        return 4e-5 + macs * (2e-10 if problem.channels_last else 5e-10) + pixels * 2.7e-9
    if problem.channels_last:
        # Between 12 and 13 columns its kernel meets a limit of its own.
        slow = 3.7 if problem.kernel[1] == 13 else 1
        tap = 2.3e-9 if problem.kernel[1] <= 11 else 4.4e-10
        return 2.7e-5 + slow * macs * 9.4e-12 + pixels * 2.8e-11 + taps * tap + cold * 3e-11
    if narrow:
        # It leaves out rows of taps beside the map, but no columns.
        rows = taps_inside(problem.height, problem.out_size[0], problem.kernel[0],
                           problem.padding[0], problem.dilation[0], 1)
        macs = planes * rows * problem.out_size[1] * problem.kernel[1]
        return 4.8e-5 + macs * 6e-12 + pixels * 3.2e-10 + taps * 1.3e-10 + cold * 3e-10
    return 4e-5 + macs * 2.4e-10 + pixels * 1.6e-9


def torch_fft(problem: Problem, task: str) -> float:
    """Seconds of the FFT convolution by ``torch.fft``."""
    planes = problem.batch * problem.out_channels
    return 1e-4 + planes * fft.plane_points(problem) * (5e-9 if task == 'forward' else 1e-8)


def direct(problem: Problem, task: str) -> float:
    """Seconds of the compiled direct sum."""
    cost = direct_cost(problem, task, native.lanes()).cost
    return 1e-9 * cost + _conversion(problem)


def compiled_fft(problem: Problem, task: str) -> float:
    """Seconds of the compiled FFT convolution, in the forward pass with unchanged weights."""
    return 1e-9 * fft_cost(problem, task, native.lanes()) + _conversion(problem)


def fft_backward(problems: tuple[Problem, ...]) -> float:
    """Seconds of both gradients in one pass, of one or two kernels on the same input."""
    tasks = 'backward' if len(problems) == 1 else 'pair_backward'
    return 1e-9 * fft_cost(problems[0], tasks, native.lanes()) + 2 * _conversion(problems[0])


def _conversion(problem: Problem) -> float:
    """Seconds to widen 16-bit maps to float32 and to round the result."""
    return 0.0 if problem.dtype == torch.float32 else 3e-5 + problem.bytes_moved * 2e-10
