"""The GPU path: Triton where it can serve, cuDNN, or an FFT product on request."""

import importlib.util
from functools import cache

from . import fft
from .problem import Problem


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec('triton') is not None


def estimates(problem: Problem, task: str) -> dict[str, float | str | None]:
    """Seconds each backend would take, None if not estimated, or why it cannot serve."""
    out: dict[str, float | str | None] = {'torch': None}
    ok, why = fft.supports(problem)
    out['fft'] = None if ok else why
    out['direct'] = 'the compiled direct sum runs on a CPU'
    if not _has_triton():
        out['triton'] = 'Triton is not installed'
    else:
        from . import triton_launch
        ok, why = triton_launch.supports(problem)
        out['triton'] = None if ok else why
    return out
