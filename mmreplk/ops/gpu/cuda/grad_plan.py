"""How a gradient of the weights is divided among the blocks of weight_grad.cu, and its arguments.

Pure functions of the problem. A block streams both maps of a channel, `images` images x `patches`
patches of 8 columns at a time, and adds up the gradient of a part of the kernel.
"""

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

from ...arithmetic import ceil_div
from ...caches import cached
from ...problem import Problem
from ..tiles import vector
from .plan import Kernel, Launch, arithmetic, chunk_of


class GradTile(NamedTuple):
    """What the warps of weight_grad.cu compute.

    Attributes:
        pairs (int): Of kernel rows, a warp.
        chunks (int): Of 8 columns that a patch sees: kernels of up to ``8 * chunks - 14`` columns
            fit for every padding.
        warps_u, warps_k (int): Warps by kernel rows, and by what is summed over.
        stages (int): Pairs of rows under way.
    """

    pairs: int
    chunks: int
    warps_u: int
    warps_k: int
    stages: int

    @property
    def rows(self) -> int:
        """Kernel rows of a block."""
        return 2 * self.pairs * self.warps_u

    def resident(self, mode: str) -> int:
        """How many blocks a multiprocessor has registers for."""
        if self.warps_u * self.warps_k > 4:
            return 1
        return 3 if self.pairs == 4 and (
            mode == 'half' or mode == 'tf32' and self.chunks == 3) else 2


# Those that are compiled without spilling registers, by bytes of a number, as 32 bits take more of
# them: tests/ops/gpu/cuda/test_compile.py.
TILES = {2: (GradTile(8, 5, 2, 2, 4), GradTile(8, 5, 1, 4, 4), GradTile(8, 3, 1, 4, 4),
             GradTile(4, 5, 4, 1, 4), GradTile(4, 3, 1, 4, 4)),
         4: (GradTile(4, 5, 4, 1, 4), GradTile(4, 5, 4, 2, 4), GradTile(4, 3, 2, 2, 4),
             GradTile(4, 3, 1, 4, 4))}


class GradLayout(NamedTuple):
    """A tile, what is in shared memory at once, and into how many blocks the sum is split."""

    tile: GradTile
    images: int
    patches: int
    segments: int
    splits: int


class GradArguments(ctypes.Structure):
    """``struct WeightGrad`` of weight_grad.cu."""

    _fields_ = (
        [(name, ctypes.c_uint64) for name in (
            'x', 'g', 'sums', 'y', 'image_step', 'out_step')]
        + [(name, ctypes.c_int) for name in (
            'channels', 'images', 'height', 'width', 'out_height', 'out_width', 'kh', 'kw', 'top',
            'left', 'part_kh', 'part_kw', 'parts_u', 'parts_v', 'log_images', 'log_patches',
            'groups', 'tiles_j', 'segments', 'segment_rows', 'splits', 'clip_chunks', 'chunks',
            'chunk_bytes', 'row_bytes', 'g_chunks', 'g_chunk_bytes', 'g_row_bytes', 'ring',
            'g_start')])


class GradSizes(NamedTuple):
    """What follows from a layout: see ``struct WeightGrad``."""

    part_kh: int
    part_kw: int
    parts_u: int
    parts_v: int
    groups: int
    tiles_j: int
    segment_rows: int
    clip_chunks: bool
    chunks: int
    chunk_bytes: int
    g_chunks: int
    ring: int
    g_start: int
    shared: int


def column_parts(problem: Problem, tile: GradTile) -> list[tuple[int, int]]:
    """By part of the kernel's columns: columns before a patch, and chunks of 8 that it sees."""
    kw, left = problem.kernel[1], problem.padding[2]
    part_kw = column_part(problem, tile)
    found = []
    for start in range(0, kw, part_kw):
        before = ceil_div(left - start, 8) * 8
        count = min(part_kw, kw - start)
        found.append((before, ceil_div(8 + count - 1 + before - (left - start), 8)))
    return found


def column_part(problem: Problem, tile: GradTile) -> int:
    """Kernel columns of a part: as few parts as fit, equal in size."""
    kw, left = problem.kernel[1], problem.padding[2]
    for parts in range(1, kw + 1):
        part = ceil_div(kw, parts)
        if all(8 + min(part, kw - start) - 1 - (left - start) % -8 <= 8 * tile.chunks
               for start in range(0, kw, part)):
            return part
    raise AssertionError('a part of one column always fits')


@cached
def sizes(problem: Problem, layout: GradLayout) -> GradSizes:
    """Sizes of a layout."""
    p, tile, chunk = problem, layout.tile, chunk_of(problem)
    out_height, out_width = p.out_size
    kh = p.kernel[0]
    part_kh = ceil_div(kh, ceil_div(kh, tile.rows))
    part_kw = column_part(p, tile)
    tiles_j = ceil_div(out_width, layout.patches * 8)
    clip = layout.images >= chunk
    wide = 1
    for before, seen in column_parts(p, tile):
        full = layout.patches - 1 + seen
        if not clip:
            wide = max(wide, full)
            continue
        for tile_j in range(tiles_j):
            column = tile_j * layout.patches * 8
            skipped = max(0, (before - column) // 8)
            wide = max(wide, min(full, ceil_div(p.width - column + before, 8)) - skipped)
    rows = max(end - first for first, end in (
        rows_of(p, start, min(part_kh, kh - start)) for start in range(0, kh, part_kh)))
    segment_rows = max(2, 2 * ceil_div(rows, 2 * layout.segments))
    # Of 16 bits, 8 images fill the banks; of 32, 4 images of 8 columns fill half of them each.
    chunk_bytes = layout.images * 16
    if layout.images >= 8:
        chunk_bytes += 16 if chunk == 8 else 64
    ring = tile.rows + 2 * tile.stages
    each = 8 // chunk
    g_start = 2 * tile.stages * wide * each * chunk_bytes
    shared = g_start + ring * layout.patches * each * chunk_bytes
    return GradSizes(part_kh, part_kw, ceil_div(kh, part_kh), ceil_div(p.kernel[1], part_kw),
                     ceil_div(p.batch, layout.images), tiles_j, segment_rows, clip, wide * each,
                     chunk_bytes, layout.patches * each, ring, g_start,
                     max(shared, tile.rows * 8 * (tile.chunks * 8 + 4) * 4))


def rows_of(problem: Problem, start: int, taps: int = 1) -> tuple[int, int]:
    """First and end of the rows of x that a part of the kernel's rows meets."""
    top = problem.padding[0] - start
    first = max(0, -top)
    return first, max(first, min(problem.height, problem.out_size[0] + taps - 1 - top))


def layouts(problem: Problem, tile: GradTile, blocks: int) -> Iterator[GradLayout]:
    """Ways to divide a gradient that make sense; `blocks` is how many should run at least."""
    half = chunk_of(problem)
    images_there = 1 << max(problem.batch - 1, 0).bit_length()
    patches_there = 1 << max(ceil_div(problem.out_size[1], 8) - 1, 0).bit_length()
    for images in (1, 2, 4, 8, 16, 32):
        if images > max(images_there, 1):
            break
        for patches in (1, 2, 4, 8, 16):
            positions = images * patches
            if (positions < half * tile.warps_k and patches < patches_there
                    and images < images_there):
                continue
            if positions < half or patches > max(patches_there, half // images):
                continue
            one = GradLayout(tile, images, patches, 1, 1)
            s = sizes(problem, one)
            items = s.groups * s.tiles_j
            there = problem.channels * s.parts_u * s.parts_v
            segments = 1
            while there * items * segments < blocks and segments * 16 < problem.height:
                segments *= 2
            splits = 1
            while there * splits < blocks and splits * 2 <= items * segments and splits < 64:
                splits *= 2
            yield one._replace(segments=segments, splits=splits)
            if splits > 1:
                yield one


def plan_weight_grad(problem: Problem, mode: str, layout: GradLayout) -> list[Launch]:
    """The launches of a gradient of the weights with a given layout: one, or two where split."""
    p, tile = problem, layout.tile
    s = sizes(p, layout)
    out_height, out_width = p.out_size
    size = p.dtype.itemsize
    kernel = Kernel('weight_grad', (
        ('MODE', arithmetic(p, mode)), ('VECTOR_X', vector(size, p.width, 16)),
        ('VECTOR_G', vector(size, out_width, 16)), ('PAIRS', tile.pairs), ('CHUNKS', tile.chunks),
        ('WARPS_U', tile.warps_u), ('WARPS_K', tile.warps_k), ('STAGES', tile.stages),
        ('BLOCKS', tile.resident(mode))))
    each = 8 // chunk_of(p)
    arguments = GradArguments(
        image_step=p.channels * p.height * p.width, out_step=p.channels * out_height * out_width,
        channels=p.channels, images=p.batch, height=p.height, width=p.width,
        out_height=out_height, out_width=out_width, kh=p.kernel[0], kw=p.kernel[1],
        top=p.padding[0], left=p.padding[2], part_kh=s.part_kh, part_kw=s.part_kw,
        parts_u=s.parts_u, parts_v=s.parts_v, log_images=layout.images.bit_length() - 1,
        log_patches=layout.patches.bit_length() - 1, groups=s.groups, tiles_j=s.tiles_j,
        segments=layout.segments, segment_rows=s.segment_rows, splits=layout.splits,
        clip_chunks=s.clip_chunks, chunks=s.chunks, chunk_bytes=s.chunk_bytes,
        row_bytes=s.chunks * s.chunk_bytes, g_chunks=s.g_chunks, g_chunk_bytes=s.chunk_bytes,
        g_row_bytes=layout.patches * each * s.chunk_bytes, ring=s.ring, g_start=s.g_start)
    threads = 32 * tile.warps_u * tile.warps_k
    grid = p.channels * layout.splits * s.parts_u * s.parts_v
    main = Launch(kernel, 'weight_grad', grid, threads, s.shared, arguments)
    if layout.splits == 1:
        return [main]
    blocks = ceil_div(p.kernel[0] * p.kernel[1], threads)
    return [main, Launch(kernel, 'sum_parts', p.channels * blocks, threads, 0, arguments)]
