"""Which kernels are fastest, measured where users ask PyTorch for the same.

Where ``torch.backends.cudnn.benchmark`` is on, and neither ``torch.backends.cudnn.deterministic``
nor ``torch.use_deterministic_algorithms`` asks for runs that repeat, the first call of a problem's
kind times a few variants of each family that can serve, and PyTorch, on its own tensors. A row of
the user's cache (cache.py) keeps the winner for later processes. Elsewhere nothing is timed.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..caches import cached
from ..problem import Problem
from . import arch, cache, families, health, selfcheck, versions
from .arch import arch_of
from .backend import allow_tf32
from .family import Family
from .tiles import mode_of, power_of_two

VARIANTS = 3  # of each family that are timed
REPEATS = 7
PYTORCH = 'torch'
TOO_LONG = 1e6  # seconds, of what could not be run


class Row(NamedTuple):
    """What was measured of a kind of problem.

    Attributes:
        seconds (tuple[tuple[str, float], ...]): Of a call, by backend, each by its best variant.
        variants (tuple[tuple[str, object], ...]): The best variant of each family.
    """

    seconds: tuple[tuple[str, float], ...]
    variants: tuple[tuple[str, object], ...]


# By device and `kind_of`; None where the user's cache was found to have no row.
_rows: dict[tuple[str, str], Row | None] = {}


def forget() -> None:
    """Measure anew in this process; files stay, and are read again."""
    _rows.clear()


def wanted(device: torch.device) -> bool:
    """Whether kernels are to be chosen by measurement on a device."""
    return (device.type in arch.DEVICE_TYPES and torch.backends.cudnn.benchmark
            and not torch.backends.cudnn.deterministic
            and not torch.are_deterministic_algorithms_enabled())


@cached
def kind_of(problem: Problem, task: str, mode: str) -> str:
    """The name of all problems that one measurement serves: batch and channels to a power of 2."""
    p = problem
    parts = [task, str(p.dtype).removeprefix('torch.'), mode, f'n{power_of_two(p.batch)}',
             f'c{power_of_two(p.channels)}', f'{p.height}x{p.width}',
             'k{}x{}'.format(*p.kernel), 'p' + 'x'.join(map(str, p.padding))]
    return ' '.join(parts + ['channels-last'] * p.channels_last + ['bias'] * p.has_bias
                    + ['relu'] * p.relu)


def row(problem: Problem, task: str, device: torch.device) -> Row | None:
    """What is known of problems of this kind; None if nothing, or where nothing is to be timed."""
    if not wanted(device):
        return None
    kind = kind_of(problem, task, mode_of(problem.dtype, allow_tf32()))
    key = str(device), kind
    if key not in _rows:
        _rows[key] = _read(device, task, kind)
    return _rows[key]


def is_open(problem: Problem, task: str, device: torch.device) -> bool:
    """Whether a call is to be measured: asked for, not known, and there is a choice."""
    return (wanted(device) and row(problem, task, device) is None
            and bool(_able(problem, task, device)))


def variant(family: Family, problem: Problem, task: str, mode: str, device: torch.device):
    """The variant to launch: the one that was measured, or the first by table and model."""
    known = row(problem, task, device)
    found = known and dict(known.variants).get(family.name)
    return found or family.variants(problem, task, mode, arch_of(device))[0]


def measure(problem: Problem, task: str, x: Tensor, other: Tensor, bias: Tensor | None,
            pytorch: Callable[[], Tensor]) -> Row:
    """Time what can serve a call, and keep the row.

    A family whose first variant fails, or that is wrong, is given up as anywhere else. What memory
    was too small for is left out, and the row is kept for this process alone.

    Args:
        problem (Problem): One that `is_open`.
        task (str): 'forward' or 'weight_grad'.
        x (Tensor): The input.
        other (Tensor): The weights, or the gradient of the output.
        bias (Tensor, optional): The bias.
        pytorch (Callable): Computes the same by PyTorch.
    """
    from . import safe
    device, mode = x.device, mode_of(problem.dtype, allow_tf32())
    seconds, best = {PYTORCH: _attempt(pytorch, device)}, {}
    enough_memory = seconds[PYTORCH] < TOO_LONG
    for family in _able(problem, task, device):
        for number, each in enumerate(
                family.variants(problem, task, mode, arch_of(device))[:VARIANTS]):
            def run(family=family, each=each):
                if task == 'forward':
                    return family.forward(x, other, bias, problem, mode, each)
                return family.weight_grad(x, other, problem, mode, each)

            def check(family=family, each=each, run=run):
                name = selfcheck.ensure(family, device, problem, task, mode, each)
                run()
                selfcheck.loaded(name)

            try:
                safe.guarded(family, device, check) if not number else check()
                taken = _attempt(run, device)
            except health.Unusable:
                break
            except selfcheck.Mismatch as error:
                health.mark(device, family, error)
                seconds.pop(family.name, None), best.pop(family.name, None)
                break
            except Exception as error:  # one of several variants: there are others
                health.raise_if_broken(device)
                enough_memory &= not health.is_out_of_memory(error)
                continue
            enough_memory &= taken < TOO_LONG
            if taken < seconds.get(family.name, TOO_LONG):
                seconds[family.name], best[family.name] = taken, each
    found = Row(tuple((n, s) for n, s in seconds.items() if s < TOO_LONG), tuple(best.items()))
    kind = kind_of(problem, task, mode)
    _rows[str(device), kind] = found
    safe.forget()  # by which a call by name may have taken another variant
    facts = _about(device)
    if enough_memory:
        cache.add(_file(facts), facts, {kind: dict(
            seconds=dict(found.seconds), variants=dict(found.variants),
            measured=[problem.batch, problem.channels])})
    return found


def path(device: torch.device):
    """The file of a device's rows."""
    return cache.path_of(_file(_about(device)))


def seconds_of(run: Callable[[], Tensor], device: torch.device) -> float:
    """Median seconds of a call on the current stream; the first call is not timed."""
    run()
    if device.type != 'cuda':
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return sorted(times)[REPEATS // 2]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        events[-1].synchronize()
        times = [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
        return 1e-3 * sorted(times)[REPEATS // 2]


def _attempt(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds; `TOO_LONG` where memory is too small."""
    try:
        with torch.no_grad():
            return seconds_of(run, device)
    except Exception as error:
        if health.is_out_of_memory(error):
            return TOO_LONG
        raise


def _able(problem: Problem, task: str, device: torch.device) -> list[Family]:
    return [family for name, family in families.FAMILIES.items()
            if not health.why(device, name) and family.supports(problem, task)[0]]


def _about(device: torch.device) -> dict[str, str]:
    return versions.about(device, *families.FAMILIES.values())


def _file(facts: dict[str, str]) -> str:
    return f'measured-{versions.fingerprint(facts)}'


def _read(device: torch.device, task: str, kind: str) -> Row | None:
    facts = _about(device)
    try:
        found = cache.read(_file(facts), facts)[kind]
        seconds = {str(name): float(value) for name, value in found['seconds'].items()}
        best = {name: families.FAMILIES[name].read(task, value)
                for name, value in found['variants'].items()}
        if not seconds or not all(0 < value < TOO_LONG for value in seconds.values()):
            return None
        if set(seconds) - {PYTORCH} - set(best):
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Row(tuple(seconds.items()), tuple(best.items()))
