"""An FFT convolution with ``torch.fft``, at the shortest sufficient length.

Along one axis, tap ``u`` reads at a distance ``s = dilation * u - before`` from its output. Taps
whose distance lies outside of ``-(O-1) .. H-1`` meet no point of a map of size H with O outputs and
are dropped. With the distances ``s0 .. s1`` of the others, a circular product of
``max(H - s0, O + s1)`` points is enough: an index that leaves the map then wraps into zeros, or
into outputs that are thrown away. For "same" padding that is ``H + min(p, H-1)``; a convolution
padded to ``H + K - 1`` would need up to twice as many a side.

With u half a unit in the last place, an output errs by at most
``u (4 + log2(points) / 4) |x| |w|``, roots of the sums of squares of the plane and of the kernel,
where a direct sum of n products errs by ``n u sum |x w|`` over what the output sees. So a huge
input anywhere in a plane would drown all small outputs, and NaN or Inf reach all of them:
contrast.py corrects both in the convolution, and NaN and Inf in the gradient of the weights.

This is the path of machines without the compiled kernels, of float64, and of ``backend='fft'`` on
a GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import to_opmath
from ..caches import cached
from ..problem import Problem

# Spectra held at a time, in bytes: a call works through the channels in blocks of this size.
WORKSPACE = 48 << 20
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fast_length(n: int) -> int:
    """The smallest even number of at least n whose only prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


class _Axis(NamedTuple):
    first: int  # the taps [first, last) meet the map
    last: int
    positions: tuple[int, ...]  # where each of them stands on the circle
    length: int


@cached
def _axis(size: int, out: int, kernel: int, before: int, dilation: int) -> _Axis:
    distances = [dilation * u - before for u in range(kernel)]
    met = [u for u, s in enumerate(distances) if -out < s < size]
    first, last = (met[0], met[-1] + 1) if met else (0, 0)
    low = min([0, *distances[first:last]])
    high = max([0, *distances[first:last]])
    length = fast_length(max(size - low, out + high))
    return _Axis(first, last, tuple(s % length for s in distances[first:last]), length)


def _axes(problem: Problem) -> tuple[_Axis, _Axis]:
    (oh, ow), (kh, kw), (dh, dw) = problem.out_size, problem.kernel, problem.dilation
    return (_axis(problem.height, oh, kh, problem.padding[0], dh),
            _axis(problem.width, ow, kw, problem.padding[2], dw))


def plane_points(problem: Problem) -> int:
    """Points of the transform of one plane."""
    vertical, horizontal = _axes(problem)
    return vertical.length * horizontal.length


def plane_bytes(problem: Problem) -> int:
    """Bytes of the complex spectrum of one plane."""
    vertical, horizontal = _axes(problem)
    point = 16 if problem.dtype.itemsize == 8 else 8
    return vertical.length * (horizontal.length // 2 + 1) * point


def supports(problem: Problem) -> tuple[bool, str]:
    """Whether the product can serve, and why not."""
    if problem.stride != (1, 1):
        return False, f'the FFT product needs stride 1, not {problem.stride}'
    if problem.dtype not in DTYPES:
        return False, f'the FFT product does not take {problem.dtype}'
    if problem.device not in ('cpu', 'cuda'):
        return False, f'the FFT product was not tried on {problem.device!r} devices'
    if 3 * plane_bytes(problem) > WORKSPACE:
        return False, 'the spectrum of a single plane exceeds the workspace'
    return True, 'an FFT convolution'


def spectrum_of_weight(weight: Tensor, problem: Problem) -> Tensor:
    """The conjugate spectrum ``(C', Lh, Lw // 2 + 1)`` of weights ``(C', 1, Kh, Kw)``."""
    vertical, horizontal = _axes(problem)
    taps = to_opmath(weight)[:, 0, vertical.first:vertical.last, horizontal.first:horizontal.last]
    circle = taps.new_zeros(taps.shape[0], vertical.length, horizontal.length)
    rows, columns = _positions(weight, vertical, horizontal)
    circle[:, rows, columns] = taps
    # Not the lazy conj(): inside a compiled graph its flag can get lost.
    return torch.fft.rfft2(circle).conj_physical_()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            spectrum: Tensor | None = None) -> Tensor:
    """The convolution. With ``spectrum`` the weights are not transformed.

    Args:
        x (Tensor): ``(N, C, H, W)``. float16 and bfloat16 are computed in float32.
        weight (Tensor): ``(C * M, 1, Kh, Kw)``.
        bias (Tensor | None): ``(C * M, )``.
        problem (Problem): The geometry, stride 1.
        spectrum (Tensor, optional): What `spectrum_of_weight` gave for these weights.

    Returns:
        Tensor: The output in x's dtype and the problem's memory format.
    """
    vertical, horizontal = _axes(problem)
    out = torch.empty(problem.out_shape, dtype=x.dtype, device=x.device,
                      memory_format=_memory_format(problem))
    oh, ow = problem.out_size
    size = [vertical.length, horizontal.length]
    for images, inputs, outputs in _blocks(problem):
        product = torch.fft.rfft2(_map(x[images, inputs]), s=size)
        product = product.repeat_interleave(problem.multiplier, 1)
        product *= (spectrum_of_weight(weight[outputs], problem)
                    if spectrum is None else spectrum[outputs])
        block = torch.fft.irfft2(product, s=size)[..., :oh, :ow]
        if bias is not None:
            block = block + to_opmath(bias[outputs, None, None])
        out[images, outputs] = block
    return out


def weight_grad(x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights, ``(C * M, 1, Kh, Kw)``:

    ``dw[c,u,v] = sum_nij x[n, c//M, i+dh*u-top, j+dw*v-left] grad[n,c,i,j]``.

    The images are added up as spectra, in their order, so that one inverse transform is left.
    """
    vertical, horizontal = _axes(problem)
    size = [vertical.length, horizontal.length]
    out = x.new_zeros(problem.out_channels, 1, *problem.kernel)
    rows, columns = _positions(x, vertical, horizontal)
    sums: dict[tuple[int, int], Tensor] = {}
    for images, inputs, outputs in _blocks(problem, images_last=True):
        product = torch.fft.rfft2(_map(x[images, inputs]), s=size)
        product = product.repeat_interleave(problem.multiplier, 1)
        product *= torch.fft.rfft2(_map(grad[images, outputs]), s=size).conj_physical_()
        key = outputs.start, outputs.stop
        sums[key] = sums[key] + product.sum(0) if key in sums else product.sum(0)
        if images.stop == problem.batch:
            taps = torch.fft.irfft2(sums.pop(key), s=size)[:, rows, columns]
            out[outputs, 0, vertical.first:vertical.last, horizontal.first:horizontal.last] = taps
    return out


def _positions(like: Tensor, vertical: _Axis, horizontal: _Axis) -> tuple[Tensor, Tensor]:
    rows = torch.tensor(vertical.positions, dtype=torch.long, device=like.device)
    columns = torch.tensor(horizontal.positions, dtype=torch.long, device=like.device)
    return rows[:, None], columns


def _blocks(problem: Problem, images_last: bool = False):
    """Slices (images, input channels, output channels) whose spectra fit the workspace."""
    # Three spectra at a time: of the map, of its product, of the weights or the gradient.
    planes = max(1, WORKSPACE // (3 * plane_bytes(problem) * problem.multiplier))
    images = min(problem.batch, max(1, planes // problem.channels))
    channels = min(problem.channels, max(1, planes // images))
    pairs = [(n, c) for c in range(0, problem.channels, channels)
             for n in range(0, problem.batch, images)]
    if not images_last:
        pairs.sort()
    for n, c in pairs:
        last = min(c + channels, problem.channels)
        yield (slice(n, min(n + images, problem.batch)), slice(c, last),
               slice(c * problem.multiplier, last * problem.multiplier))


def _map(tensor: Tensor) -> Tensor:
    # MKL, as PyTorch 2.5 calls it, refuses elements that share memory, as those of an expanded map.
    return to_opmath(tensor.contiguous() if 0 in tensor.stride() else tensor)


def _memory_format(problem: Problem) -> torch.memory_format:
    return torch.channels_last if problem.channels_last else torch.contiguous_format
