"""The one public function: ``large_kernel_dwconv2d``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import FFTDepthwiseConv

# Below this kernel size PyTorch's own convolution is about as fast on a CPU, forward and backward
# together. A rough line: the map's size matters too, and a cost model has to replace it.
MIN_FFT_KERNEL = 7
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def large_kernel_dwconv2d(x: Tensor,
                          weight: Tensor,
                          bias: Tensor | None = None,
                          padding: int | tuple[int, int] | str = 0) -> Tensor:
    """Depth-wise convolution, equal to ``F.conv2d(x, weight, bias, padding=padding, groups=C)``.

    On a CPU, odd kernels from 7x7 with "same" padding run through an FFT product, forward and
    backward; everything else goes to PyTorch's own convolution. Results differ by rounding alone.

    Args:
        x (Tensor): Input ``(N, C, H, W)``.
        weight (Tensor): Kernels ``(C, 1, Kh, Kw)``.
        bias (Tensor, optional): ``(C, )``. Defaults to None.
        padding (int | tuple[int, int] | str): As of ``F.conv2d``. Defaults to 0.

    Returns:
        Tensor: ``(N, C, H', W')`` in the dtype and memory format of x.

    Raises:
        RuntimeError: What PyTorch's convolution raises for the same arguments.
    """
    if not _takes_fft(x, weight, padding):
        return F.conv2d(x, weight, bias, padding=padding, groups=weight.shape[0])
    if torch.is_autocast_enabled('cpu'):
        dtype = torch.get_autocast_dtype('cpu')
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    out = FFTDepthwiseConv.apply(x, weight)
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def _takes_fft(x: Tensor, weight: Tensor, padding) -> bool:
    if x.device.type != 'cpu' or x.layout != torch.strided or x.dtype not in _DTYPES:
        return False
    # An exported graph holds a plain convolution, which every runtime knows.
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
        return False
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:2] != (x.shape[1], 1) or not x.numel():
        return False
    if weight.dtype != x.dtype and not torch.is_autocast_enabled('cpu'):
        return False
    kernel = weight.shape[2:]
    if min(kernel) < MIN_FFT_KERNEL or kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        return False
    same = (kernel[0] // 2, kernel[1] // 2)
    if isinstance(padding, str):
        return padding == 'same'
    return tuple([padding] * 2 if isinstance(padding, int) else padding) == same
