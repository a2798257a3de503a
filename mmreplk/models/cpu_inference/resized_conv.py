"""A convolution of resized, concatenated feature maps, computed before they are resized."""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ...ops.torch_internals import linear_pointwise
from .pointwise import are_plain, pixels, runs_products

# What a profile shows; see mmreplk.analysis.cost.profiling.
NAME = 'mmreplk::conv2d_of_resized'


def serves(maps: Sequence[Tensor], weight: Tensor) -> bool:
    """Whether :func:`conv2d_of_resized` may stand for resizing, concatenation and convolution.

    It is for inference in float32 on a CPU, as are the products of matrices that it is made of.

    Args:
        maps (Sequence[Tensor]): Feature maps ``(N, C_i, H_i, W_i)``.
        weight (Tensor): The convolution's.
    """
    tensors = [*maps, weight]
    return (all(runs_products(t) and t.dtype == torch.float32 and t.dim() == 4 and t.numel() > 0
                for t in tensors)
            and torch.backends.mkl.is_available()  # PyTorch's sparse products
            and are_plain(tensors))


@record_function(NAME)
def conv2d_of_resized(maps: Sequence[Tensor], weight: Tensor, size: tuple[int, int],
                      align_corners: bool = False) -> Tensor:
    """``F.conv2d(torch.cat([F.interpolate(m, size, mode='bilinear') for m in maps], 1), weight)``.

    The padding is half the kernel. A convolution is a sum over its taps of 1x1 convolutions of the
    shifted feature map, and 1x1 convolutions commute with resizing, which acts on every channel
    alike. So a feature map that is to grow is multiplied while it is small, by all taps at once;
    resizing, shifting and summing are one sparse matrix, with four entries a tap at most. Of the
    multiply-adds of the direct way ``H_i * W_i / (H * W)`` are left. The result differs from it by
    rounding.

    Call :func:`serves` first.

    Args:
        maps (Sequence[Tensor]): Feature maps ``(N, C_i, H_i, W_i)``, as :func:`serves` wants them.
        weight (Tensor): ``(C_out, sum of C_i, Kh, Kw)``, with odd Kh and Kw.
        size (tuple[int, int]): The height H and width W that all maps are resized to.
        align_corners (bool): As of ``F.interpolate``. Defaults to False.

    Returns:
        Tensor: ``(N, C_out, H, W)``, in channels-last memory format.
    """
    size, kernel = tuple(size), tuple(weight.shape[2:])
    small, large = [], []
    for m, w in zip(maps, weight.split([m.shape[1] for m in maps], 1), strict=True):
        if 2 * m.shape[2] * m.shape[3] <= size[0] * size[1]:
            small.append((m, w))
            continue
        # A feature map that hardly grows is better resized first.
        if m.shape[2:] != size:
            m = F.interpolate(m, size, mode='bilinear', align_corners=align_corners)
        large.append((m, w))
    shape = (len(maps[0]), *size, len(weight))
    if large:
        inputs, weights = (torch.cat(tensors, 1) if len(large) > 1 else tensors[0]
                           for tensors in zip(*large, strict=True))
        out = F.conv2d(inputs.contiguous(memory_format=torch.channels_last), weights,
                       padding=(kernel[0] // 2, kernel[1] // 2)).permute(0, 2, 3, 1).contiguous()
    else:
        out = maps[0].new_zeros(shape)
    for m, w in small:
        matrix = _resizing(tuple(m.shape[2:]), size, kernel, align_corners)
        taps = w.permute(2, 3, 0, 1).reshape(-1, m.shape[1])
        for image, sums in zip(m, out.flatten(1, 2), strict=True):
            products = linear_pointwise()(
                pixels(image[None]).contiguous(), taps, None, 'none', [], 'none')
            sums.addmm_(matrix, products.view(-1, len(weight)))
    return out.permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _resizing(old: tuple[int, int], new: tuple[int, int], kernel: tuple[int, int],
              align_corners: bool) -> Tensor:
    """The sparse matrix from products, by pixel and tap, to the sums, by pixel; it is kept.

    Rows are ``(y, x)`` of the new feature map, columns ``(r, c, u, v)`` with ``(r, c)`` of the old
    one and ``(u, v)`` of the kernel.
    """
    # Of the columns, (r, u) belong to the height and (c, v) to the width; those of the height lie
    # old[1] * kernel[1] apart by r and kernel[1] by u, for example.
    taps = kernel[0] * kernel[1]
    rows, row_values = _resizing_of_axis(old[0], new[0], kernel[0], align_corners,
                                         old[1] * taps, kernel[1])
    columns, column_values = _resizing_of_axis(old[1], new[1], kernel[1], align_corners, taps, 1)
    values = row_values[:, None, :, None] * column_values[None, :, None, :]
    places = rows[:, None, :, None] + columns[None, :, None, :]
    used = values != 0
    ends = used.sum((2, 3), dtype=torch.int32).flatten().cumsum(0, dtype=torch.int32)
    with warnings.catch_warnings():  # PyTorch calls all sparse rows experimental
        warnings.simplefilter('ignore', UserWarning)
        return torch.sparse_csr_tensor(
            F.pad(ends, (1, 0)), places[used], values[used].float(),
            (new[0] * new[1], old[0] * old[1] * taps), device='cpu', check_invariants=False)


def _resizing_of_axis(old: int, new: int, kernel: int, align_corners: bool, stride: int,
                      tap_stride: int) -> tuple[Tensor, Tensor]:
    """Which products, by place and tap, make up each of the new places of an axis.

    Returns:
        tuple[Tensor, Tensor]: For each new place the distances of the products in memory, int32,
        and their factors, float64; filled up with zeros.
    """
    # What F.interpolate makes of the unit vectors: its factors, whatever its conventions are.
    units = torch.eye(old, dtype=torch.float64, device='cpu')
    factors = F.interpolate(units[None], size=new, mode='linear',
                            align_corners=align_corners)[0].T
    # Row i of tap u is place i + u - kernel // 2; beyond the ends are the zeros of the padding.
    padded = F.pad(factors, (0, 0, kernel // 2, kernel // 2))
    factors = torch.stack([padded[u:u + new] for u in range(kernel)], 2).flatten(1)
    rows, taps = (torch.arange(count, dtype=torch.int32, device='cpu') for count in (old, kernel))
    distances = (rows[:, None] * stride + taps * tap_stride).flatten()
    most = int((factors != 0).sum(1).max())
    order = (factors == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return distances[order], factors.gather(1, order)
