"""``DepthwiseConv2d.depthwise_conv2d_implicit_gemm``: the same classes by a longer name."""

from depthwise_conv2d_implicit_gemm import (
    DepthWiseConv2dImplicitGEMM,
    _DepthWiseConv2dImplicitGEMMFP16,
    _DepthWiseConv2dImplicitGEMMFP32,
)

__all__ = ['DepthWiseConv2dImplicitGEMM', '_DepthWiseConv2dImplicitGEMMFP16',
           '_DepthWiseConv2dImplicitGEMMFP32']
