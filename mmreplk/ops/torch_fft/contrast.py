"""Where a transform has spread NaN, Inf or the error of huge inputs: those outputs once more.

This goes with conv.py. The compiled kernels do the same inside a tile, see csrc/fft_guard.inc.c.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import to_opmath
from ..cpu.contrast import forward_cells
from ..cpu.plan import Tiles
from ..problem import Problem
from . import conv as fft

# Outputs are done again unless they see an input above the root of the sum of all squares of their
# plane divided by this.
CONTRAST = 4096


def mend(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """Correct what a transform has spoilt, in place.

    Args:
        out (Tensor): ``(N, C * M, H', W')``, the result of fft.forward for the other arguments.
        x (Tensor): As of fft.forward.
        weight (Tensor): As of fft.forward.
        bias (Tensor | None): As of fft.forward.
        problem (Problem): As of fft.forward.

    Returns:
        Tensor: ``out``.
    """
    # Every point of a transform depends on every input, so one point of a plane tells for all.
    broken = ~torch.isfinite(out[:, :, 0, 0])
    doubtful = _doubtful(x, problem)
    if doubtful is not None:
        for n in doubtful.any(1).nonzero().flatten().tolist():
            _again(out[n], x[n], weight, bias, problem, doubtful[n].nonzero().flatten())
    if broken.any():
        images, outputs = broken.nonzero().unbind(1)
        planes = to_opmath(x[images, outputs // problem.multiplier])
        taps = to_opmath(weight[outputs])
        total = planes.new_zeros(len(images), *problem.out_size)
        # Not as a padded convolution: an infinite weight times a 0 beside the map is NaN.
        for u, rows, to_rows in _met_taps(problem, 0):
            for v, columns, to_columns in _met_taps(problem, 1):
                total[:, to_rows, to_columns] += planes[:, rows, columns] * taps[:, 0, u, v, None,
                                                                                 None]
        if bias is not None:
            total += to_opmath(bias[outputs, None, None])
        out[images, outputs] = total.to(out.dtype)
    return out


def mend_weight_grad(out: Tensor, x: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """Where NaN, Inf or the error of huge values spread over all taps of a channel, sum up each
    tap alone, in place.

    Args:
        out (Tensor): ``(C * M, 1, Kh, Kw)``, what fft.weight_grad gave for the other arguments.
        x (Tensor): As of fft.weight_grad.
        grad (Tensor): As of fft.weight_grad.
        problem (Problem): As of fft.weight_grad.

    Returns:
        Tensor: ``out``.
    """
    broken = (~torch.isfinite(out)).flatten(1).any(1)
    broken |= _contrast(x).repeat_interleave(problem.multiplier) | _contrast(grad)
    broken = broken.nonzero().flatten()
    if not len(broken):
        return out
    x, grad = to_opmath(x[:, broken // problem.multiplier]), to_opmath(grad[:, broken])
    taps = out.new_zeros(len(broken), *problem.kernel)
    for u, inputs, outputs in _met_taps(problem, 0):
        for v, left_inputs, left_outputs in _met_taps(problem, 1):
            product = x[:, :, inputs, left_inputs] * grad[:, :, outputs, left_outputs]
            taps[:, u, v] = product.sum((0, 2, 3))
    out[broken, 0] = taps
    return out


def _contrast(maps: Tensor) -> Tensor:
    """Channels with contrast in some image: see grad_doubt in csrc/fft_guard.inc.c."""
    cells = [max(1, min(8, size // 8)) for size in maps.shape[2:]]
    out = maps.new_zeros(maps.shape[1], dtype=torch.bool)
    for image in maps:  # one at a time: these are copies
        size = to_opmath(image).abs()
        squares = (size / size.amax((1, 2), True).clamp_min(torch.finfo(size.dtype).tiny)).square()
        mean = F.avg_pool2d(squares[None], cells, cells, ceil_mode=True)[0].flatten(1)
        below = (mean > 0) & (mean * CONTRAST**2 < squares.sum((1, 2))[:, None])
        below, some = below.sum(1), (mean > 0).sum(1)
        out |= (below > 0) & (below * 16 >= some)
    return out


def _met_taps(problem: Problem, axis: int):
    """Taps of an axis that meet the map, the inputs that they meet, and for which outputs."""
    size, outs = (problem.height, problem.width)[axis], problem.out_size[axis]
    for u in range(problem.kernel[axis]):
        shift = u * problem.dilation[axis] - problem.padding[2 * axis]
        low, high = max(0, -shift), min(outs, size - shift)
        if low < high:
            yield u, slice(low + shift, high + shift), slice(low, high)


def _doubtful(x: Tensor, problem: Problem) -> Tensor | None:
    """Planes ``(N, C)`` with a cell far below the whole; None if every output sees all inputs."""
    cells = forward_cells(problem, Tiles((0, 0), problem.out_size, 1, 0.0))
    if cells == (0, 0):
        return None
    if min(cells) < 1 or max(problem.dilation) > 1:
        return x.new_ones(x.shape[:2], dtype=torch.bool)
    out = []
    for image in x:  # one at a time: these are copies
        image = to_opmath(image).abs()
        # The last cells are larger than they are taken here, which at worst raises a doubt.
        low = F.max_pool2d(image[None], cells, cells)[0].amin((1, 2))
        out.append((low <= _limit(image)) & (image.amax((1, 2)) > 0))
    return torch.stack(out)


def _again(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
           channels: Tensor) -> None:
    """Some channels of one image: see fft_again in csrc/fft.inc.c."""
    x = to_opmath(x[channels])
    outputs = (channels[:, None] * problem.multiplier + torch.arange(
        problem.multiplier, device=x.device)).flatten()
    weight, bias = to_opmath(weight[outputs]), None if bias is None else to_opmath(bias[outputs])
    problem = problem._replace(dtype=x.dtype, batch=1, channels=len(channels), relu=False)
    size = x.abs()
    seen = _seen(size, problem)
    result, limit = out[outputs], _limit(size)
    while True:
        low = (seen <= limit[:, None, None]) & (seen > 0)
        if not low.any():
            break
        x = x.where(size <= limit[:, None, None], 0)
        again = fft.forward(x[None], weight, bias, problem)[0]
        result = torch.where(low.repeat_interleave(problem.multiplier, 0), again.to(out.dtype),
                             result)
        limit = torch.minimum(_limit(x.abs()), limit / 2)
    nothing = 0 if bias is None else bias.to(out.dtype)[:, None, None]
    out[outputs] = torch.where((seen == 0).repeat_interleave(problem.multiplier, 0), nothing,
                               result)


def _limit(size: Tensor) -> Tensor:
    """Of planes ``(C, H, W)`` of absolute values, the root of the sum of squares by CONTRAST."""
    peak = size.amax((1, 2)).clamp_min(torch.finfo(size.dtype).tiny)
    return (size / peak[:, None, None]).square().sum((1, 2)).sqrt() / CONTRAST * peak


def _seen(size: Tensor, problem: Problem) -> Tensor:
    """The largest of the values ``(C, H, W)`` that each output sees."""
    top, bottom, left, right = problem.padding
    out = F.pad(size, (left, right, top, bottom))
    for axis in (0, 1):
        width = 1
        while width < problem.kernel[axis]:
            more = min(width, problem.kernel[axis] - width)
            shift = more * problem.dilation[axis]
            length = out.shape[axis + 1] - shift
            out = torch.maximum(*(out.narrow(axis + 1, start, length) for start in (0, shift)))
            width += more
    return out
