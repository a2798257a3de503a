"""The compiled CPU kernels (csrc/) over tensors: float32, stride 1.

Installation without a compiler leaves them out; `available` then says so and nothing else here may
be called. Arguments are not checked: maps are dense in the problem's memory format, weights are
contiguous, everything is float32 on the CPU.
"""

import ctypes
import math
import struct
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem

try:
    from . import _native
except ImportError as error:
    _native, _why_not = None, f'the compiled kernels are not installed ({error})'

# The enum in csrc/dwconv.h. The two kinds of direct sum differ in what lies in a vector: channels,
# or pixels of a row.
(_LANES_FORWARD, _LANES_WEIGHT_GRAD, _ROWS_FORWARD, _ROWS_WEIGHT_GRAD, _SPECTRUM, _FFT_FORWARD,
 _FFT_WEIGHT_GRAD) = range(7)

# Bytes that no plane of the FFT may take in the scratch of a thread (a weight gradient has three).
FFT_SCRATCH = 64 << 20


@cache
def available() -> tuple[bool, str]:
    """Whether the kernels were built and run here, and if not, why."""
    if _native is None:
        return False, _why_not
    _native.set_runtime(_openmp_address())
    return True, f'compiled kernels, {_native.isas()[-1][0]}'


def _openmp_address() -> int:
    """Where PyTorch's OpenMP runtime starts a team of threads; 0 if it has no such function.

    The kernels run in PyTorch's own threads. A second pool would compete with it for the cores.
    """
    library = Path(torch.__file__).parent / 'lib' / 'libtorch_cpu.so'
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def isas() -> list[str]:
    """Instruction sets that the kernels can use on this machine, the best last."""
    return [name for name, _ in _native.isas()]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors of one dtype and shape hold the same bits."""
    return _native.same(torch.get_num_threads(), a.data_ptr(), b.data_ptr(), a.nbytes)


def direct_forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
                   isa: int = -1) -> Tensor:
    """The convolution as a direct sum, ``(N, C * M, H', W')``."""
    call = _call(problem, isa)
    out = torch.empty(call.out_shape, memory_format=call.out_format)
    _native.run(call.forward, call.isa, torch.get_num_threads(), call.geometry, x.data_ptr(),
                weight.data_ptr(), 0, 0 if bias is None else bias.data_ptr(), 0, out.data_ptr())
    return out


def direct_weight_grad(x: Tensor, grad: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The gradient of the weights as a direct sum, ``(C * M, 1, Kh, Kw)``."""
    call = _call(problem, isa)
    out = torch.empty(problem.out_channels, 1, *problem.kernel)
    _native.run(call.weight_grad, call.isa, torch.get_num_threads(), call.geometry, x.data_ptr(),
                0, 0, 0, grad.data_ptr(), out.data_ptr())
    return out


def fft_spectrum(weight: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The spectrum of the weights for `fft_forward`, an opaque buffer."""
    call = _call(problem, isa)
    out = torch.empty(call.spectrum_size)
    _native.run(_SPECTRUM, call.isa, torch.get_num_threads(), call.geometry, 0, weight.data_ptr(), 0, 0,
                0, out.data_ptr())
    return out


def fft_forward(x: Tensor, spectrum: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
                isa: int = -1) -> Tensor:
    """The convolution as a product of spectra; the weights serve where x holds NaN or Inf."""
    call = _call(problem, isa)
    out = torch.empty(call.out_shape, memory_format=call.out_format)
    _native.run(_FFT_FORWARD, call.isa, torch.get_num_threads(), call.geometry, x.data_ptr(),
                weight.data_ptr(), spectrum.data_ptr(), 0 if bias is None else bias.data_ptr(), 0,
                out.data_ptr())
    return out


def fft_weight_grad(x: Tensor, grad: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The gradient of the weights as a product of spectra, ``(C * M, 1, Kh, Kw)``."""
    call = _call(problem, isa)
    out = torch.empty(problem.out_channels, 1, *problem.kernel)
    _native.run(_FFT_WEIGHT_GRAD, call.isa, torch.get_num_threads(), call.geometry, x.data_ptr(),
                0, 0, 0, grad.data_ptr(), out.data_ptr())
    return out


class _Call(NamedTuple):
    isa: int
    geometry: bytes
    forward: int  # kernels of the direct sum
    weight_grad: int
    spectrum_size: int
    out_shape: tuple[int, ...]
    out_format: torch.memory_format


@lru_cache(maxsize=4096)
def _call(problem: Problem, isa: int) -> _Call:
    sets = _native.isas()
    isa %= len(sets)
    lanes = sets[isa][1]
    tiles = fft_tiles(problem, lanes) or Tiles((0, 0), (1, 1), 1, math.inf)  # a plan that fails
    geometry = struct.pack(
        '18q', problem.channels_last, problem.batch, problem.channels, problem.height,
        problem.width, problem.multiplier, *problem.kernel, problem.padding[0], problem.padding[2],
        *problem.dilation, *problem.out_size, *tiles.points, *tiles.outputs)
    groups = -(-problem.out_channels // lanes)
    frequencies = tiles.points[1] // 2 + 1
    rows = direct_cost(problem, 'forward', lanes).rows
    grad_rows = direct_cost(problem, 'weight_grad', lanes).rows
    return _Call(isa, geometry, _ROWS_FORWARD if rows else _LANES_FORWARD,
                 _ROWS_WEIGHT_GRAD if grad_rows else _LANES_WEIGHT_GRAD,
                 groups * frequencies * tiles.points[0] * 2 * lanes, problem.out_shape,
                 problem.memory_format)


# -- how work is cut ------------------------------------------------------------------------------

class Direct(NamedTuple):
    rows: bool  # lanes along a row
    cost: float  # nanoseconds of one thread, see fft_cost


@lru_cache(maxsize=4096)
def direct_cost(problem: Problem, task: str, lanes: int) -> Direct:
    """Which of the two kinds of direct sum is the quicker, and what it takes."""
    return Direct(problem.out_channels < lanes, 1.0)


class Tiles(NamedTuple):
    points: tuple[int, int]  # of the transforms, down and right
    outputs: tuple[int, int]  # of a tile
    count: int
    cost: float  # of all tiles of as many planes as there are lanes, see fft_cost


@lru_cache(maxsize=4096)
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


def fft_supports(problem: Problem) -> tuple[bool, str]:
    """Whether the FFT can serve, and why not."""
    if fft_tiles(problem, _native.isas()[-1][1]) is None:
        return False, f'an FFT tile for kernels of reach {problem.reach} takes too much memory'
    return True, 'a product of spectra'


# Time a lane of the builds with fewer lanes takes, relative to 16.
_SLOWER = {16: 1.0, 8: 1.25, 4: 2.6}


def fft_cost(problem: Problem, task: str = 'forward') -> float:
    """Estimated nanoseconds of one thread on the machine `plan.c` was fitted to (AMD Zen 4).

    Args:
        problem (Problem): Must be supported.
        task (str): 'forward' (with the spectrum kept), 'spectrum' or 'weight_grad'.
    """
    lanes = _native.isas()[-1][1]
    tiles = fft_tiles(problem, lanes)
    groups = -(-problem.out_channels // lanes) * lanes / 16 * _SLOWER[lanes]
    images = groups * problem.batch * tiles.cost
    if task == 'forward':
        return images
    (down, across), (kh, kw) = tiles.points, problem.kernel
    spectrum = groups * ((kh + 1) // 2 * across * (_point_cost(across) / 2 + 3)
                         + (across // 2 + 1) * down * (_point_cost(down) / 2 + 2) + 2 * kh * kw)
    return spectrum if task == 'spectrum' else images + spectrum


class _Cut(NamedTuple):
    outputs: int
    inputs: int
    points: int
    parts: int


@lru_cache(maxsize=4096)
def _cuts(size: int, outs: int, kernel: int, before: int, dilation: int) -> list[_Cut]:
    """One axis in tiles, for several numbers of them: those that need different transforms."""
    distances = [s for u in range(kernel) if -outs < (s := dilation * u - before) < size]
    low, high = (distances[0], distances[-1]) if distances else (0, 0)
    wanted = {*range(1, 9), *(-(-outs // tile) for tile in (24, 32, 48, 64, 80, 96, 112, 128, 160,
                                                             192, 256, 384, 512))}
    out = {}
    for parts in sorted(wanted, reverse=True):
        outputs = -(-outs // parts)
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
            out[points] = _Cut(outputs, inputs, points, -(-outs // outputs))
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


@lru_cache(maxsize=4096)
def transform_length(n: int) -> int:
    """The cheapest number of points of at least n that can be transformed; 0 if there is none."""
    lengths = range(n, n + max(8, n // 3) + 1)
    cost, length = min((_point_cost(length) * length, length) for length in lengths)
    return length if cost < math.inf else 0


@cache
def _point_cost(n: int) -> float:
    return _native.point_cost(n)
