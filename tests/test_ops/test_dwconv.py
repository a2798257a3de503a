import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d
from mmreplk.ops.cpu import FFTDepthwiseConv, fast_length
from mmreplk.ops.functional import MIN_FFT_KERNEL

# (rtol, atol) against a float64 reference, for values of order 1 summed over up to 961 taps.
TOLERANCE = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-4, 1e-4),
    torch.bfloat16: (2e-2, 1e-1),
    torch.float16: (2e-3, 2e-2),
}


def reference(x, weight, bias=None):
    """The specification, in float64."""
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(),
                    padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=weight.shape[0])


def same(weight):
    return (weight.shape[2] // 2, weight.shape[3] // 2)


def setup(n, c, h, w, kh, kw, dtype=torch.float32, layout='contiguous'):
    x = torch.randn(n, c, h, w, dtype=dtype)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    elif layout == 'sliced':
        x = torch.randn(n, c, h + 2, 2 * w, dtype=dtype)[:, :, 1:-1, ::2]
    return x, torch.randn(c, 1, kh, kw, dtype=dtype)


odd = st.integers(0, 16).map(lambda i: 2 * i + 1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=st.integers(1, 3), c=st.integers(1, 4), h=st.integers(1, 24), w=st.integers(1, 24),
       kh=odd, kw=odd)
def test_fft_product_and_gradients_on_any_shape(n, c, h, w, kh, kw):
    """The FFT itself, below its threshold too, maps smaller than the kernel included."""
    x, weight = setup(n, c, h, w, kh, kw, torch.float64)
    grad = torch.randn_like(x)
    results = []
    for function in (FFTDepthwiseConv.apply, reference):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = function(a, b)
        out.backward(grad)
        results.append((out, a.grad, b.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
@pytest.mark.parametrize(
    'shape', [(2, 6, 32, 32, 31, 31), (1, 4, 17, 40, 29, 13), (2, 3, 5, 7, 27, 27)])
def test_dtypes_and_layouts(shape, layout, dtype):
    x, weight = setup(*shape, dtype, layout)
    bias = torch.randn(shape[1], dtype=dtype)
    out = large_kernel_dwconv2d(x, weight, bias, same(weight))
    assert out.dtype == dtype
    if layout == 'channels_last':
        assert out.is_contiguous(memory_format=torch.channels_last)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), reference(x, weight, bias), rtol=rtol, atol=atol)


def test_second_derivatives():
    x, weight = setup(2, 2, 5, 6, MIN_FFT_KERNEL, MIN_FFT_KERNEL, torch.float64)
    x.requires_grad_()
    weight.requires_grad_()
    function = lambda a, b: large_kernel_dwconv2d(a, b, None, same(weight))  # noqa: E731
    assert function(x, weight).grad_fn.name().startswith('FFTDepthwiseConv')
    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@pytest.mark.parametrize('which', ['x', 'weight'])
def test_only_the_wanted_gradient(which):
    x, weight = setup(1, 2, 16, 16, 13, 13)
    (x if which == 'x' else weight).requires_grad_()
    large_kernel_dwconv2d(x, weight, None, 6).sum().backward()
    assert (x.grad is None) == (which == 'weight')
    assert (weight.grad is None) == (which == 'x')


def test_saves_input_and_weight_alone():
    x, weight = setup(2, 4, 32, 32, 31, 31)
    weight.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        large_kernel_dwconv2d(x, weight, None, 15)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}


@pytest.mark.parametrize(('kernel', 'padding'), [
    ((13, 13), 0), ((13, 13), (6, 5)), ((12, 12), 6), ((3, 3), 1), ((13, 3), (6, 1)),
    ((13, 13), 'valid'), ((12, 13), 'same')])
def test_what_the_fft_does_not_take_goes_to_pytorch(kernel, padding):
    x, weight = setup(1, 3, 20, 20, *kernel)
    weight.requires_grad_()
    out = large_kernel_dwconv2d(x, weight, None, padding)
    assert 'FFT' not in out.grad_fn.name()
    assert torch.equal(out, F.conv2d(x, weight, None, padding=padding, groups=3))


@pytest.mark.parametrize('padding', [6, (6, 6), [6, 6], 'same'])
def test_same_padding_in_every_spelling_takes_the_fft(padding):
    x, weight = setup(1, 3, 20, 20, 13, 13)
    weight.requires_grad_()
    assert 'FFT' in large_kernel_dwconv2d(x, weight, None, padding).grad_fn.name()


@pytest.mark.parametrize('x', [torch.rand(1, 4, 9, 9), torch.rand(3, 9, 9, 9, 9),
                               torch.rand(1, 3, 9, 9, dtype=torch.float64)])
def test_bad_input_raises_what_pytorch_raises(x):
    with pytest.raises(RuntimeError) as expected:
        F.conv2d(x, torch.rand(3, 1, 9, 9), padding=4, groups=3)
    with pytest.raises(RuntimeError) as actual:
        large_kernel_dwconv2d(x, torch.rand(3, 1, 9, 9), None, 4)
    assert str(actual.value) == str(expected.value)


def test_empty_batch():
    assert large_kernel_dwconv2d(torch.rand(0, 3, 9, 9), torch.rand(3, 1, 9, 9), None, 4).shape == (
        0, 3, 9, 9)


def test_autocast():
    x, weight = setup(2, 4, 32, 32, 31, 31)
    weight.requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = large_kernel_dwconv2d(x, weight, None, 15)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_repeats_bit_for_bit():
    x, weight = setup(3, 4, 24, 24, 21, 21)
    runs = []
    for _ in range(5):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = large_kernel_dwconv2d(a, b, None, 10)
        out.square().sum().backward()
        runs.append((out, a.grad, b.grad))
    for run in runs[1:]:
        assert all(torch.equal(p, q) for p, q in zip(run, runs[0], strict=True))


def test_fast_length():
    assert [fast_length(n) for n in (1, 7, 47, 61, 97, 143)] == [2, 8, 48, 64, 100, 144]


class TestModule:

    def test_is_a_conv2d(self):
        plain = nn.Conv2d(4, 4, 13, padding=6, groups=4)
        ours = LargeKernelDWConv2d(4, 4, 13, padding=6, groups=4)
        ours.load_state_dict(plain.state_dict())
        x = torch.randn(2, 4, 16, 18)
        assert 'FFT' in str(ours(x).grad_fn.next_functions)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('kwargs', [
        dict(groups=1), dict(groups=4, stride=2), dict(groups=4, dilation=2),
        dict(groups=4, padding_mode='reflect'), dict(groups=2)])
    def test_falls_back(self, kwargs):
        ours = LargeKernelDWConv2d(4, 4, 13, padding=6, **kwargs)
        plain = nn.Conv2d(4, 4, 13, padding=6, **kwargs)
        plain.load_state_dict(ours.state_dict())
        x = torch.randn(2, 4, 16, 18)
        assert torch.equal(ours(x), plain(x))

    def test_channel_multiplier_falls_back(self):
        ours = LargeKernelDWConv2d(4, 8, 13, padding=6, groups=4)
        plain = nn.Conv2d(4, 8, 13, padding=6, groups=4)
        plain.load_state_dict(ours.state_dict())
        x = torch.randn(2, 4, 16, 18)
        assert torch.equal(ours(x), plain(x))


def test_needs_nothing_but_torch():
    code = '''
import importlib.util as util, sys
for name in ("mmengine", "mmcv", "numpy", "triton"):
    sys.modules[name] = None
found = util.find_spec
util.find_spec = lambda name, *a: None if name in ("mmengine", "mmcv") else found(name, *a)
import torch
from mmreplk.ops import LargeKernelDWConv2d
print(LargeKernelDWConv2d(2, 2, 31, padding=15, groups=2)(torch.rand(1, 2, 8, 8)).shape)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'torch.Size([1, 2, 8, 8])' in done.stdout, done.stderr
