"""Large-kernel depth-wise convolution. Needs nothing but torch."""

from .functional import explain, large_kernel_dwconv2d, large_kernel_dwconv2d_pair
from .module import LargeKernelDWConv2d

__all__ = ['LargeKernelDWConv2d', 'explain', 'large_kernel_dwconv2d', 'large_kernel_dwconv2d_pair']


def __dir__() -> list[str]:
    return list(__all__)
