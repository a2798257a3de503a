"""The 'fft' backend: the compiled FFT convolution where it runs, ``torch.fft`` elsewhere."""

from torch import Tensor

from .cpu import backend as cpu, costs as cpu_costs, kernels as native
from .problem import Problem
from .torch_fft import backend as torch_fft


def supports(problem: Problem, task: str) -> tuple[bool, str]:
    """Whether one of the two can serve, and why not."""
    if cpu.supports(problem)[0]:
        return native.fft_supports(problem)
    return torch_fft.supports(problem)


def estimate(problem: Problem, task: str) -> float | None:
    """Seconds for a task."""
    if cpu.supports(problem)[0]:
        return cpu_costs.compiled_fft(problem, task)
    return torch_fft.estimate(problem, task)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            keep: bool = False) -> Tensor:
    """The convolution. With ``keep``, the spectrum of the weights is kept for the next call."""
    if cpu.supports(problem)[0]:
        return cpu.forward('fft', x, weight, bias, problem, keep)
    return torch_fft.forward(x, weight, bias, problem, keep)


def weight_grad(x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights."""
    if cpu.supports(problem)[0]:
        return cpu.weight_grad('fft', x, grad, problem)
    return torch_fft.weight_grad(x, grad, problem)
