"""A branch of a re-parameterized kernel, a convolution and its norm, as numbers."""

import torch
from torch import nn

from ..ops import LargeKernelDWConv2d
from ..ops.torch_internals import children_of, mode_padding, set_mode_padding
from .layers import check_conv, check_foldable, check_norm, fuse_conv_bn
from .plain import check_computes, value_of


class Branch:
    """``bn(conv(x))``, which may start by cropping the feature map (``crop``).

    Args:
        layers (nn.Sequential): The branch.
        name (str): What messages call it.

    Raises:
        TypeError: If it is anything else, has forward hooks, or its norm does not fold.
        ValueError: If its convolution has an activation.
    """

    def __init__(self, layers: nn.Module, name: str):
        check_computes(layers, (nn.Sequential.forward, ), name)
        names = list(children_of(layers))
        if names not in (['conv', 'bn'], ['crop', 'conv', 'bn']):
            raise TypeError(f'cannot merge {name}: it holds {", ".join(names)}, not conv and bn. '
                            'Merge the network before you add layers')
        self.name, self.conv, self.bn = name, layers.conv, layers.bn
        check_conv(self.conv, f'{name}.conv')
        if isinstance(self.bn, nn.Identity):  # where another tool fused it
            check_computes(self.bn, (nn.Identity.forward, ), f'{name}.bn')
        else:
            check_foldable(self.bn)
            check_norm(self.bn, f'{name}.bn')
        self.crop = [0, 0, 0, 0]
        if 'crop' in names:
            check_computes(layers.crop, (nn.ZeroPad2d.forward, ), f'{name}.crop')
            self.crop = list(layers.crop.padding)
        self.weight = value_of(self.conv, 'weight')

    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as of :func:`.layers.fuse_conv_bn`, in tensors of their own."""
        weight, bias = fuse_conv_bn(self.conv, self.bn)
        return weight.clone(), bias.clone()

    def taps_of(self, small: 'Branch') -> list[torch.Tensor]:
        """On which taps of this one the taps of another branch lie: its rows and its columns.

        Raises:
            ValueError: If they lie beside its taps, or the outputs differ in size.
        """
        one, two = self.conv, small.conv
        same = ('stride', 'groups', 'in_channels', 'out_channels')
        differing = [key for key in same if getattr(one, key) != getattr(two, key)]
        if two.padding_mode != one.padding_mode and any(map(any, small._sides())):
            differing.append('padding_mode')
        for key in differing:
            raise ValueError(
                f'cannot merge: {self.name} has {key}={getattr(one, key)!r} and {small.name} '
                f'{key}={getattr(two, key)!r}. Give both convolutions the same')
        taps = []
        axes = zip(self._sides(), one.dilation, self.weight.shape[2:], small._sides(), two.dilation,
                   small.weight.shape[2:], strict=True)
        for sides, step, size, small_sides, small_step, small_size in axes:
            places = [small_step * tap - small_sides[0] + sides[0] for tap in range(small_size)]
            fits = all(place % step == 0 and 0 <= place // step < size for place in places)
            if not fits or sum(sides) - step * (size - 1) != (
                    sum(small_sides) - small_step * (small_size - 1)):
                raise ValueError(
                    f'cannot merge: with kernel_size={tuple(small.weight.shape[2:])}, '
                    f'dilation={two.dilation} and padding={two.padding} {small.name} does not lie '
                    f'on the taps of {self.name}, kernel_size={tuple(self.weight.shape[2:])}, '
                    f'dilation={one.dilation} and padding={one.padding}. Dilate and pad both alike')
            taps.append(torch.tensor([place // step for place in places],
                                     device=self.weight.device))
        return taps

    def alike(self, weight: torch.Tensor, bias: torch.Tensor) -> LargeKernelDWConv2d:
        """A convolution with the attributes of this one and other numbers."""
        conv = self.conv
        if any(self.crop):
            raise ValueError(
                f'cannot merge: {self.name} crops the feature map before its convolution')
        new = LargeKernelDWConv2d(
            conv.in_channels, conv.out_channels, tuple(weight.shape[2:]), conv.stride, conv.padding,
            conv.dilation, conv.groups, padding_mode=conv.padding_mode, device='meta',
            backend=getattr(conv, 'backend', 'auto'))
        # How far the modes other than zeros pad was settled when the layer was built.
        set_mode_padding(new, mode_padding(conv))
        trained = any(parameter.requires_grad for parameter in conv.parameters())
        new.weight, new.bias = (nn.Parameter(value, requires_grad=trained)
                                for value in (weight, bias))
        return new

    def _sides(self) -> list[tuple[int, int]]:
        """By how much the feature map is padded before and behind, in rows and in columns."""
        conv = self.conv
        if conv.padding_mode != 'zeros':
            left, right, top, bottom = mode_padding(conv)
            sides = [(top, bottom), (left, right)]
        elif conv.padding == 'valid':
            sides = [(0, 0), (0, 0)]
        elif conv.padding == 'same':
            totals = [d * (k - 1) for d, k in zip(conv.dilation, self.weight.shape[2:],
                                                  strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(pad, pad) for pad in conv.padding]
        left, right, top, bottom = self.crop
        return [(before + a, behind + b) for (before, behind), (a, b) in zip(
            sides, ((top, bottom), (left, right)), strict=True)]
