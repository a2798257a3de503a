"""The specification of the operator, one shifted product a tap, on any device in any dtype."""

from torch import Tensor
from torch.nn.functional import pad

from .problem import Problem


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """``y[n,c,i,j] = b[c] + sum_uv x[n, c//M, sh*i + dh*u - top, sw*j + dw*v - left] w[c,0,u,v]``.

    Args:
        x (Tensor): ``(N, C, H, W)``, any dtype; the sums are taken in float64.
        weight (Tensor): ``(C * M, 1, Kh, Kw)``.
        bias (Tensor | None): ``(C * M, )``.
        problem (Problem): The geometry.

    Returns:
        Tensor: ``(N, C * M, H', W')`` in float64.
    """
    top, bottom, left, right = problem.padding
    (sh, sw), (dh, dw), (oh, ow) = problem.stride, problem.dilation, problem.out_size
    padded = pad(x.double(), (left, right, top, bottom))
    padded = padded.repeat_interleave(problem.multiplier, 1)
    taps = weight.double()[None, :, 0, :, :, None, None]
    out = padded.new_zeros(problem.out_shape)
    for u in range(problem.kernel[0]):
        for v in range(problem.kernel[1]):
            rows = slice(u * dh, u * dh + sh * (oh - 1) + 1, sh)
            columns = slice(v * dw, v * dw + sw * (ow - 1) + 1, sw)
            out += padded[:, :, rows, columns] * taps[:, :, u, v]
    return out if bias is None else out + bias.double()[:, None, None]
