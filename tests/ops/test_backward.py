"""Both gradients in one pass, of one kernel or of the two branches of a block."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mmreplk.models.reparam import ReparamLargeKernelConv
from mmreplk.ops import functional, large_kernel_dwconv2d, large_kernel_dwconv2d_pair
from mmreplk.ops.cpu import backend as cpu, kernels as native
from mmreplk.ops.problem import memory_format_of

OPS = torch.ops.mmreplk
needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
FORMATS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(x, weights, grads, paddings, dilations):
    """Gradients in float64."""
    x, *weights = (t.detach().double().requires_grad_() for t in (x, *weights))
    outs = [F.conv2d(x, w, None, 1, p, d, x.shape[1])
            for w, p, d in zip(weights, paddings, dilations, strict=True)]
    return torch.autograd.grad(outs, [x, *weights], [g.double() for g in grads])


@pytest.fixture
def passes(monkeypatch):
    """Of how many kernels the gradients were computed in one, each time."""
    calls, run = [], cpu.backward
    monkeypatch.setattr(cpu, 'backward', lambda *args: calls.append(len(args[3])) or run(*args))
    return calls


@st.composite
def problems(draw):
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 3)]))
    padding = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    kernel = tuple(draw(st.integers(1, min(33, (s + 2 * p - 1) // d + 1)))
                   for s, p, d in zip(size, padding, dilation, strict=True))
    return (draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 16, 33])), size, kernel, padding,
            dilation, draw(st.sampled_from(sorted(FORMATS))), draw(st.integers(0, 99)))


@needs_kernels
@pytest.mark.parametrize('isa', range(len(native.isas()) if native.available()[0] else 0))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems())
def test_kernel(compare, isa, problem):
    """Every instruction set; one kernel, and with it a smaller one where that lies inside."""
    batch, channels, size, kernel, padding, dilation, layout, seed = problem
    x = normal(batch, channels, *size, seed=seed).contiguous(memory_format=FORMATS[layout])
    weight = normal(channels, 1, *kernel, seed=seed + 1)
    first = functional.problem_of(x, weight, None, 1, padding, dilation)
    grad = normal(*first.out_shape, seed=seed + 2).contiguous(memory_format=first.memory_format)
    branches = [(weight, grad, first, padding, dilation)]
    # The same without the outermost taps, where the padding allows it.
    if min(kernel) >= 3 and min(padding) >= max(dilation):
        inner = normal(channels, 1, *(k - 2 for k in kernel), seed=seed + 3)
        sides = tuple(p - d for p, d in zip(padding, dilation, strict=True))
        second = functional.problem_of(x, inner, None, 1, sides, dilation)
        assert cpu._within(second, first)
        other = normal(*second.out_shape, seed=seed + 4).contiguous(
            memory_format=first.memory_format)
        branches.append((inner, other, second, sides, dilation))
    weights, grads, shapes, paddings, dilations = zip(*branches, strict=True)
    actual = native.fft_backward(
        x, list(zip(weights, grads, shapes, strict=True)), isa)
    assert actual is not None
    right = expected(x, weights, grads, paddings, dilations)
    for a, b in zip((actual[0], *actual[1]), right, strict=True):
        compare(a, b, torch.float32, times=3)
    assert memory_format_of(actual[0]) == first.memory_format


@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('layout', FORMATS)
def test_pair(compare, passes, dtype, layout):
    x = normal(2, 20, 40, 37, dtype=dtype).contiguous(memory_format=FORMATS[layout])
    weights = [normal(20, 1, 31, 27, seed=1, dtype=dtype), normal(20, 1, 5, 3, seed=2, dtype=dtype)]
    leaves = [t.requires_grad_() for t in (x, *weights)]
    outs = large_kernel_dwconv2d_pair(*leaves, backend='fft')
    grads = [normal(*x.shape, seed=3 + i, dtype=dtype) for i in range(2)]
    actual = torch.autograd.grad(outs, leaves, grads)
    assert passes == [2]
    right = expected(x, weights, grads, [(15, 13), (2, 1)], [1, 1])
    for a, b in zip(actual, right, strict=True):
        assert a.dtype == dtype
        compare(a, b, dtype, times=2)
    for out, weight in zip(outs, weights, strict=True):
        single = large_kernel_dwconv2d(
            x, weight, padding=[k // 2 for k in weight.shape[2:]], backend='fft')
        assert torch.equal(out, single)
        assert memory_format_of(out) == FORMATS[layout]


@needs_kernels
def test_auto_takes_it_where_it_pays(passes):
    """The branches of RepLKNet-31B's first stage, and what is not covered."""
    def train(x, *weights):
        leaves = [t.requires_grad_() for t in (x, *weights)]
        outs = large_kernel_dwconv2d_pair(*leaves)
        torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])

    train(normal(1, 32, 64, 64), normal(32, 1, 31, 31), normal(32, 1, 5, 5))
    assert passes == [2]
    train(normal(1, 8, 9, 9).double(), normal(8, 1, 7, 7).double(), normal(8, 1, 3, 3).double())
    train(normal(1, 8, 20, 20), normal(16, 1, 7, 7), normal(16, 1, 3, 3))  # a multiplier
    train(normal(1, 8, 20, 20), normal(8, 1, 5, 5), normal(8, 1, 7, 7))  # the larger one second
    assert passes.count(2) == 1


@needs_kernels
@pytest.mark.parametrize('which', ['x', 'weight', 'grad'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_nan_and_inf_spread_as_in_pytorch(which, value):
    parts = dict(x=normal(1, 4, 30, 30), weight=normal(4, 1, 13, 13, seed=1),
                 grad=normal(1, 4, 30, 30, seed=2))
    # Far enough from the edge: PyTorch's kernels also multiply what lies beside the map, by 0.
    parts[which][(1, 0, 3, 4) if which == 'weight' else (0, 1, 15, 16)] = value
    x, weight, grad = parts.values()

    def gradients(conv, **keywords):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        return torch.autograd.grad(conv(*leaves, padding=6, **keywords), leaves, grad)

    actual = gradients(large_kernel_dwconv2d, backend='fft')
    for a, b in zip(actual, gradients(F.conv2d, groups=4), strict=True):
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
        torch.testing.assert_close(a[torch.isfinite(a)], b[torch.isfinite(b)], rtol=1e-4, atol=1e-3)


@needs_kernels
def test_threads_and_repeats_agree_to_the_bit():
    x, weights = normal(2, 50, 60, 60), [normal(50, 1, 29, 29, seed=1), normal(50, 1, 5, 5, seed=2)]
    grads, threads = [normal(2, 50, 60, 60, seed=3 + i) for i in range(2)], torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(OPS.dwconv2d_backward(
                x, grads, weights, [14] * 4 + [2] * 4, [1] * 4, 'fft'))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize('backend', ['auto', 'fft?', 'torch'])
def test_opcheck(opcheck, backend):
    x = normal(2, 3, 14, 12).requires_grad_()
    weights = [normal(3, 1, *kernel, seed=1).requires_grad_() for kernel in ((7, 5), (3, 3))]
    grads = [normal(2, 3, 14, 12, seed=3 + i).requires_grad_() for i in range(2)]
    close = dict(rtol=1e-4, atol=1e-4)
    paddings = [3, 3, 2, 2, 1, 1, 1, 1]
    opcheck(OPS.dwconv2d_pair, (x, *weights, paddings[:4], paddings[4:], [1, 1], backend), **close)
    opcheck(OPS.dwconv2d_backward, (x, grads, weights, paddings, [1] * 4, backend), **close)


@pytest.mark.parametrize('backend', ['auto', 'fft?', 'direct?', 'torch'])
@pytest.mark.parametrize('last', [False, True])
def test_the_inputs_gradient_has_the_inputs_format(backend, last):
    """Whatever that of the output's gradient is: a compiled graph relies on what the fake says."""
    formats = [torch.contiguous_format, torch.channels_last]
    x = normal(2, 8, 20, 20).contiguous(memory_format=formats[last])
    grad = normal(2, 8, 20, 20).contiguous(memory_format=formats[not last])
    found = OPS.dwconv2d_backward(x, [grad], [normal(8, 1, 7, 7)], [3] * 4, [1, 1], backend)
    assert found[0].stride() == x.stride()


@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('room', [2_000_000, 100_000, 1000])
def test_in_pieces(monkeypatch, compare, layout, dtype, room):
    """Large copies and spectra are made piece by piece, of channels and of images."""
    x = normal(3, 50, 20, 22, dtype=dtype).contiguous(memory_format=FORMATS[layout])
    weights = [normal(50, 1, 9, 9, seed=1, dtype=dtype), normal(50, 1, 3, 3, seed=2, dtype=dtype)]
    grads = [normal(*x.shape, seed=3 + i, dtype=dtype) for i in range(2)]
    monkeypatch.setattr(cpu, 'WORKSPACE', room)

    def problem(weight):
        return functional.problem_of(x, weight, None, 1, weight.shape[-1] // 2, 1)

    seen = [(piece.images, piece.outputs) for piece in cpu._pieces(problem(weights[0]), True, x)]
    assert len(seen) > 1 or room > 1_000_000
    for backend in ('fft', 'direct'):
        leaves = [t.requires_grad_() for t in (x, *weights)]
        outs = large_kernel_dwconv2d_pair(*leaves, backend=backend)
        actual = torch.autograd.grad(outs, leaves, grads)
        for a, b in zip(actual, expected(x, weights, grads, [4, 1], [1, 1]), strict=True):
            compare(a, b, dtype, times=2)
        assert actual[0].stride() == x.stride()
        for out, weight in zip(outs, weights, strict=True):
            with torch.no_grad():  # with a kept spectrum, of which a part serves a piece
                kept = large_kernel_dwconv2d(x, weight, None, 1, weight.shape[-1] // 2,
                                             backend=backend)
            right = F.conv2d(x.double(), weight.double(), None, 1, weight.shape[-1] // 2, 1, 50)
            compare(out, right, dtype)
            assert torch.equal(out, kept)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_second_derivatives(compare, dtype):
    x, weight, small = (normal(2, 3, 9, 8, dtype=dtype), normal(3, 1, 7, 5, seed=1, dtype=dtype),
                        normal(3, 1, 3, 3, seed=2, dtype=dtype))

    def second(pair, *leaves):
        leaves = [t.detach().requires_grad_() for t in leaves]
        outs = pair(*leaves)
        first = torch.autograd.grad([out.square().sum() for out in outs], leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(3).sum() for g in first), leaves)

    def plain(x, *weights):
        return [F.conv2d(x, w, padding=[k // 2 for k in w.shape[2:]], groups=3) for w in weights]

    actual = second(lambda *leaves: large_kernel_dwconv2d_pair(*leaves, backend='fft'), x, weight,
                    small)
    right = second(plain, x.double(), weight.double(), small.double())
    for a, b in zip(actual, right, strict=True):
        compare(a, b, dtype, times=100)


def test_vmap():
    x, weight = normal(3, 2, 4, 10, 10), normal(4, 1, 5, 5, seed=1)
    grad = normal(3, 2, 4, 10, 10, seed=2)

    def gradients(x, grad):
        return OPS.dwconv2d_backward(x, [grad], [weight], [2] * 4, [1, 1], 'auto')

    mapped = torch.func.vmap(gradients)(x, grad)
    for i in range(3):
        for a, b in zip(mapped, gradients(x[i], grad[i]), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('size', 'kernel', 'padding'), [
    ((4, 5), 21, 12), ((36, 23), 28, (27, 26)), ((3, 40), 5, 4), ((2, 2), 3, 9), ((30, 30), 31, 5)])
def test_any_padding(compare, size, kernel, padding):
    """Also more than "same", and more than the kernel."""
    x, weight = normal(1, 3, *size), normal(3, 1, kernel, kernel, seed=1)
    leaves = [t.requires_grad_() for t in (x, weight)]
    out = large_kernel_dwconv2d(*leaves, padding=padding)
    grad = normal(*out.shape, seed=2)
    actual = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(actual, expected(x, [weight], [grad], [padding], [1]), strict=True):
        compare(a, b, torch.float32, times=3)
    problem = functional.problem_of(x, weight, None, 1, padding, 1)
    assert problem.of_input_grad().out_size == size


@pytest.mark.parametrize('two', [False, True])
def test_batched_gradients(two):
    """The vmap from before torch.func, as of ``autograd.functional.jacobian(vectorize=True)``."""
    leaves = [normal(2, 4, 20, 20), normal(4, 1, 13, 13, seed=1), normal(4, 1, 5, 5, seed=2)]
    leaves = [t.requires_grad_() for t in leaves[:2 + two]]
    x, *weights = leaves
    if two:
        outs = large_kernel_dwconv2d_pair(*leaves, backend='fft')
    else:
        outs = [large_kernel_dwconv2d(*leaves, padding=6)]
    grads = [normal(3, *x.shape, seed=5 + i) for i in range(len(outs))]
    plain = [F.conv2d(x, w, padding=w.shape[-1] // 2, groups=4) for w in weights]
    for a, b in zip(torch.autograd.grad(outs, leaves, grads, is_grads_batched=True),
                    torch.autograd.grad(plain, leaves, grads, is_grads_batched=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_a_block_trains_as_with_the_branches_apart(passes):
    torch.manual_seed(0)
    block = ReparamLargeKernelConv(32, 31, 5)
    x = normal(2, 32, 48, 48)

    def gradients():
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        out.backward(x)
        return [out.detach(), leaf.grad, *(p.grad.clone() for p in block.parameters())]

    together = gradients()
    assert passes == [2]
    seen = []
    block.small_conv.conv.register_forward_hook(lambda *args: seen.append(0))
    for a, b in zip(together, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert seen  # a hook on a layer is called
