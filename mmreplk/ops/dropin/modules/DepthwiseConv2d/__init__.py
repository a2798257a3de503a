"""The name of MultiPath's package of ``depthwise_conv2d_implicit_gemm``, for the same modules."""
