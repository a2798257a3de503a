"""The compiled CPU kernels (csrc/) over tensors: float32, stride 1.

Installation without a compiler leaves them out; `available` then says so and nothing else here may
be called. Maps are dense in the problem's memory format, weights are contiguous, which is not
checked; that everything is float32 on the CPU and lies in memory large enough is.
"""

import ctypes
import importlib
import math
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..arithmetic import ceil_div
from ..caches import cached
from ..problem import Problem
from .contrast import backward_cells, forward_cells, worth
from .plan import Tiles, direct_cost, fft_tiles

try:
    _native = importlib.import_module('._native', __package__)
except ModuleNotFoundError:
    _native, _why_not = None, ('the compiled kernels are not installed: mmreplk was installed '
                               'without a C compiler or is run from a folder, where '
                               '"python setup.py build_ext --inplace" builds them')
except ImportError as error:
    _native, _why_not = None, f'the compiled kernels do not load: {error}'

# The enum in csrc/dwconv.h. The two kinds of direct sum differ in what lies in a vector: channels,
# or pixels of a row.
(_LANES_FORWARD, _LANES_WEIGHT_GRAD, _ROWS_FORWARD, _ROWS_WEIGHT_GRAD, _SPECTRUM, _FFT_FORWARD,
 _FFT_WEIGHT_GRAD) = range(7)


@cached
def available() -> tuple[bool, str]:
    """Whether the kernels were built and run here, and if not, why."""
    if _native is None:
        warnings.warn(
            f'mmreplk: {_why_not}. Large kernels on the CPU are slower, through torch.fft. '
            'Install gcc or clang and Python.h, then mmreplk again, without a cached wheel: '
            'pip install --force-reinstall --no-deps --no-cache-dir', stacklevel=2)
        return False, _why_not
    _native.set_runtime(_openmp_address())
    return True, f'compiled kernels, {_native.isas()[-1][0]}'


def lanes(isa: int = -1) -> int:
    """Floats of a vector of an instruction set."""
    return _native.isas()[isa][1]


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


def memory(tensor: Tensor | None) -> tuple[int, int] | int:
    """Where the elements of a float32 tensor on the CPU begin, and the bytes from there on.

    Those that its storage has, whatever the sizes of the tensor say; 0 for None.

    Raises:
        RuntimeError: If the tensor is of another dtype or device.
    """
    if tensor is None:
        return 0
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise RuntimeError('the compiled kernels take memory of float32 on the CPU, not of '
                           f'{tensor.dtype} on {tensor.device}')
    return _held(tensor)


def _held(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.storage_offset() * tensor.element_size()
    return tensor.data_ptr(), max(0, tensor.untyped_storage().nbytes() - begin)


def _room(*shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Memory for the kernels, whatever the process has for default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device='cpu', memory_format=memory_format)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors of one dtype and shape hold the same bits."""
    sizes = [t.nbytes for t in (a, b)]
    if any(size > _held(t)[1] for size, t in zip(sizes, (a, b), strict=True)):
        return False
    return _native.same(torch.get_num_threads(), (a.data_ptr(), sizes[0]), (b.data_ptr(), sizes[1]))


def direct_forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
                   isa: int = -1) -> Tensor:
    """The convolution as a direct sum, ``(N, C * M, H', W')``."""
    call = _call(problem, isa)
    out = _room(*call.out_shape, memory_format=call.out_format)
    _native.run(call.forward, call.isa, torch.get_num_threads(), call.geometry, memory(x),
                memory(weight), 0, memory(bias), 0, memory(out))
    return out


def prepared_direct(problem: Problem) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """`direct_forward` of one problem, with all that does not depend on values looked up."""
    call, run, threads, empty = _call(problem, -1), _native.run, torch.get_num_threads, torch.empty
    shape, options = call.out_shape, dict(dtype=torch.float32, device=torch.device('cpu'),
                                          memory_format=call.out_format)

    def forward(x, weight, bias):
        out = empty(shape, **options)
        run(call.forward, call.isa, threads(), call.geometry, memory(x), memory(weight), 0,
            memory(bias), 0, memory(out))
        return out

    return forward


def direct_weight_grad(x: Tensor, grad: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The gradient of the weights as a direct sum, ``(C * M, 1, Kh, Kw)``."""
    call = _call(problem, isa)
    out = _room(problem.out_channels, 1, *problem.kernel)
    _native.run(call.weight_grad, call.isa, torch.get_num_threads(), call.geometry, memory(x),
                0, 0, 0, memory(grad), memory(out))
    return out


def fft_spectrum(weight: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The spectrum of the weights for `fft_forward`, an opaque buffer."""
    call = _call(problem, isa)
    out = _room(call.spectrum_size)
    _native.run(_SPECTRUM, call.isa, torch.get_num_threads(), call.geometry, 0,
                memory(weight), 0, 0, 0, memory(out))
    return out


def spectrum_bytes(problem: Problem) -> int:
    """What `fft_spectrum` returns, in bytes."""
    return 4 * _call(problem, -1).spectrum_size


def part_of_spectrum(spectrum: Tensor, problem: Problem, outputs: slice) -> Tensor:
    """The spectrum of some output channels, from whole vectors on."""
    if outputs == slice(None):
        return spectrum
    width = lanes()
    group = spectrum.numel() // ceil_div(problem.out_channels, width)
    return spectrum[outputs.start // width * group:]


def fft_forward(x: Tensor, spectrum: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
                isa: int = -1) -> Tensor:
    """The convolution as an FFT convolution; the weights serve where x holds NaN or Inf."""
    call = _call(problem, isa)
    out = _room(*call.out_shape, memory_format=call.out_format)
    left = torch.zeros(problem.batch, problem.out_channels, *call.tiles.grid(problem.out_size),
                       dtype=torch.float32, device='cpu')
    _native.run(_FFT_FORWARD, call.isa, torch.get_num_threads(), call.geometry, memory(x),
                memory(weight), memory(spectrum), memory(bias), memory(left), memory(out))
    if left.any():
        _forward_directly(out, left, x, weight, bias, problem, call)
    return out


# Bytes of the maps that are copied for the direct sum of what is left, at a time.
_LEFT = 4 << 20

# Nanoseconds of a call for the tiles at one place: where there is little to do, that is most of it.
_CALL = 60_000


def _forward_directly(out: Tensor, left: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
                      problem: Problem, call: '_Call') -> None:
    """Put the direct sum in the place of tiles ``(N, C, rows, columns)`` that are left to it.

    Whole planes, or everything, unless the tiles alone are quicker: for any map this takes no more
    than the direct sum of all of it, or little more.
    """
    planes, places = left.flatten(2).any(2), left.flatten(0, 1).any(0)
    cost = direct_cost(problem, 'forward', lanes(call.isa)).cost
    share = planes.float().mean().item()
    if share * cost + _CALL > cost:
        planes = torch.ones_like(planes)
    elif places.sum().item() * _CALL + left.mean().item() * cost < share * cost:
        planes = left.flatten(2).all(2)
    if planes.all():
        _native.run(call.forward, call.isa, torch.get_num_threads(), call.geometry, memory(x),
                    memory(weight), 0, memory(bias), 0, memory(out))
        return
    height, width = problem.out_size
    _sum_tiles(out, planes.nonzero(), x, weight, bias, problem, (slice(0, height), slice(0, width)),
               call.isa)
    left[planes] = 0
    rows, columns = call.tiles.outputs
    for row, column in left.flatten(0, 1).any(0).nonzero().tolist():
        to = (slice(row * rows, min((row + 1) * rows, height)),
              slice(column * columns, min((column + 1) * columns, width)))
        _sum_tiles(out, left[:, :, row, column].nonzero(), x, weight, bias, problem, to, call.isa)


def _sum_tiles(out: Tensor, planes: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
               problem: Problem, to: tuple[slice, slice], isa: int) -> None:
    """Some outputs of planes, each (image, output channel), as planes of their own."""
    if not len(planes):
        return
    inputs, padding = [], []
    for axis, part in enumerate(to):
        before, reach = problem.padding[2 * axis], problem.reach[axis]
        begin = max(0, part.start - before)
        end = min((problem.height, problem.width)[axis], part.stop - before + reach - 1)
        inputs.append(slice(begin, end))
        padding += [begin - part.start + before, part.stop - before + reach - 1 - end]
    sizes = [part.stop - part.start for part in inputs]
    one = problem._replace(batch=1, channels=1, multiplier=1, channels_last=False, height=sizes[0],
                           width=sizes[1], padding=tuple(padding))
    bytes_of_one = 4 * (math.prod(sizes) + math.prod(one.out_size))
    for some in planes.split(max(1, _LEFT // bytes_of_one)):
        n, c = some.unbind(1)
        maps = x[n, c // problem.multiplier, inputs[0], inputs[1]].contiguous()
        out[n, c, to[0], to[1]] = _direct_planes(
            maps, weight[c], None if bias is None else bias[c], one, isa)


def _direct_planes(x: Tensor, weight: Tensor, bias: Tensor | None, one: Problem, isa: int
                   ) -> Tensor:
    """Planes ``(count, H, W)``, each with weights of its own. `one`: the problem of one of them.

    Calls of another count each time are cheap: nothing is planned for a count.
    """
    count, width = len(x), lanes(isa)
    rows = direct_cost(one._replace(channels=2 * width), 'forward', width).rows
    out = _room(count, *one.out_size)
    geometry = _geometry(one._replace(channels=count), Tiles((0, 0), (1, 1), 1, math.inf))
    _native.run(_ROWS_FORWARD if rows else _LANES_FORWARD, isa, torch.get_num_threads(), geometry,
                memory(x), memory(weight), 0, memory(bias), 0, memory(out))
    return out


def fft_weight_grad(x: Tensor, grad: Tensor, problem: Problem, isa: int = -1) -> Tensor:
    """The gradient of the weights as an FFT convolution, ``(C * M, 1, Kh, Kw)``."""
    call = _call(problem, isa)
    out = _room(problem.out_channels, 1, *problem.kernel)
    doubt = _room(problem.out_channels)
    _native.run(_FFT_WEIGHT_GRAD, call.isa, torch.get_num_threads(), call.geometry, memory(x),
                0, 0, memory(doubt), memory(grad), memory(out))
    _sum_directly(out, doubt, x, grad, problem, isa)
    return out


def _sum_directly(out: Tensor, doubt: Tensor, x: Tensor, grad: Tensor, problem: Problem,
                  isa: int) -> None:
    """Put the direct sum in the place of what contrast has spoilt: see csrc/fft_guard.inc.c."""
    if not doubt.any():
        return
    one = problem._replace(channels=1, multiplier=1, channels_last=False)
    for c in doubt.nonzero().flatten().tolist():  # one at a time: these are copies
        planes = (m[:, at:at + 1].contiguous(memory_format=torch.contiguous_format)
                  for m, at in ((x, c // problem.multiplier), (grad, c)))
        out[c:c + 1] = direct_weight_grad(*planes, one, isa)


def fft_backward(x: Tensor, branches: list[tuple[Tensor, Tensor, Problem]],
                 isa: int = -1) -> tuple[Tensor, list[Tensor]] | None:
    """Gradients of the input and of the weights of one or two kernels on it, in one.

    Args:
        x (Tensor): The input.
        branches (list): For each kernel its weights, the gradient of its output, and its problem.
            The first is the largest and gives the points of the transforms. No multiplier.
        isa (int): Index into `isas`. Defaults to the best.

    Returns:
        tuple[Tensor, list[Tensor]]: Of the input, the sum over the branches, and of the weights;
        None if there are NaN or Inf, or gradients far below others, with which this kernel
        cannot cope.
    """
    first = branches[0][2]
    calls = [_call(problem, isa, first, True) for _, _, problem in branches]
    # A single tile writes what it reads, several add to one another.
    grad_x = torch.zeros_like(x)
    grads = [_room(problem.out_channels, 1, *problem.kernel) for _, _, problem in branches]
    doubts = [_room(problem.out_channels) for _, _, problem in branches]
    finite = _native.backward(
        calls[0].isa, torch.get_num_threads(), memory(x), memory(grad_x),
        *((call.geometry, memory(weight), memory(grad), memory(out), memory(doubt))
          for call, (weight, grad, _), out, doubt in zip(
              calls, branches, grads, doubts, strict=True)))
    if not finite:
        return None
    for (_, grad, problem), out, doubt in zip(branches, grads, doubts, strict=True):
        _sum_directly(out, doubt, x, grad, problem, isa)
    return grad_x, grads


def backward_supports(problem: Problem) -> bool:
    """Whether `fft_backward` can tell that a gradient would drown in the error of huge others."""
    tiles = fft_tiles(problem, lanes())
    return tiles is not None and min(backward_cells(problem, tiles)) >= 0


class _Call(NamedTuple):
    isa: int
    geometry: bytes
    tiles: Tiles
    forward: int  # kernels of the direct sum
    weight_grad: int
    spectrum_size: int
    out_shape: tuple[int, ...]
    out_format: torch.memory_format


def fft_supports(problem: Problem) -> tuple[bool, str]:
    """Whether the FFT can serve, and why not."""
    if fft_tiles(problem, lanes()) is None:
        return False, f'an FFT tile for kernels of reach {problem.reach} takes too much memory'
    return True, 'an FFT convolution'


@cached
def _call(problem: Problem, isa: int, like: Problem | None = None, back: bool = False) -> _Call:
    """back: for both gradients in one, whose cells nobody else needs."""
    isa %= len(_native.isas())
    width = lanes(isa)
    # No tiling fits: a placeholder of infinite cost makes the planner in C reject the FFT.
    tiles = fft_tiles(like or problem, width) or Tiles((0, 0), (1, 1), 1, math.inf)
    geometry = _geometry(
        problem, tiles, (0, 0) if math.isinf(tiles.cost) else forward_cells(problem, tiles),
        backward_cells(like or problem, tiles) if back else (0, 0),
        0 if math.isinf(tiles.cost) or back else worth(problem, width))
    groups = ceil_div(problem.out_channels, width)
    frequencies = tiles.points[1] // 2 + 1
    rows = direct_cost(problem, 'forward', width).rows
    grad_rows = direct_cost(problem, 'weight_grad', width).rows
    return _Call(isa, geometry, tiles, _ROWS_FORWARD if rows else _LANES_FORWARD,
                 _ROWS_WEIGHT_GRAD if grad_rows else _LANES_WEIGHT_GRAD,
                 groups * frequencies * tiles.points[0] * 2 * width, problem.out_shape,
                 problem.memory_format)


def _geometry(problem: Problem, tiles: Tiles, cells: tuple[int, int] = (0, 0),
              back_cells: tuple[int, int] = (0, 0), direct_worth: int = 0) -> bytes:
    """The struct of this name in csrc/dwconv.h."""
    return struct.pack(
        '24q', problem.channels_last, problem.batch, problem.channels, problem.height,
        problem.width, problem.multiplier, *problem.kernel, problem.padding[0], problem.padding[2],
        *problem.dilation, *problem.out_size, *tiles.points, *tiles.outputs, problem.relu, *cells,
        *back_cells, direct_worth)
