"""The variants of the Triton kernels: which tile, and how wide a map the rows are copied into.

Rows of 7, 14, 25 or 50 pixels start at odd addresses, and loads are as narrow as their alignment.
Copied into rows a little wider, with zeros behind them that take the place of padding, they are
loaded at full width. The cost model weighs the copy against the narrow loads.
"""

from typing import NamedTuple

from ..caches import cached
from ..problem import Problem
from . import tiles
from .arch import Arch

# Of copies, both guesses: the share of the bandwidth that they reach, and seconds of two launches.
COPY, COPY_CALL = 0.4, 6e-6


class Variant(NamedTuple):
    """One way to launch the kernels.

    Attributes:
        more (int): Columns of zeros behind the rows that are read; if there are any, the map is
            copied.
        tile (tiles.Tile | tiles.GradTile): Of the kernel.
    """

    more: int
    tile: tiles.Tile | tiles.GradTile


def widened(problem: Problem, task: str, more: int) -> Problem | None:
    """The same convolution of a map with more columns, zeros, at its right; None if there is none.

    The output of the forward pass stays as it is. For the weight gradient, that of the output gets
    as many columns of zeros as the input.
    """
    if not more:
        return problem
    width, (top, bottom, left, right) = problem.width + more, problem.padding
    if task == 'weight_grad':
        return problem._replace(width=width)
    if more > right:
        return None
    return problem._replace(width=width, padding=(top, bottom, left, right - more))


def copy_time(problem: Problem, task: str, device: Arch) -> float:
    """Seconds that the copies take which `Variant.more` makes: read and written once."""
    maps = problem.height * problem.width
    if task == 'weight_grad':
        maps += problem.out_size[0] * problem.out_size[1]
    size = problem.batch * problem.channels * maps * problem.dtype.itemsize
    return COPY_CALL + 2 * size / (device.memory * COPY)


@cached
def ranked(problem: Problem, task: str, mode: str, device: Arch) -> tuple[Variant, ...]:
    """All variants that make sense, the measured tile first, then by estimated time."""
    size = problem.dtype.itemsize
    time_of = tiles.forward_time if task == 'forward' else tiles.grad_time
    options = []
    for more in sorted({0, -problem.width % (16 // size), -problem.width % (8 // size)}):
        wide = widened(problem, task, more)
        if wide is None:
            continue
        copy = copy_time(problem, task, device) if more else 0.0
        options += [(copy + time_of(wide, tile, mode, device), Variant(more, tile))
                    for tile in tiles.usable(wide, task, mode, device.capability)]
    found = [variant for _, variant in sorted(options, key=lambda pair: pair[0])]
    row = tiles.measured(problem, task, mode, device)
    if row is not None:
        found.insert(0, Variant(0, row))
    return tuple(dict.fromkeys(found))


@cached(maxsize=1024)
def probe(problem: Problem, task: str, mode: str, variant: Variant, device: Arch
          ) -> tuple[str, Problem]:
    """A name for what a variant is compiled to, and a small problem that compiles to the same.

    64-bit offsets, which a small problem cannot need, are left out of both.
    """
    wanted = _constants(problem, task, mode, variant, device)
    key = ' '.join([task, str(problem.dtype), mode, *(
        f'{name}={value}' for name, value in sorted(wanted.items()))])
    small = problem._replace(channels=min(problem.channels, 2), channels_last=False)
    for other in _smaller(small, variant):
        if _constants(other, task, mode, variant, device) == wanted:
            return key, other
    return key, small


def read(task: str, value) -> Variant:
    """A variant from JSON.

    Raises:
        ValueError, TypeError: If it is none.
    """
    more, tile = value
    if not all(type(number) is int and 0 <= number <= 1024 for number in (more, *tile)):
        raise ValueError(f'not a variant: {value!r}')
    return Variant(more, (tiles.Tile if task == 'forward' else tiles.GradTile)(*tile))


def _constants(problem: Problem, task: str, mode: str, variant: Variant, device: Arch) -> dict:
    from . import launch
    wide = widened(problem, task, variant.more)
    if task == 'forward':
        constants = launch.plan_forward(wide, mode, variant.tile).main.constants
    else:
        constants = launch.plan_weight_grad(wide, mode, variant.tile, device).main.constants
    return {name: value for name, value in constants.items() if name != 'WIDE'}


def _smaller(problem: Problem, variant: Variant):
    """Smaller problems of the same alignment, the smallest first."""
    def shrunk(size, out, step):  # by a multiple of step, down to about 20 and 8 outputs
        return size - max(0, min(size - 17, out - 9)) // step * step

    height = shrunk(problem.height, problem.out_size[0], 1)
    width = shrunk(problem.width, problem.out_size[1], 16)
    batches = {min(problem.batch, batch) for batch in (
        3, 5, getattr(variant.tile, 'patches', 0) or variant.tile[4], 64)}
    for batch in sorted(batches):
        yield problem._replace(batch=batch, height=height, width=width)
        yield problem._replace(batch=batch, width=width)
    yield problem._replace(height=height, width=width)
