"""The six functions of the compiled half of ``depthwise_conv2d_implicit_gemm``, by mmreplk.

Feature maps are (N, C, H, W), kernels (C, 1, Kh, Kw), padded by ``K // 2``. None of them is
differentiable or asks for autocast, as the extension's: networks call them from autograd functions
of their own.
"""

import torch
from torch import Tensor

from mmreplk.ops.dropin import convolve

__all__ = ['backward_data_fp16', 'backward_data_fp32', 'backward_filter_fp16',
           'backward_filter_fp32', 'forward_fp16', 'forward_fp32']


@torch.no_grad()
def forward_fp32(x: Tensor, w: Tensor) -> Tensor:
    """The convolution of x with w, in the dtype of x."""
    return convolve(x, w)


@torch.no_grad()
def backward_data_fp32(grad: Tensor, w: Tensor) -> Tensor:
    """The gradient of the input, in the dtype of grad: a convolution with the flipped kernels."""
    rows, columns = w.shape[2:]
    return convolve(grad, w.flip(2, 3), (rows - 1 - rows // 2, columns - 1 - columns // 2))


@torch.no_grad()
def backward_filter_fp32(grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """The gradient of the kernels, in float32 as the extension's (float64 for float64)."""
    kernel = list(w.shape[2:])
    if x.device.type == 'cpu' and x.dtype.itemsize == 2:
        x, grad = x.float(), grad.float()  # as it is computed in any case; not rounded then
    grad = grad.to(x.dtype)
    sides = [kernel[0] // 2] * 2 + [kernel[1] // 2] * 2
    found = torch.ops.mmreplk.dwconv2d_weight_grad(x, grad, kernel, sides, [1, 1], 'auto')
    return found if found.dtype == torch.float64 else found.float()


forward_fp16, backward_data_fp16 = forward_fp32, backward_data_fp32
backward_filter_fp16 = backward_filter_fp32
