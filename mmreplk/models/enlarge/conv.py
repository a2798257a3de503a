"""A depth-wise convolution of any network as a large re-parameterized one (paper, guideline 3)."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn

from ...ops import LargeKernelDWConv2d
from ..reparam import ReparamLargeKernelConv


def pads_itself(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads as TensorFlow's ``SAME``: that of MMCV, and timm's, which do."""
    kind = type(conv)
    return kind is Conv2dAdaptivePadding or (
        kind.__name__ == 'Conv2dSame' and kind.__module__.startswith('timm.'))


class SamePadding(nn.Module):
    """The padding of TensorFlow's ``SAME``: the output has the size ``ceil(size / stride)``.

    How much goes to which side depends on the size of the feature map, where the stride is above 1.

    Args:
        conv (nn.Conv2d): For whose kernel, stride and dilation.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.axes = tuple(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad ``(N, C, H, W)`` with zeros."""
        return _pad_same(x, self.axes)


@torch.fx.wrap  # one call in a graph: how much depends on the size
def _pad_same(x: torch.Tensor, axes: tuple[tuple[int, int, int], ...]) -> torch.Tensor:
    sides = []
    for size, (kernel, stride, dilation) in zip(x.shape[-2:], axes, strict=True):
        steps = (size + stride - 1) // stride - 1
        total = max(steps * stride + dilation * (kernel - 1) + 1 - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    return F.pad(x, sides)


class EnlargedConv(ReparamLargeKernelConv):
    """What takes the place of a depth-wise convolution, and of the batch norm behind it.

    ``y = norm(conv(x))`` becomes ``norm_1(large(x)) + norm_2(small(x))`` of the same size: stride,
    padding, channel multiplier and bias are those of ``conv``, and both kernels are centered where
    its own was. Without a norm, ``y = large(x) + small(x)``. The sub-modules are called as in
    :class:`ReparamLargeKernelConv`; :meth:`merge_kernel` folds them into one convolution.

    With ``keep_output`` the sum is ``norm(conv(x))`` exactly, in training and in evaluation, up to
    rounding: the old kernel sits in the center of the large one, its taps spread out if it was
    dilated.

    - Without a norm, the small kernel is half the center, and the large one lacks it.
    - If the small kernel can hold the old one, both kernels do, behind norms of half the scale and
      shift: either branch normalizes the same values by the same statistics.
    - Else the small kernel is drawn anew behind a norm of scale 0. Its scale learns from the first
      step on, its kernel from the second.

    Args:
        conv (nn.Conv2d): The old convolution; it is left as it is.
        norm (nn.Module, optional): The batch norm behind it, with scale and shift; it is left as it
            is. None for none.
        kernel_size (int): The large kernel K.
        small_kernel (int, optional): The small kernel, at most K; None for no such branch.
        dilation (int): Of the large kernel. Defaults to 1, dense.
        keep_output (bool): Whether to compute the old function. Otherwise the kernels are drawn as
            PyTorch draws them, and the norms start anew. Defaults to True.

    Raises:
        ValueError: If the new kernels cannot stand where the old one stood, or cannot hold it.
    """

    def __init__(self,
                 conv: nn.Conv2d,
                 norm: nn.Module | None,
                 kernel_size: int,
                 small_kernel: int | None,
                 dilation: int = 1,
                 keep_output: bool = True):
        nn.Module.__init__(self)
        self.kernel_size, self.small_kernel = kernel_size, small_kernel
        offsets = [(dilation * (kernel_size - 1) - d * (k - 1)) / 2
                   for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        # Where the old padding depends on the input size, it comes first, then the rest.
        self.pad = SamePadding(conv) if pads_itself(conv) and max(conv.stride) > 1 else None
        padding = _padding_of(conv)
        self._check(conv, padding, offsets, dilation, keep_output)
        offsets = [int(offset) for offset in offsets]
        self.lkb_origin = _branch(
            conv, norm, kernel_size, padding, offsets, dilation, bias=True)
        if small_kernel is not None:
            border = (kernel_size - small_kernel) // 2
            self.small_conv = _branch(
                conv, norm, small_kernel, padding, [offset - border for offset in offsets], 1,
                bias=False)
        branches = [self.lkb_origin] if small_kernel is None else [self.lkb_origin, self.small_conv]
        if keep_output:
            self._keep_output(conv, norm, offsets, dilation)
        elif norm is not None:
            for branch in branches:
                branch.bn.reset_parameters()
        self.train(conv.training)
        for branch in branches:
            branch.conv.weight.requires_grad_(conv.weight.requires_grad)
            if norm is not None:  # which may be frozen
                branch.bn.train(norm.training)

    def _check(self, conv, padding, offsets, dilation, keep_output):
        size = 'x'.join(map(str, conv.kernel_size))
        old = f'{size} kernel' + (f' of dilation {conv.dilation}' if max(conv.dilation) > 1 else '')
        if any(offset % 1 for offset in offsets):
            raise ValueError(
                f'kernel_size={self.kernel_size} cannot have the center of a {old}: of the extents '
                f'one is odd and one is even. Choose kernel_size={self.kernel_size + 1}, or leave '
                'this layer out by stages')
        if keep_output and (min(offsets) < 0 or any(
                (offset + d * tap) % dilation
                for offset, d, k in zip(offsets, conv.dilation, conv.kernel_size, strict=True)
                for tap in range(k))):
            what = f' of dilation {dilation}' if dilation > 1 else ''
            raise ValueError(
                f'keep_output=True: a kernel of kernel_size={self.kernel_size}{what} cannot hold a '
                f'{old}. Choose a larger kernel_size without dilation, or keep_output=False')
        if padding == 'same':
            return
        if min(pad + offset for pad, offset in zip(padding, offsets, strict=True)) < 0:
            raise ValueError(f'kernel_size={self.kernel_size} is too small: in place of a {old} '
                             f'with padding {padding} the feature map would grow')

    @torch.no_grad()
    def _keep_output(self, conv, norm, offsets, dilation):
        large = self.lkb_origin
        rows, columns = (
            torch.arange(k, device='cpu') * d // dilation + offset // dilation
            for k, d, offset in zip(conv.kernel_size, conv.dilation, offsets, strict=True))
        large.conv.weight.zero_()
        large.conv.weight[:, :, rows[:, None], columns] = conv.weight
        if self.small_kernel is None:
            return
        small, border = self.small_conv, (self.kernel_size - self.small_kernel) // 2
        inside = slice(border, border + self.small_kernel)
        center = large.conv.weight[:, :, inside, inside].clone()
        if norm is None:
            small.conv.weight.copy_(center / 2)
            large.conv.weight.sub_(F.pad(small.conv.weight, [border] * 4))
        elif min(offsets) >= border:
            small.conv.weight.copy_(center)
            for branch in (large, small):
                branch.bn.weight.div_(2)
                branch.bn.bias.div_(2)
            if conv.bias is not None and small.bn.running_mean is not None:
                small.bn.running_mean.sub_(conv.bias)
        else:
            small.bn.reset_parameters()
            small.bn.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` as the old convolution and its norm did."""
        if self.pad is not None:
            x = self.pad(x)
        return super().forward(x)


def _padding_of(conv: nn.Conv2d) -> str | tuple[int, ...]:
    """What ``conv`` pads by itself: 'same', or by how much in both axes."""
    if pads_itself(conv) and max(conv.stride) == 1:
        return 'same'
    return (0, 0) if conv.padding == 'valid' else conv.padding


def _branch(conv, norm, kernel_size, padding, offsets, dilation, bias) -> nn.Sequential:
    """A convolution like ``conv`` but for its kernel, and a norm like ``norm``."""
    branch = nn.Sequential()
    if padding != 'same':
        height, width = (pad + offset for pad, offset in zip(padding, offsets, strict=True))
        if min(height, width) < 0:  # a small kernel does not reach the edge of the input
            crop = min(width, 0), min(height, 0)
            branch.add_module('crop', nn.ZeroPad2d((crop[0], crop[0], crop[1], crop[1])))
        padding = max(height, 0), max(width, 0)
    new = LargeKernelDWConv2d(
        conv.in_channels, conv.out_channels, kernel_size, conv.stride, padding, dilation,
        conv.groups, bias and conv.bias is not None, conv.padding_mode,
        device=conv.weight.device, dtype=conv.weight.dtype,
        backend=getattr(conv, 'backend', 'auto'))
    if new.bias is not None:
        new.bias = deepcopy(conv.bias)
    branch.add_module('conv', new)
    branch.add_module('bn', nn.Identity() if norm is None else deepcopy(norm))
    return branch
