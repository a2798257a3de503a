"""The backends, and which of them serves a problem, and why.

The choice is a pure function of shapes, so that runs repeat; on a GPU, also of which kernels have
failed there and, where users ask for that, of what was measured (gpu/health.py, gpu/measured.py).
To add a backend, add its record to `BACKENDS`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import caches, fft, torch_conv
from .cpu import backend as cpu, costs as cpu_costs
from .gpu import arch as gpu_arch, families, health, measured, safe
from .problem import Problem


class Backend(NamedTuple):
    """One way to compute the convolution of stride 1 and the gradient of its weights.

    A task is 'forward' or 'weight_grad'.

    Attributes:
        name (str): What users call it.
        supports (Callable): ``(problem, task) -> (ok, reason)``.
        estimate (Callable): ``(problem, task) -> seconds``, None where no model knows; asked only
            about what is supported.
        forward (Callable): ``(x, weight, bias, problem, keep) -> out``; with ``keep``, what it
            derives from the weights may be kept for the next call.
        weight_grad (Callable): ``(x, grad, problem) -> gradient of the weights``.
    """

    name: str
    supports: Callable[[Problem, str], tuple[bool, str]]
    estimate: Callable[[Problem, str], float | None]
    forward: Callable[[Tensor, Tensor, Tensor | None, Problem, bool], Tensor]
    weight_grad: Callable[[Tensor, Tensor, Problem], Tensor]


BACKENDS = {backend.name: backend for backend in (
    *(Backend(name, family.supports, family.estimate, partial(safe.forward, name),
              partial(safe.weight_grad, name)) for name, family in families.FAMILIES.items()),
    Backend('fft', fft.supports, fft.estimate, fft.forward, fft.weight_grad),
    Backend('direct', lambda problem, task: cpu.supports(problem), cpu_costs.direct,
            partial(cpu.forward, 'direct'), partial(cpu.weight_grad, 'direct')),
    Backend('torch', torch_conv.supports, torch_conv.estimate, torch_conv.forward,
            torch_conv.weight_grad))}
# What may be asked for.
CHOICES = ('auto', *BACKENDS)


class Choice(NamedTuple):
    """The answer of `explain`.

    Attributes:
        backend (str): 'triton', 'cuda', 'fft', 'direct' or 'torch'.
        reason (str): Why, in one sentence.
        candidates (dict[str, float | str | None]): For each backend its estimated time in seconds,
            None where no model estimates it, or the reason why it cannot serve.
        measured (tuple[str, ...]): The backends whose times were measured.
    """

    backend: str
    reason: str
    candidates: dict[str, float | str | None]
    measured: tuple[str, ...] = ()

    def __str__(self):
        lines = [f'{self.backend}: {self.reason}']
        for name, value in self.candidates.items():
            if isinstance(value, float):
                how = 'measured' if name in self.measured else 'estimated'
                value = f'{how} {value * 1e3:.3g} ms'
            lines.append(f'  {name:<7} {"no estimate" if value is None else value}')
        return '\n'.join(lines)


# What functional.py found for the arguments of a call; at most PLANS of them.
PLANS = 4096
plans: dict = {}
# By the same arguments, what calls the kernel directly: see `prepared`.
prepared_calls: dict[tuple, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {}


forget = caches.clear_all
caches.register(plans.clear)
caches.register(prepared_calls.clear)


def read_backend(backend: str, strict: bool = True) -> tuple[str, bool]:
    """The backend that an op was called with, and whether to raise where it cannot serve.

    Graphs that were saved before the ops had ``strict`` say ``'fft?'`` for ``strict=False``: they
    are understood here, and nowhere else.

    Raises:
        RuntimeError: If backend is none of `CHOICES`.
    """
    if backend.endswith('?'):
        backend, strict = backend[:-1], False
    if backend not in CHOICES:
        raise RuntimeError(f'mmreplk: backend must be one of {", ".join(CHOICES)}, not {backend!r}')
    return backend, strict


class Known(NamedTuple):
    """What is known of a problem on a GPU beside its shapes.

    Attributes:
        unusable (tuple[tuple[str, str], ...]): The backends that have failed there, and why.
        seconds (tuple[tuple[str, float], ...]): Measured times by backend, if it was measured.
    """

    unusable: tuple[tuple[str, str], ...]
    seconds: tuple[tuple[str, float], ...]


def choose(problem: Problem, backend: str = 'auto', strict: bool = True,
           device: torch.device | None = None) -> Choice:
    """The backend for the convolution itself.

    Args:
        problem (Problem): A valid problem with at least one output.
        backend (str): One of `CHOICES`. Defaults to 'auto'.
        strict (bool): Whether to raise where the backend cannot serve; else fall back to 'auto'.
            Defaults to True.
        device (torch.device, optional): The GPU, for what is known of it. Defaults to none.

    Raises:
        RuntimeError: If strict and the backend asked for cannot serve, with the reason.
    """
    return _choice(problem, 'forward', backend, strict, _known(problem, 'forward', device))


def choose_weight_grad(problem: Problem, backend: str = 'auto', strict: bool = True,
                       device: torch.device | None = None) -> Choice:
    """The backend for the gradient of the weights of ``problem``. As `choose`."""
    return _choice(problem, 'weight_grad', backend, strict, _known(problem, 'weight_grad', device))


def is_open(problem: Problem, task: str, device: torch.device) -> bool:
    """Whether 'auto' times what can serve before it chooses, as users have asked for."""
    return device.type in gpu_arch.DEVICE_TYPES and measured.is_open(problem, task, device)


def asks_to_measure(device: torch.device) -> bool:
    """Whether PyTorch's switches ask for choices by measurement on a device."""
    return measured.wanted(device)


@caches.cached
def _choice(problem: Problem, task: str, backend: str, strict: bool, known: Known | None) -> Choice:
    found = candidates(problem, task)
    if known is None:
        return _pick(found, backend, strict)
    found.update(known.unusable)
    seconds = {name: time for name, time in known.seconds
               if not isinstance(found.get(name, ''), str)}
    if backend == 'auto' and seconds:
        return _fastest(found, seconds)
    return _pick(found, backend, strict)


def _known(problem: Problem, task: str, device: torch.device | None) -> Known | None:
    if device is None or device.type not in gpu_arch.DEVICE_TYPES:
        return None
    row = measured.row(problem, task, device)
    return Known(health.unusable(device), () if row is None else row.seconds)


def candidates(problem: Problem, task: str) -> dict[str, float | str | None]:
    """For each backend its estimated time, None if unknown, or why it cannot serve the task.

    Args:
        problem (Problem): A valid problem with at least one output.
        task (str): 'forward' or 'weight_grad'.
    """
    found = {}
    for name, backend in BACKENDS.items():
        ok, why = backend.supports(problem, task)
        found[name] = backend.estimate(problem, task) if ok else why
    return found


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, backend: str,
            keep: bool, strict: bool = True) -> Tensor:
    """The convolution by the backend that `choose` says, or another where GPU kernels fail.

    Args:
        x, weight, bias (Tensor): Of the problem.
        problem (Problem): What is asked for.
        backend (str): One of `CHOICES`.
        keep (bool): Whether it may keep what it derives from the weights.
        strict (bool): Whether to raise where the backend cannot serve or fails; else 'auto' takes
            over. Defaults to True.

    Raises:
        RuntimeError: If strict and the backend asked for cannot serve or fails, with the reason.
    """
    def run(name: str) -> Tensor:
        out = BACKENDS[name].forward(x, weight, bias, problem, keep)
        return out.contiguous(memory_format=problem.memory_format)

    return _served(problem, 'forward', backend, strict, x, weight, bias, run)


def _served(problem: Problem, task: str, backend: str, strict: bool, x: Tensor, other: Tensor,
            bias: Tensor | None, run: Callable[[str], Tensor]) -> Tensor:
    """What ``run`` makes with the backend, or with another where that fails on a GPU."""
    device = x.device
    if backend == 'auto' and is_open(problem, task, device) and not health.is_capturing(device):
        measured.measure(problem, task, x, other, bias, partial(run, 'torch'))
        plans.clear()
        prepared_calls.clear()
    asked_for = strict and backend != 'auto'
    while True:  # each turn with one backend less
        name = _choice(problem, task, backend, strict, _known(problem, task, device)).backend
        try:
            return run(name)
        except health.NotReady as error:
            if asked_for:
                raise
            health.warn_once(f"{error}; PyTorch's convolution is recorded")
            return run('torch')
        except health.Unusable as error:
            if asked_for:
                raise RuntimeError(f"backend={backend!r} {error}. Use backend='auto', which takes "
                                   'what can serve.') from error


def prepared(problem: Problem, chosen: str, strides: tuple[int, ...], backend: str = 'auto'
             ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """``forward(x, weight, bias, problem, backend, keep=True)`` with all that is known looked up.

    It takes maps of these strides and dense weights. None where tensors have to be copied first.

    Args:
        problem (Problem): What is asked for.
        chosen (str): The backend that serves.
        strides (tuple[int, ...]): Of x.
        backend (str): The one that was asked for. Defaults to 'auto'.
    """
    if chosen not in families.FAMILIES:
        return cpu.prepared(problem, chosen, strides)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        try:
            out = BACKENDS[chosen].forward(x, weight, bias, problem, True)
        except health.Unusable:
            return forward(x, weight, bias, problem, backend, True)
        return out.contiguous(memory_format=problem.memory_format)

    return run


def weight_grad(x: Tensor, grad: Tensor, problem: Problem, backend: str, strict: bool = True
                ) -> Tensor:
    """The gradient of the weights, as `forward`."""
    return _served(problem, 'weight_grad', backend, strict, x, grad, None,
                   lambda name: BACKENDS[name].weight_grad(x, grad, problem))


@caches.cached
def one_backward(problems: tuple[Problem, ...], backend: str) -> bool:
    """Whether `backward` can serve and is faster than one gradient after the other.

    Args:
        problems (tuple[Problem, ...]): One or two kernels on the same input, the largest first.
        backend (str): Only 'fft' and 'auto' let it serve.
    """
    if backend not in ('auto', 'fft') or not cpu.backward_supports(problems):
        return False
    if backend == 'fft':
        return True
    apart = 0.0
    for problem in problems:
        for each, task in ((problem.of_input_grad(), 'forward'), (problem, 'weight_grad')):
            apart += min(time for time in candidates(each, task).values()
                         if isinstance(time, float))
    return cpu_costs.fft_backward(problems) < apart


def backward(x: Tensor, grads: Sequence[Tensor], weights: Sequence[Tensor],
             problems: Sequence[Problem], backend: str) -> list[Tensor] | None:
    """The gradients of x and of all weights in one pass; None where they are to be taken apart."""
    if not one_backward(tuple(problems), backend):
        return None
    return cpu.backward(x, grads, weights, problems)


def _fastest(candidates: dict, seconds: dict[str, float]) -> Choice:
    """The choice among those that were measured."""
    name = min(seconds, key=seconds.get)
    reason = f'measured, {seconds[name] * 1e3:.3g} ms'
    others = sorted((time, other) for other, time in seconds.items() if other != name)
    if others:
        reason += f'; {others[0][1]} takes {others[0][0] / seconds[name]:.2g} times as long'
    return Choice(name, reason, candidates | seconds, tuple(seconds))


def _pick(candidates: dict, backend: str, strict: bool) -> Choice:
    if backend != 'auto':
        if not isinstance(candidates[backend], str):
            return Choice(backend, 'asked for by name', candidates)
        if strict:
            raise RuntimeError(
                f"backend={backend!r} cannot serve this convolution: {candidates[backend]}. Use "
                f"backend='auto', which takes what can.")
    able = {name: time for name, time in candidates.items() if not isinstance(time, str)}
    if len(able) == 1:
        (name, _), = able.items()
        reasons = '; '.join(f'{other}: {why}' for other, why in candidates.items() if other != name)
        return Choice(name, f'the only backend that can serve ({reasons})', candidates)
    known = {name: time for name, time in able.items() if time is not None}
    if not known:
        return Choice(next(iter(able)), 'no time is known: the first that can serve', candidates)
    name = min(known, key=known.get)
    slower = min((time, other) for other, time in known.items() if other != name) if len(
        known) > 1 else None
    reason = f'the smallest estimate, {known[name] * 1e3:.3g} ms'
    if slower:
        reason += f'; {slower[1]} would take {slower[0] / known[name]:.2g} times as long'
    return Choice(name, reason, candidates)
