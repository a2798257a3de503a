"""Cells in which the FFT looks for contrast (csrc/fft_guard.inc.c): pure functions of shapes.

An axis of a tile is cut, apart for each phase of the dilation, into runs of some size; the last run
takes what is left. The larger the cells, the cheaper they are, and the rarer it is that one of them
holds nothing by chance; but every output has to see a whole one.
"""

from functools import lru_cache

from .native_plan import Tiles
from .problem import Problem

# Cells of fewer pixels would cost more than to look at each pixel.
FEWEST_PIXELS = 4


@lru_cache(maxsize=4096)
def forward_cells(problem: Problem, tiles: Tiles) -> tuple[int, int]:
    """Down and right; (0, 0) if every output sees all of its tile; (-1, -1) if none serve."""
    top, _, left, _ = problem.padding
    return _both(tuple(
        _forward_axis(size, outs, kernel, before, dilation, length)
        for size, outs, kernel, before, dilation, length in zip(
            (problem.height, problem.width), problem.out_size, problem.kernel, (top, left),
            problem.dilation, tiles.outputs, strict=True)))


@lru_cache(maxsize=4096)
def backward_cells(problem: Problem, tiles: Tiles) -> tuple[int, int]:
    """The same of the output's gradient, of which the gradient of each input sees a whole one."""
    top, _, left, _ = problem.padding
    return _both(tuple(
        _backward_axis(size, outs, kernel, before, dilation, length)
        for size, outs, kernel, before, dilation, length in zip(
            (problem.height, problem.width), problem.out_size, problem.kernel, (top, left),
            problem.dilation, tiles.outputs, strict=True)))


def _both(axes: tuple[tuple[int, bool], tuple[int, bool]]) -> tuple[int, int]:
    (rows, all_rows), (columns, all_columns) = axes
    if all_rows and all_columns:
        return 0, 0
    return (rows, columns) if rows * columns >= FEWEST_PIXELS else (-1, -1)


@lru_cache(maxsize=4096)
def _forward_axis(size: int, outs: int, kernel: int, before: int, dilation: int, length: int
                  ) -> tuple[int, bool]:
    windows = set()
    for start in range(0, outs, length):
        end = min(start + length, outs)
        first = min(max(0, start - before), size)
        last = max(first, min(size, end - before + (kernel - 1) * dilation))
        if first == last:
            continue  # a tile that sees nothing is exact
        for o in range(start, end):
            window = _met(o - before, kernel, dilation, first, last)
            if window is None:
                return 0, False
            windows.add((last - first, *window))
    return _largest([[window] for window in windows], dilation)


@lru_cache(maxsize=4096)
def _backward_axis(size: int, outs: int, kernel: int, before: int, dilation: int, length: int
                   ) -> tuple[int, bool]:
    windows = set()
    for i in range(size):
        low = i + before - (kernel - 1) * dilation
        parts = []
        for start in range(0, outs, length):
            end = min(start + length, outs)
            window = _met(low, kernel, dilation, start, end)
            if window is not None:
                parts.append((end - start, *window))
        if not parts:
            return 0, False
        windows.add(tuple(parts))
    return _largest([list(parts) for parts in windows], dilation)


def _met(low: int, kernel: int, dilation: int, first: int, last: int) -> tuple[int, int] | None:
    """Of the points low, low + dilation..., the first and the last in [first, last), from first."""
    skipped = max(0, -((low - first) // dilation)) if low < first else 0
    begin = low + skipped * dilation
    count = min(kernel - skipped, (last - 1 - begin) // dilation + 1)
    return (begin - first, begin - first + (count - 1) * dilation) if count > 0 else None


def _largest(windows: list[list[tuple[int, int, int]]], dilation: int) -> tuple[int, bool]:
    """The largest size of cells of which every window, in one of its parts, holds a whole one."""
    # A window of several parts counts with its longest.
    size = min(max((last - first) // dilation + 1 for _, first, last in parts) for parts in windows)
    # Between the taps of a dilated kernel lie pixels that the output does not see.
    whole = all(len(parts) == 1 and (parts[0][2] - parts[0][1]) // dilation + 1 == parts[0][0]
                for parts in windows)
    while size > 1 and not all(any(_holds(size, dilation, *part) for part in parts)
                               for parts in windows):
        size -= max(1, size // 16)
    return size, whole


def _holds(size: int, dilation: int, count: int, first: int, last: int) -> bool:
    phase = first % dilation
    pixels = (count - phase + dilation - 1) // dilation
    cells = max(1, pixels // size)
    first, last = first // dilation, last // dilation
    cell = -(-first // size)  # the first that begins in the window
    if cell >= cells:
        return False
    return (pixels if cell + 1 == cells else (cell + 1) * size) <= last + 1
