"""Large-kernel depth-wise convolution. Needs nothing but torch."""

from .functional import large_kernel_dwconv2d
from .module import LargeKernelDWConv2d

__all__ = ['LargeKernelDWConv2d', 'large_kernel_dwconv2d']
