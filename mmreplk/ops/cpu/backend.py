"""The CPU path: compiled kernels (kernels.py), ``torch.fft``, or oneDNN, by estimated time."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..arithmetic import ceil_div, to_opmath
from ..caches import cached, register
from ..problem import Problem
from ..torch_fft import contrast as fft_mend
from ..torch_fft import conv as fft
from . import costs as cpu_costs
from . import kernels as native

# Bytes of float32 copies and of spectra that are not kept; the compiled kernels' own scratch comes
# to it (csrc/module.c). Together they take at most the larger of 64 MiB and a tenth of the maps.
WORKSPACE = 16 << 20


def estimates(problem: Problem, task: str) -> dict[str, float | str | None]:
    """Seconds each backend would take for a task, or why it cannot serve.

    Args:
        problem (Problem): A valid problem with at least one output.
        task (str): 'forward' or 'weight_grad'.
    """
    if problem.device != 'cpu':
        why = f'there are no kernels for {problem.device!r} devices'
        return {'triton': why, 'fft': why, 'direct': why, 'torch': None}
    out = {'triton': 'Triton runs on a GPU, the input is on the CPU',
           'torch': cpu_costs.pytorch(problem, task)}
    compiled, why = _compiled(problem)
    if compiled:
        ok, why_not = native.fft_supports(problem)
        out['direct'] = cpu_costs.direct(problem, task)
        out['fft'] = cpu_costs.compiled_fft(problem, task) if ok else why_not
    else:
        ok, why_not = fft.supports(problem)
        out['direct'] = why
        out['fft'] = cpu_costs.torch_fft(problem, task) if ok else why_not
    return out


def _compiled(problem: Problem) -> tuple[bool, str]:
    """Whether the compiled kernels can serve."""
    if problem.device != 'cpu':
        return False, f'the compiled kernels do not take memory of a {problem.device!r} device'
    if problem.stride != (1, 1):
        return False, f'the compiled kernels need stride 1, not {problem.stride}'
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False, f'the compiled kernels do not take {problem.dtype}'
    return native.available()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, backend: str,
            keep: bool = False) -> Tensor:
    """Run 'fft' or 'direct'. float16 and bfloat16 are computed in float32 and rounded once.

    With ``keep``, the spectrum of the weights is kept for the next call.
    """
    if not _compiled(problem)[0]:
        spectrum = _kept.get(weight, problem, fft.spectrum_of_weight) if keep else None
        out = fft.forward(x, weight, bias, problem, spectrum)
        out = fft_mend.mend(out, x, weight, bias, problem)
        return out.relu_() if problem.relu else out
    taps = to_opmath(weight).contiguous()
    bias = None if bias is None else bias.float().contiguous()
    kept = (_kept.get(weight, problem, native.fft_spectrum) if backend == 'fft' and keep else None)
    out, outputs, spectrum, room = None, None, None, {}
    for piece in _pieces(problem, backend == 'fft' and not keep, x):
        part = _dense(x[piece.images, piece.inputs], problem, room)
        mine = taps[piece.outputs]
        shift = None if bias is None else bias[piece.outputs]
        if backend == 'direct':
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


def weight_grad(x: Tensor, grad: Tensor, problem: Problem, backend: str) -> Tensor:
    """Run 'fft' or 'direct'."""
    if not _compiled(problem)[0]:
        return fft_mend.mend_weight_grad(fft.weight_grad(x, grad, problem), x, grad, problem)
    run = native.direct_weight_grad if backend == 'direct' else native.fft_weight_grad
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


@cached
def one_backward(problems: tuple[Problem, ...], backend: str) -> bool:
    """Whether `backward` can serve and is faster than one gradient after the other.

    Args:
        problems (tuple[Problem, ...]): One or two kernels on the same input, each valid.
        backend (str): Only 'fft' and 'auto', with or without '?', let it serve.
    """
    first = problems[0]
    if (backend.removesuffix('?') not in ('auto', 'fft') or not _compiled(first)[0]
            or not native.backward_supports(first) or first.multiplier != 1):
        return False
    for other in problems[1:]:
        if not _within(other, first):
            return False
    if backend != 'auto':
        return True
    apart = 0.0
    for problem in problems:
        for each, task in ((_turned(problem), 'forward'), (problem, 'weight_grad')):
            apart += min(time for time in estimates(each, task).values() if isinstance(time, float))
    return cpu_costs.fft_backward(problems) < apart


def _turned(problem: Problem) -> Problem:
    """The convolution that gives the gradient of the input, see operators.input_grad."""
    top, bottom, left, right = problem.padding
    rows, columns = (reach - 1 for reach in problem.reach)
    sides = rows - top, rows - bottom, columns - left, columns - right
    cut = [min(0, side) for side in sides]
    height, width = problem.out_size
    return problem._replace(height=height + cut[0] + cut[1], width=width + cut[2] + cut[3],
                            padding=tuple(max(0, side) for side in sides), has_bias=False,
                            relu=False)


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


class _Entry(NamedTuple):
    weight: Tensor
    spectrum: Tensor


class KeptSpectra:
    """The spectra of weights that do not change, as in inference.

    They live as long as their weight tensor. Before use the weights are compared with a copy:
    reading them costs next to nothing, and unlike a version counter it also notices a change
    through ``weight.data``, numpy or shared memory. At most a few geometries a weight are kept.
    """

    GEOMETRIES = 4

    def __init__(self):
        self._entries = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def get(self, weight: Tensor, problem: Problem, transform) -> Tensor:
        """``transform(weight, problem)``, or what it gave last time for the same values."""
        geometry = (problem.height, problem.width, problem.padding, problem.dilation,
                    problem.out_size, transform)
        with self._lock:
            entry = self._entries.get(weight, {}).get(geometry)
        if entry is not None and _same_bits(entry.weight, weight):
            return entry.spectrum
        copy = weight.detach().clone(memory_format=torch.contiguous_format)
        spectrum = transform(to_opmath(copy), problem)
        with self._lock:
            entries = self._entries.setdefault(weight, {})
            entries.pop(geometry, None)
            while len(entries) >= self.GEOMETRIES:
                entries.pop(next(iter(entries)))
            entries[geometry] = _Entry(copy, spectrum)
        return spectrum

    def forget(self) -> None:
        """Start anew: in a forked child, where a thread that does not exist may hold the lock."""
        self.__init__()

    def bytes(self) -> int:
        """Memory held."""
        with self._lock:
            return sum(t.numel() * t.element_size() for entries in self._entries.values()
                       for entry in entries.values() for t in entry)


def _same_bits(kept: Tensor, weight: Tensor) -> bool:
    if kept.dtype != weight.dtype or kept.shape != weight.shape:
        return False
    if native.available()[0] and weight.is_contiguous():
        return native.same_bits(kept, weight)
    # NaN never equals itself here: such weights are transformed anew, which is right if slow.
    return torch.equal(kept, weight)


_kept = KeptSpectra()
register(lambda: _kept.forget())
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: _kept.forget())
