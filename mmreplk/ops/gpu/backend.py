"""The 'triton' backend, and what PyTorch's own kernels take on a GPU, to compare it with.

Nothing here was timed: no GPU was at hand. Triton's times are those of the tile model
(tiles.py), a bound of memory, tensor cores and load instructions with guessed efficiencies.
PyTorch's are fitted to published latencies of a 2080 Ti and carried over to other devices by
multiprocessors, clock and bandwidth. So the choice is sound where one is several times the other,
as for large kernels, and a guess where they are close, as for 3x3 and 5x5; measured.py measures
where users ask for it. The constants are to be fitted again on the first GPU, to the rows of
``tools/benchmarks/first_gpu.py``.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from ..caches import cached
from ..problem import Problem
from . import arch as triton_arch, versions
from .family import Family

# PyTorch's own kernel, forward: clocks of a multiprocessor for an output, and for each tap of it,
# inside the map or not. The authors' table (24 layers of 64 x 384 x R x R, float32; PyTorch 1.9)
# gives 28 ps + 1.3 ps a tap on 68 multiprocessors at 1.6 GHz, within 16% but for 3x3 at R = 64,
# which it has 38% too slow. That is a bound of issued instructions, about 18 a tap, so the dtype
# does not matter.
_OUTPUT, _TAP = 3.05, 0.141
# Its gradient of the weights is a sum per weight over all pixels, taken for twice as slow.
_GRADIENT = 2.0
# 16-bit kernels of 1x1, 3x3 and 5x5 go to cuDNN, taken for this many times as fast.
_CUDNN = 3.0
# Share of the bandwidth that PyTorch's kernels reach at best, and copies between memory formats.
_STREAM, _COPY = 0.8, 0.4
# Seconds on the host and the device that one call takes at least: PyTorch launches one kernel,
# Triton two, through Python.
_CALL, _TRITON_CALL = 1e-5, 3e-5


def supports(problem: Problem, task: str) -> tuple[bool, str]:
    """Whether Triton can serve, and if not, why."""
    if problem.device != 'cuda':
        where = 'the CPU' if problem.device == 'cpu' else repr(problem.device)
        return False, f'Triton runs on a GPU, the input is on {where}'
    why = _without_triton()
    if why:
        return False, why
    from . import launch
    return launch.supports(problem, task)


def estimate(problem: Problem, task: str) -> float:
    """Seconds that Triton would take for a task that it supports.

    Where the visible GPUs differ, the weakest decides, so that a choice holds on each of them.
    """
    from . import launch
    device = triton_arch.weakest()
    # Without TF32, the slower of the two: the choice is not to depend on PyTorch's switch.
    time = launch.estimate(problem, task, False, device)
    if problem.channels_last:  # both feature maps are copied, that is read and written
        time += 2 * problem.bytes_moved / (device.memory * _COPY)
    return _TRITON_CALL + time


def _variants(problem: Problem, task: str, mode: str, device: triton_arch.Arch) -> list:
    from . import variants
    return list(variants.ranked(problem, task, mode, device))


def _probe(problem: Problem, task: str, mode: str, variant, device: triton_arch.Arch):
    from . import variants
    return variants.probe(problem, task, mode, variant, device)


def _read(task: str, value):
    from . import variants
    return variants.read(task, value)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, mode: str,
             variant) -> Tensor:
    from . import launch
    return launch.forward(x, weight, bias, problem, mode == 'tf32', variant.tile, variant.more)


def _weight_grad(x: Tensor, grad: Tensor, problem: Problem, mode: str, variant) -> Tensor:
    from . import launch
    return launch.weight_grad(x, grad, problem, mode == 'tf32', variant.tile, variant.more)


def _versions() -> dict[str, str]:
    import triton
    files = (Path(__file__).with_name(f'{name}.py') for name in (
        'kernels', 'launch', 'tiles', 'variants'))
    return dict(triton=triton.__version__, source=versions.source_digest(*files))


def allow_tf32() -> bool:
    """PyTorch's switch for convolutions in float32."""
    conv = getattr(torch.backends.cudnn, 'conv', None)
    if conv is not None and hasattr(conv, 'fp32_precision'):
        return conv.fp32_precision == 'tf32'
    return torch.backends.cudnn.allow_tf32


def pytorch(problem: Problem, task: str, device: triton_arch.Arch) -> float:
    """Seconds of PyTorch's depth-wise kernels or cuDNN's."""
    p = problem
    taps = p.kernel[0] * p.kernel[1]
    outputs = p.batch * p.out_channels * p.out_size[0] * p.out_size[1]
    cycles = outputs * (_OUTPUT + _TAP * taps)
    if p.dtype.itemsize == 2 and p.kernel in ((1, 1), (3, 3), (5, 5)) and task == 'forward':
        cycles /= _CUDNN
    if task == 'weight_grad':
        cycles *= _GRADIENT
    moved = p.bytes_moved / (device.memory * _STREAM)
    return _CALL + max(cycles / (device.sms * device.clock), moved)


@cached
def _without_triton() -> str:
    """Why Triton cannot be used at all; empty if it can.

    It compiles a little C at first use, which fails where there is no compiler or no Python header:
    better noticed here, where PyTorch can take over, than at the first launch.
    """
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    try:
        from . import launch  # noqa: F401
        if triton_arch.devices():
            _start()
    except Exception as error:  # whatever it is, PyTorch's kernels still work
        return f'Triton does not work here ({type(error).__name__}: {error})'
    return ''


def _start() -> None:
    import triton
    triton.runtime.driver.active.get_current_target()


FAMILY = Family('triton', supports, estimate, _variants, _probe, _forward, _weight_grad, _versions,
                _read)
