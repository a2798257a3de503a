"""``LargeKernelDWConv2d``: the operator as a drop-in for ``nn.Conv2d``."""

from torch import Tensor, nn

from .functional import large_kernel_dwconv2d


class LargeKernelDWConv2d(nn.Conv2d):
    """``nn.Conv2d`` with the fast path for large depth-wise kernels.

    Takes the arguments of ``nn.Conv2d`` and has its attributes and state dict. Where the layer is
    not depth-wise with stride 1 and dilation 1, it is ``nn.Conv2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` as ``nn.Conv2d`` does."""
        plain = (
            self.groups != self.in_channels or self.out_channels != self.in_channels
            or self.stride != (1, 1) or self.dilation != (1, 1) or self.padding_mode != 'zeros')
        if plain or input.dim() != 4:
            return super().forward(input)
        return large_kernel_dwconv2d(input, self.weight, self.bias, self.padding)
