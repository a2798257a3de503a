"""Random convolutions for test_attack_*.py: layouts, a float64 direct sum, and its error bounds.

``python tests/ops/attack_campaign.py --minutes 10`` runs the same properties for longer.
"""

import functools
import math
from typing import NamedTuple

import torch
from hypothesis import given, settings, strategies as st

DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
# How the elements of a map lie in memory.
LAYOUTS = ['dense', 'channels_last', 'gaps', 'gaps_channels_last', 'turned', 'offset', 'one_image',
           'one_channel', 'one_column']
PROPERTIES = {}  # what the campaign runs: name -> (function, strategies)


def attack(examples, **strategies):
    """A hypothesis test that repeats exactly, and a property of the campaign."""
    def decorate(function):
        known = PROPERTIES.get(function.__name__, (function, ))[0]
        assert known.__code__.co_filename == function.__code__.co_filename, (
            f'two properties have the name {function.__name__}')
        PROPERTIES[function.__name__] = function, strategies
        return settings(max_examples=examples, deadline=None, derandomize=True)(
            given(**strategies)(function))
    return decorate


class Case(NamedTuple):
    batch: int
    channels: int
    size: tuple
    kernel: tuple
    padding: tuple  # top, bottom, left, right
    dilation: tuple
    multiplier: int
    dtype: torch.dtype
    layouts: tuple  # of the input, of the output's gradient
    backend: str
    bias: bool
    seed: int

    @property
    def out_size(self):
        return tuple(self.size[i] + self.padding[2 * i] + self.padding[2 * i + 1]
                     - self.dilation[i] * (self.kernel[i] - 1) for i in (0, 1))

    @property
    def points(self):
        """No transform has more."""
        return math.prod(2 * (s + o) for s, o in zip(self.size, self.out_size, strict=True))


@st.composite
def cases(draw, backends=('auto', 'fft', 'fft', 'direct'), dtypes=tuple(DTYPES), longest=33,
          multipliers=(1, 1, 1, 2, 3), dilations=(1, 1, 1, 2, 3), symmetric=False):
    integers = st.integers
    dtype, backend = draw(st.sampled_from(dtypes)), draw(st.sampled_from(backends))
    if dtype == torch.float64 and backend == 'direct':
        backend = 'fft'  # which the compiled direct sum does not take
    most = draw(st.sampled_from([4, 12, longest]))
    kernel = draw(integers(1, min(most, 15))), draw(integers(1, min(most, 15)))
    dilation = draw(st.sampled_from(dilations)), draw(st.sampled_from(dilations))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    # F.conv2d itself crashes at times in 16 bits where outputs see nothing (PyTorch 2.12, x86).
    beyond = -1 if dtype.itemsize == 2 and backend == 'auto' else 1
    sides = [draw(integers(0, r + beyond)) for r in (reach[0], reach[0], reach[1], reach[1])]
    if symmetric:
        sides[1], sides[3] = sides[0], sides[2]
    least = [max(1, r - sides[2 * i] - sides[2 * i + 1]) for i, r in enumerate(reach)]
    size = tuple(draw(st.one_of(st.just(low), integers(low, low + most))) for low in least)
    layouts = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))
    return Case(draw(integers(1, 3)), draw(st.sampled_from([1, 2, 5, 16, 17])), size, kernel,
                tuple(sides), dilation, draw(st.sampled_from(multipliers)), dtype, layouts, backend,
                draw(st.booleans()), draw(integers(0, 2**31)))


def laid_out(values, layout):
    """The values in another layout, and all memory that the tensor lies in, NaN beside it."""
    n, c, h, w = values.shape

    def inside(room, view):
        room = torch.full(room, torch.nan, dtype=values.dtype)
        view = view(room)
        return view.copy_(values), room

    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last), None
    if layout == 'gaps':
        return inside((n + 1, c + 2, h + 2, 2 * w + 1), lambda r: r[1:, 1:-1, 1:-1, 1::2])
    if layout == 'gaps_channels_last':
        return inside((n, h + 1, w + 1, c + 3), lambda r: r[:, 1:, 1:, 2:-1].permute(0, 3, 1, 2))
    if layout == 'turned':
        return inside((w + 1, c, n, h), lambda r: r[1:].permute(2, 1, 3, 0))
    if layout == 'offset':
        return inside((values.numel() + 7, ), lambda r: r[3:-4].view(values.shape))
    if layout == 'one_image':
        return values[:1].expand(n, c, h, w), None
    if layout == 'one_channel':
        return values[:, :1].expand(n, c, h, w), None
    if layout == 'one_column':
        return values[..., :1].expand(n, c, h, w), None
    return values.contiguous(), None


def parts(case, fill=None):
    """Input, weights, bias and output gradient; the memory around input and gradient.

    Args:
        case (Case): What to make.
        fill (callable, optional): Takes a tensor of normal numbers in float64 and what it is to
            be, 'x', 'weight', 'bias' or 'grad', and a generator; returns the values.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def values(what, *shape):
        normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (normal if fill is None else fill(normal, what, generator)).to(case.dtype)

    outputs = case.channels * case.multiplier
    x, around = laid_out(values('x', case.batch, case.channels, *case.size), case.layouts[0])
    weight = values('weight', outputs, 1, *case.kernel)
    bias = values('bias', outputs) if case.bias else None
    grad, beside = laid_out(values('grad', case.batch, outputs, *case.out_size), case.layouts[1])
    return x, weight, bias, grad, [room for room in (around, beside) if room is not None]


class Result(NamedTuple):
    out: torch.Tensor
    x: torch.Tensor  # gradients
    weight: torch.Tensor
    bias: torch.Tensor | None


def run(case, x, weight, bias, grad):
    """Forward and backward of the operator."""
    from mmreplk.ops.custom_ops import dwconv2d
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    out = dwconv2d(*leaves, case.padding, case.dilation, case.backend)
    given = [t for t in leaves if t is not None]
    return Result(out.detach(), *torch.autograd.grad(out, given, grad), *[None][bias is not None:])


@functools.cache
def _taps(size, outs, kernel, before, dilation):
    """For each tap of an axis that meets the map: tap, outputs, inputs."""
    found = []
    for u in range(kernel):
        shift = u * dilation - before
        low, high = max(0, -shift), min(outs, size - shift)
        if low < high:
            found.append((u, slice(low, high), slice(low + shift, high + shift)))
    return found


def direct(case, x, weight, bias, grad):
    """The direct sums in float64 of what lies in the map, so that nothing meets a padded 0."""
    x, weight, grad = (t.double() for t in (x, weight, grad))
    many, (oh, ow) = case.multiplier, case.out_size
    out = x.new_zeros(case.batch, case.channels, many, oh, ow)
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    of_weight = grad_weight.view(case.channels, many, *case.kernel)
    weight = weight.view(case.channels, many, *case.kernel)
    grad = grad.reshape(out.shape)
    for u, rows, from_rows in _taps(case.size[0], oh, case.kernel[0], case.padding[0],
                                    case.dilation[0]):
        for v, columns, from_columns in _taps(case.size[1], ow, case.kernel[1], case.padding[2],
                                              case.dilation[1]):
            seen = x[:, :, None, from_rows, from_columns]
            tap = weight[:, :, u, v, None, None]
            some = grad[..., rows, columns]
            out[..., rows, columns] += seen * tap
            grad_x[:, :, from_rows, from_columns] += (some * tap).sum(2)
            of_weight[:, :, u, v] = (some * seen).sum((0, 3, 4))
    out = out.flatten(1, 2)
    if bias is None:
        return Result(out, grad_x, grad_weight, None)
    return Result(out + bias.double()[:, None, None], grad_x, grad_weight,
                  grad.flatten(1, 2).sum((0, 2, 3)))


def bounds(case, x, weight, bias, grad):
    """The largest error that `Result` may have: of sums in float32, and of transforms of a plane.

    A sum of n products in any order errs by n u (sum of their sizes), u half a unit in the last
    place; an FFT convolution by u (4 + log2(points) / 4) times the roots of the sums of squares
    of its two factors; see the README of mmreplk.ops. Values are rounded once more.
    """
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    unit, last = torch.finfo(wide).eps / 2, torch.finfo(case.dtype).eps / 2
    if case.backend == 'auto' and last > unit:
        unit = last  # PyTorch's own sums of 16 bits are not always wider
    sizes = [None if t is None else t.double().abs() for t in (x, weight, bias, grad)]
    sums = direct(case, *sizes)
    spread = unit * (4 + math.log2(case.points) / 4)

    def norm(tensor, *dims):
        return tensor.double().square().sum(dims, keepdim=True).sqrt()

    of_x, of_weight, of_grad = norm(x, 2, 3), norm(weight, 1, 2, 3), norm(grad, 2, 3)
    of_x = of_x.repeat_interleave(case.multiplier, 1)
    plane = spread * of_x * of_weight[:, 0]
    back = (spread * of_grad * of_weight[:, 0]).unflatten(1, (case.channels, -1)).sum(2)
    taps = (spread * of_x * of_grad).sum(0)[:, None]
    pixels = case.batch * math.prod(case.out_size)
    count = math.prod(case.kernel) + 4

    def total(size, products, transform):
        return (unit * products + last) * size + transform + torch.finfo(case.dtype).tiny

    return Result(total(sums.out, count, plane), total(sums.x, count * case.multiplier, back),
                  total(sums.weight, pixels, taps),
                  None if bias is None else total(sums.bias, pixels, 0))


def within(actual, right, allowed):
    """Assert that each value is as near as allowed."""
    for name, a, b, limit in zip(Result._fields, actual, right, allowed, strict=True):
        if b is not None:
            assert a.shape == b.shape
            error = (a.double() - b).abs()
            # Not `error > limit`, which a NaN passes.
            assert bool((error <= limit).all()), (
                f'{name}: {(error / limit).nan_to_num(torch.inf).max():.3g} times what is allowed')


def spawned(queue=None):
    """For a spawned process, which imports this file by its name."""
    from mmreplk.ops import large_kernel_dwconv2d
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator)
                 for shape in ((2, 18, 24, 24), (18, 1, 13, 13)))
    out = large_kernel_dwconv2d(x, weight, padding=6, backend='fft')
    if queue is not None:
        queue.put(out.numpy())
    return out
