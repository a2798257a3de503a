"""``depthwise_conv2d_implicit_gemm``, served by mmreplk: see mmreplk.ops.dropin."""

import torch
from torch import Tensor

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d

__all__ = ['DepthWiseConv2dImplicitGEMM']


class DepthWiseConv2dImplicitGEMM(LargeKernelDWConv2d):
    """A depth-wise convolution of stride 1 that keeps the size of odd kernels' feature maps.

    Unlike the extension's it has the padding that it computes with as its attribute, takes any
    strides of memory and any device, and bfloat16 and float64 beside float32 and float16. The
    output has the dtype of the input, whatever that of the weights, except under autocast.

    Args:
        channels (int): Channels C of input and output.
        kernel (int | tuple[int, int]): Kernel size, down and right.
        bias (bool): Whether it adds a bias. Defaults to False.

    Raises:
        TypeError, ValueError: If kernel is neither an int nor a pair of positive ints.
    """

    def __init__(self, channels: int, kernel: int | tuple[int, int], bias: bool = False):
        sides = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError('DepthWiseConv2dImplicitGEMM: kernel must be a positive int or a pair '
                             f'of them, not {kernel!r}; there is no 3-d convolution')
        super().__init__(channels, channels, sides, padding=(sides[0] // 2, sides[1] // 2),
                         groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)`` or ``(C, H, W)``."""
        if input.dtype == self.weight.dtype or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        # Networks cast their inputs to float16 and keep the weights in float32.
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return large_kernel_dwconv2d(input, self.weight.to(input.dtype), bias, self.stride,
                                     self.padding, self.dilation, self.groups,
                                     backend=self.backend)


class _Function:
    """What networks call as an autograd function: ``apply(x, kernels)``."""

    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def apply(cls, x: Tensor, w: Tensor) -> Tensor:
        """Convolve ``x`` (N, C, H, W) with kernels ``w`` (C, 1, Kh, Kw), padded by ``K // 2``."""
        dtype = x.dtype if x.dtype in cls.dtypes else cls.dtypes[0]
        with torch.autocast(x.device.type, enabled=False):
            return large_kernel_dwconv2d(x.to(dtype), w.to(dtype),
                                         padding=(w.shape[2] // 2, w.shape[3] // 2))


class _DepthWiseConv2dImplicitGEMMFP32(_Function):
    dtypes = torch.float32, torch.float64


class _DepthWiseConv2dImplicitGEMMFP16(_Function):
    dtypes = torch.float16, torch.bfloat16
