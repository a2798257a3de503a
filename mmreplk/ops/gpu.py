"""The GPU path: Triton where it can serve, cuDNN, or an FFT product on request.

No GPU was at hand when this was written. Triton's times are those of the tile model
(triton_tiles.py), PyTorch's are drawn from published figures, so the choice is sound where one is
several times the other, as for large kernels, and a guess where they are close. Times measured by
``tools/benchmarks/tune_triton.py`` and ``dwconv.py`` on a GPU are to replace the constants.
"""

import importlib.util
from functools import cache

from . import fft
from .problem import Problem

# Multiply-adds of a multiprocessor and clock outside the tensor cores, by compute capability.
_MACS = {(8, 0): 64}
_MACS_ELSEWHERE = 128
# Shares of the peak that PyTorch's depth-wise kernels reach: the paper's latencies on a 2080 Ti (24
# layers of 64 x 384 x 64 x 64: 69.6 ms at K = 3, 3090 ms at K = 31) give 45% of the bandwidth and
# 11% of the multiply-adds.
_OF_BANDWIDTH, _OF_MACS = 0.45, 0.11
# A launch, and how much longer PyTorch's gradient of the weights takes than its convolution.
_LAUNCH, _GRADIENT = 8e-6, 2.0


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec('triton') is not None


def estimates(problem: Problem, task: str) -> dict[str, float | str | None]:
    """Seconds each backend would take for a task, None if not estimated, or why it cannot serve.

    Args:
        problem (Problem): A valid problem with at least one output.
        task (str): 'forward' or 'weight_grad'.
    """
    out: dict[str, float | str | None] = {'torch': pytorch(problem, task)}
    # cuFFT's rounding is no better, its memory far more: only on request.
    ok, why = fft.supports(problem)
    out['fft'] = None if ok else why
    out['direct'] = 'the compiled direct sum runs on a CPU'
    if not _has_triton():
        out['triton'] = 'Triton is not installed'
        return out
    from . import triton_launch
    ok, why = triton_launch.supports(problem, task)
    # Without TF32, the slower of the two: the choice is not to depend on PyTorch's switch.
    out['triton'] = triton_launch.estimate(problem, task, False) if ok else why
    return out


def pytorch(problem: Problem, task: str) -> float:
    """Seconds of PyTorch's own depth-wise kernels or cuDNN's."""
    from .triton_tiles import arch
    device = arch(*_device())
    macs = device.sms * device.clock * _MACS.get(device.capability, _MACS_ELSEWHERE) * _OF_MACS
    time = max(problem.bytes_moved / (device.memory * _OF_BANDWIDTH), problem.macs / macs)
    return _LAUNCH + time * (_GRADIENT if task == 'weight_grad' else 1.0)


def _device() -> tuple:
    """Compute capability and multiprocessors of the current device; empty where there is none."""
    import torch
    if not torch.cuda.is_available():
        return ()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return (properties.major, properties.minor), properties.multi_processor_count
