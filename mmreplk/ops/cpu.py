"""The CPU path: compiled kernels (native.py), ``torch.fft``, or oneDNN, by estimated time."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import cpu_costs, fft, native
from .problem import Problem


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
        return _mend(fft.forward(x, weight, bias, problem, spectrum), x, weight, bias, problem)
    x = _dense(x, problem)
    bias = None if bias is None else bias.float()
    if backend == 'direct':
        out = native.direct_forward(x, _wide(weight).contiguous(), bias, problem)
    else:
        taps = _wide(weight).contiguous()
        if keep:
            spectrum = _kept.get(weight, problem, native.fft_spectrum)
        else:
            spectrum = native.fft_spectrum(taps, problem)
        out = native.fft_forward(x, spectrum, taps, bias, problem)
    return out.to(problem.dtype)


def weight_grad(x: Tensor, grad: Tensor, problem: Problem, backend: str) -> Tensor:
    """Run 'fft' or 'direct'."""
    if not _compiled(problem)[0]:
        return fft.weight_grad(x, grad, problem)
    run = native.direct_weight_grad if backend == 'direct' else native.fft_weight_grad
    return run(_dense(x, problem), _dense(grad, problem), problem).to(problem.dtype)


@lru_cache(maxsize=4096)
def one_backward(problems: tuple[Problem, ...], backend: str) -> bool:
    """Whether `backward` can serve and is faster than one gradient after the other.

    Args:
        problems (tuple[Problem, ...]): One or two kernels on the same input, each valid.
        backend (str): Only 'fft' and 'auto', with or without '?', let it serve.
    """
    first = problems[0]
    if (backend.removesuffix('?') not in ('auto', 'fft') or not _compiled(first)[0]
            or not native.fft_supports(first)[0] or first.multiplier != 1):
        return False
    for other in problems[1:]:
        if not _within(other, first):
            return False
    if backend != 'auto':
        return True
    apart = 0.0
    for problem in problems:
        turned = problem._replace(padding=tuple(
            max(0, reach - 1 - side) for reach, side in zip(
                (problem.reach[0], problem.reach[0], problem.reach[1], problem.reach[1]),
                problem.padding, strict=True)))
        for each, task in ((Problem(*turned), 'forward'), (problem, 'weight_grad')):
            apart += min(time for time in estimates(each, task).values() if isinstance(time, float))
    return cpu_costs.fft_backward(problems) < apart


def _within(small: Problem, large: Problem) -> bool:
    """Whether all taps of one problem lie where the other has some, on the same maps."""
    same = [f for f in small._fields if f not in ('kernel', 'padding', 'dilation', 'has_bias')]
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
    """Both gradients in one pass, see native.fft_backward; None if NaN or Inf keep it from that."""
    branches = [(native.fft_spectrum(_wide(weight).contiguous(), problem, like=problems[0]),
                 _dense(grad, problem), problem)
                for weight, grad, problem in zip(weights, grads, problems, strict=True)]
    both = native.fft_backward(_dense(x, problems[0]), branches)
    if both is None:
        return None
    return [out.to(x.dtype) for out in (both[0], *both[1])]


def _dense(tensor: Tensor, problem: Problem) -> Tensor:
    return _wide(tensor).contiguous(memory_format=problem.memory_format)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mend(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """Recompute by PyTorch the planes that a NaN or Inf, once transformed, has spread over.

    Every point of a transform depends on every input, so one point of a plane tells for all.
    """
    broken = ~torch.isfinite(out[:, :, 0, 0])
    if not broken.any():
        return out
    top, bottom, left, right = problem.padding
    for n, c in broken.nonzero().tolist():
        plane = x[n:n + 1, c // problem.multiplier:c // problem.multiplier + 1]
        plane = torch.nn.functional.pad(plane, (left, right, top, bottom))
        out[n, c] = torch.nn.functional.conv2d(
            plane, weight[c:c + 1], None if bias is None else bias[c:c + 1],
            dilation=problem.dilation)[0, 0]
    return out


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
        spectrum = transform(_wide(copy), problem)
        with self._lock:
            entries = self._entries.setdefault(weight, {})
            entries.pop(geometry, None)
            while len(entries) >= self.GEOMETRIES:
                entries.pop(next(iter(entries)))
            entries[geometry] = _Entry(copy, spectrum)
        return spectrum

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
