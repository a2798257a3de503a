"""The GPU path: Triton where it can serve, PyTorch's kernels, or an FFT product on request.

Nothing here was timed: no GPU was at hand. Triton's times are those of the tile model
(triton_tiles.py), a bound of memory, tensor cores and load instructions with guessed efficiencies.
PyTorch's are fitted to published latencies of a 2080 Ti and carried over to other devices by
multiprocessors, clock and bandwidth. So the choice is sound where one is several times the other,
as for large kernels, and a guess where they are close, as for 3x3 and 5x5. The constants are to be
fitted again on the first GPU, to the rows of ``tools/benchmarks/tune_triton.py``.
"""

import importlib.util

from ..caches import cached
from ..problem import Problem
from ..torch_fft import conv as fft
from . import arch as triton_arch

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


def estimates(problem: Problem, task: str) -> dict[str, float | str | None]:
    """Seconds each backend would take for a task, None if not estimated, or why it cannot serve.

    Where the visible GPUs differ, the weakest decides, so that a choice holds on each of them.

    Args:
        problem (Problem): A valid problem with at least one output.
        task (str): 'forward' or 'weight_grad'.
    """
    device = triton_arch.weakest()
    out: dict[str, float | str | None] = {'torch': pytorch(problem, task, device)}
    # No estimate, so never without being asked for: it looks at results on the host (to mend what
    # a NaN has spread over), which CUDA graphs cannot record, and no figure says what it takes.
    ok, why = fft.supports(problem)
    out['fft'] = None if ok else why
    out['direct'] = 'the compiled direct sum runs on a CPU'
    out['triton'] = _without_triton() or _triton(problem, task, device)
    return out


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


def _triton(problem: Problem, task: str, device: triton_arch.Arch) -> float | str:
    from . import launch as triton_launch
    ok, why = triton_launch.supports(problem, task)
    if not ok:
        return why
    # Without TF32, the slower of the two: the choice is not to depend on PyTorch's switch.
    time = triton_launch.estimate(problem, task, False, device)
    if problem.channels_last:  # both maps are copied, that is read and written
        time += 2 * problem.bytes_moved / (device.memory * _COPY)
    return _TRITON_CALL + time


@cached
def _without_triton() -> str:
    """Why Triton cannot be used at all; empty if it can.

    It compiles a little C at first use, which fails where there is no compiler or no Python header:
    better noticed here, where PyTorch can take over, than at the first launch.
    """
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    try:
        from . import launch as triton_launch  # noqa: F401
        if triton_arch.devices():
            _start()
    except Exception as error:  # whatever it is, PyTorch's kernels still work
        return f'Triton does not work here ({type(error).__name__}: {error})'
    return ''


def _start() -> None:
    import triton
    triton.runtime.driver.active.get_current_target()
