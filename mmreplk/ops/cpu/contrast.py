"""Cells in which the FFT looks for contrast (csrc/fft_guard.inc.c): pure functions of shapes.

An axis of a tile is cut, apart for each phase of the dilation, into runs of some size; the last run
takes what is left. The larger the cells, the cheaper they are, and the rarer it is that one of them
holds nothing by chance; but every output has to see a whole one.
"""

from collections.abc import Iterator

from ..arithmetic import ceil_div
from ..caches import cached
from ..problem import Problem
from .plan import Tiles, direct_cost, fft_cost

# Cells of fewer pixels would cost more than to look at each pixel.
FEWEST_PIXELS = 4


@cached
def forward_cells(problem: Problem, tiles: Tiles) -> tuple[int, int]:
    """Down and right; (0, 0) if every output sees all of its tile; (-1, -1) if none serve."""
    top, _, left, _ = problem.padding
    return _both(tuple(
        _forward_axis(size, outs, kernel, before, dilation, length)
        for size, outs, kernel, before, dilation, length in zip(
            (problem.height, problem.width), problem.out_size, problem.kernel, (top, left),
            problem.dilation, tiles.outputs, strict=True)))


@cached
def backward_cells(problem: Problem, tiles: Tiles) -> tuple[int, int]:
    """The same of the output's gradient, of which the gradient of each input sees a whole one."""
    top, _, left, _ = problem.padding
    return _both(tuple(
        _backward_axis(size, outs, kernel, before, dilation, length)
        for size, outs, kernel, before, dilation, length in zip(
            (problem.height, problem.width), problem.out_size, problem.kernel, (top, left),
            problem.dilation, tiles.outputs, strict=True)))


@cached
def worth(problem: Problem, lanes: int) -> int:
    """How many FFT convolutions take as long as the direct sums of the same planes, times 1024.

    It depends on one plane alone, so that results do not depend on how many there are.
    """
    problem = problem._replace(batch=8, channels=lanes, multiplier=1, channels_last=False)
    return int(1024 * direct_cost(problem, 'forward', lanes).cost
               / fft_cost(problem, 'forward', lanes))


def _both(axes: tuple[tuple[int, bool], tuple[int, bool]]) -> tuple[int, int]:
    (rows, all_rows), (columns, all_columns) = axes
    if all_rows and all_columns:
        return 0, 0
    return (rows, columns) if rows * columns >= FEWEST_PIXELS else (-1, -1)


@cached
def _forward_axis(size: int, outs: int, kernel: int, before: int, dilation: int, length: int
                  ) -> tuple[int, bool]:
    windows, seen = set(), set()
    for start in range(0, outs, length):
        end = min(start + length, outs)
        first = min(max(0, start - before), size)
        last = max(first, min(size, end - before + (kernel - 1) * dilation))
        tile = end - start, first - start, last - first
        if first == last or tile in seen:
            continue  # a tile that sees nothing is exact; the others inside of a map are all alike
        seen.add(tile)
        for low in _distinct(start - before, end - before, first, last, kernel, dilation):
            window = _met(low, kernel, dilation, first, last)
            if window is None:
                return 0, False
            windows.add((last - first, *window))
    return _largest([[window] for window in windows], dilation)


@cached
def _backward_axis(size: int, outs: int, kernel: int, before: int, dilation: int, length: int
                   ) -> tuple[int, bool]:
    reach = (kernel - 1) * dilation
    low, high = before - reach, size + before - reach
    # From a tile to the next the windows repeat, as long as all the tiles that they meet are whole.
    repeated = max(0, low) + length
    goes_on = max(repeated, outs // length * length - reach)
    windows = set()
    for begin, end in ((low, min(high, repeated)), (goes_on, high)):
        while begin < end:
            # The tile that a window begins in; what begins outside of the map is a part of its own.
            start = begin // length * length if 0 <= begin < outs else min(begin, 0)
            stop = min(end, start + length if 0 <= begin < outs else 0 if begin < 0 else end)
            for i in _distinct(begin, stop, start, min(start + length, outs), kernel, dilation):
                parts = []
                for tile in range(max(0, i) // length * length, min(outs, i + reach + 1), length):
                    last = min(tile + length, outs)
                    window = _met(i, kernel, dilation, tile, last)
                    if window is not None:
                        parts.append((last - tile, *window))
                if not parts:
                    return 0, False
                windows.add(tuple(parts))
            begin = stop
    return _largest([list(parts) for parts in windows], dilation)


def _distinct(low: int, high: int, first: int, last: int, kernel: int, dilation: int
              ) -> Iterator[int]:
    """Of the windows that begin in [low, high), those that may differ in what they hold.

    A window that lies in [first, last) and far from its end holds a cell of size s or none as that
    s * dilation before it does, and s is at most the kernel.
    """
    period = kernel * dilation
    alike, end = max(low, first) + period, min(high, last - 4 * period)
    yield from range(low, min(high, alike))
    yield from range(min(high, max(alike, end)), high)


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
    at, held = 0, 0  # a window that fails is the first to be asked about the next size
    while size > 1 and held < len(windows):
        if any(_holds(size, dilation, *part) for part in windows[at]):
            at, held = (at + 1) % len(windows), held + 1
        else:
            size, held = size - max(1, size // 16), 0
    return size, whole


def _holds(size: int, dilation: int, count: int, first: int, last: int) -> bool:
    phase = first % dilation
    pixels = (count - phase + dilation - 1) // dilation
    cells = max(1, pixels // size)
    first, last = first // dilation, last // dilation
    cell = ceil_div(first, size)  # the first that begins in the window
    if cell >= cells:
        return False
    return (pixels if cell + 1 == cells else (cell + 1) * size) <= last + 1
