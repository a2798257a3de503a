"""The second call of a kind goes straight to a kernel, unless somebody listens."""

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import dispatch, large_kernel_dwconv2d
from mmreplk.ops.cpu import kernels
from mmreplk.ops.torch_internals import is_observed

needs_kernels = pytest.mark.skipif(not kernels.available()[0], reason='no compiled kernels here')


@pytest.fixture(autouse=True)
def _fresh():
    dispatch.forget()


def case(size=20, kernel=13, channels=8):
    return (torch.randn(2, channels, size, size), torch.randn(channels, 1, kernel, kernel),
            torch.randn(channels))


def reference(x, weight, bias, **more):
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=weight.shape[3] // 2,
                    groups=x.shape[1], **more).float()


def ours(x, weight, bias, **more):
    return large_kernel_dwconv2d(x, weight, bias, padding=weight.shape[3] // 2, **more)


def near(out, expected):
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('backend', ['direct', 'fft', 'torch', 'auto'])
def test_the_second_call(backend, layout):
    x, weight, bias = case()
    x = x.contiguous(memory_format=layout)
    for _ in range(3):
        out = ours(x, weight, bias, backend=backend)
        assert len(dispatch.prepared_calls) == 1
        near(out, reference(x, weight, bias))
        assert out.is_contiguous(memory_format=layout)
    relu = ours(x, weight, bias, backend=backend, activation='relu')
    near(relu, reference(x, weight, bias).relu())
    assert len(dispatch.prepared_calls) == 2


@pytest.mark.parametrize('backend', ['fft', 'auto'])
def test_weights_that_change_are_seen(backend):
    x, weight, bias = case()
    for _ in range(3):
        near(ours(x, weight, bias, backend=backend), reference(x, weight, bias))
        weight.data.mul_(-0.5)


def test_weights_and_biases_that_do_not_lie_in_order():
    x, weight, bias = case()
    ours(x, weight, bias)
    turned = weight.transpose(2, 3)
    near(ours(x, turned, bias), reference(x, turned, bias))
    apart = torch.stack([bias, bias + 1], 1)[:, 1]
    near(ours(x, weight, apart), reference(x, weight, apart))


def test_gradients_after_a_call_without():
    x, weight, bias = case()
    ours(x, weight, bias)
    weight.requires_grad_()
    out = ours(x, weight, bias)
    expected = torch.autograd.grad(reference(x, weight, bias).sum(), weight)[0]
    near(torch.autograd.grad(out.sum(), weight)[0] / 400, expected / 400)


def test_autocast_after_a_call_without():
    x, weight, bias = case()
    assert ours(x, weight, bias).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert ours(x, weight, bias).dtype == torch.bfloat16


def test_listeners_after_a_call_without():
    from torch.utils.flop_counter import FlopCounterMode
    x, weight, bias = case()
    ours(x, weight, bias)
    with FlopCounterMode(display=False) as counter:
        assert is_observed()
        ours(x, weight, bias)
    assert counter.get_total_flops() == 2 * x.numel() * 169


@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize('backend', ['direct', 'fft', 'torch', 'auto'])
def test_storage_that_is_freed_later(backend, which):
    if backend == 'direct' and not kernels.available()[0]:
        pytest.skip('no compiled kernels here')
    tensors = case()
    ours(*tensors, backend=backend)
    tensors[which].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match='needs .* bytes, but its storage holds 0'):
        ours(*tensors, backend=backend)


def test_groups_are_checked_every_time():
    x, weight, bias = case()
    ours(x, weight, bias, groups=8)
    ours(x, weight, bias)
    with pytest.raises(RuntimeError, match='groups=4'):
        ours(x, weight, bias, groups=4)
