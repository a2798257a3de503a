"""The FFT convolution with torch.fft, and the whole operator where no kernels were compiled."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mmreplk.ops import dispatch, explain, large_kernel_dwconv2d
from mmreplk.ops.cpu import kernels as native
from mmreplk.ops.problem import Problem
from mmreplk.ops.torch_fft import conv as fft

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make(dtype=torch.float32, last=False, batch=1, channels=2, size=(9, 8), multiplier=1,
         kernel=(3, 3), padding=(1, 1, 1, 1), dilation=(1, 1), bias=False, stride=(1, 1),
         device='cpu'):
    return Problem(dtype, device, last, batch, channels, *size, multiplier, kernel, stride, padding,
                   dilation, bias)


def tensors(problem):
    """Input, weight, bias and a gradient of the output."""
    def normal(*shape):
        return torch.randn(shape).to(problem.dtype)

    x = normal(problem.batch, problem.channels, problem.height, problem.width)
    return (x.contiguous(memory_format=problem.memory_format),
            normal(problem.out_channels, 1, *problem.kernel),
            normal(problem.out_channels) if problem.has_bias else None,
            normal(*problem.out_shape).contiguous(memory_format=problem.memory_format))


def reference(x, weight, bias, problem):
    top, bottom, left, right = problem.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, dilation=problem.dilation,
                    groups=problem.channels)


def check(compare, problem):
    """Forward, with and without a spectrum at hand, and the gradient of the weights."""
    x, weight, bias, grad = tensors(problem)
    wide = weight.double().requires_grad_()
    right = reference(x.double(), wide, None if bias is None else bias.double(), problem)
    out = fft.forward(x, weight, bias, problem)
    compare(out, right.detach(), problem.dtype)
    assert out.dtype == problem.dtype
    assert out.is_contiguous(memory_format=problem.memory_format)
    spectrum = fft.spectrum_of_weight(weight, problem)
    again = fft.forward(x, torch.full_like(weight, torch.nan), bias, problem, spectrum)
    compare(again, right.detach(), problem.dtype)
    right.backward(grad.double())
    compare(fft.weight_grad(x, grad, problem), wide.grad, problem.dtype)


@st.composite
def problems(draw):
    """Valid ones: any geometry with at least one output."""
    integers = st.integers
    longest = draw(st.sampled_from([4, 16, 32]))
    kernel = draw(integers(1, longest)), draw(integers(1, longest))
    dilation = draw(integers(1, 3)), draw(integers(1, 3))
    padding = tuple(draw(integers(0, longest + 3)) for _ in range(4))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - padding[2 * i] - padding[2 * i + 1])
             for i in (0, 1)]
    size = tuple(draw(integers(low, low + longest)) for low in least)
    return make(draw(st.sampled_from(DTYPES)), draw(st.booleans()), draw(integers(1, 3)),
                draw(integers(1, 4)), size, draw(integers(1, 3)), kernel, padding, dilation,
                draw(st.booleans()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=problems())
def test_any_geometry(compare, problem):
    check(compare, problem)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('size', 'kernel'), [(7, 13), (14, 27), (24, 29), (32, 31), (33, 51)])
def test_shapes_of_networks(compare, dtype, size, kernel):
    check(compare, make(dtype, True, 2, 3, (size, size), 1, (kernel, kernel), (kernel // 2, ) * 4,
                        bias=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 40), kernel=st.integers(1, 40), before=st.integers(0, 50),
       after=st.integers(0, 50), dilation=st.integers(1, 4))
def test_length_is_sufficient_and_no_longer(size, kernel, before, after, dilation):
    """On a circle of that length, no tap reads a map point at an index where it is not."""
    out = size + before + after - dilation * (kernel - 1)
    if out < 1:
        return
    axis = fft._axis(size, out, kernel, before, dilation)
    met = {u for u in range(kernel) for o in range(out) if 0 <= o + dilation * u - before < size}
    assert met <= set(range(axis.first, axis.last))
    assert axis.last - axis.first in (len(met), 0) or dilation > size
    for tap, position in zip(range(axis.first, axis.last), axis.positions, strict=True):
        shift = dilation * tap - before
        assert position == shift % axis.length
        for o in range(out):
            index = (o + position) % axis.length
            assert index == o + shift if 0 <= o + shift < size else index >= size
    distances = [dilation * u - before for u in sorted(met)] or [0]
    assert axis.length == fft.fast_length(
        max(size - min(0, *distances, 0), out + max(0, *distances, 0)))


def test_same_padding_needs_little_more_than_the_map():
    """And not the K - 1 more of a padded convolution."""
    for size, kernel, longest in ((64, 31, 80), (16, 31, 32), (8, 51, 16), (56, 3, 60)):
        problem = make(size=(size, size), kernel=(kernel, kernel), padding=(kernel // 2, ) * 4)
        assert fft.plane_points(problem) == longest**2


def test_fast_lengths():
    for n in range(1, 700):
        length = fft.fast_length(n)
        assert length >= n
        assert length % 2 == 0
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        assert rest == 1
        assert length <= max(2, 1.25 * n + 1)


def test_small_workspaces(compare, monkeypatch):
    """Images and channels are taken in blocks, whose weights and sums must not be mixed up."""
    cases = [make(batch=3, channels=5, multiplier=m, size=(10, 11), kernel=(5, 4),
                  padding=(2, 2, 1, 2), bias=True) for m in (1, 2)]
    for planes in (1, 3, 7, 1000):
        for problem in cases:
            monkeypatch.setattr(fft, 'WORKSPACE', 3 * planes * fft.plane_bytes(problem))
            blocks = list(fft._blocks(problem))
            assert (len(blocks) == 1) == (planes == 1000)
            check(compare, problem)


def test_blocks_cover_everything_once_within_the_workspace(monkeypatch):
    problem = make(batch=5, channels=7, multiplier=2, size=(30, 31), kernel=(13, 13),
                   padding=(6, ) * 4)
    monkeypatch.setattr(fft, 'WORKSPACE', 20 * fft.plane_bytes(problem))
    for images_last in (False, True):
        seen = torch.zeros(5, 7, dtype=torch.long)
        for images, inputs, outputs in fft._blocks(problem, images_last):
            seen[images, inputs] += 1
            assert (outputs.start, outputs.stop) == (2 * inputs.start, 2 * inputs.stop)
            planes = (images.stop - images.start) * (outputs.stop - outputs.start)
            assert 3 * planes * fft.plane_bytes(problem) <= fft.WORKSPACE
        assert (seen == 1).all()


def test_what_it_cannot_serve():
    assert fft.supports(make()) == (True, 'an FFT convolution')
    for change, word in ((dict(stride=(2, 1)), 'stride 1'), (dict(device='xpu'), 'xpu'),
                         (dict(dtype=torch.complex64), 'complex64'),
                         (dict(size=(3000, 3000)), 'workspace')):
        ok, why = fft.supports(make(**change))
        assert not ok
        assert word in why


def test_kernels_that_meet_no_point(compare):
    """Every tap of some outputs, or of all, falls into the padding."""
    for padding in ((7, 0, 9, 0), (0, 8, 0, 9), (20, 20, 20, 20)):
        check(compare, make(size=(3, 2), kernel=(5, 4), padding=padding, bias=True))
    # Two taps, six apart, around a map of one row.
    problem = make(size=(1, 1), kernel=(2, 2), padding=(3, 3, 3, 3), dilation=(6, 6))
    check(compare, problem)
    assert not fft.weight_grad(*tensors(problem)[::3], problem).any()


# -- without the compiled kernels ------------------------------------------------------------------

@pytest.fixture
def no_kernels(monkeypatch):
    """As where there was no compiler; the choices that were made with kernels are forgotten."""
    monkeypatch.setattr(native, 'available', lambda: (False, 'left out by the test'))
    dispatch.forget()
    yield
    dispatch.forget()


def forbidden(*args, **keywords):
    raise AssertionError('compiled kernels were called')


@pytest.fixture
def forbid_kernels(no_kernels, monkeypatch):
    for name in ('direct_forward', 'direct_weight_grad', 'fft_spectrum', 'fft_forward',
                 'fft_weight_grad'):
        monkeypatch.setattr(native, name, forbidden)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('backend', ['auto', 'fft'])
def test_without_kernels(compare, forbid_kernels, dtype, backend):
    """Forward and gradients through the public function, large and small, with every argument."""
    for channels, multiplier, kernel, padding, dilation, last in (
            (3, 1, (31, 31), 'same', 1, False), (2, 2, (13, 8), (6, 9), 1, True),
            (3, 1, (5, 5), 4, (1, 2), False), (2, 1, (3, 3), 1, 1, True)):
        x = torch.randn(2, channels, 40, 37).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        inputs = [x, torch.randn(channels * multiplier, 1, *kernel).to(dtype),
                  torch.randn(channels * multiplier).to(dtype)]
        wide = [t.double().requires_grad_() for t in inputs]
        inputs = [t.requires_grad_() for t in inputs]
        right = F.conv2d(*wide, 1, padding, dilation, channels)
        grad = torch.rand(right.shape).to(dtype)  # no sum of it cancels
        out = large_kernel_dwconv2d(*inputs, 1, padding, dilation, backend=backend)
        compare(out.detach(), right.detach(), dtype)
        with torch.no_grad():
            compare(large_kernel_dwconv2d(*inputs, 1, padding, dilation, backend=backend),
                    right.detach(), dtype)
        out.backward(grad)
        right.backward(grad.double())
        for actual, wanted in zip(inputs, wide, strict=True):
            compare(actual.grad, wanted.grad, dtype)


def test_without_kernels_the_choice_says_so(forbid_kernels):
    large = torch.rand(1, 8, 64, 64), torch.rand(8, 1, 31, 31)
    choice = explain(*large, None, 1, 15)
    assert choice.backend == 'fft'
    assert choice.candidates['direct'] == 'left out by the test'
    assert explain(torch.rand(1, 8, 64, 64), torch.rand(8, 1, 3, 3), None, 1, 1).backend == 'torch'
    for function in (large_kernel_dwconv2d, explain):
        with pytest.raises(RuntimeError, match='direct.* cannot serve.*left out by the test'):
            function(*large, None, 1, 15, backend='direct')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('where', ['x', 'weight', 'bias'])
def test_without_kernels_bad_values_spread_as_in_a_direct_sum(compare, forbid_kernels, dtype, value,
                                                              where):
    x, weight, bias = torch.randn(2, 3, 30, 28), torch.randn(3, 1, 13, 13), torch.randn(3)
    # The tap in the middle meets the map at every output (see test_kept_spectra.py).
    spoilt, index = dict(x=(x, (1, 2, 5, 27)), weight=(weight, (1, 0, 6, 6)),
                         bias=(bias, (0, )))[where]
    spoilt[index] = value
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    right = F.conv2d(x.double(), weight.double(), bias.double(), 1, 6, 1, 3)
    with torch.no_grad():
        out = large_kernel_dwconv2d(x, weight, bias, 1, 6, backend='fft')
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(test(out), test(right))
    compare(out, right, dtype)


def test_without_kernels_second_derivatives(forbid_kernels):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
              for shape in ((2, 2, 8, 9), (4, 1, 5, 6), (4, ))]

    def function(*args):
        return large_kernel_dwconv2d(*args, 1, (2, 7), 1, backend='fft')

    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
