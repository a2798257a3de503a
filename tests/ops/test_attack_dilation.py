"""Gradients in 16 bits of dilated convolutions, which PyTorch's own computes from garbage."""

import pytest
import torch
import torch.nn.functional as F
from attack_cases import attack
from hypothesis import strategies as st

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d

SIXTEEN = [torch.bfloat16, torch.float16]
LAYOUTS = ['nchw', 'channels_last', 'permuted', 'sliced']
ROUTES = ['auto', 'torch', 'autocast', 'module', 'func']


def poison():
    """Leave NaN in the memory that is handed out next, so that what reads unwritten memory tells.
    """
    blocks = [torch.full((1 << power, ), torch.nan, dtype=torch.float32)
              for power in (10, 12, 14, 16, 18, 20) for _ in range(3)]
    del blocks


def laid(values, layout):
    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last)
    if layout == 'permuted':
        return values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if layout == 'sliced':
        n, c, h, w = values.shape
        room = values.new_full((n, h + 2, w + 3, c + 1), torch.nan).permute(0, 3, 1, 2)
        room[:, 1:, 1:-1, 2:-1] = values
        return room[:, 1:, 1:-1, 2:-1]
    return values


def convolve(route, x, weight, stride, padding, dilation):
    if route == 'autocast':
        with torch.autocast('cpu', dtype=x.dtype):
            return large_kernel_dwconv2d(x.float(), weight.float(), None, stride, padding, dilation)
    if route == 'module':
        layer = LargeKernelDWConv2d(
            x.shape[1], x.shape[1], weight.shape[2:], stride, padding, dilation, x.shape[1],
            bias=False, device='meta')
        return torch.func.functional_call(layer, {'weight': weight}, x)
    backend = route if route == 'torch' else 'auto'
    return large_kernel_dwconv2d(x, weight, None, stride, padding, dilation, backend=backend)


def check(dtype, route, layouts, channels, size, kernel, dilation, stride=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    x = laid(values(2, channels, *size), layouts[0]).detach().requires_grad_()
    weight = values(channels, 1, *kernel).requires_grad_()
    wide = [t.detach().double().contiguous().requires_grad_() for t in (x, weight)]
    right = F.conv2d(*wide, None, stride, padding, dilation, channels)
    grad = laid(values(*right.shape), layouts[1])
    wanted = right, *torch.autograd.grad(right, wide, grad.double())
    poison()
    if route == 'func':
        out, pull = torch.func.vjp(
            lambda *leaves: convolve('auto', *leaves, stride, padding, dilation), x, weight)
        poison()
        found = out, *pull(grad)
    else:
        out = convolve(route, x, weight, stride, padding, dilation)
        poison()
        found = out, *torch.autograd.grad(out, (x, weight), grad)
    # Without dilation PyTorch may sum, in 16 bits at places: 1.4 times as much was seen.
    theirs = (stride == 1 and route in ('torch', 'func')
              and all(d == 1 or k == 1 for d, k in zip(dilation, kernel, strict=True)))
    limit = (8 if theirs else 2) * torch.finfo(dtype).eps
    for name, a, b in zip(('out', 'x', 'weight'), found, wanted, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)
        assert error < limit, f'{name}: off by {error:.3g} of the largest'


@attack(60, dtype=st.sampled_from(SIXTEEN), route=st.sampled_from(ROUTES),
        layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        channels=st.sampled_from([2, 3, 8, 16, 17]),
        size=st.one_of(st.tuples(st.integers(4, 24), st.integers(29, 72)),
                       st.tuples(st.integers(1, 99), st.integers(1, 3)),
                       st.tuples(st.just(1), st.integers(1, 99))),
        kernel=st.tuples(st.sampled_from([1, 2, 3, 5, 9]), st.sampled_from([1, 2, 3, 5, 9])),
        dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.sampled_from([1, 1, 2, (1, 2), 3]), seed=st.integers(0, 2**31))
def test_16_bits_with_dilation_in_every_layout(dtype, route, layouts, channels, size, kernel,
                                               dilation, stride, seed):
    """Output and gradients by every route, beside memory full of NaN."""
    # Padded by half of what the kernel reaches, a pixel is enough, or two.
    size = tuple(max(s, 1 + d * (k - 1) % 2)
                 for s, k, d in zip(size, kernel, dilation, strict=True))
    check(dtype, route, layouts, channels, size, kernel, dilation, stride, seed)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('stride', [1, (1, 2)])
@pytest.mark.parametrize('dtype', SIXTEEN)
def test_where_pytorch_reads_unwritten_memory(route, stride, dtype):
    """On CPUs with AVX512-BF16, its gradient of these weights is NaN, or anything."""
    for channels, size, kernel, dilation in (
            (2, (23, 70), (2, 7), (2, 3)), (8, (26, 57), (7, 3), (2, 2)),
            (2, (4, 59), (1, 2), (3, 3)), (17, (15, 62), (2, 5), (3, 1))):
        check(dtype, route, ('channels_last', 'nchw'), channels, size, kernel, dilation, stride)


@pytest.mark.parametrize('dtype', SIXTEEN)
def test_one_channel_stays_in_16_bits(dtype):
    """Where PyTorch's gradient in float32 is the wrong one."""
    x, weight = torch.randn(2, 1, 15, 49).to(dtype), torch.randn(1, 1, 5, 13).to(dtype)
    leaf, wide = weight.clone().requires_grad_(), weight.double().requires_grad_()
    right = F.conv2d(x.double(), wide, None, (1, 2), (0, 17), (1, 2))
    grad = torch.randn(right.shape).to(dtype)
    wanted, = torch.autograd.grad(right, wide, grad.double())
    out = large_kernel_dwconv2d(x, leaf, None, (1, 2), (0, 17), (1, 2))
    found, = torch.autograd.grad(out, leaf, grad)
    assert (found.double() - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize(('channels', 'size', 'kernel', 'stride'), [
    (19, (50, 1), (7, 9), (1, 2)), (6, (93, 1), (10, 9), (1, 2)), (26, (102, 1), (9, 5), (2, 2)),
    (27, (29, 2), (14, 13), (2, 3))])
def test_strided_columns(channels, size, kernel, stride):
    """Narrower than the stride, where PyTorch's weight gradient reads unwritten memory as well."""
    for seed in range(8):
        check(torch.bfloat16, 'auto', ('channels_last', 'nchw'), channels, size, kernel, (1, 1),
              stride, seed)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize(('channels', 'size', 'kernel', 'stride'), [
    (3, (12, 1), (4, 11), (3, 3)), (28, (6, 1), (1, 9), (1, 2)), (6, (9, 1), (3, 7), (2, 3)),
    (2, (2, 1), (5, 5), (3, 2)), (15, (3, 2), (4, 5), (1, 3)),
    (3, (1, 12), (11, 3), (2, 2))])
def test_tiny_strided_maps(route, channels, size, kernel, stride):
    """So small that nothing but PyTorch is asked, by autocast and without."""
    for seed in range(8):
        check(torch.bfloat16, route, ('channels_last', 'nchw'), channels, size, kernel, (1, 1),
              stride, seed)
