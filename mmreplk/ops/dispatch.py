"""Which backend serves a problem, and why. A pure function of shapes, so that runs repeat."""

from typing import NamedTuple

from . import caches
from .arguments import BACKENDS
from .cpu import backend as cpu
from .gpu import backend as gpu
from .problem import Problem


class Choice(NamedTuple):
    """The answer of `explain`.

    Attributes:
        backend (str): 'triton', 'fft', 'direct' or 'torch'.
        reason (str): Why, in one sentence.
        candidates (dict[str, float | str | None]): For each backend its estimated time in seconds,
            None where no model estimates it, or the reason why it cannot serve.
    """

    backend: str
    reason: str
    candidates: dict[str, float | str | None]

    def __str__(self):
        lines = [f'{self.backend}: {self.reason}']
        for name, value in self.candidates.items():
            if isinstance(value, float):
                value = f'estimated {value * 1e3:.3g} ms'
            lines.append(f'  {name:<7} {"no estimate" if value is None else value}')
        return '\n'.join(lines)


# What functional.py found for the arguments of a call; at most PLANS of them.
PLANS = 4096
plans: dict = {}


forget = caches.clear_all
caches.register(plans.clear)


@caches.cached
def choose(problem: Problem, backend: str = 'auto') -> Choice:
    """The backend for the convolution itself.

    Args:
        problem (Problem): A valid problem with at least one output.
        backend (str): One of `BACKENDS`; with '?' behind it, a wish that may be left unmet.

    Raises:
        RuntimeError: If the backend asked for cannot serve, with the reason.
    """
    return _pick(_candidates(problem, 'forward'), problem, backend)


@caches.cached
def choose_weight_grad(problem: Problem, backend: str = 'auto') -> Choice:
    """The backend for the gradient of the weights of ``problem``. As `choose`."""
    return _pick(_candidates(problem, 'weight_grad'), problem, backend)


def _candidates(problem: Problem, task: str) -> dict[str, float | str | None]:
    if problem.device == 'cuda':
        candidates = gpu.estimates(problem, task)
    else:
        candidates = cpu.estimates(problem, task)
    return {name: candidates[name] for name in BACKENDS if name in candidates}


def _pick(candidates: dict, problem: Problem, backend: str) -> Choice:
    name = backend.removesuffix('?')
    if name != 'auto':
        if not isinstance(candidates[name], str):
            return Choice(name, 'asked for by name', candidates)
        if name == backend:
            raise RuntimeError(
                f"backend={name!r} cannot serve this convolution: {candidates[name]}. Use "
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
