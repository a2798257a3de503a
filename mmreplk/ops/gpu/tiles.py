"""Which tile a Triton kernel takes for a problem: a cost model, or a table measured before.

Pure functions of the problem and the device's architecture: a run repeats, and nothing is timed
behind the user's back. ``tools/benchmarks/tune_triton.py --write`` measures and writes
``tiles.json`` beside this file, which is packaged; where that has a row for a problem, the row is
taken. It has none as long as no GPU has run.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from ..arithmetic import ceil_div
from ..caches import cached
from ..problem import Problem
from .arch import Arch, arch  # noqa: F401  (arch: for the callers of this module)

TABLE = Path(__file__).with_name('tiles.json')
MODES = ('half', 'tf32', 'exact')


def mode_of(dtype: torch.dtype, allow_tf32: bool) -> str:
    """'half' for 16 bits; for float32 'tf32' or 'exact' (three TF32 products for one)."""
    if dtype.itemsize == 2:
        return 'half'
    return 'tf32' if allow_tf32 else 'exact'


class Tile(NamedTuple):
    """A tile of `forward_kernel`: patches of rows x columns outputs, depth inputs a step.

    Attributes:
        patches, rows, columns (int): BM, R and T of the kernel.
        depth, unit (int): BK and KU of the kernel.
        vector (int): Bytes of x loaded at once, at most. 16 bypass the L1 cache, 8 do not.
        warps, stages (int): Of Triton.
    """

    patches: int
    rows: int
    columns: int
    depth: int
    unit: int
    vector: int
    warps: int
    stages: int


class GradTile(NamedTuple):
    """A tile of `weight_grad_kernel`.

    Attributes:
        rows, window (int): S and KD of the kernel: input rows and columns of a block.
        out_rows, columns (int): A and T of the kernel: output rows and columns.
        images, blocks (int): NB and RB of the kernel: images and blocks a step.
        vector, warps, stages (int): As of `Tile`.
    """

    rows: int
    window: int
    out_rows: int
    columns: int
    images: int
    blocks: int
    vector: int
    warps: int
    stages: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is not smaller than n."""
    return 1 << max(n - 1, 0).bit_length()


def vector(size: int, width: int, most: int) -> int:
    """Elements of `size` bytes loaded at once from rows of `width` elements: at most `most` bytes.

    Rows start at multiples of the width, so a power of two that does not divide it is never
    aligned.
    """
    elements = max(most // size, 1)
    while width % elements:
        elements //= 2
    return elements


# -- forward ---------------------------------------------------------------------------------------

@cached
def candidates(mode: str, capability: tuple[int, int]) -> tuple[Tile, ...]:
    """All tiles of `forward_kernel` that are compiled without spilling registers."""
    depth = 64 if mode == 'half' else 32
    big = capability[:1] in ((9, ), (10, )) or capability == (8, 0)
    stages = 3 if big else 2
    small = [(16, 8, 16), (16, 16, 16), (64, 2, 16), (64, 4, 8), (64, 4, 16), (64, 8, 8),
             (64, 8, 16), (64, 4, 32)]
    tiles = [Tile(*shape, depth, min(shape[2], 16), wide, 4, stages)
             for shape in small for wide in (8, 16)]
    if capability[0] not in (9, 10):
        # Operands are read from registers; in exact mode, twice as many of them.
        tiles = [t._replace(warps=8) if mode == 'exact' or t.rows * t.columns >= 128 else t
                 for t in tiles]
    elif mode == 'exact':
        tiles = [t._replace(warps=8) if t.rows * t.columns >= 256 else t for t in tiles]
    tiles += [Tile(128, 4, 16, depth, 16, wide, 8, stages) for wide in (8, 16)]
    if mode != 'exact':
        large = [(128, 8, 16), (128, 4, 32), (64, 16, 16)]
        tiles += [Tile(*shape, depth, 16, wide, 8, stages) for shape in large for wide in (8, 16)]
        if big:
            # Addresses take the registers that a longer step would need.
            large = [(256, 4, 16)]
            if mode == 'half':
                large += [(256, 8, 16), (128, 16, 16), (128, 8, 32)]
            tiles += [Tile(*shape, depth // 2, 16, 16, 8, stages + 1) for shape in large]
            if mode == 'half' and capability != (8, 0):
                tiles += [Tile(*shape, depth, 16, 16, 8, stages) for shape in large]
                tiles += [Tile(*shape, depth // 2, 16, 8, 8, stages + 1) for shape in large]
    return tuple(tiles)


class Window(NamedTuple):
    """Where the inputs of one tile's patches lie; as computed in `forward_kernel`."""

    b_low: int
    b_high: int
    k_low: int
    blocks: int


def window(problem: Problem, tile: Tile, before: int, start: int) -> Window:
    """The window of the tile whose first patch is number `start`."""
    (kh, kw), (top, _, left, _) = problem.kernel, problem.padding
    patches_i = ceil_div(problem.out_size[0], tile.rows)
    patches_j = ceil_div(problem.out_size[1], tile.columns)
    total = problem.batch * patches_i * patches_j
    first = start // problem.batch
    last = (min(start + tile.patches, total) - 1) // problem.batch
    j_low, j_high = first // patches_i, last // patches_i
    i_low, i_high = (first % patches_i, last % patches_i) if j_low == j_high else (0, patches_i - 1)
    k_end = min(tile.columns + kw - 1 + before - left,
                problem.width + before - j_low * tile.columns)
    k_end = max(k_end + tile.unit - 1, tile.unit) // tile.unit
    k_low = min(max(0, before - j_high * tile.columns) // tile.unit, k_end - 1)
    return Window(max(0, top - i_high * tile.rows),
                  min(tile.rows + kh - 1, problem.height + top - i_low * tile.rows),
                  k_low, k_end - k_low)


def forward_time(problem: Problem, tile: Tile, mode: str, device: Arch) -> float:
    """Estimated seconds of the forward pass."""
    size = problem.dtype.itemsize
    elements = vector(size, problem.width, tile.vector)
    before = ceil_div(problem.padding[2], elements) * elements
    outputs = tile.rows * tile.columns
    tiles = ceil_div(problem.batch * ceil_div(problem.out_size[0], tile.rows) *
                 ceil_div(problem.out_size[1], tile.columns), tile.patches)
    looked_at = range(0, tiles, ceil_div(tiles, 16))  # evenly spread
    steps = 0
    for number in looked_at:
        w = window(problem, tile, before, number * tile.patches)
        steps += ceil_div(max(w.b_high - w.b_low, 0) * w.blocks, tile.depth // tile.unit)
    steps /= len(looked_at)

    macs = device.macs / {'half': 1, 'tf32': 2, 'exact': 6}[mode]
    if tile.patches < 64 and device.least_rows == 64:
        macs *= 0.5  # the older matrix instruction
    x_bytes = tile.patches * tile.depth * size
    band_bytes = outputs * tile.depth * size * (2 if mode == 'exact' else 1)
    # Eight bytes and less pass through L1: the band nearly always hits, x about half of the time.
    through_l2 = x_bytes * (1 if elements * size == 16 else 0.5) + band_bytes * 0.1
    loads = x_bytes / (elements * size) + band_bytes / 8
    load_issue = (loads / 32 * 9 + 60 * tile.warps) / 4
    if elements * size < 4:
        load_issue *= 3  # no asynchronous copy
    product = tile.patches * outputs * tile.depth / macs
    shared = (2 * x_bytes + band_bytes * (1 + tile.patches / 64)) / 128
    if mode == 'exact':
        shared *= 2
    return _time(problem, device, tiles * problem.channels, steps,
                 (product, through_l2 / device.l2, load_issue, shared),
                 tile.stages * (x_bytes + band_bytes), tile.warps,
                 tile.patches * outputs, tile.patches * outputs * size)


def _time(problem, device, programs, steps, per_step, shared_bytes, warps, accumulators, out_bytes):
    registers = min(accumulators / (32 * warps) + 110, 255)
    resident = max(1, min(int(device.shared // shared_bytes),
                          int(65536 // (registers * 32 * warps))))
    # One resource is the limit if programs overlap well; a lone program also waits for itself.
    busiest = 1.2 * max(per_step)
    alone = per_step[0] + 0.5 * sum(per_step[1:]) + 150
    step = max(busiest, alone / min(resident, max(programs / device.sms, 1)))
    finish = 1500 + out_bytes / 32
    rounds = programs / device.sms
    if rounds < resident:
        rounds = max(rounds, 1)
    else:
        rounds = ceil_div(programs, device.sms * resident) * resident
    cycles = rounds * (steps * step + finish / resident)
    if shared_bytes > device.shared:
        cycles *= 1e6
    return max(cycles / device.clock, problem.bytes_moved / device.memory * 1.2) + 5e-6


# -- weight gradient -------------------------------------------------------------------------------

def grad_window(problem: Problem, columns: int, elements: int) -> tuple[int, int]:
    """First input column of the first block of `columns` outputs, and how many columns matter."""
    (_, kw), left = problem.kernel, problem.padding[2]
    before = ceil_div(left, elements) * elements
    whole = min(problem.width, problem.out_size[1] + kw - 1 - left)
    window = columns + kw - 1 + before - left
    if problem.out_size[1] <= columns and 0 < whole <= window:
        return 0, whole
    return -before, window


@cached(maxsize=256)
def grad_candidates(problem: Problem, mode: str,
                    capability: tuple[int, int]) -> tuple[GradTile, ...]:
    """Tiles of `weight_grad_kernel` that can serve the problem."""
    depth = 64 if mode == 'half' else 32
    big = capability[:1] in ((9, ), (10, )) or capability == (8, 0)
    images = min(power_of_two(problem.batch), depth)
    most = 8192 if mode == 'exact' else 32768 if big else 16384
    tiles = []
    for columns in (8, 16, 32, 64):
        if columns >= 2 * power_of_two(problem.out_size[1]) and columns > 8:
            continue
        for wide in (8, 16):
            elements = vector(problem.dtype.itemsize, problem.width, wide)
            needed = power_of_two(max(grad_window(problem, columns, elements)[1], 8))
            for m in (64, 128):
                if needed > m:
                    continue
                for n in (64, 128, 256):
                    out_rows = n // columns
                    if n * m > 16384 and wide == 8 and capability == (8, 0):
                        continue
                    if out_rows < 2 or n * m > most or (
                            columns in (8, 64) and n * m > (16384 if columns == 8 else 8192)):
                        continue
                    warps = 4 if m * n <= 4096 or (m, n) == (64, 128) else 8
                    if mode == 'exact' and capability[0] not in (9, 10):
                        warps = 8
                    tiles.append(GradTile(m // needed, needed, out_rows, columns, images,
                                          depth // images, wide, warps, 3 if big else 2))
    return tuple(tiles)


class GradPlan(NamedTuple):
    """How a weight gradient is divided."""

    blocks_i: int
    blocks_j: int
    tiles_a: int
    splits: int
    steps: int


def grad_plan(problem: Problem, tile: GradTile, device: Arch) -> GradPlan:
    """Blocks, tiles of output rows, and into how many programs the sum over the pixels is split."""
    kh, top, out_height = problem.kernel[0], problem.padding[0], problem.out_size[0]
    blocks_i = ceil_div(problem.height, tile.rows)
    blocks_j = ceil_div(problem.out_size[1], tile.columns)
    tiles_a = ceil_div(kh + tile.rows - 1, tile.out_rows)
    rows = 0
    for number in range(tiles_a):
        shift = number * tile.out_rows + top - (kh - 1)
        low = max(0, ceil_div(-(shift + tile.out_rows - 1), tile.rows)) // tile.blocks
        high = min(blocks_i, ceil_div(out_height - shift, tile.rows))
        rows += max(ceil_div(high, tile.blocks) - low, 0)
    steps = max(rows * blocks_j * ceil_div(problem.batch, tile.images), 1)
    splits = ceil_div(2 * device.sms, problem.channels * tiles_a)
    splits = max(1, min(splits, steps // tiles_a // 4, 64))
    return GradPlan(blocks_i, blocks_j, tiles_a, splits, steps)


def grad_time(problem: Problem, tile: GradTile, mode: str, device: Arch) -> float:
    """Estimated seconds of the weight gradient."""
    size = problem.dtype.itemsize
    plan = grad_plan(problem, tile, device)
    programs = problem.channels * plan.tiles_a * plan.splits
    m, n = tile.rows * tile.window, tile.out_rows * tile.columns
    depth = tile.images * tile.blocks
    macs = device.macs / {'half': 1, 'tf32': 2, 'exact': 6}[mode]
    x_vector = min(vector(size, problem.width, tile.vector) * size, 16 if size == 2 else 4)
    g_vector = min(vector(size, problem.out_size[1], 8) * size, 16 if size == 2 else 4)
    x_bytes, g_bytes = m * depth * size, n * depth * size
    issue = ((x_bytes / x_vector + g_bytes / g_vector) / 32 * 10 + 100 * tile.warps) / 4
    if min(x_vector, g_vector) < 4:
        issue *= 3
    shared = (2 * x_bytes + g_bytes * (1 + m / 64)) / 128 * (2 if mode == 'exact' else 1)
    per_step = (m * n * depth / macs, (x_bytes + 0.5 * g_bytes) / device.l2, issue, shared)
    return _time(problem, device, programs, plan.steps / plan.tiles_a / plan.splits, per_step,
                 tile.stages * (x_bytes + g_bytes), tile.warps, m * n, m * n * 8)


# -- the choice ------------------------------------------------------------------------------------

def key(problem: Problem, task: str, mode: str, device: Arch) -> str:
    """The name of the problem's family in the measured table."""
    h, w = problem.height, problem.width
    (kh, kw), pads = problem.kernel, 'x'.join(map(str, problem.padding))
    return (f'sm{device.capability[0]}{device.capability[1]} {task} {mode} '
            f'n{power_of_two(problem.batch)} c{power_of_two(problem.channels)} {h}x{w} k{kh}x{kw} '
            f'p{pads}')


@cached
def _table() -> dict[str, list[int]]:
    try:
        found = json.loads(TABLE.read_text(encoding='utf-8'))
    except (OSError, ValueError):  # the model's choices are right, too
        return {}
    return found if isinstance(found, dict) else {}


def measured(problem: Problem, task: str, mode: str, device: Arch) -> Tile | GradTile | None:
    """The tile of the shipped table for a problem, if it has one."""
    row = _table().get(key(problem, task, mode, device))
    return (Tile if task == 'forward' else GradTile)(*row) if row else None


@cached
def choose(problem: Problem, task: str, mode: str, device: Arch) -> Tile | GradTile | None:
    """The tile for the problem; None if no tile of the weight gradient can serve it.

    Args:
        problem (Problem): A problem that ``triton_launch.supports``.
        task (str): 'forward' or 'weight_grad'.
        mode (str): One of `MODES`.
        device (Arch): See `arch`.
    """
    row = measured(problem, task, mode, device)
    if row is not None:
        return row
    time = forward_time if task == 'forward' else grad_time
    return min(usable(problem, task, mode, device.capability),
               key=lambda tile: time(problem, tile, mode, device), default=None)


def usable(problem: Problem, task: str, mode: str,
           capability: tuple[int, int]) -> list[Tile | GradTile]:
    """The candidates that make sense for the problem's row length and alignment."""
    if task == 'forward':
        options = candidates(mode, capability)
    else:
        options = grad_candidates(problem, mode, capability)
    size = problem.dtype.itemsize
    kept = []
    for tile in options:
        loaded = vector(size, problem.width, tile.vector) * size
        if task == 'forward':
            area = tile.patches * tile.rows * tile.columns
        else:
            area = tile.rows * tile.window * tile.out_rows * tile.columns
            loaded = min(loaded, vector(size, problem.out_size[1], tile.vector) * size)
        if tile.vector == 16 and loaded < 16 and len(options) > 1:
            continue  # narrower loads are another candidate
        # With narrow loads, addresses take the registers that large results or long steps need.
        if area > (8192 if loaded == size else 16384) and loaded < 8:
            continue
        if loaded == size or (loaded < 8 and task == 'weight_grad'):
            tile = _half_step(tile)
        if loaded == size and area >= 4096:  # so do those of the results, when they are stored
            tile = tile._replace(warps=8)
        kept.append(tile)
    return kept


def _half_step(tile: Tile | GradTile) -> Tile | GradTile:
    if isinstance(tile, Tile):
        return tile._replace(depth=max(tile.depth // 2, tile.unit))
    if tile.blocks > 1:
        return tile._replace(blocks=tile.blocks // 2)
    return tile._replace(images=tile.images // 2)
