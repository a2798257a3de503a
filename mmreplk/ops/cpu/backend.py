"""The compiled kernels (kernels.py) as backends 'fft' and 'direct' on a CPU.

They take float32 in order; copies, and spectra that are not kept, are made here, piece by piece, so
that a call takes little memory.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import ceil_div, to_opmath
from ..problem import Problem
from . import kernels as native
from .kept_spectra import kept_spectra

# Bytes of float32 copies and of spectra that are not kept; the compiled kernels' own scratch comes
# to it (csrc/module.c). Together they take at most the larger of 64 MiB and a tenth of the maps.
WORKSPACE = 16 << 20


def supports(problem: Problem) -> tuple[bool, str]:
    """Whether the compiled kernels can serve, and if not, why."""
    if problem.device != 'cpu':
        return False, f'the compiled kernels run on the CPU, not on {problem.device!r}'
    if problem.stride != (1, 1):
        return False, f'the compiled kernels need stride 1, not {problem.stride}'
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False, f'the compiled kernels do not take {problem.dtype}'
    return native.available()


def prepared(problem: Problem, method: str, strides: Sequence[int]
             ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """`forward` with ``keep`` for one problem, with all that does not depend on values looked up.

    It takes maps of these strides, and dense weights. None where a tensor has to be copied first.
    """
    if method not in ('fft', 'direct') or problem.dtype != torch.float32:
        return None
    if not supports(problem)[0] or method == 'fft' and not native.fft_supports(problem)[0]:
        return None
    sizes = problem.batch, problem.channels, problem.height, problem.width
    like = torch.empty_strided(sizes, strides, device='meta')
    if not like.is_contiguous(memory_format=problem.memory_format):
        return None
    if method == 'direct':
        return native.prepared_direct(problem)

    def run(x, weight, bias):
        spectrum = kept_spectra.get(weight, problem, native.fft_spectrum)
        return native.fft_forward(x, spectrum, weight, bias, problem)

    return run


def forward(method: str, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            keep: bool = False) -> Tensor:
    """The convolution. float16 and bfloat16 are computed in float32 and rounded once.

    Args:
        method (str): 'fft' or 'direct'.
        x (Tensor): The input.
        weight (Tensor): The kernels.
        bias (Tensor | None): The bias.
        problem (Problem): What `supports` says yes to.
        keep (bool): Whether 'fft' keeps the spectrum of the weights for the next call.
    """
    taps = to_opmath(weight).contiguous()
    bias = None if bias is None else bias.float().contiguous()
    kept = None
    if method == 'fft' and keep:
        kept = kept_spectra.get(weight, problem, native.fft_spectrum)
    out, outputs, spectrum, room = None, None, None, {}
    for piece in _pieces(problem, method == 'fft' and not keep, x):
        part = _dense(x[piece.images, piece.inputs], problem, room)
        mine = taps[piece.outputs]
        shift = None if bias is None else bias[piece.outputs]
        if method == 'direct':
            part = native.direct_forward(part, mine, shift, piece.problem)
        else:
            if piece.outputs != outputs:
                outputs, spectrum = piece.outputs, None
                spectrum = (native.fft_spectrum(mine, piece.problem)
                            if kept is None or (outputs.start or 0) % native.lanes()
                            else native.part_of_spectrum(kept, problem, outputs))
            part = native.fft_forward(part, spectrum, mine, shift, piece.problem)
        if piece.problem == problem:
            return part.to(problem.dtype)
        if out is None:
            out = torch.empty(problem.out_shape, dtype=problem.dtype, device=x.device,
                              memory_format=problem.memory_format)
        out[piece.images, piece.outputs] = part
        del part  # the next is to take its place
    return out


def weight_grad(method: str, x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The gradient of the weights by 'fft' or 'direct'."""
    run = native.direct_weight_grad if method == 'direct' else native.fft_weight_grad
    out, room = None, {}
    for piece in _pieces(problem, False, x, grad):
        part = run(_dense(x[piece.images, piece.inputs], problem, room),
                   _dense(grad[piece.images, piece.outputs], problem, room, 1), piece.problem)
        if piece.problem == problem:
            return part.to(problem.dtype)
        if out is None:
            out = part.new_zeros(problem.out_channels, 1, *problem.kernel)
        out[piece.outputs] += part
        del part
    return out.to(problem.dtype)


def backward_supports(problems: Sequence[Problem]) -> bool:
    """Whether `backward` can serve one or two kernels on the same input, the largest first."""
    first = problems[0]
    return (supports(first)[0] and native.backward_supports(first) and first.multiplier == 1
            and all(_within(other, first) for other in problems[1:]))


def _within(small: Problem, large: Problem) -> bool:
    """Whether all taps of one problem lie where the other has some, on the same maps."""
    same = [f for f in small._fields if f not in (
        'kernel', 'padding', 'dilation', 'has_bias', 'relu')]
    if any(getattr(small, f) != getattr(large, f) for f in same) or (
            small.out_size != large.out_size):
        return False
    for axis in (0, 1):
        before, wide = small.padding[2 * axis], large.padding[2 * axis]
        if (small.kernel[axis] > large.kernel[axis] or before > wide
                or small.reach[axis] - before > large.reach[axis] - wide):
            return False
    return True


def backward(x: Tensor, grads: Sequence[Tensor], weights: Sequence[Tensor],
             problems: Sequence[Problem]) -> list[Tensor] | None:
    """Both gradients in one pass, None if native.fft_backward cannot."""
    first, out, room = problems[0], None, {}
    for piece in _pieces(first, False, x, *grads):
        size = dict(batch=piece.problem.batch, channels=piece.problem.channels)
        both = native.fft_backward(_dense(x[piece.images, piece.inputs], first, room), [
            (to_opmath(weight[piece.outputs]).contiguous(),
             _dense(grad[piece.images, piece.outputs], first, room, i), problem._replace(**size))
            for i, (weight, grad, problem) in enumerate(
                zip(weights, grads, problems, strict=True), 1)])
        if both is None:
            return None
        if piece.problem == first:
            return [part.to(x.dtype) for part in (both[0], *both[1])]
        if out is None:
            out = [torch.empty(x.shape, dtype=x.dtype, device=x.device,
                               memory_format=first.memory_format),
                   *(part.new_zeros(weight.shape) for part, weight in zip(
                       both[1], weights, strict=True))]
        out[0][piece.images, piece.inputs] = both[0]
        for total, part in zip(out[1:], both[1], strict=True):
            total[piece.outputs] += part
        del both, part
    return [part.to(x.dtype) for part in out]


class _Piece(NamedTuple):
    images: slice
    inputs: slice  # channels
    outputs: slice
    problem: Problem


def _pieces(problem: Problem, with_spectrum: bool, *maps: Tensor) -> Iterator[_Piece]:
    """Parts of a problem for which the copies of maps and a spectrum take no more than `WORKSPACE`.

    In most cases that is the problem itself. The kernels need float32 in order, so that other maps
    are copied; sums over the images of several parts are left to the caller.
    """
    copied = any(t.dtype != torch.float32 or not t.is_contiguous(
        memory_format=problem.memory_format) for t in maps)
    (out_h, out_w), lanes = problem.out_size, native.lanes()
    # Copies of what is read, and what is written, which is rounded or put in place afterwards.
    planes = len(maps) * problem.height * problem.width + problem.multiplier * out_h * out_w
    bytes_of_all = 4 * planes * problem.batch * problem.channels if copied else 0
    spectrum = native.spectrum_bytes(problem) if with_spectrum else 0
    if bytes_of_all + spectrum <= WORKSPACE:
        yield _Piece(slice(None), slice(None), slice(None), problem)
        return
    # Half of it: results of pieces that come and go leave holes in the heap.
    share = WORKSPACE // 4 if with_spectrum else WORKSPACE // 2
    fit, many = max(1, share // (4 * planes)), problem.multiplier
    parts = max(ceil_div(problem.channels, fit), ceil_div(spectrum, share), 1)
    channels = ceil_div(ceil_div(problem.channels, parts), lanes) * lanes  # whole vectors
    while channels > 1 and 4 * planes * channels > WORKSPACE:
        channels //= 2  # of huge maps not even one
    images = max(1, fit // channels)
    for c in range(0, problem.channels, channels):
        end = min(c + channels, problem.channels)
        for n in range(0, problem.batch, images):
            last = min(n + images, problem.batch)
            yield _Piece(slice(n, last), slice(c, end), slice(c * many, end * many),
                         problem._replace(batch=last - n, channels=end - c))


def _dense(tensor: Tensor, problem: Problem, room: dict[int, Tensor], place: int = 0) -> Tensor:
    """In float32 and the problem's memory format; a copy takes the place of the one before it.

    Fresh memory for each piece would leave holes in the heap, which add up.
    """
    memory_format = problem.memory_format
    if tensor.dtype == torch.float32 and tensor.is_contiguous(memory_format=memory_format):
        return tensor
    if place not in room:  # the first piece is the largest
        room[place] = torch.empty(tensor.numel(), dtype=torch.float32, device='cpu')
    images, channels, height, width = tensor.shape
    memory = room[place][:tensor.numel()]
    if problem.channels_last:
        copy = memory.view(images, height, width, channels).permute(0, 3, 1, 2)
    else:
        copy = memory.view(tensor.shape)
    return copy.copy_(tensor)
