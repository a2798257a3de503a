import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from mmreplk.ops import explain, large_kernel_dwconv2d
from mmreplk.ops.functional import TINY, problem_of
from mmreplk.ops.reference import reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ['contiguous', 'channels_last', 'sliced', 'sliced_channels_last', 'expanded']


def with_layout(x, layout):
    """The values of x in another layout."""
    n, c, h, w = x.shape
    if layout == 'channels_last':
        return x.to(memory_format=torch.channels_last)
    if layout == 'expanded':
        return x[:, :1].expand(n, c, h, w)
    if layout != 'contiguous':
        last = layout == 'sliced_channels_last'
        room = torch.full((n + 1, c + 2, h + 2, 2 * w), torch.nan, dtype=x.dtype).to(
            memory_format=torch.channels_last if last else torch.contiguous_format)
        view = room[1:, 1:-1, 1:-1, :w] if last else room[1:, 1:-1, 1:-1, ::2]
        view.copy_(x)
        return view
    return x


def expected(x, weight, bias, stride, padding, dilation):
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns of its copy for even kernels
        return F.conv2d(*wide, stride, padding, dilation, x.shape[1])


pairs = st.tuples(st.integers(0, 20), st.integers(0, 20))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(1, 3), c=st.integers(1, 20), h=st.integers(1, 40),
       w=st.integers(1, 40), kh=st.integers(1, 51), kw=st.integers(1, 51),
       multiplier=st.sampled_from([1, 1, 1, 2, 3]), stride=st.sampled_from([1, 1, 1, 2, (1, 3)]),
       dilation=st.sampled_from([1, 1, 1, 2, (3, 1)]), with_bias=st.booleans(),
       padding=st.one_of(st.sampled_from(['same', 'valid']), st.integers(0, 30), pairs),
       dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS),
       backend=st.sampled_from(['auto', 'auto', 'fft', 'direct', 'torch']))
def test_equals_conv2d_on_every_input(compare, data, n, c, h, w, kh, kw, multiplier, stride,
                                      dilation, with_bias, padding, dtype, layout, backend):
    x = with_layout(torch.randn(n, c, h, w).to(dtype), layout)
    weight = torch.randn(c * multiplier, 1, kh, kw).to(dtype)
    bias = torch.randn(c * multiplier).to(dtype) if with_bias else None
    arguments = (x, weight, bias, stride, padding, dilation)
    try:
        right = expected(*arguments)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as ours:
            large_kernel_dwconv2d(*arguments)
        why = str(error)
        assert str(ours.value).split('Double')[0] == why.split('Double')[0]
        return
    try:
        out = large_kernel_dwconv2d(*arguments, backend=backend)
    except RuntimeError as error:
        why = str(error)
        assert backend in ('fft', 'direct')
        assert f"backend='{backend}' cannot serve" in why
        return
    assert out.dtype == dtype
    compare(out, right, dtype)
    problem = problem_of(*arguments)
    assert out.is_contiguous(memory_format=problem.memory_format)
    compare(reference(x, weight, bias, problem), right, torch.float64)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(n=st.integers(1, 3), c=st.integers(1, 10), h=st.integers(1, 24), w=st.integers(1, 24),
       kh=st.integers(1, 31), kw=st.integers(1, 31), multiplier=st.sampled_from([1, 1, 2]),
       dilation=st.sampled_from([1, 1, 2]), padding=st.one_of(st.just('same'), st.integers(0, 20)),
       dtype=st.sampled_from(DTYPES), last=st.booleans(), which=st.integers(1, 7),
       backend=st.sampled_from(['auto', 'fft', 'torch']))
def test_gradients_equal_conv2ds(compare, n, c, h, w, kh, kw, multiplier, dilation, padding, dtype,
                                 last, which, backend):
    x = torch.randn(n, c, h, w).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    inputs = [x, torch.randn(c * multiplier, 1, kh, kw).to(dtype),
              torch.randn(c * multiplier).to(dtype)]
    wide = [t.detach().double() for t in inputs]
    for bit, (a, b) in enumerate(zip(inputs, wide, strict=True)):
        a.requires_grad_(bool(which >> bit & 1))
        b.requires_grad_(bool(which >> bit & 1))
    try:
        right = expected(*wide, 1, padding, dilation)
    except RuntimeError:
        return
    out = large_kernel_dwconv2d(*inputs, 1, padding, dilation, backend=backend)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    right.backward(grad.double())
    for actual, wanted in zip(inputs, wide, strict=True):
        assert (actual.grad is None) == (wanted.grad is None)
        if actual.grad is not None:
            # PyTorch's own gradients of 16-bit weights miss the tolerance, by up to a quarter.
            compare(actual.grad, wanted.grad, dtype, times=2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_pytorchs_own_samples(dtype):
    """Every sample of PyTorch's convolution tests, as depth-wise as it allows."""
    info = next(op for op in op_db if op.name == 'nn.functional.conv2d')
    seen = 0
    for sample in info.sample_inputs('cpu', dtype):
        keywords = dict(sample.kwargs)
        weight, *rest = sample.args
        bias = rest[0] if rest else keywords.pop('bias', None)
        channels = sample.input.shape[-3]
        if keywords.pop('groups', 1) != channels:
            # As depth-wise as the sample allows: its input with kernels of their own.
            weight = torch.randn(channels, 1, *weight.shape[2:], dtype=dtype)
            bias = None if bias is None else torch.randn(channels, dtype=dtype)
        want = F.conv2d(sample.input, weight, bias, **keywords, groups=channels)
        for backend in ('auto', 'torch'):
            out = large_kernel_dwconv2d(sample.input, weight, bias, **keywords, backend=backend)
            torch.testing.assert_close(out, want)
        seen += 1
    assert seen > 10


def test_output_keeps_the_memory_format():
    weight = torch.randn(6, 1, 13, 13)
    x = torch.randn(2, 6, 32, 32)
    for backend in ('auto', 'fft', 'torch'):
        last = large_kernel_dwconv2d(
            x.to(memory_format=torch.channels_last), weight, None, 1, 6, backend=backend)
        assert last.is_contiguous(memory_format=torch.channels_last)
        for layout in (x, x[..., ::2]):
            # Channels-last weights alone make PyTorch's convolution change the format.
            out = large_kernel_dwconv2d(
                layout, weight.to(memory_format=torch.channels_last), None, 1, 6, backend=backend)
            assert out.is_contiguous()


@pytest.mark.parametrize('backend', ['auto', 'fft', 'torch'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_spread_as_in_a_direct_sum(value, backend, compare):
    for last in (False, True):
        x, weight = torch.randn(2, 5, 40, 36), torch.randn(5, 1, 13, 13)
        x[0, 1, 3, 30] = x[1, 4, 20, 0] = value
        x = x.to(memory_format=torch.channels_last) if last else x
        out = large_kernel_dwconv2d(x, weight, None, 1, 6, backend=backend)
        compare(out, expected(x, weight, None, 1, 6, 1), torch.float32)


def test_unbatched():
    x, weight = torch.randn(5, 20, 22), torch.randn(5, 1, 13, 13)
    out = large_kernel_dwconv2d(x, weight, None, 1, 6)
    torch.testing.assert_close(out, F.conv2d(x, weight, None, 1, 6, 1, 5), rtol=1e-4, atol=1e-4)


def test_integers_of_numpy():
    x, weight, number = torch.randn(2, 8, 30, 30), torch.randn(8, 1, 13, 13), np.int64(2)
    found = large_kernel_dwconv2d(x, weight, None, np.int64(1), number, number)
    wanted = F.conv2d(x, weight, None, 1, 2, 2, 8)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert explain(x, weight, None, np.int64(1), number, number).backend


def test_absurd_padding_is_an_error_at_once():
    with pytest.raises(RuntimeError):
        large_kernel_dwconv2d(torch.randn(2, 8, 30, 30), torch.randn(8, 1, 13, 13), padding=2**40)


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct', 'torch'])
def test_strided_bias(compare, backend):
    x, weight = torch.randn(2, 8, 30, 30), torch.randn(8, 1, 13, 13)
    for bias in (torch.randn(16)[::2], torch.randn(1).expand(8), torch.randn(8, 3)[:, 1]):
        for kind in (torch.float32, torch.bfloat16):
            leaves = [t.to(kind) for t in (x, weight)] + [bias.to(kind)]
            compare(large_kernel_dwconv2d(*leaves, padding=6, backend=backend),
                    F.conv2d(*(t.double() for t in leaves), padding=6, groups=8), kind)


@pytest.mark.parametrize('backend', ['auto', 'fft'])
@pytest.mark.parametrize('which', range(3))
def test_tensors_whose_memory_does_not_hold_their_values(compare, which, backend):
    """Lazy negation, as of ``z.conj().imag``, and zeros without memory, as of forward-mode AD."""
    tensors = [torch.randn(2, 8, 30, 30), torch.randn(8, 1, 13, 13), torch.randn(8)]
    negative, zero = list(tensors), list(tensors)
    negative[which] = torch._neg_view(tensors[which])
    zero[which] = torch._efficientzerotensor(tensors[which].shape)
    for lazy in (negative, zero):
        plain = [t.clone().double() for t in lazy]
        compare(large_kernel_dwconv2d(*lazy, padding=6, backend=backend),
                F.conv2d(*plain, padding=6, groups=8), torch.float32)


def test_empty_batch():
    x = torch.rand(0, 3, 40, 40, requires_grad=True)
    weight = torch.rand(3, 1, 9, 9, requires_grad=True)
    out = large_kernel_dwconv2d(x, weight, None, 1, 5)
    assert out.shape == F.conv2d(x, weight, None, 1, 5, 1, 3).shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


BAD = {
    'rank of the input': (torch.rand(3, 40), torch.rand(3, 1, 9, 9), None, 1, 4, 1),
    'five dimensions': (torch.rand(3, 3, 9, 9, 9), torch.rand(3, 1, 9, 9), None, 1, 4, 1),
    'rank of the weight': (torch.rand(1, 3, 40, 40), torch.rand(3, 9, 9), None, 1, 4, 1),
    'channels': (torch.rand(1, 4, 40, 40), torch.rand(3, 1, 9, 9), None, 1, 4, 1),
    'not depth-wise': (torch.rand(1, 4, 40, 40), torch.rand(4, 2, 9, 9), None, 1, 4, 1),
    'dense': (torch.rand(1, 3, 40, 40), torch.rand(3, 3, 9, 9), None, 1, 4, 1),
    'dtype of the weight': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9).double(), None, 1, 4,
                            1),
    'dtype of the bias': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), torch.rand(3).half(), 1,
                          4, 1),
    'size of the bias': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), torch.rand(4), 1, 4, 1),
    'negative padding': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 1, -1, 1),
    'three paddings': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 1, (1, 2, 3), 1),
    'word of the padding': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 1, 'full', 1),
    'same with a stride': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 2, 'same', 1),
    'no stride': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 0, 4, 1),
    'negative dilation': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), None, 1, 4, -1),
    'kernel too large': (torch.rand(1, 3, 40, 40), torch.rand(3, 1, 49, 49), None, 1, 4, 1),
    'no rows': (torch.rand(2, 3, 0, 40), torch.rand(3, 1, 9, 9), None, 1, 5, 1),
}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('backend', ['auto', 'fft'])
def test_bad_input_raises_what_pytorch_raises(case, backend):
    x, weight, *rest = BAD[case]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.conv2d(x, weight, *rest, x.shape[1])
    for function in (large_kernel_dwconv2d, explain):
        with pytest.raises(type(theirs.value)) as ours:
            function(x, weight, *rest, backend=backend)
        if function is large_kernel_dwconv2d:
            assert str(ours.value) == str(theirs.value)


def test_3d_weights_and_quantized_ones_are_refused_in_words():
    x = torch.rand(1, 4, 16, 16)
    with pytest.raises(RuntimeError, match=r'not \(4, 1, 3, 3, 3\): .*F.conv3d'):
        large_kernel_dwconv2d(x, torch.rand(4, 1, 3, 3, 3))
    weight = torch.quantize_per_tensor(torch.rand(4, 1, 9, 9), 0.1, 0, torch.qint8)
    with pytest.raises(RuntimeError, match=r'is quantized, .*dequantize\(\)'):
        large_kernel_dwconv2d(x, weight, padding=4)


def test_unknown_backend():
    x, weight = torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9)
    for function in (large_kernel_dwconv2d, explain):
        with pytest.raises(ValueError, match="auto, triton, cuda, fft, direct, torch, not 'cudnn'"):
            function(x, weight, backend='cudnn')


def test_a_forced_backend_that_cannot_serve_says_why():
    x, weight = torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9)
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot serve.*input is on the CPU"):
        large_kernel_dwconv2d(x, weight, None, 1, 4, backend='triton')
    with pytest.raises(RuntimeError, match=r"backend='fft' cannot serve.*stride 1, not \(2, 2\)"):
        large_kernel_dwconv2d(x, weight, None, 2, 4, backend='fft')
    with pytest.raises(RuntimeError, match=r"backend='direct' cannot serve"):
        large_kernel_dwconv2d(x.double(), weight.double(), None, 1, 4, backend='direct')


def test_explain_names_what_runs():
    x, weight = torch.rand(1, 32, 64, 64), torch.rand(32, 1, 31, 31)
    choice = explain(x, weight, None, 1, 15)
    assert choice.backend == 'fft'
    assert 'estimate' in choice.reason
    assert set(choice.candidates) == {'triton', 'cuda', 'fft', 'direct', 'torch'}
    assert choice.candidates['fft'] < choice.candidates['torch']
    assert 'on the CPU' in choice.candidates['triton']
    assert str(choice).count('\n') == 5
    assert explain(x, weight, None, 1, 15, backend='torch').reason == 'asked for by name'
    assert explain(x, weight, None, 2, 15).backend == 'torch'
    small = torch.rand(1, 1, 7, 7), torch.rand(1, 1, 3, 3)
    assert small[0].numel() * 9 < TINY
    assert explain(*small, None, 1, 1).backend == 'torch'
    assert explain(x.to(torch.complex64), weight.to(torch.complex64)).backend == 'torch'


def test_complex_goes_to_pytorch():
    x, weight = torch.randn(1, 3, 40, 40) + 1j, torch.randn(3, 1, 9, 9) - 1j
    assert torch.equal(large_kernel_dwconv2d(x, weight, None, 1, 4),
                       F.conv2d(x, weight, None, 1, 4, 1, 3))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, weight = torch.randn(2, 4, 32, 32), torch.randn(4, 1, 31, 31, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    with torch.autocast('cpu', dtype=dtype):
        out = large_kernel_dwconv2d(x, weight, bias, 1, 15)
        # autocast leaves float64 alone, as it does for PyTorch's convolution
        assert large_kernel_dwconv2d(
            x.double(), weight.double(), bias.double(), 1, 15).dtype == torch.float64
        mixed = large_kernel_dwconv2d(x.to(dtype), weight, bias, 1, 15)
    assert out.dtype == dtype
    assert torch.equal(out, mixed)
    out.float().sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.float32


def test_saves_input_and_weight_alone():
    x, weight = torch.randn(2, 4, 32, 32), torch.randn(4, 1, 31, 31, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        large_kernel_dwconv2d(x, weight, torch.randn(4), 1, 15)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}


def test_second_derivatives():
    x = torch.randn(2, 2, 12, 13, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(a, b, c):
        return large_kernel_dwconv2d(a, b, c, 1, (3, 9), 1, backend='fft')

    name = type(function(x, weight, bias).grad_fn).__name__
    assert name.startswith('GeneratedBackwardFor_mmreplk_dwconv2d')
    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias), fast_mode=True)


def test_repeats_bit_for_bit():
    x, weight = torch.randn(3, 4, 24, 24), torch.randn(4, 1, 21, 21)
    runs = []
    for _ in range(5):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = large_kernel_dwconv2d(a, b, None, 1, 10)
        out.square().sum().backward()
        runs.append((out, a.grad, b.grad))
    for run in runs[1:]:
        assert all(torch.equal(p, q) for p, q in zip(run, runs[0], strict=True))


def test_many_threads_at_once():
    jobs = [(torch.randn(2, c, 20 + c, 30), torch.randn(c, 1, 13, 9)) for c in range(1, 9)]
    right = [large_kernel_dwconv2d(x, w, None, 1, (6, 4)) for x, w in jobs]
    wrong = []

    def work(start):
        for i in range(40):
            x, w = jobs[(start + i) % len(jobs)]
            if not torch.equal(large_kernel_dwconv2d(x, w, None, 1, (6, 4)),
                               right[(start + i) % len(jobs)]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i, )) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_choices_pickle_and_copy():
    choice = explain(torch.rand(1, 3, 64, 64), torch.rand(3, 1, 31, 31), None, 1, 15)
    assert pickle.loads(pickle.dumps(choice)) == copy.deepcopy(choice) == choice
