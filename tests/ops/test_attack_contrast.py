"""Small outputs beside huge inputs, where a transform alone would lose them."""

import math

import pytest
import torch
import torch.nn.functional as F
from attack_cases import attack, cases, direct, parts, run
from hypothesis import strategies as st

from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.cpu import backend as cpu, contrast as native_guard, kernels as native
from mmreplk.ops.torch_fft import contrast as fft_mend, conv as fft

needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
# Times the largest input that an output sees, and the root of the sum of squares of the weights:
# what the README of mmreplk.ops promises, a quarter of which has been seen.
PROMISE = 2.0**-11


def largest(case, values):
    """Of absolute values ``(N, C, H, W)``, the largest that each output sees; of pixels, if any."""
    top, bottom, left, right = case.padding
    return F.max_pool2d(F.pad(values, (left, right, top, bottom)), case.kernel, 1,
                        dilation=case.dilation)


def largest_back(case, values):
    """The same of output gradients, for the gradient of each input."""
    (rh, rw), (top, bottom, left, right) = (
        (d * (k - 1) for d, k in zip(case.dilation, case.kernel, strict=True)), case.padding)
    sides = rw - left, rw - right, rh - top, rh - bottom
    return F.max_pool2d(F.pad(values, sides), case.kernel, 1, dilation=case.dilation)


def beside(case, values, contrast, kind):
    """Make a part of each plane huge, or all but a part small; parts of all levels; or 0."""
    generator = torch.Generator().manual_seed(case.seed)
    height, width = values.shape[2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    if kind == 'pixel':
        where = torch.randint(height, (1, ), generator=generator), torch.randint(
            width, (1, ), generator=generator)
        values[:, :, where[0], where[1]] *= contrast
    elif kind == 'corners':
        where = torch.zeros(height, width, dtype=torch.bool)
        where[0, -1] = where[-1, 0] = True
        values[:, :, where] *= contrast
    elif kind == 'slope':
        values *= contrast ** ((rows + columns) / (height + width))
    elif kind == 'zeros':
        values[:, :, 0] *= contrast
        values[:, :, (height + 1) // 3:] = 0
    return values


def check(case, contrast, kind, scale=1.0):
    def fill(normal, what, generator):
        return scale * beside(case, normal, contrast, kind) if what in ('x', 'grad') else normal

    x, weight, bias, grad, _ = parts(case, fill)
    actual, right = run(case, x, weight, bias, grad), direct(case, x, weight, bias, grad)
    taps = weight.double().square().sum((1, 2, 3)).sqrt()[:, None, None]
    seen = largest(case, x.double().abs()).repeat_interleave(case.multiplier, 1)
    back = (largest_back(case, grad.double().abs()) * taps).unflatten(
        1, (case.channels, -1)).sum(2)
    last = torch.finfo(case.dtype).eps
    for name, level in (('out', seen * taps), ('x', back)):
        a, b = getattr(actual, name).double(), getattr(right, name)
        shift = bias.double().abs()[:, None, None] if bias is not None and name == 'out' else 0
        allowed = PROMISE * level + last * (b.abs() + shift) + torch.finfo(case.dtype).tiny
        assert bool(((a - b).abs() <= allowed).all()), (
            f'{name}: {((a - b).abs() / allowed).max():.3g} times what is promised')


def keeps_promise(out, x, weight, padding, dilation=1):
    """Of a convolution with square kernels and one output a channel, without a bias."""
    kernel, sides = weight.shape[-1], (padding, ) * 4
    right = F.conv2d(x.double(), weight.double(), None, 1, padding, dilation, len(weight))
    seen = F.max_pool2d(F.pad(x.double().abs(), sides), kernel, 1, dilation=dilation)
    taps = weight.double().square().sum((1, 2, 3)).sqrt()[:, None, None]
    return bool(((out - right).abs() <= PROMISE * seen * taps).all())


contrasts = st.sampled_from([10.0, 3e2, 2e3, 5e3, 1e5, 1e6, 1e12, 1e20])
kinds = st.sampled_from(['pixel', 'corners', 'slope', 'zeros'])


@attack(400, case=cases(backends=('fft', ), dtypes=(torch.float32, torch.float64), longest=45),
        contrast=contrasts, kind=kinds)
def test_outputs_that_see_small_inputs_alone(case, contrast, kind):
    """Right in proportion to what they see, 10 to 1e20 times below the rest; 0 where that is 0."""
    check(case, contrast, kind)


@attack(100, case=cases(backends=('fft', ), dtypes=(torch.float16, torch.bfloat16)),
        contrast=st.sampled_from([10.0, 3e2, 3e3]), kind=kinds)
def test_of_16_bits(case, contrast, kind):
    check(case, contrast, kind, 1 / contrast)  # no sum overflows


@attack(100, case=cases(backends=('fft', ), dtypes=(torch.float32, ), multipliers=(1, )),
        contrast=contrasts, kind=kinds)
def test_through_torch_fft(case, contrast, kind):
    """Without the compiled kernels."""
    def fill(normal, what, generator):
        return beside(case, normal, contrast, kind) if what == 'x' else normal

    x, weight, bias, grad, _ = parts(case._replace(bias=False), fill)
    from mmreplk.ops.problem import Problem
    problem = Problem(case.dtype, 'cpu', False, case.batch, case.channels, *case.size, 1,
                      case.kernel, (1, 1), case.padding, case.dilation, False)
    if not fft.supports(problem)[0]:
        return
    out = fft_mend.mend(fft.forward(x, weight, None, problem), x, weight, None, problem)
    right = direct(case, x, weight, None, grad).out
    allowed = largest(case, x.double().abs()) * weight.double().square().sum(
        (1, 2, 3)).sqrt()[:, None, None] * PROMISE + torch.finfo(case.dtype).tiny
    assert bool(((out.double() - right).abs() <= allowed).all())


@needs_kernels
@pytest.mark.parametrize('contrast', [1e6, 1e20])
@pytest.mark.parametrize('last', [False, True])
def test_several_tiles_and_channel_tails(contrast, last, monkeypatch):
    """A map of many tiles; 35 channels fill no whole number of vectors."""
    x, weight = torch.randn(2, 35, 150, 170), torch.randn(35, 1, 9, 9)
    x[0, :, 70, 80:120] = contrast
    x[1, 34, 3, 3] = -contrast
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    out = large_kernel_dwconv2d(x, weight, padding=4, backend='fft')
    assert keeps_promise(out, x, weight, 4)


@needs_kernels
@pytest.mark.parametrize(('size', 'kernel', 'dilation'),
                         [(31, 13, 1), (31, 12, 1), (31, 7, 2), (35, 11, 1)])  # cells: 6, 6, 3, 5
def test_wherever_the_huge_input_lies(size, kernel, dilation):
    """A channel for each pixel of the map, in which this one is huge."""
    pad = dilation * (kernel - 1) // 2
    x, weight = torch.randn(size * size, size * size), torch.randn(size * size, 1, kernel, kernel)
    x.fill_diagonal_(1e8)
    x = x.view(1, -1, size, size)
    out = large_kernel_dwconv2d(x, weight, None, 1, pad, dilation, backend='fft')
    assert keeps_promise(out, x, weight, pad, dilation)


@needs_kernels
@pytest.mark.parametrize('value', [1e-25, 1e-30])
def test_inputs_too_small_to_be_squared(value):
    """Their squares are 0 in float32, as those of a plane of zeros."""
    x, weight = torch.zeros(1, 20, 40, 40), torch.randn(20, 1, 13, 13)
    x[:, ::2, 0, 0], x[:, 1, 20, 20] = value, 1
    out = large_kernel_dwconv2d(x, weight, padding=6, backend='fft')
    assert not out[:, ::2, 7:].any()
    assert not out[:, ::2, :, 7:].any()
    right = value * weight[::2, 0, :7, :7].flip(1, 2)
    torch.testing.assert_close(out[0, ::2, :7, :7], right, rtol=1e-5, atol=1e-5 * value)


@needs_kernels
@pytest.mark.parametrize('size', [56, 14])
def test_ordinary_maps_take_no_second_pass(size, monkeypatch):
    """The bits are those of kernels that look for nothing: normal numbers, and those after ReLU.

    Of the maps with huge inputs they are not: the same comparison tells.
    """
    def spoilt(x, weight):
        with monkeypatch.context() as patched:
            patched.setattr(native, 'forward_cells', lambda *of: (0, 0))
            native._call.cache_clear()
            out = large_kernel_dwconv2d(x, weight, padding=weight.shape[-1] // 2, backend='fft')
        native._call.cache_clear()
        return out

    for kernel in (13, 31):
        x, weight = torch.randn(2, 64, size, size), torch.randn(64, 1, kernel, kernel)
        huge = x.clone()
        huge[:, :, 0, 0] = 1e6
        for values, same in ((x, True), (x.relu(), True), (huge, size < kernel // 2 + 1)):
            out = large_kernel_dwconv2d(values, weight, padding=kernel // 2, backend='fft')
            assert torch.equal(out, spoilt(values, weight)) == same


@needs_kernels
@pytest.mark.parametrize('kind', ['pixel', 'zeros'])
def test_both_gradients_in_one_pass_decline(kind, monkeypatch):
    """Where a cell of the output's gradient is far below the rest, and only there."""
    answers, run_one = [], cpu.backward
    monkeypatch.setattr(
        cpu, 'backward', lambda *of: answers.append(run_one(*of)) or answers[-1])
    x, weight = torch.randn(1, 20, 40, 40), torch.randn(20, 1, 13, 13)
    grad = torch.randn(1, 20, 40, 40)
    for grad_of_x in (grad, grad.clone()):
        if answers:
            grad_of_x[0, 3, 0, 0] = 1e6
            grad_of_x[0, 3, 20:] *= kind == 'pixel'
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = large_kernel_dwconv2d(*leaves, padding=6, backend='fft')
        found, _ = torch.autograd.grad(out, leaves, grad_of_x)
        assert keeps_promise(found, grad_of_x, weight.flip(2, 3), 6)
    assert [answer is None for answer in answers] == [False, True]


@attack(200, case=cases(backends=('fft', ), longest=60))
def test_every_output_sees_a_whole_cell(case):
    """What contrast.py promises to the kernels, counted pixel by pixel."""
    from mmreplk.ops.cpu.plan import Tiles
    from mmreplk.ops.problem import Problem
    problem = Problem(torch.float32, 'cpu', False, 1, 1, *case.size, 1, case.kernel, (1, 1),
                      case.padding, case.dilation, False)
    lengths = tuple(math.ceil(o / (1 + case.seed % 3)) for o in problem.out_size)
    for axis in (0, 1):
        size, outs, kernel = case.size[axis], problem.out_size[axis], case.kernel[axis]
        before, dilation, length = case.padding[2 * axis], case.dilation[axis], lengths[axis]
        found = native_guard._forward_axis(size, outs, kernel, before, dilation, length)
        tiles = Tiles((0, 0), lengths, 1, 0.0)
        assert len(native_guard.forward_cells(problem, tiles)) == 2
        for start in range(0, outs, length):
            end = min(start + length, outs)
            first = min(max(0, start - before), size)
            last = max(first, min(size, end - before + (kernel - 1) * dilation))
            for o in range(start, end):
                seen = {i - first for u in range(kernel)
                        if first <= (i := o - before + u * dilation) < last}
                if found[0] == 0 or first == last:
                    continue
                assert any(cell <= seen for cell in cells_of(last - first, dilation, found[0]))
                assert not found[1] or len(seen) == last - first


def cells_of(count, dilation, size):
    """The rule of csrc/fft_guard.inc.c."""
    for phase in range(min(dilation, count)):
        pixels = list(range(phase, count, dilation))
        cells = max(1, len(pixels) // size)
        for k in range(cells):
            yield set(pixels[k * size:None if k + 1 == cells else (k + 1) * size])
