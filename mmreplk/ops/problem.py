"""What one call asks for, normalized: the value that every backend and the dispatch work on."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from .arguments import plain_dilation


class _Fields(NamedTuple):
    dtype: torch.dtype
    device: str
    channels_last: bool
    batch: int
    channels: int
    height: int
    width: int
    multiplier: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    has_bias: bool
    relu: bool = False


class Problem(_Fields):
    """A depth-wise convolution of one shape. Hashable; equal problems are served the same way.

    Attributes:
        dtype (torch.dtype): Of input, weight, bias and output.
        device (str): Device type, ``'cpu'`` or ``'cuda'``.
        channels_last (bool): Whether the output has the channels-last memory format.
        batch, channels, height, width (int): Input ``(N, C, H, W)``.
        multiplier (int): Output channel ``c`` reads input channel ``c // multiplier``.
        kernel (tuple[int, int]): ``(Kh, Kw)``.
        stride, dilation (tuple[int, int]): Down and right.
        padding (tuple[int, int, int, int]): Zeros at the top, bottom, left and right, each >= 0.
        has_bias (bool): Whether one value per output channel is added.
        relu (bool): Whether negative outputs become 0.
    """

    # No __slots__: the derived sizes are computed once and kept.

    @classmethod
    def of(cls, x: torch.Tensor, weight: Sequence[int], padding: Sequence[int],
           dilation: Sequence[int] = (1, 1), stride: tuple[int, int] = (1, 1),
           has_bias: bool = False, relu: bool = False) -> 'Problem':
        """The problem of a call whose arguments fit one another.

        Args:
            x (Tensor): The input.
            weight (Sequence[int]): Shape of the weights, ``(C * M, 1, Kh, Kw)``.
            padding (Sequence[int]): Top, bottom, left, right.
            dilation (Sequence[int]): Down and right. Defaults to (1, 1).
            stride (tuple[int, int]): Down and right. Defaults to (1, 1).
            has_bias (bool): As the attribute. Defaults to False.
            relu (bool): As the attribute. Defaults to False.
        """
        kernel = tuple(weight[2:])
        return cls(x.dtype, x.device.type, memory_format_of(x) == torch.channels_last, *x.shape,
                   weight[0] // x.shape[1], kernel, stride, tuple(padding),
                   plain_dilation(dilation, kernel), has_bias, relu)

    @cached_property
    def reach(self) -> tuple[int, int]:
        """Extent of the dilated kernel: ``dilation * (K - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @cached_property
    def out_size(self) -> tuple[int, int]:
        """``(H', W')`` of the output; at least (1, 1) in a valid problem."""
        top, bottom, left, right = self.padding
        (rh, rw), (sh, sw) = self.reach, self.stride
        return ((self.height + top + bottom - rh) // sh + 1,
                (self.width + left + right - rw) // sw + 1)

    def of_input_grad(self) -> 'Problem':
        """The convolution that `custom_ops.input_grad` computes the input's gradient by."""
        top, bottom, left, right = self.padding
        rows, columns = (reach - 1 for reach in self.reach)
        sides = rows - top, rows - bottom, columns - left, columns - right
        cut = [min(0, side) for side in sides]
        height, width = self.out_size
        return self._replace(height=height + cut[0] + cut[1], width=width + cut[2] + cut[3],
                             padding=tuple(max(0, side) for side in sides), has_bias=False,
                             relu=False)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the output."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def out_channels(self) -> int:
        return self.channels * self.multiplier

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.out_channels, *self.out_size

    @cached_property
    def macs_per_plane(self) -> int:
        """Multiply-adds of one output plane whose tap falls inside the map."""
        return (_pairs(self.height, self.out_size[0], self.kernel[0], self.stride[0],
                       self.padding[0], self.dilation[0]) *
                _pairs(self.width, self.out_size[1], self.kernel[1], self.stride[1],
                       self.padding[2], self.dilation[1]))

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole problem whose tap falls inside the map."""
        return self.batch * self.out_channels * self.macs_per_plane

    @property
    def bytes_moved(self) -> int:
        """Input, weight and bias read once and output written once, in bytes."""
        out = self.batch * self.out_channels * self.out_size[0] * self.out_size[1]
        maps = self.batch * self.channels * self.height * self.width + out
        weight = self.out_channels * (self.kernel[0] * self.kernel[1] + self.has_bias)
        return (maps + weight) * self.dtype.itemsize


def _pairs(size: int, out: int, kernel: int, stride: int, before: int, dilation: int) -> int:
    """Pairs (output index, tap) along one axis whose input index lies in [0, size)."""
    count = 0
    for tap in range(kernel):
        shift = tap * dilation - before  # input index = stride * output index + shift
        first = max(0, -(shift // stride))
        last = min(out - 1, (size - 1 - shift) // stride)
        count += max(0, last - first + 1)
    return count


def memory_format_of(x: torch.Tensor) -> torch.memory_format:
    """The memory format that an output should take over from x, ``(N, C, H, W)``.

    Channels-last if the strides order the dimensions so, gaps allowed, as PyTorch's own operators
    judge it; where both formats describe the same strides, contiguous.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    _, channel, row, column = x.stride()
    images, channels, height, width = x.shape
    ordered = (channel > 0 and channel * channels <= column and column * width <= row
               and (images == 1 or row * height <= x.stride(0)) and channels * width > 1)
    return torch.channels_last if ordered else torch.contiguous_format
