"""Layers of the deployed network, which compute in fewer steps what the trained ones compute.

:func:`.fold.deploy_network` gives its modules these classes. Where a layer is as built and has no
hooks, the convolution in front does its work too: an activation, or the sum of a residual block.
Otherwise it is called as in the trained network. So whoever replaces a layer, or listens to it,
finds an ordinary network.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import LargeKernelDWConv2d, large_kernel_dwconv2d
from ..ops.torch_internals import children_of
from .blocks import ConvFFN, DropPath, RepLKBlock
from .cpu_inference.pointwise import ACTIVATIONS, PointwiseConv2d
from .plain import is_plain
from .reparam import ReparamLargeKernelConv


class ChannelAffine(nn.Module):
    """``weight * x + bias`` for each channel: what is left of a norm that nothing follows.

    Args:
        channels (int): Channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        return torch.addcmul(self.bias.reshape(-1, 1, 1), x, self.weight.reshape(-1, 1, 1))


class FusedSequential(nn.Sequential):
    """``conv`` and ``nonlinear``: what is left of convolution, norm and activation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` by all layers."""
        if list(children_of(self)) == ['conv', 'nonlinear']:
            return _activated(input, self.conv, self.nonlinear)
        return super().forward(input)


class DeployedRepLKBlock(RepLKBlock):
    """1x1-act, large kernel with its act, 1x1 with the addition: no norm is left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        out = self.pw1(self.prelkb_bn(x))
        out = _activated(out, self.large_kernel, self.lk_nonlinear)
        return _added(x, out, self.pw2, self.drop_path)


class DeployedConvFFN(ConvFFN):
    """1x1 with its act, 1x1 with the addition: no norm is left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        out = _activated(self.preffn_bn(x), self.pw1, self.nonlinear)
        return _added(x, out, self.pw2, self.drop_path)


DEPLOYED = {RepLKBlock: DeployedRepLKBlock, ConvFFN: DeployedConvFFN}


def _activated(x: torch.Tensor, layers: nn.Module, activation: nn.Module) -> torch.Tensor:
    """``activation(layers(x))``."""
    conv = _conv_of(layers)
    if isinstance(x, torch.Tensor) and is_plain(activation, *ACTIVATIONS.values()):
        if is_plain(conv, PointwiseConv2d):
            return conv.forward(x, activation=activation)
        if type(activation) is nn.ReLU:
            if _is_plain_depthwise(conv) and x.dim() == 4:
                return large_kernel_dwconv2d(x, conv.weight, conv.bias, conv.stride, conv.padding,
                                             conv.dilation, activation='relu', backend=conv.backend)
            if is_plain(conv, nn.Conv2d):
                return F.relu_(conv(x))  # a convolution does not need its result again
    return activation(conv(x))


def _added(x: torch.Tensor, out: torch.Tensor, layers: nn.Module,
           drop_path: nn.Module) -> torch.Tensor:
    """``x + drop_path(layers(out))``."""
    conv = _conv_of(layers)
    if (isinstance(x, torch.Tensor) and is_plain(conv, PointwiseConv2d)
            and is_plain(drop_path, nn.Identity, DropPath)
            and not (drop_path.training and type(drop_path) is DropPath)):
        return conv.forward(out, x)
    return x + drop_path(conv(out))


def _conv_of(layers: nn.Module) -> nn.Module:
    """The one convolution that layers consist of, if it may be called in their place."""
    if is_plain(layers, nn.Sequential, FusedSequential) and list(children_of(layers)) == ['conv']:
        return layers.conv
    if is_plain(layers, ReparamLargeKernelConv) and layers.deploy:
        return layers.lkb_reparam
    return layers


def _is_plain_depthwise(conv: nn.Module) -> bool:
    return (is_plain(conv, LargeKernelDWConv2d) and conv.groups == conv.in_channels
            and conv.padding_mode == 'zeros' and conv.activation is None)
