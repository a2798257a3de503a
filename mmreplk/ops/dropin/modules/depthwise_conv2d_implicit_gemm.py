"""``depthwise_conv2d_implicit_gemm``, served by mmreplk: see mmreplk.ops.dropin."""

from numbers import Integral

import torch
from torch import Tensor

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d
from mmreplk.ops.dropin import convolve
from mmreplk.ops.functional import AUTOCAST_DEVICES
from mmreplk.ops.symbolic import is_symbolic

__all__ = ['DepthWiseConv2dImplicitGEMM']


class DepthWiseConv2dImplicitGEMM(LargeKernelDWConv2d):
    """A depth-wise convolution of stride 1 that keeps the size of odd kernels' feature maps.

    Unlike the extension's it has the padding that it computes with as its attribute, takes any
    strides of memory and any device, and bfloat16 and float64 beside float32 and float16. The
    output has the dtype of the input, whatever that of the weights, except under autocast, where it
    is that of ``nn.Conv2d``.

    Args:
        channels (int): Channels C of input and output.
        kernel (int | tuple[int, int]): Kernel size, down and right.
        bias (bool): Whether it adds a bias. Defaults to False.

    Raises:
        ValueError: If kernel is neither a positive int nor a pair of them.
    """

    def __init__(self, channels: int, kernel: int | tuple[int, int], bias: bool = False):
        sides = (kernel, kernel) if isinstance(kernel, Integral) else kernel
        if (not isinstance(sides, (tuple, list)) or len(sides) != 2
                or not all(isinstance(side, Integral) and side > 0 for side in sides)):
            raise ValueError('DepthWiseConv2dImplicitGEMM: kernel must be a positive int or a pair '
                             f'of them, not {kernel!r}; there is no 3-d convolution')
        sides = tuple(map(int, sides))
        super().__init__(channels, channels, sides, padding=_half(sides), groups=channels,
                         bias=bias)

    def __setstate__(self, state):
        super().__setstate__(state)
        if 'backend' not in state:
            # A network that was pickled whole with the extension, whose padding was no attribute.
            self.padding = _half(self.kernel_size)
            rows, columns = self.padding
            self._reversed_padding_repeated_twice = [columns, columns, rows, rows]

    def _fast_forward(self, input: Tensor) -> Tensor:
        if is_symbolic(input) or input.dtype == self.weight.dtype or (
                input.device.type in AUTOCAST_DEVICES
                and torch.is_autocast_enabled(input.device.type)):
            return super()._fast_forward(input)
        # Networks cast their inputs to float16 and keep the weights in float32.
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return large_kernel_dwconv2d(input, self.weight.to(input.dtype), bias, self.stride,
                                     self.padding, self.dilation, self.groups,
                                     activation=self.activation, backend=self.backend)


def _half(sides: tuple[int, int]) -> tuple[int, int]:
    return sides[0] // 2, sides[1] // 2


class _Function:
    """What networks call as an autograd function: ``apply(x, kernels)``."""

    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def apply(cls, x: Tensor, w: Tensor) -> Tensor:
        """Convolve ``x`` (N, C, H, W) with kernels ``w`` (C, 1, Kh, Kw), padded by ``K // 2``."""
        return convolve(x if x.dtype in cls.dtypes else x.to(cls.dtypes[0]), w)


class _DepthWiseConv2dImplicitGEMMFP32(_Function):
    dtypes = torch.float32, torch.float64


class _DepthWiseConv2dImplicitGEMMFP16(_Function):
    dtypes = torch.float16, torch.bfloat16
