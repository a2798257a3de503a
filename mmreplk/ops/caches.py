"""The caches of the operator: one way to make one, and one to empty all of them.

They hold what follows from shapes alone (choices, plans, costs), what a process finds out once
(devices, compiled kernels), and spectra of weights. So emptying them changes times, not results.
"""

from collections.abc import Callable
from functools import lru_cache

_clearers: list[Callable[[], None]] = []


def register(clear: Callable[[], None]) -> None:
    """Have `clear_all` call ``clear``."""
    _clearers.append(clear)


def cached(function: Callable | None = None, *, maxsize: int | None = 4096):
    """``functools.lru_cache`` that `clear_all` empties, as ``@cached`` or ``@cached(maxsize=8)``.

    Args:
        function (Callable, optional): What to decorate.
        maxsize (int, optional): Results kept at most; None for all. Defaults to 4096.
    """
    if function is None:
        return lambda function: cached(function, maxsize=maxsize)
    result = lru_cache(maxsize=maxsize)(function)
    register(result.cache_clear)
    return result


def clear_all() -> None:
    """Empty every cache, as where something has changed that choices depend on."""
    for clear in _clearers:
        clear()
