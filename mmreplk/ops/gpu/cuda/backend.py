"""The 'cuda' backend: CUDA C++ kernels that NVRTC compiles at first use.

They have run on no GPU yet: every line was run on a CPU, lane by lane (tests/ops/gpu/cuda), and
compiled for all capabilities. So nothing of them is used before a small problem has come out right
on the very device (``gpu/selfcheck.py``), and times are counted (cost.py), not measured.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...caches import cached
from ...problem import Problem
from .. import selfcheck, versions
from ..arch import Arch, arch_of, devices, weakest
from ..family import Family
from ..tiles import mode_of
from ..variants import COPY
from . import driver, launch, nvrtc, variants

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Seconds on the host and the device that one call takes at least: a launch through ctypes.
_CALL = 1.5e-5


def supports(problem: Problem, task: str) -> tuple[bool, str]:
    """Whether the CUDA kernels can serve, and if not, why."""
    p = problem
    if p.device != 'cuda':
        where = 'the CPU' if p.device == 'cpu' else repr(p.device)
        return False, f'the CUDA kernels run on a GPU, the input is on {where}'
    if torch.version.hip:
        return False, 'the CUDA kernels are made for NVIDIA GPUs'
    why = can_divide(p, task)
    if why:
        return False, why
    if weakest().capability < (8, 0):
        return False, f'the CUDA kernels need compute capability 8.0, not {weakest().capability}'
    why = _without_cuda()
    return not why, why


def can_divide(problem: Problem, task: str) -> str:
    """Why the kernels cannot serve a problem on any device; '' if they can."""
    p = problem
    if p.dtype not in _DTYPES:
        return f'the CUDA kernels do not compute in {p.dtype}'
    if p.stride != (1, 1) or p.dilation != (1, 1):
        return 'the CUDA kernels have stride 1 and dilation 1'
    if p.multiplier != 1:
        return 'the CUDA kernels have as many outputs as inputs'
    rows, columns = (size + sum(sides) for size, sides in (
        (p.height, p.padding[:2]), (p.width, p.padding[2:])))
    if max(rows, columns) >= 1 << 24 or rows * columns >= 1 << 30:
        return 'one plane of the map has too many elements for 32-bit offsets'
    # The smallest block is of 64 results of 8 columns each.
    if p.batch * p.channels * (rows // 8 + 1) * (columns // 8 + 1) >= 1 << 30:
        return 'the CUDA kernels count blocks in 32 bits, and this would take more'
    if not variants.ranked(p, task, mode_of(p.dtype, False), weakest()):
        return 'no way to divide the kernel fits into shared memory'
    return ''


def estimate(problem: Problem, task: str) -> float:
    """Seconds that the kernels would take for a task that they support.

    Where the visible GPUs differ, the weakest decides, so that a choice holds on each of them.
    Without TF32, the slower of the two: the choice is not to depend on PyTorch's switch.
    """
    device, mode = weakest(), mode_of(problem.dtype, False)
    best = variants.ranked(problem, task, mode, device)[0]
    time = variants.seconds(problem, mode, best, device)
    if problem.channels_last:  # both feature maps are copied, that is read and written
        time += 2 * problem.bytes_moved / (device.memory * COPY)
    return _CALL + time


def _variants(problem: Problem, task: str, mode: str, device: Arch) -> list:
    return list(variants.ranked(problem, task, mode, device))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, mode: str,
             variant: variants.Forward) -> Tensor:
    return launch.forward(x, weight, bias, problem, mode, *variant)


def _weight_grad(x: Tensor, grad: Tensor, problem: Problem, mode: str,
                 variant: variants.WeightGrad) -> Tensor:
    return launch.weight_grad(x, grad, problem, mode, *variant)


def _versions() -> dict[str, str]:
    here = Path(__file__).parent
    files = (*sorted(nvrtc.SOURCES.iterdir()),
             *(here / f'{name}.py' for name in ('plan', 'grad_plan', 'launch', 'driver')))
    return dict(nvrtc=nvrtc.version(), source=versions.source_digest(*files))


FAMILY = Family('cuda', supports, estimate, _variants, variants.probe, _forward, _weight_grad,
                _versions, variants.read)


def check(device: torch.device | str) -> dict[str, str]:
    """Every kind of kernel on a device beside float64, in poisoned memory: for whoever asks.

    Returns:
        dict[str, str]: By task and arithmetic, 'right' or what is wrong.
    """
    device, found = torch.device(device), {}
    for dtype in _DTYPES:
        for allow in (False, True) if dtype == torch.float32 else (False, ):
            mode = mode_of(dtype, allow)
            p = Problem(dtype, device.type, False, 3, 2, 20, 24, 1, (13, 13), (1, 1),
                        (6, 6, 6, 6), (1, 1), True, False)
            for task in ('forward', 'weight_grad'):
                best = variants.ranked(p, task, mode, arch_of(device))[0]
                name = f'{task} {str(dtype).removeprefix("torch.")} {mode}'
                try:
                    found[name] = selfcheck.outcome_of(FAMILY, device, p, task, mode, best)
                except (RuntimeError, OSError) as error:
                    found[name] = f'{type(error).__name__}: {error}'
    return found


@cached
def _without_cuda() -> str:
    """Why the kernels cannot be used at all; '' if they can. Asked where there is a GPU alone."""
    try:
        nvrtc.library()
        if devices():
            driver.library()
    except (nvrtc.Unavailable, driver.DriverError) as error:
        return f'the CUDA kernels cannot be compiled and loaded here: {error}'
    return ''
