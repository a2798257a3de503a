"""The FFT convolution by ``torch.fft``: what conv.py computes, corrected by contrast.py."""

from torch import Tensor

from ..cpu import costs as cpu_costs
from ..cpu.kept_spectra import kept_spectra
from ..problem import Problem
from . import contrast, conv

supports = conv.supports


def estimate(problem: Problem, task: str) -> float | None:
    """Seconds for a task.

    None on a GPU, where it never serves without being asked for: it looks at results on the host
    (to correct what a NaN has spread over), which CUDA graphs cannot record, and nobody has
    measured what it takes.
    """
    return cpu_costs.torch_fft(problem, task) if problem.device == 'cpu' else None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            keep: bool = False) -> Tensor:
    """The convolution. With ``keep``, the spectrum of the weights is kept for the next call."""
    spectrum = kept_spectra.get(weight, problem, conv.spectrum_of_weight) if keep else None
    out = conv.forward(x, weight, bias, problem, spectrum)
    out = contrast.mend(out, x, weight, bias, problem)
    return out.relu_() if problem.relu else out


def weight_grad(x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights."""
    return contrast.mend_weight_grad(conv.weight_grad(x, grad, problem), x, grad, problem)
