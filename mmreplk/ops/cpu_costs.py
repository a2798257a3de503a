"""Estimated times of the CPU backends: which is the fastest, not how fast a machine is.

The constants were fitted to one machine's measurements (tools/benchmarks/results); only their
ratios matter to the choice.
"""

from . import fft
from .problem import Problem


def pytorch(problem: Problem, task: str) -> float:
    """Seconds of PyTorch's convolution."""
    return 1e-5 + problem.macs / 1e9


def torch_fft(problem: Problem, task: str) -> float:
    """Seconds of the product through ``torch.fft``."""
    planes = problem.batch * problem.out_channels
    return 1e-4 + planes * fft.plane_points(problem) * 6e-9


def direct(problem: Problem, task: str) -> float:
    """Seconds of the compiled direct sum."""
    return 1e-5 + problem.macs / 5e10


def compiled_fft(problem: Problem, task: str) -> float:
    """Seconds of the compiled FFT product."""
    planes = problem.batch * problem.out_channels
    return 1e-5 + planes * fft.plane_points(problem) * 2e-9
