"""How a convolution is divided among the blocks of forward.cu, and its arguments.

Pure functions of the problem. A block computes, for one channel, `images` images x `patches`
patches of 8 columns x `blocks` blocks of ``tile.rows`` output rows; which of these it takes more of
is a matter of batch and size of the map.
"""

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...arithmetic import ceil_div
from ...caches import cached
from ...problem import Problem
from ..tiles import vector


class Kernel(NamedTuple):
    """What is compiled: a source, and what it is compiled for; hashable."""

    source: str
    defines: tuple[tuple[str, int], ...]


class Launch(NamedTuple):
    """One launch without its tensors.

    Attributes:
        kernel (Kernel): What is compiled.
        function (str): What of it is launched.
        grid, threads (int): Blocks, and threads of each.
        shared (int): Bytes of shared memory of a block.
        arguments (ctypes.Structure): The kernel's only argument, pointers left out.
    """

    kernel: Kernel
    function: str
    grid: int
    threads: int
    shared: int
    arguments: ctypes.Structure


class Tile(NamedTuple):
    """What a warp of forward.cu computes, and how many there are.

    Attributes:
        tiles (int): Of 16 images, patches, or blocks of rows.
        rows (int): Output rows.
        warps (int): Of a block.
        stages (int): Pairs of input rows under way, where they are not all there at once.
    """

    tiles: int
    rows: int
    warps: int
    stages: int


# And how many blocks of each a multiprocessor has registers for; with that many, none are spilled:
# tests/ops/gpu/cuda/test_compile.py.
RESIDENT = {Tile(2, 16, 4, 4): 2, Tile(2, 8, 4, 4): 3, Tile(1, 8, 4, 4): 3, Tile(4, 8, 4, 4): 2}
TILES = tuple(RESIDENT)


def tiles_for(capability: tuple[int, int]) -> tuple[Tile, ...]:
    """The tiles of a device: from 10.0 on, NVRTC 13.0 spills registers of the two largest."""
    return TILES if capability < (10, 0) else TILES[1:3]


class Layout(NamedTuple):
    """A tile and how its rows are shared out: see above; `whole` keeps all input rows at once."""

    tile: Tile
    images: int
    patches: int
    blocks: int
    whole: bool


class ForwardArguments(ctypes.Structure):
    """``struct Forward`` of forward.cu."""

    _fields_ = (
        [(name, ctypes.c_uint64) for name in (
            'x', 'w', 'bias', 'y', 'image_step', 'out_step')]
        + [(name, ctypes.c_int) for name in (
            'channels', 'images', 'height', 'width', 'out_height', 'out_width', 'kh', 'kw', 'top',
            'left', 'part_kh', 'part_kw', 'log_images', 'log_patches', 'tiles_i', 'tiles_j',
            'whole', 'clip_rows', 'clip_chunks', 'chunks', 'chunk_bytes', 'row_bytes', 'core_rows',
            'table_bytes', 'x_start', 'relu')])


class Part(NamedTuple):
    """One part of the kernel along its columns: what of the map a patch of 8 columns sees of it."""

    before: int  # columns from the first one seen to the patch; a multiple of a chunk
    chunks: int  # seen


def arithmetic(problem: Problem, mode: str) -> int:
    """MODE of the sources, for one of ``tiles.MODES``."""
    if mode == 'half':
        return int(problem.dtype == torch.bfloat16)
    return {'tf32': 2, 'exact': 3}[mode]


def chunk_of(problem: Problem) -> int:
    """Columns of a chunk of 16 bytes."""
    return 16 // problem.dtype.itemsize


def parts_of(size: int, before: int, part: int, chunk: int) -> list[Part]:
    """The parts of a kernel of `size` columns with padding `before`, of `part` columns each."""
    found = []
    for start in range(0, size, part):
        left = before - start
        whole = ceil_div(left, chunk) * chunk
        count = min(part, size - start)
        found.append(Part(whole, ceil_div(8 + count - 1 + whole - left, chunk)))
    return found


def chunks_seen(column: int, part: Part, chunk: int, width: int) -> tuple[int, int]:
    """First and end of the chunks of a window at an output column that lie in the map."""
    low = max(0, (part.before - column) // chunk)
    high = min(part.chunks, ceil_div(width - column + part.before, chunk))
    return (low, high) if high > low else (0, 0)


class Sizes(NamedTuple):
    """What follows from a layout: see ``struct Forward``."""

    part_kh: int
    part_kw: int
    tiles_i: int
    tiles_j: int
    clip_rows: bool
    clip_chunks: bool
    chunks: int
    chunk_bytes: int
    row_bytes: int
    core_rows: int
    table_bytes: int
    x_start: int
    shared: int


def _divided(size: int, count: int) -> int:
    return ceil_div(size, min(count, size))


@cached
def sizes(problem: Problem, mode: str, layout: Layout, cut: tuple[int, int]) -> Sizes:
    """Sizes of a layout whose kernel is cut into `cut` parts, downwards and to the right."""
    p, tile, chunk = problem, layout.tile, chunk_of(problem)
    out_height, out_width = p.out_size
    tiles_i = ceil_div(out_height, layout.blocks * tile.rows)
    tiles_j = ceil_div(out_width, layout.patches * 8)
    part_kh, part_kw = (_divided(size, n) for size, n in zip(p.kernel, cut, strict=True))
    clip_chunks = layout.images >= 16
    # Of one warp, all rows m are then in one block of output rows.
    clip_rows = not layout.whole or tile.tiles * 16 <= layout.images * layout.patches
    parts = parts_of(p.kernel[1], p.padding[2], part_kw, chunk)
    chunks = 1
    for part in parts:
        full = (layout.patches - 1) * (8 // chunk) + part.chunks
        if not clip_chunks:
            chunks = max(chunks, full)
            continue
        for tile_j in range(tiles_j):
            column = tile_j * layout.patches * 8
            skipped = max(0, (part.before - column) // chunk)
            inside = min(full, ceil_div(p.width - column + part.before, chunk))
            chunks = max(chunks, inside - skipped)
    # Eight images fill the banks; 16 bytes more keep copies of neighboring chunks apart.
    chunk_bytes = layout.images * 16 + (16 if layout.images >= 8 else 0)
    if layout.whole:
        rows = max(max(0, last - first + 1) & ~1 for first, last in (
            staged_rows(p, layout, clip_rows, tile_i, start, min(part_kh, p.kernel[0] - start))
            for tile_i in range(tiles_i) for start in range(0, p.kernel[0], part_kh)))
    else:
        rows = 2 * tile.stages
    core_rows = max(part_kh + 3, tile.rows)
    table_bytes = max(part.chunks for part in parts) * core_rows * 128
    # Four cores are read at once, the last one perhaps behind the table.
    x_start = table_bytes * (2 if mode == 'exact' else 1) + 128
    row_bytes = chunks * chunk_bytes
    return Sizes(part_kh, part_kw, tiles_i, tiles_j, clip_rows, clip_chunks, chunks, chunk_bytes,
                 row_bytes, core_rows, table_bytes, x_start, x_start + max(rows, 2) * row_bytes)


def staged_rows(problem: Problem, layout: Layout, clip: bool, tile_i: int, start: int,
                taps: int) -> tuple[int, int]:
    """First and end, counted as b in forward.cu, of the input rows that a block needs."""
    rows = layout.blocks * layout.tile.rows
    first = tile_i * rows - (problem.padding[0] - start)
    begin = max(0, -first) & ~1 if clip else 0
    end = rows + taps - 1
    return begin, min(end, problem.height - first) if clip else end


def layouts(problem: Problem, tile: Tile) -> Iterator[Layout]:
    """Ways to share out the rows of a tile that make sense for a problem."""
    rows = tile.tiles * 16 * tile.warps
    out_height, out_width = problem.out_size
    there = (_power(problem.batch), _power(ceil_div(out_width, 8)),
             _power(ceil_div(out_height, tile.rows)))
    # What a small problem cannot fill is waste that no layout avoids.
    allowed = 2 * max(1, rows // (there[0] * there[1] * there[2]))
    for images in (1, 2, 4, 8, 16, 32, 64):
        for patches in (1, 2, 4, 8, 16):
            blocks = rows // images // patches
            if blocks < 1:
                continue
            waste = 1
            for size, full in zip((images, patches, blocks), there, strict=True):
                waste *= max(1, size // full)
            if waste > allowed:
                continue
            yield Layout(tile, images, patches, blocks, True)
            if blocks == 1:
                yield Layout(tile, images, patches, 1, False)


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


CUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (3, 3), (4, 4), (6, 6), (8, 8), (12, 12))


def cut_for(problem: Problem, mode: str, layout: Layout, shared: int) -> tuple[int, int] | None:
    """Into how many parts the kernel is cut for a block to fit; None if it never does."""
    for cut in CUTS:
        if sizes(problem, mode, layout, cut).shared <= shared:
            return cut
    return None


@cached
def plan_forward(problem: Problem, mode: str, layout: Layout, cut: tuple[int, int]) -> Launch:
    """The launch of a forward pass with a given layout."""
    p, tile = problem, layout.tile
    s = sizes(p, mode, layout, cut)
    out_height, out_width = p.out_size
    kernel = Kernel('forward', (
        ('MODE', arithmetic(p, mode)), ('VECTOR', vector(p.dtype.itemsize, p.width, 16)),
        ('TILES', tile.tiles), ('ROWS', tile.rows), ('WARPS', tile.warps),
        ('STAGES', tile.stages), ('BLOCKS', RESIDENT.get(tile, 1))))
    arguments = ForwardArguments(
        image_step=p.channels * p.height * p.width, out_step=p.channels * out_height * out_width,
        channels=p.channels, images=p.batch, height=p.height, width=p.width,
        out_height=out_height, out_width=out_width, kh=p.kernel[0], kw=p.kernel[1],
        top=p.padding[0], left=p.padding[2], part_kh=s.part_kh, part_kw=s.part_kw,
        log_images=layout.images.bit_length() - 1, log_patches=layout.patches.bit_length() - 1,
        tiles_i=s.tiles_i, tiles_j=s.tiles_j, whole=layout.whole, clip_rows=s.clip_rows,
        clip_chunks=s.clip_chunks, chunks=s.chunks, chunk_bytes=s.chunk_bytes,
        row_bytes=s.row_bytes, core_rows=s.core_rows, table_bytes=s.table_bytes,
        x_start=s.x_start, relu=p.relu)
    grid = s.tiles_i * s.tiles_j * p.channels * ceil_div(p.batch, layout.images)
    return Launch(kernel, 'forward', grid, tile.warps * 32, s.shared, arguments)
