"""The 'torch' backend: PyTorch's own convolution, around two faults of its CPU kernels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import plain_dilation
from .cpu import costs as cpu_costs
from .gpu import arch as gpu_arch, backend as gpu
from .problem import Problem


def supports(problem: Problem, task: str) -> tuple[bool, str]:
    """It can serve every problem."""
    return True, "PyTorch's own convolution"


def estimate(problem: Problem, task: str) -> float | None:
    """Seconds for a task; None on devices that no figures are known of."""
    if problem.device == 'cpu':
        return cpu_costs.pytorch(problem, task)
    if problem.device == 'cuda':
        return gpu.pytorch(problem, task, gpu_arch.weakest())
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            keep: bool = False) -> Tensor:
    """The convolution, stride 1; there is nothing to keep."""
    return convolve(x, weight, bias, problem.padding, problem.dilation, problem.relu)


def weight_grad(x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights."""
    top, bottom, left, right = problem.padding
    weight = x.new_empty(problem.out_channels, 1, *problem.kernel)
    x = F.pad(x, (left, right, top, bottom))
    if is_faulty_trained(x, problem.channels, problem.dilation):
        x, grad, weight = x.float(), grad.float(), weight.float()
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), (0, 0), problem.dilation, False, (0, 0), problem.channels,
        (False, True, False))[1]
    return found.to(problem.dtype).contiguous()


def convolve(x, weight, bias, padding, dilation, relu=False) -> Tensor:
    """Stride 1, with padding at the top, bottom, left and right."""
    top, bottom, left, right = padding
    dilation = plain_dilation(dilation, weight.shape[2:])
    if top != bottom or left != right:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    out = conv2d(x, weight, bias, 1, (top, left), dilation, x.shape[1])
    return F.relu_(out) if relu else out


# Kernels at least so wide, on at most so many channels, hang: see `conv2d`.
HANGING_WIDTH = 15
_HANGING_CHANNELS = 16


def conv2d(x, weight, bias, stride, padding, dilation, groups) -> Tensor:
    """PyTorch's convolution, in float32 where that in 16 bits would hang or train on garbage.

    On CPUs with 16-bit instructions of AVX-512, oneDNN's depth-wise convolution of 2 to 16 channels
    (bfloat16 on channels-last feature maps, float16 on all) with kernels 15 and wider never
    returns for most sizes of the feature map (seen with PyTorch 2.5 and 2.12). For dilated and
    strided ones with gradients, see `is_faulty_trained`. Other dtypes beside 16 bits are PyTorch's
    to refuse. docs/reliability.md has the versions and machines.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if any(t.dtype != x.dtype for t in tensors) or weight.dim() != 4 or not (
            _hangs(x, weight, groups)
            or torch.is_grad_enabled() and is_faulty_trained(x, groups, dilation, stride)):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    wide = (None if t is None else t.float() for t in (x, weight, bias))
    with torch.autocast('cpu', enabled=False):
        return F.conv2d(*wide, stride, padding, dilation, groups).to(x.dtype)


def _hangs(x: Tensor, weight: Tensor, groups: int) -> bool:
    return _is_16_bits_on_cpu(x) and groups <= _HANGING_CHANNELS and (
        weight.shape[3] >= HANGING_WIDTH)


def is_faulty_trained(x: Tensor, groups: int, dilation: int | Sequence[int],
                      stride: int | Sequence[int] = 1) -> bool:
    """Whether PyTorch's own gradient of the weights may be garbage.

    On CPUs with AVX512-BF16 (with AMX and without), oneDNN's gradient of the weights of a dilated
    depth-wise convolution in bfloat16 reads memory that nobody wrote, for channels-last feature
    maps with outputs from about 29 wide; with strides, dilated or not, for maps narrower than the
    stride and, seldom, others. Avoided for all 16-bit inputs: strides do not tell which
    layout oneDNN will see, and float16 takes the same kernels where the CPU has its instructions.
    Not of one channel: 16 bits are right there, and float32 with strides is not
    (docs/reliability.md).
    """
    return (groups > 1 and (is_spread(dilation) or is_spread(stride))
            and _is_16_bits_on_cpu(x)
            and x.layout == torch.strided)


def is_spread(steps: int | Sequence[int]) -> bool:
    """Whether a dilation or stride is not 1; what is none counts too, for PyTorch to refuse."""
    return any(step != 1 for step in (steps if isinstance(steps, tuple | list) else (steps, )))


def _is_16_bits_on_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu' and x.dtype in (torch.float16, torch.bfloat16)
