"""What the CUDA kernels cost, counted block by block: products, shared memory, L2, instructions.

Of every block that differs, each step (a pair of input rows) is counted: products of the busiest
quarter of a multiprocessor, cycles of shared memory for operands and copies, bytes from L2,
instructions issued. A step takes as long as its busiest resource. Nothing here was timed: rates are
those of the datasheets, with the assumptions below.
"""

from typing import NamedTuple

from ...arithmetic import ceil_div
from ...caches import cached
from ...problem import Problem
from ..arch import Arch
from ..tiles import vector
from . import grad_plan, plan

# Share of the dense rate that mma.sync reaches where another instruction has taken its place, as
# published microbenchmarks of Hopper have it; taken for Blackwell's data-center chips too.
_OLD_INSTRUCTION = 0.62
# Cycles that a barrier costs beside the wait for the slowest warp, and that a block takes to begin
# and to end: cores, first rows, results; in the weight gradient, to add up what its warps have.
BARRIER, BLOCK = 40, 2500
# Cycles to read a part's first rows and build its cores, where a kernel is cut into parts.
_PART = 1500
SHARED = 128.0  # bytes a clock
_RESERVED = 1024  # bytes of shared memory that the system keeps for itself, a block


class Count(NamedTuple):
    """What one block takes, in cycles of a multiprocessor, and bytes.

    Attributes:
        tensor (float): Cycles of the busiest of its four tensor cores.
        shared (float): Cycles of shared memory.
        issue (float): Instructions of the busiest scheduler.
        l2 (float): Bytes from L2.
        busy (float): The sum over all steps of the largest of these.
        idle (float): Cycles that nothing but waiting fills: barriers, beginning and end.
        products (int): Products of 16 x 8 outputs, of all warps.
        loads (float): Cycles of shared memory for operands alone.
    """

    tensor: float
    shared: float
    issue: float
    l2: float
    busy: float
    idle: float
    products: int
    loads: float

    def times(self, n: float) -> 'Count':
        return Count(*(n * value for value in self))

    def plus(self, other: 'Count') -> 'Count':
        return Count(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Count(0, 0, 0, 0, 0, 0, 0, 0)


class Rates(NamedTuple):
    """Of one multiprocessor: cycles of a product on one of four tensor cores, L2 bytes a clock."""

    product: float
    l2: float


def rates(mode: str, device: Arch) -> Rates:
    """The rates of a device for products in a mode; those of 'exact' are three."""
    macs = device.macs
    if device.capability[0] in (9, 10):
        macs = min(macs, 2048) * _OLD_INSTRUCTION
    # 16 x 8 outputs, contracted over 16, or over 8 at half the rate.
    return Rates(16 * 8 * 16 / (macs / 4) * (3 if mode == 'exact' else 1), device.l2)


# -- forward ---------------------------------------------------------------------------------------

def _copied(problem: Problem, pieces: int, rows: float, chunks: int, inside: int,
            images: int) -> tuple[float, float, float]:
    """Cycles of shared memory, instructions of a scheduler and L2 bytes of rows that are copied."""
    there = rows * chunks * images
    instructions = there / 32 * (5 + 6 * pieces) / 4
    if pieces * 2 > 16 // problem.dtype.itemsize and problem.dtype.itemsize == 2:
        instructions = there / 32 * 60 / 4  # one by one, through registers
    return there * 16 / SHARED, instructions, rows * inside * images * 16


def _core_loads(groups: int) -> int:
    """Cycles to read the cores of a number of output rows."""
    return sum(1 if g == groups else 4 for g in range(0, groups + 1, 4))


def count_forward(problem: Problem, mode: str, layout: plan.Layout, cut: tuple[int, int],
                  rate: Rates, tile_i: int, tile_j: int) -> Count:
    """What a block of forward.cu takes, by its place."""
    p = problem
    s = plan.sizes(p, mode, layout, cut)
    chunk = plan.chunk_of(p)
    pieces = 16 // p.dtype.itemsize // vector(p.dtype.itemsize, p.width, 16)
    column = tile_j * layout.patches * 8
    total = NOTHING
    parts = plan.parts_of(p.kernel[1], p.padding[2], s.part_kw, chunk)
    starts = range(0, p.kernel[0], s.part_kh)
    for start in starts:
        taps = min(s.part_kh, p.kernel[0] - start)
        begin, end = plan.staged_rows(p, layout, s.clip_rows, tile_i, start, taps)
        steps = _row_steps(p, layout, s.clip_rows, tile_i, start, taps)
        for part in parts:
            left = column - part.before
            if s.clip_chunks:
                left += max(0, (part.before - column) // chunk) * chunk
            right = min(left + s.chunks * chunk, p.width)
            inside = max(0, ceil_div(right - max(left, 0), chunk))
            windows = _windows(layout, part, column, chunk, p.width, p.out_size[1])
            rows = max(0, end - begin + 1) & ~1 if layout.whole else 2
            copy = _copied(p, pieces, rows, s.chunks, inside, layout.images)
            busy, whole = 0.0, NOTHING
            quarters, instructions = [0.0] * 4, [0.0] * 4
            for block, warps in windows.items():
                for groups, count in steps[block if layout.whole else 0]:
                    tensor, issue, loads, products = _step(warps, groups, mode, layout.tile, rate)
                    for q in range(4):
                        quarters[q] += count * tensor[q]
                        instructions[q] += count * issue[q]
                    whole = whole.plus(Count(0, loads, 0, 0, 0, 0, products, loads).times(count))
                    busy += count * max(max(tensor), loads + copy[0], max(issue) + copy[1],
                                        copy[2] / rate.l2)
            # All rows at once are copied before anything is computed, else while that goes on.
            number = 1 if layout.whole else sum(count for _, count in steps[0])
            if layout.whole:
                waits = 2 * BARRIER + max(copy[0], copy[1], copy[2] / rate.l2)
                busy = max(max(quarters), whole.loads, max(instructions))
            else:
                waits = BARRIER * number
            total = total.plus(Count(
                max(quarters), whole.loads + number * copy[0],
                max(instructions) + number * copy[1], number * copy[2], busy, waits,
                whole.products, whole.loads))
    return total._replace(idle=total.idle + BLOCK + _PART * (len(starts) * len(parts) - 1))


def _step(warps: dict, groups: int, mode: str, tile: plan.Tile, rate: Rates):
    """Of a pair of rows that `groups` output rows see: tensor cycles and instructions by quarter,

    cycles of shared memory for operands, and products.
    """
    passes, tensor, issue, loads, products = 2 if mode == 'exact' else 1, [0.0] * 4, [0.0] * 4, 0, 0
    for warp, (seen, union) in warps.items():
        count = seen * groups
        tensor[warp % 4] += count * rate.product
        issue[warp % 4] += 2 * count * passes + union * (
            (groups / 4 + 1) * passes + tile.tiles + 17)
        loads += seen * 4 + union * _core_loads(groups) * passes
        products += count * (3 if mode == 'exact' else 1)
    return tensor, issue, loads, products


@cached
def _row_steps(problem: Problem, layout: plan.Layout, clip: bool, tile_i: int, start: int,
               taps: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """By block of output rows: how many pairs of input rows are seen by how many output rows."""
    p, tile, found = problem, layout.tile, []
    for block in range(layout.blocks if layout.whole else 1):
        first, last = plan.staged_rows(p, layout, clip, tile_i, start, taps)
        if layout.whole:
            origin = (tile_i * layout.blocks + block) * tile.rows - (p.padding[0] - start)
            first = max(0, -origin) & ~1 if clip else 0
            last = min(p.height - origin if clip else last, tile.rows + taps - 1)
        numbers = {}
        for b in range(first, last, 2):
            high = min(tile.rows - 1, b + 1)
            low = 0 if high < tile.rows - 1 else max(0, b - taps + 1) & ~1
            numbers[high - low + 1] = numbers.get(high - low + 1, 0) + 1
        found.append(tuple(numbers.items()))
    return tuple(found)


def _windows(layout: plan.Layout, part: plan.Part, column: int, chunk: int, width: int,
             out_width: int) -> dict[int, dict[int, tuple[int, int]]]:
    """By block of rows and warp: chunks that its tiles see, and that any of them sees."""
    tile, patches, found = layout.tile, layout.patches, {}
    for warp in range(tile.warps):
        seen, least, most = 0, part.chunks, 0
        block = warp * tile.tiles * 16 // (layout.images * patches)
        for i in range(tile.tiles):
            m = (warp * tile.tiles + i) * 16
            turn = patches - 1 if layout.images >= 32 and i % 2 else 0
            ends = [(row // layout.images % patches) ^ turn for row in (m, m + 15)]
            first, last = (column + 8 * end for end in (min(ends), max(ends)))
            if first >= out_width:
                continue
            low = plan.chunks_seen(min(last, (out_width - 1) & ~7), part, chunk, width)[0]
            high = plan.chunks_seen(first, part, chunk, width)[1]
            if low < high:
                seen, least, most = seen + high - low, min(least, low), max(most, high)
        found.setdefault(block, {})[warp] = seen, max(0, most - least)
    return found


def forward_seconds(problem: Problem, mode: str, layout: plan.Layout, cut: tuple[int, int],
                    device: Arch, rough: bool = False) -> float:
    """Estimated seconds of the forward pass; roughly, by a block in the middle alone."""
    s = plan.sizes(problem, mode, layout, cut)
    total = count_all(problem, mode, layout, cut, device, rough)
    blocks = s.tiles_i * s.tiles_j * problem.channels * ceil_div(problem.batch, layout.images)
    p = problem
    rows = p.height if layout.whole else min(p.height, 2 * layout.tile.stages)
    ends = p.batch * p.channels * p.dtype.itemsize * (
        rows * p.width + p.out_size[0] * p.out_size[1])
    return _seconds(problem, device, total.times(1 / (s.tiles_i * s.tiles_j)), blocks, s.shared,
                    plan.RESIDENT[layout.tile], ends)


def count_all(problem: Problem, mode: str, layout: plan.Layout, cut: tuple[int, int],
              device: Arch, rough: bool = False) -> Count:
    """The sum over the blocks of one channel and group of images."""
    s, rate = plan.sizes(problem, mode, layout, cut), rates(mode, device)
    total = NOTHING
    for tile_i, n_i in _sampled(s.tiles_i, rough):
        for tile_j, n_j in _sampled(s.tiles_j, rough):
            total = total.plus(count_forward(
                problem, mode, layout, cut, rate, tile_i, tile_j).times(n_i * n_j))
    return total


def _sampled(n: int, rough: bool = False) -> list[tuple[int, float]]:
    """Of n places those at both ends, and one between that stands for all others."""
    if rough:
        return [(n // 2, n)]
    if n <= 5:
        return [(i, 1.0) for i in range(n)]
    return [(0, 1.0), (1, 1.0), (n // 2, n - 4.0), (n - 2, 1.0), (n - 1, 1.0)]


def _seconds(problem: Problem, device: Arch, each: Count, blocks: int, shared: int, resident: int,
             ends: float) -> float:
    """Seconds of a launch of blocks that take `each` on average.

    A multiprocessor has registers for `resident` of them. `ends` are the bytes that pass between
    memory and a block before it can begin, and after it has ended, times the number of blocks.
    """
    resident = max(1, min(int((device.shared + _RESERVED) // (shared + _RESERVED)), resident))
    on_one = ceil_div(blocks, device.sms)
    cycles = on_one * max(_between(each.busy, each.idle, min(resident, on_one)), each.shared,
                          each.issue, each.l2 / device.l2)
    # The first blocks wait for memory together, and the last ones write together.
    first = min(1.0, resident * device.sms / blocks)
    return max(cycles / device.clock + first * ends / device.memory,
               problem.bytes_moved / device.memory)


def _between(busy: float, idle: float, resident: int) -> float:
    """Cycles from the end of one block to that of the next, with some on a multiprocessor.

    One has the multiprocessor to itself while it is busy; while it is idle, others have. That is a
    closed queue with one server, by mean value analysis; alone, it is the sum.
    """
    waiting, cycles = 0.0, busy + idle
    for n in range(1, resident + 1):
        stay = busy * (1 + waiting)
        cycles = (stay + idle) / n
        waiting = stay / cycles
    return cycles


# -- gradient of the weights -----------------------------------------------------------------------

def count_item(problem: Problem, mode: str, layout: grad_plan.GradLayout, rate: Rates, tile_j: int,
               start: int, before: int, seen: int) -> Count:
    """What all rows of an item of weight_grad.cu take, for the part of the kernel from `start` on.

    before and seen are those of `grad_plan.column_parts`.
    """
    p, tile = problem, layout.tile
    s = grad_plan.sizes(p, layout)
    chunk, passes = plan.chunk_of(p), 3 if mode == 'exact' else 1
    size, out_width = p.dtype.itemsize, p.out_size[1]
    taps = min(s.part_kh, p.kernel[0] - start)
    column = tile_j * layout.patches * 8
    x_pieces, g_pieces = (16 // size // vector(size, n, 16) for n in (p.width, out_width))
    x_inside = max(0, ceil_div(min(p.width, column + 8 * (layout.patches - 1 + seen) - before)
                               - max(0, column - before), chunk))
    g_inside = max(0, min(s.g_chunks, ceil_div(out_width - column, chunk)))
    steps = []  # chunks that each position of a warp sees
    for k in range(layout.images * layout.patches // chunk):
        low, high = 0, seen
        if s.clip_chunks:
            at = column + 8 * (k * chunk // layout.images)
            low, high = max(0, (before - at) // 8), min(seen, ceil_div(p.width - at + before, 8))
            if at >= out_width or high <= low:
                low = high = 0
        steps.append(high - low)
    by_warp = [steps[k::tile.warps_k] for k in range(tile.warps_k)]
    x_copy = _copied(p, x_pieces, 2, s.chunks, x_inside, layout.images)
    g_copy = _copied(p, g_pieces, 2, s.g_chunks, g_inside, layout.images)
    copy = [a + b for a, b in zip(x_copy, g_copy, strict=True)]
    total = NOTHING
    for ranges, number in _row_ranges(p, tile, start, taps):
        quarters, instructions, loads, products = [0.0] * 4, [0.0] * 4, 0.0, 0
        for warp_u, fours in enumerate(ranges):
            rows = 2 * fours
            for warp_k, seen_chunks in enumerate(by_warp if rows else ()):
                quarter = (warp_k + tile.warps_k * warp_u) % 4
                every, active = sum(seen_chunks), len(seen_chunks)
                quarters[quarter] += rows * every * rate.product
                products += rows * every * passes
                if chunk == 8:
                    loads += active * rows * 4 + 2 * every
                    instructions[quarter] += rows * every + active * (rows * 5 + 30) + 3 * every
                else:
                    loads += active * (2 * rows + 1) + 2 * every
                    instructions[quarter] += rows * every * passes + active * (
                        (2 * rows + 1) * (3 + passes) + 35) + (4 + 2 * passes) * every
        now = (max(quarters), loads + copy[0], max(instructions) + copy[1], copy[2])
        total = total.plus(Count(*now, max(*now[:3], now[3] / rate.l2), BARRIER, products, loads)
                           .times(number))
    # The rows of g that the first kernel rows see come first.
    more = [n * tile.rows / 2 for n in g_copy]
    waits = 2 * BARRIER + 800 + max(more[0], more[1], more[2] / rate.l2)
    return total.plus(Count(0, more[0], more[1], more[2], 0, waits, 0, 0))


@cached
def _row_ranges(problem: Problem, tile: grad_plan.GradTile, start: int, taps: int):
    """How many pairs of rows there are by how many fours of kernel rows each warp computes."""
    top, numbers = problem.padding[0] - start, {}
    for r in range(*grad_plan.rows_of(problem, start, taps), 2):
        ranges = []
        for u in range(0, tile.rows, 2 * tile.pairs):
            low = max(0, r + top - problem.out_size[0] + 1 - u) // 4
            high = (min(2 * tile.pairs, taps - u, r + 2 + top - u) + 3) // 4
            ranges.append(max(0, high - low) if r + 2 + top > u else 0)
        numbers[tuple(ranges)] = numbers.get(tuple(ranges), 0) + 1
    return tuple(numbers.items())


def count_channel(problem: Problem, mode: str, layout: grad_plan.GradLayout, device: Arch,
                  rough: bool = False) -> Count:
    """The sum over all blocks of one channel, but for what each takes to begin and end."""
    p = problem
    s, rate, total = grad_plan.sizes(p, layout), rates(mode, device), NOTHING
    for start in range(0, p.kernel[0], s.part_kh):
        for before, seen in grad_plan.column_parts(p, layout.tile):
            for tile_j, n in _sampled(s.tiles_j, rough):
                total = total.plus(count_item(p, mode, layout, rate, tile_j, start, before, seen)
                                   .times(n * s.groups))
    return total


def weight_grad_seconds(problem: Problem, mode: str, layout: grad_plan.GradLayout,
                        device: Arch, rough: bool = False) -> float:
    """Estimated seconds of the gradient of the weights; roughly, by columns in the middle."""
    p = problem
    s = grad_plan.sizes(p, layout)
    total = count_channel(p, mode, layout, device, rough)
    blocks = layout.splits * s.parts_u * s.parts_v
    each = total.times(1 / blocks)
    # Each segment of the rows begins anew.
    again = s.groups * s.tiles_j * (layout.segments - 1) / layout.splits
    each = each._replace(idle=each.idle + BLOCK + 1000 * again)
    rows = min(p.height, layout.tile.rows // 2 + 2 * layout.tile.stages)  # of both maps
    ends = p.batch * p.channels * p.dtype.itemsize * rows * (p.width + p.out_size[1])
    ends /= s.groups * s.tiles_j
    time = _seconds(p, device, each, p.channels * blocks, s.shared,
                    layout.tile.resident(mode), ends)
    if layout.splits > 1:  # the sums are written, read, and added up by another launch
        sums = 4 * layout.splits * p.channels * p.kernel[0] * p.kernel[1]
        time += 2 * sums / device.memory + 4e-6
    return time
