"""How the compiled kernels cut a problem, and what they take: pure functions of shapes.

The constants were fitted to measurements on AMD Zen 5 with AVX-512; only ratios matter, and those
are similar on other machines. All costs are in nanoseconds, of THREADS threads.
"""

import math
from typing import NamedTuple

from ..arithmetic import ceil_div
from ..caches import cached
from ..problem import Problem

try:
    from ._native import point_cost
except ImportError:  # nobody asks then, see native.available

    def point_cost(n):
        raise RuntimeError('the compiled kernels are not installed')

# Bytes that no plane of the FFT may take in the scratch of a thread (a weight gradient has three).
FFT_SCRATCH = 64 << 20

# Points of the longest transform (MAX_POINTS in csrc/dwconv.h).
MOST_POINTS = 1 << 14

# Kernels of no more rows are streamed (csrc/direct_stream.inc.c).
STREAM_ROWS = 7

# Costs are of so many threads, whatever the machine has: a choice that followed the number of
# threads would make results depend on it, within rounding.
THREADS = 2

# Nanoseconds to find the spectrum of the weights, and to tell that they are what they were.
_KEPT = 8000

# Time of a lane of the builds with fewer lanes, relative to 16.
_SLOWER = {16: 1.0, 8: 1.25, 4: 2.6}


def _shared(work: float, items: int) -> float:
    """The time of equal items in THREADS threads, and to call them from Python."""
    return 8000 + work / items * ceil_div(items, THREADS)


def _cold(problem: Problem, each: float) -> float:
    """Nanoseconds, so many a KB, for maps that no cache holds."""
    return each * max(0.0, problem.bytes_moved - 16e6) / 1e3


# -- the direct sum ------------------------------------------------------------------------------

class Direct(NamedTuple):
    rows: bool  # pixels of a row in the lanes, not channels
    cost: float


@cached
def direct_cost(problem: Problem, task: str, lanes: int) -> Direct:
    """Which of the two kinds of direct sum is the quicker, and what it takes.

    Args:
        problem (Problem): Of stride 1.
        task (str): 'forward' or 'weight_grad'.
        lanes (int): Floats of a vector.
    """
    model = _forward_costs if task == 'forward' else _grad_costs
    channels, rows = (cost * _SLOWER[lanes] * lanes / 16 for cost in model(problem, lanes))
    channels += _cold(problem, 86 if problem.channels_last else 57)
    rows += _cold(problem, 33)
    return Direct(rows < channels, min(rows, channels))


def _forward_costs(p: Problem, lanes: int) -> tuple[float, float]:
    top, _, left, _ = p.padding
    (out_h, out_w), (kh, kw), (down, right) = p.out_size, p.kernel, p.dilation
    tap_rows = taps_inside(p.height, out_h, kh, top, down, 1)
    planes, groups = p.batch * p.out_channels, ceil_div(p.out_channels, lanes)
    pixels = p.height * p.width + out_h * out_w

    across = taps_inside(p.width, out_w, kw, left, right, 4)
    move = 0.17
    if not p.channels_last:  # blocks of pixels are transposed, the last of a plane like the others
        move = 0.25
        pixels = lanes * (ceil_div(p.height * p.width, lanes) + ceil_div(out_h * out_w, lanes))
    by_channels = p.batch * groups * (tap_rows * across * 0.2 + lanes * pixels * move + 300)
    by_channels += groups * lanes * kh * kw * 0.33

    vectors = ceil_div(out_w, lanes)
    across = taps_inside(p.width, vectors * lanes, kw, left, right, 4 * lanes) / lanes
    moved = p.height * ceil_div(p.width, lanes) + out_h * vectors
    if kh <= STREAM_ROWS and not p.channels_last:
        # Every input row meets all rows of taps; few sums at once wait for one another, and a
        # single row of taps for its loads.
        sums = kh * vectors / ceil_div(vectors, min(8, 28 // (kh + 1)))
        each = 0.122 * (1 + 1 / sums) if kh > 1 else 0.14 if lanes == 16 and right == 1 else 0.25
        products = p.height * kh * across * each
    else:
        products = tap_rows * across * 0.136
    by_rows = planes * (products + moved * (14.0 if p.channels_last else 1.8) + kh * kw * 0.5 + 108)
    # Planes are cut where they are few, unless there is little to do (direct_*.inc.c).
    vectors *= tap_rows * kw
    return (_shared(by_channels, max(p.batch * groups, p.batch * groups * lanes * vectors >> 15)),
            _shared(by_rows, max(planes, planes * vectors >> 14)))


def _grad_costs(p: Problem, lanes: int) -> tuple[float, float]:
    top, _, left, _ = p.padding
    (out_h, out_w), (kh, kw), (down, right) = p.out_size, p.kernel, p.dilation
    tap_rows = taps_inside(p.height, out_h, kh, top, down, 1)
    groups, pixels = ceil_div(p.out_channels, lanes), p.height * p.width + out_h * out_w
    columns = 4 if right == 1 else 1

    across = blocks = 0
    for v in range(0, kw, columns):
        last = min(v + columns, kw)
        low, high = left - (last - 1) * right, p.width + left - v * right
        across += (last - v) * max(0, min(out_w, high) - max(0, low))
        blocks += (last - v) * max(0, min(ceil_div(out_w, lanes), ceil_div(max(0, high), lanes))
                                   - max(0, low) // lanes)
    by_channels = p.batch * groups * (tap_rows * across * 0.21 + lanes * pixels * 0.12 + 100)
    by_channels += groups * lanes * kh * kw * 0.25

    moved = p.height * ceil_div(p.width, lanes) + out_h * ceil_div(out_w, lanes)
    calls = (out_h + 5) * ceil_div(kh, 6) * ceil_div(kw, columns)
    by_rows = p.batch * p.out_channels * (
        tap_rows * blocks * 0.17 + calls * 1.35 + moved * (7.0 if p.channels_last else 2.6) + 80)
    by_rows += p.out_channels * kh * kw * 3.6

    def items(count):
        return count * min(ceil_div(kh, 6), ceil_div(8, count))

    return (1000 + _shared(by_channels, items(groups)),
            1500 + _shared(by_rows, items(p.out_channels)))


def taps_inside(size: int, outs: int, kernel: int, before: int, dilation: int, block: int) -> int:
    """Count (output, tap) pairs along one axis whose input index is inside the feature map.

    Outputs are taken in blocks: a tap that is inside for one output of a block is computed, and
    counted, for all of them.
    """
    count = 0
    for begin in range(0, outs, block):
        end = min(begin + block, outs)
        low, high = before - (end - 1), size - 1 + before - begin
        if high >= 0:
            met = min(kernel, high // dilation + 1) - (ceil_div(low, dilation) if low > 0 else 0)
            count += max(0, met) * (end - begin)
    return count


# -- the FFT convolution -------------------------------------------------------------------------

class Tiles(NamedTuple):
    points: tuple[int, int]  # of the transforms, down and right
    outputs: tuple[int, int]  # of a tile
    count: int
    cost: float  # of all tiles, for as many planes as there are lanes

    def grid(self, out_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return tuple(ceil_div(o, t) for o, t in zip(out_size, self.outputs, strict=True))


@cached
def fft_tiles(problem: Problem, lanes: int) -> Tiles | None:
    """How the FFT cuts a map: the cheapest grid; None if even the smallest tile is too large.

    It depends on the geometry of one plane alone, so that a spectrum of the weights serves for any
    batch and memory format.
    """
    top, _, left, _ = problem.padding
    down = _cuts(problem.height, problem.out_size[0], problem.kernel[0], top, problem.dilation[0])
    across = _cuts(problem.width, problem.out_size[1], problem.kernel[1], left, problem.dilation[1])
    best = None
    for rows in down:
        for columns in across:
            if 8 * lanes * (columns.points // 2 + 1) * (rows.points + 3) <= FFT_SCRATCH:
                tiles = _tiles(rows, columns, lanes)
                if best is None or tiles.cost < best.cost:
                    best = tiles
    return best


def fft_cost(problem: Problem, task: str, lanes: int) -> float:
    """What the FFT convolution takes.

    Args:
        problem (Problem): Must be supported.
        task (str): 'forward' (with the spectrum of the weights kept), 'spectrum' (of the
            weights), 'weight_grad', 'backward' (both gradients in one) or 'pair_backward' (of
            two kernels on the same input).
        lanes (int): Floats of a vector.
    """
    tiles = fft_tiles(problem, lanes)
    groups = ceil_div(problem.out_channels, lanes)
    scale = 0.65 * _SLOWER[lanes] * lanes / 16
    images = groups * problem.batch * tiles.cost
    if task == 'forward':
        items = groups * problem.batch * tiles.count
        return (_KEPT + _shared(scale * images, items) + 0.037 * problem.bytes_moved
                + _cold(problem, 77 if problem.channels_last else 26))
    (down, across), (kh, kw) = tiles.points, problem.kernel
    spectrum = groups * ((kh + 1) // 2 * across * (_point_cost(across) / 2 + 3)
                         + (across // 2 + 1) * down * (_point_cost(down) / 2 + 2) + 2 * kh * kw)
    # A pass of tiles is a transform there and one back; the weights' is half of one or so.
    passes, spectra = {'spectrum': (0, 1), 'weight_grad': (1, 1), 'backward': (1.5, 2),
                       'pair_backward': (2, 4)}[task]
    work = passes * images + spectra * spectrum
    return _shared(scale * work, groups) + _cold(problem, 26 * passes)


class _Cut(NamedTuple):
    outputs: int
    inputs: int
    points: int
    parts: int


@cached
def _cuts(size: int, outs: int, kernel: int, before: int, dilation: int) -> list[_Cut]:
    """One axis in tiles, for several numbers of them: those that need different transforms."""
    distances = [s for u in range(kernel) if -outs < (s := dilation * u - before) < size]
    low, high = (distances[0], distances[-1]) if distances else (0, 0)
    tiles = 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512
    wanted = {*range(1, 9), *(ceil_div(outs, tile) for tile in tiles)}
    out = {}
    for parts in sorted(wanted, reverse=True):
        outputs = ceil_div(outs, parts)
        if parts > 1 and outputs < 8:
            continue
        needed = inputs = 1
        for start in range(0, outs, outputs):
            count = min(outputs, outs - start)
            first = min(max(0, start - before), size)
            last = max(first, min(size, start + count - before + dilation * (kernel - 1)))
            # No two points that matter may meet on the circle (see fft.inc.c).
            needed = max(needed, count, last - first)
            if last > first:
                needed = max(needed, count + high - (first - start), last - start - low)
            inputs = max(inputs, last - first)
        points = transform_length(needed)
        if points:
            out[points] = _Cut(outputs, inputs, points, ceil_div(outs, outputs))
    return list(out.values())


def _tiles(rows: _Cut, columns: _Cut, lanes: int) -> Tiles:
    """Fitted to measurements: what a transform costs, and per point of a row its way in and out."""
    frequencies = columns.points // 2 + 1
    pairs = (rows.inputs + 1) // 2 + (rows.outputs + 1) // 2
    # Beyond the second-level cache a plane is further away.
    far = 1 + 0.2 * math.log2(max(1.0, 8 * lanes * frequencies * rows.points / 900_000))
    cost = (pairs * columns.points * (_point_cost(columns.points) / 2 + 1.8) * far
            + frequencies * rows.points * (_point_cost(rows.points) + 1) * far
            + 2.1 * (rows.inputs * columns.inputs + rows.outputs * columns.outputs) + 300)
    count = rows.parts * columns.parts
    return Tiles((rows.points, columns.points), (rows.outputs, columns.outputs), count,
                 1.1 * count * cost)


@cached
def transform_length(n: int) -> int:
    """The cheapest number of points of at least n that can be transformed; 0 if there is none."""
    if n > MOST_POINTS:
        return 0
    lengths = range(n, n + max(8, n // 3) + 1)
    cost, length = min((_point_cost(length) * length, length) for length in lengths)
    return length if cost < math.inf else 0


@cached(maxsize=None)
def _point_cost(n: int) -> float:
    return point_cost(n)
