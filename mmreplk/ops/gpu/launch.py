"""Launches the Triton kernels: arguments, grids, workspaces. What they compute: ``triton_kernels``.

Everything runs on the current stream of the input's device, without synchronization and without
reading device memory on the host, so that CUDA graphs can record it.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..arithmetic import ceil_div
from ..caches import cached
from ..problem import Problem
from . import direct, kernels
from .arch import Arch, arch_of, weakest
from .memory import empty as _empty
from .tiles import (
    GradTile,
    Tile,
    choose,
    forward_time,
    grad_plan,
    grad_time,
    grad_window,
    mode_of,
    vector,
    window,
)
from .variants import copy_time, ranked, widened

LARGEST_KERNEL = 101
WORKSPACE = 64 << 20  # bytes, or a tenth of input and output if that is more
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_BLOCK = 1024
_TAPS = 16
_REGISTERS = 255  # said aloud, or ptxas spills a few of them for more resident programs


def supports(problem: Problem, task: str = 'forward',
             capability: tuple[int, int] | None = None) -> tuple[bool, str]:
    """Whether the kernels can serve a problem, and if not, why.

    Args:
        problem (Problem): A valid problem.
        task (str): 'forward' or 'weight_grad'.
        capability (tuple[int, int], optional): Compute capability of the device; by default that
            of the weakest visible GPU, if there is one.
    """
    if problem.device != 'cuda' and not _interpreted():
        return False, f'the Triton kernels run on a GPU, not on {problem.device!r}'
    if torch.version.hip:
        return False, 'the Triton kernels are made for NVIDIA GPUs'
    if problem.dtype not in _DTYPES:
        return False, f'the Triton kernels do not compute in {problem.dtype}'
    if problem.stride != (1, 1) or problem.dilation != (1, 1):
        return False, 'the Triton kernels have stride 1 and dilation 1'
    if problem.multiplier != 1:
        return False, 'the Triton kernels have as many outputs as inputs'
    if not hasattr(triton.language, 'gather'):
        return False, f'Triton {triton.__version__} has no tl.gather; install 3.3 or later'
    if max(problem.kernel) > LARGEST_KERNEL:
        return False, f'the Triton kernels end at {LARGEST_KERNEL} taps a side'
    if _programs_at_most(problem) >= 1 << 30:
        return False, 'the Triton kernels count programs in 32 bits, and this would take more'
    if max(*problem.padding, problem.height, problem.width, *problem.out_size) >= 1 << 24 or max(
            (problem.height + sum(problem.padding)) * (problem.width + sum(problem.padding)),
            problem.out_size[0] * problem.out_size[1]) >= 1 << 30:
        return False, 'one plane of the map has too many elements for 32-bit offsets'
    device = weakest()
    capability = tuple(device.capability if capability is None else capability)
    if capability < (8, 0):
        return False, f'the Triton kernels need compute capability 8.0, not {capability}'
    # Without TF32 there are fewer tiles than with it.
    mode = mode_of(problem.dtype, False)
    if task == 'weight_grad' and choose(problem, task, mode, device) is None:
        return False, 'no tile of the weight gradient fits'
    return True, ''


def _programs_at_most(p: Problem) -> int:
    """Patches of one channel, or programs of any launch, whichever is more, for any tile."""
    patches = p.batch * ceil_div(p.out_size[0], 2) * ceil_div(p.out_size[1], 8)
    return max(patches, ceil_div(patches, 16) * p.channels, p.channels * ceil_div(
        p.kernel[0] * p.kernel[1], _TAPS), 2 * p.batch)


def estimate(problem: Problem, task: str = 'forward', allow_tf32: bool = True,
             device: Arch | None = None) -> float:
    """Estimated seconds of a problem that is supported: a model, not a measurement."""
    device = device or arch_of(problem.device)
    mode = mode_of(problem.dtype, allow_tf32)
    variant = ranked(problem, task, mode, device)[0]
    copy = copy_time(problem, task, device) if variant.more else 0.0
    problem, tile = widened(problem, task, variant.more), variant.tile
    if task == 'weight_grad':
        return copy + grad_time(problem, tile, mode, device)
    plan = plan_forward(problem, mode, tile)
    tables = plan.part // plan.channels * problem.channels * plan.tables * problem.dtype.itemsize
    return copy + forward_time(problem, tile, mode, device) + tables / device.memory


@cached
def _interpreted() -> bool:
    return not isinstance(kernels.forward_kernel, triton.JITFunction)


class Launch(NamedTuple):
    """One launch without its tensors: programs, integer arguments, compile-time constants."""

    programs: int
    integers: dict[str, int]
    constants: dict


class ForwardPlan(NamedTuple):
    """Both launches of a forward pass over `channels` channels at a time."""

    channels: int
    table: Launch
    main: Launch
    part: int  # elements of one Toeplitz table
    tables: int


@cached
def plan_forward(problem: Problem, mode: str, tile: Tile,
                 workspace: int | None = None) -> ForwardPlan:
    """Sizes of the forward pass with a given tile; its tables take at most `workspace` bytes."""
    p = problem
    workspace = workspace or _workspace(p)
    size = p.dtype.itemsize
    (kh, kw), (top, _, left, _), (out_height, out_width) = p.kernel, p.padding, p.out_size
    rows, columns, unit = tile.rows, tile.columns, tile.unit
    x_vector, y_vector = vector(size, p.width, tile.vector), vector(size, out_width, 16)
    v = 8 // size
    before = ceil_div(left, x_vector) * x_vector
    patches_i, patches_j = ceil_div(out_height, rows), ceil_div(out_width, columns)
    patches = p.batch * patches_i * patches_j
    tiles = ceil_div(patches, tile.patches)

    # The rows and columns of the Toeplitz table that any tile reads, plus the overrun of the last
    # step, which meets nothing but zeros of x.
    b_low = max(0, top - (patches_i - 1) * rows)
    b_high = max(min(rows + kh - 1, p.height + top), b_low)
    first_row = b_low - (rows - 1)
    table_rows = b_high + tile.depth // unit - first_row
    edges = [window(p, tile._replace(patches=1), before, p.batch * patches_i * j)
             for j in (0, patches_j - 1)]
    k_low = min(e.k_low for e in edges) * unit
    k_high = max(e.k_low + e.blocks for e in edges) * unit
    length = ceil_div(k_high - k_low + columns, v) * v

    split = {'half': 0, 'tf32': 1, 'exact': 2}[mode]
    bytes_each = max(split, 1) * table_rows * v * length * size
    channels = max(1, min(p.channels, workspace // bytes_each))
    part = channels * table_rows * v * length
    interpreted = _interpreted()
    table = Launch(ceil_div(part, _BLOCK), dict(
        part=part, first_row=first_row, first=k_low - (columns - 1) - (before - left),
        rows=table_rows, length=length, kh=kh, kw=kw), dict(V=v, SPLIT=split, BLOCK=_BLOCK))
    main = Launch(tiles, dict(
        part_v=part // v, channels=p.channels, images=p.batch, height=p.height,
        width_v=p.width // x_vector, out_height=out_height, out_width_v=out_width // y_vector,
        kh=kh, kw=kw, top=top, left=left, before_v=before // x_vector, patches_i=patches_i,
        patches_j=patches_j, tiles=tiles, rows=table_rows, length_v=length // v,
        first_row=first_row, first_k_v=k_low // v), dict(
        BM=tile.patches, R=rows, T=columns, BK=tile.depth, KU=unit, XV=x_vector, YV=y_vector, V=v,
        SPLIT=split, WIDE=_is_wide(p), HAS_BIAS=p.has_bias, RELU=p.relu,
        CHUNK=min(tile.patches, 16),
        ONE_COLUMN=patches_j == 1 or p.batch * patches_i % tile.patches == 0,
        UPCAST=interpreted and p.dtype == torch.bfloat16,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=_REGISTERS))
    return ForwardPlan(channels, table, main, part, max(split, 1))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
            allow_tf32: bool = True, tile: Tile | None = None, more: int = 0) -> Tensor:
    """The convolution.

    float32 is computed in TF32 if allowed, else as three TF32 products, to about 1e-6. A result
    is infinite or NaN only where a tap meets such an input inside the map, as in a plain sum. Such
    tiles are summed up again without tensor cores, which is far slower.

    Args:
        x (Tensor): ``(N, C, H, W)``; float16, bfloat16 or float32; any strides. What is not
            contiguous, or not at a multiple of 16 bytes, is copied, a few channels at a time.
        weight (Tensor): ``(C, 1, Kh, Kw)``.
        bias (Tensor, optional): ``(C, )``.
        problem (Problem): Of these tensors; `supports` it.
        allow_tf32 (bool): Whether float32 may be computed in TF32.
        tile (Tile, optional): By default the choice of ``tiles.py``.
        more (int): Columns of zeros to copy x with, see ``variants.py``. Defaults to 0.

    Returns:
        Tensor: ``(N, C, H', W')``, in the memory format that the problem names.
    """
    mode = mode_of(x.dtype, allow_tf32)
    weight = _aligned(weight)
    bias = None if bias is None else _aligned(bias)
    plain = problem._replace(channels_last=False) if problem.channels_last else problem
    with _guard(x):
        if not more and _is_aligned(x) and not problem.channels_last:
            y = _empty(x, problem.out_shape)
            _forward(x, weight, bias, y, plain, mode, tile)
            return y
        batch, channels, height, width = problem.out_shape
        if problem.channels_last:
            y = _empty(x, (batch, height, width, channels)).permute(0, 3, 1, 2)
        else:
            y = _empty(x, problem.out_shape)
        blocks = _channel_blocks(problem, more)
        for some in blocks:
            part = widened(plain._replace(channels=len(some)), 'forward', more)
            some = slice(some.start, some.stop)
            block = _copied(x[:, some], more)
            whole = len(blocks) == 1 and not problem.channels_last
            out = y if whole else _empty(x, part.out_shape)
            _forward(block, _aligned(weight[some]), None if bias is None else _aligned(bias[some]),
                     out, part, mode, tile, _workspace(problem) // 2)
            if not whole:
                y[:, some] = out
            del block, out  # the next channels are to take their place
        return y


def _forward(x, weight, bias, y, problem, mode, tile, workspace=None) -> None:
    """`forward` of contiguous, aligned tensors, into y."""
    tile = tile or choose(problem, 'forward', mode, arch_of(x.device))
    elements, launches = _forward_launches(problem, mode, tile, workspace or _workspace(problem))
    table = _empty(x, (elements, ))
    for build, run in launches:
        build(kernels, weight, table)
        run(kernels, x, table, weight, weight if bias is None else bias, y)


@cached
def _forward_launches(problem: Problem, mode: str, tile: Tile, workspace: int
                      ) -> tuple[int, list[tuple[direct.Launch, direct.Launch]]]:
    """Elements of the tables, and what is launched, some channels after others."""
    plan, launches = plan_forward(problem, mode, tile, workspace), []
    for first in range(0, problem.channels, plan.channels):
        channels = min(plan.channels, problem.channels - first)
        size = plan.part // plan.channels * channels
        _, integers, constants = plan.table
        build = direct.Launch('toeplitz_kernel', ceil_div(size, _BLOCK), dict(
            integers, size=size, channel0=first), constants)
        programs, integers, constants = plan.main
        launches.append((build, direct.Launch(
            'forward_kernel', programs * channels, dict(integers, channel0=first), constants)))
    return plan.tables * plan.part, launches


class GradLaunches(NamedTuple):
    """Both launches of a weight gradient over `channels` channels at a time."""

    channels: int
    main: Launch
    reduce: Launch
    sums: int  # elements of partial sums per channel


@cached
def plan_weight_grad(problem: Problem, mode: str, tile: GradTile, device: Arch,
                     workspace: int | None = None) -> GradLaunches:
    """Sizes of the weight gradient with a given tile; sums take at most `workspace` bytes."""
    p = problem
    workspace = workspace or _workspace(p)
    size = p.dtype.itemsize
    (kh, kw), (top, _, left, _), (out_height, out_width) = p.kernel, p.padding, p.out_size
    plan = grad_plan(p, tile, device)
    x_vector, g_vector = vector(size, p.width, tile.vector), vector(size, out_width, 8)
    start, _ = grad_window(p, tile.columns, x_vector)
    m, n = tile.rows * tile.window, tile.out_rows * tile.columns
    width_a = plan.tiles_a * tile.out_rows
    parts = ceil_div(kw, tile.window)
    each = parts * m * width_a
    splits = max(1, min(plan.splits, workspace // (p.channels * each * 4)))
    sums = splits * each
    channels = max(1, min(p.channels, workspace // (sums * 4)))
    shared = dict(channels=p.channels, images=p.batch, height=p.height, out_height=out_height,
                  kh=kh, kw=kw, top=top, left=left, splits=splits)
    main = Launch(plan.tiles_a * splits, dict(
        shared, width_v=p.width // x_vector, out_width_v=out_width // g_vector,
        start_v=start // x_vector, blocks_i=plan.blocks_i, blocks_j=plan.blocks_j,
        tiles_a=plan.tiles_a), dict(
        S=tile.rows, KD=tile.window, A=tile.out_rows, T=tile.columns, VB=parts,
        NB=tile.images, RB=tile.blocks, XV=x_vector, GV=g_vector,
        PRECISION='tf32x3' if mode == 'exact' else 'tf32', WIDE=_is_wide(p),
        QUARTERS=m * n > 16384, UPCAST=_interpreted() and p.dtype == torch.bfloat16,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=_REGISTERS))
    reduce = Launch(ceil_div(kh * kw, _TAPS), dict(
        shared, width=p.width, out_width=out_width, width_a=width_a), dict(
        S=tile.rows, KD=tile.window, VB=parts, TAPS=_TAPS, COLUMNS=64))
    return GradLaunches(channels, main, reduce, sums)


def weight_grad(x: Tensor, grad: Tensor, problem: Problem, allow_tf32: bool = True,
                tile: GradTile | None = None, more: int = 0) -> Tensor:
    """The gradient of the weights; partial sums are added in a fixed order, in float32.

    Args:
        x (Tensor): ``(N, C, H, W)``; float16, bfloat16 or float32; any strides. What is not
            contiguous, or not at a multiple of 16 bytes, is copied, a few channels at a time; so
            is grad.
        grad (Tensor): Gradient of the output, ``(N, C, H', W')``.
        problem (Problem): Of the forward pass; `supports` it.
        allow_tf32 (bool): Whether float32 may be computed in TF32.
        tile (GradTile, optional): By default the choice of ``tiles.py``.
        more (int): Columns of zeros to copy x and grad with. Defaults to 0.

    Returns:
        Tensor: ``(C, 1, Kh, Kw)`` in the dtype of x.
    """
    mode = mode_of(x.dtype, allow_tf32)
    out = _empty(x, (problem.channels, 1, *problem.kernel))
    plain = problem._replace(channels_last=False) if problem.channels_last else problem
    with _guard(x):
        if not more and _is_aligned(x) and _is_aligned(grad):
            _weight_grad(x, grad, out, plain, mode, tile)
            return out
        ranges = _channel_blocks(problem, more)
        for some in ranges:
            part = widened(plain._replace(channels=len(some)), 'weight_grad', more)
            some = slice(some.start, some.stop)
            blocks = [whole if not more and len(ranges) == 1 and _is_aligned(whole)
                      else _copied(whole[:, some], more) for whole in (x, grad)]
            result = _empty(x, (part.channels, 1, *problem.kernel))
            _weight_grad(*blocks, result, part, mode, tile, _workspace(problem) // 2)
            out[some] = result
            del blocks, result
    return out


def _weight_grad(x, grad, out, problem, mode, tile, workspace=None) -> None:
    """`weight_grad` of contiguous, aligned tensors, into out."""
    device = arch_of(x.device)
    tile = tile or choose(problem, 'weight_grad', mode, device)
    elements, launches = _grad_launches(problem, mode, tile, device,
                                        workspace or _workspace(problem))
    sums = _empty(x, (elements, ), torch.float32)
    for run, reduce in launches:
        run(kernels, x, grad, sums)
        reduce(kernels, x, grad, sums, out)


@cached
def _grad_launches(problem: Problem, mode: str, tile: GradTile, device: Arch, workspace: int
                   ) -> tuple[int, list[tuple[direct.Launch, direct.Launch]]]:
    """Elements of the sums, and what is launched, some channels after others."""
    plan, launches = plan_weight_grad(problem, mode, tile, device, workspace), []
    for first in range(0, problem.channels, plan.channels):
        channels = min(plan.channels, problem.channels - first)
        launches.append(tuple(
            direct.Launch(name, programs * channels, dict(integers, channel0=first), constants)
            for name, (programs, integers, constants) in (
                ('weight_grad_kernel', plan.main), ('weight_grad_sum_kernel', plan.reduce))))
    return plan.channels * plan.sums, launches


def _channel_blocks(p: Problem, more: int = 0) -> list[range]:
    """Channels whose copies of input and output fill no more than half of the workspace.

    One channel at least; whole sectors of channels-last maps where there are more.
    """
    each = p.batch * (p.height * (p.width + more) + p.out_size[0] * (p.out_size[1] + more)
                      ) * p.dtype.itemsize
    step = max(_workspace(p) // 2 // each, 1)
    step -= step % 16 if step > 16 else 0
    return [range(first, min(first + step, p.channels)) for first in range(0, p.channels, step)]


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous and at a multiple of 16 bytes: elsewhere, kernels would be compiled once more."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _is_aligned(tensor: Tensor) -> bool:
    """Whether the kernels can read a map as it lies."""
    return tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def _copied(tensor: Tensor, more: int) -> Tensor:
    """A contiguous, aligned copy with so many columns of zeros behind the rows."""
    width = tensor.shape[3]
    copy = _empty(tensor, (*tensor.shape[:3], width + more))
    copy[..., :width] = tensor
    copy[..., width:] = 0
    return copy


def _workspace(p: Problem) -> int:
    """The most bytes that may be taken for a workspace."""
    maps = p.channels * (p.height * p.width + p.out_size[0] * p.out_size[1])
    return max(WORKSPACE, p.batch * maps * p.dtype.itemsize // 10)


def _is_wide(p: Problem) -> bool:
    """Whether offsets between images need 64 bits."""
    plane = max(p.height * p.width, p.out_size[0] * p.out_size[1])
    return p.batch * p.channels * plane >= 1 << 31


def _guard(x: Tensor):
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
