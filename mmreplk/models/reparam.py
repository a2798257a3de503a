"""The large kernel with its parallel small kernel, and their exact merge (paper, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import LargeKernelDWConv2d, large_kernel_dwconv2d_pair
from ..ops.symbolic import is_symbolic, refuse_script
from .layers import conv_bn, fuse_conv_bn, rounded


class ReparamLargeKernelConv(nn.Module):
    """A depth-wise KxK conv-BN, plus a small conv-BN on the same input during training.

    Deployed, it is one convolution with a bias. The sub-modules carry the official names:
    ``lkb_origin`` and ``small_conv`` in training, ``lkb_reparam`` when merged.

    Args:
        channels (int): Channels C of input and output.
        kernel_size (int): The large kernel K, odd.
        small_kernel (int, optional): The small kernel, odd and at most K; None for no such branch.
        norm_cfg (dict, optional): Config of the norms. Defaults to None, BN.
    """

    def __init__(self,
                 channels: int,
                 kernel_size: int,
                 small_kernel: int | None = None,
                 norm_cfg: dict | None = None):
        super().__init__()
        self.kernel_size = kernel_size
        self.small_kernel = small_kernel
        self.lkb_origin = conv_bn(
            channels,
            channels,
            kernel_size,
            groups=channels,
            norm_cfg=norm_cfg,
            conv_layer=LargeKernelDWConv2d)
        if small_kernel is not None:
            self.small_conv = conv_bn(
                channels,
                channels,
                small_kernel,
                groups=channels,
                norm_cfg=norm_cfg,
                conv_layer=LargeKernelDWConv2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        if self.deploy:
            return self.lkb_reparam(x)
        if self.small_kernel is None:
            return self.lkb_origin(x)
        large, small = self.lkb_origin.conv, self.small_conv.conv
        if is_symbolic(x) or not (_is_plain(large) and _is_plain(small)):
            return self.lkb_origin(x) + self.small_conv(x)
        out, small_out = large_kernel_dwconv2d_pair(
            x, large.weight, small.weight, backend=large.backend)
        return self.lkb_origin.bn(out) + self.small_conv.bn(small_out)

    __prepare_scriptable__ = refuse_script

    @property
    def deploy(self) -> bool:
        """Whether the branches are merged."""
        return hasattr(self, 'lkb_reparam')

    @torch.no_grad()
    def merge_kernel(self) -> None:
        """Replace the branches by the one convolution that equals them in evaluation mode.

        The merge is computed in float64 and rounded once. Merging twice does nothing.

        Raises:
            TypeError: If a norm keeps no running statistics; nothing is changed then.
            ValueError: If a number of the merged convolution is not finite or beyond the range of
                the weight's dtype; nothing is changed then.
        """
        if not self.deploy:
            self._replace_branches(*self.merged())

    @torch.no_grad()
    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the merged convolution; the branches stay.

        Returns:
            tuple[Tensor, Tensor]: Weight ``(C, 1, K, K)`` and bias ``(C, )``, in the dtype of the
            large kernel's weight.

        Raises:
            TypeError: As :meth:`merge_kernel`.
            ValueError: As :meth:`merge_kernel`.
        """
        origin = self.lkb_origin.conv
        weight, bias = fuse_conv_bn(origin, self.lkb_origin.bn)
        if self.small_kernel is not None:
            small_weight, small_bias = fuse_conv_bn(self.small_conv.conv, self.small_conv.bn)
            # Both kernels are centred on the same pixel, so the small one lands in the middle.
            border = (self.kernel_size - self.small_kernel) // 2
            weight = weight + F.pad(small_weight, [border] * 4)
            bias = bias + small_bias
        return tuple(rounded(value, origin.weight.dtype, f'the {name} of a large kernel')
                     for value, name in ((weight, 'weight'), (bias, 'bias')))

    def _replace_branches(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        origin = self.lkb_origin.conv
        with torch.device(origin.weight.device):
            merged = self._merged_conv(origin.in_channels).to(origin.weight)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)
        merged.requires_grad_(origin.weight.requires_grad)
        merged.train(self.training)
        del self.lkb_origin
        if self.small_kernel is not None:
            del self.small_conv
        self.lkb_reparam = merged

    def _merged_conv(self, channels: int) -> nn.Conv2d:
        return LargeKernelDWConv2d(
            channels, channels, self.kernel_size, padding=self.kernel_size // 2, groups=channels)


def merge_kernels(model: nn.Module) -> int:
    """Merge every re-parameterised kernel of a network, in place.

    Args:
        model (nn.Module): RepLKNet, an enlarged network, or whatever holds one.

    Returns:
        int: How many were merged; those that are merged already do not count.

    Raises:
        TypeError: If a norm keeps no running statistics. Nothing is changed then.
        ValueError: If a number of a merged convolution is not finite or beyond the range of its
            dtype. Nothing is changed then.
    """
    kernels = [module for module in model.modules()
               if isinstance(module, ReparamLargeKernelConv) and not module.deploy]
    merged = [kernel.merged() for kernel in kernels]
    with torch.no_grad():
        for kernel, (weight, bias) in zip(kernels, merged, strict=True):
            kernel._replace_branches(weight, bias)
    return len(kernels)


def _is_plain(conv: nn.Module) -> bool:
    """Whether nobody minds that the layer itself is not called: it is as built, without hooks."""
    return type(conv) is LargeKernelDWConv2d and not (
        conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks
        or conv._backward_pre_hooks)
