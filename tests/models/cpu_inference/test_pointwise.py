"""1x1 convolutions as products of matrices: the results of nn.Conv2d, and only where they serve."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmreplk import RepLKNet
from mmreplk.models.cpu_inference import pointwise
from mmreplk.models.cpu_inference.pointwise import PointwiseConv2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]
ACTIVATIONS = {None: lambda x: x, 'relu': F.relu, 'gelu': F.gelu}


def products(call):
    """How often a call runs oneDNN's product, and its result."""
    with mock.patch.object(PointwiseConv2d, '_fused', autospec=True,
                           side_effect=PointwiseConv2d._fused) as product:
        out = call()
    return product.call_count, out


def maps(*shape, dtype=torch.float32, layout=torch.channels_last):
    return torch.randn(shape).to(dtype, memory_format=layout)


@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('dtype', 'limit'), [
    (torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
@torch.no_grad()
def test_results_of_conv2d(dtype, limit, layout, bias, activation, with_residual):
    for n, i, o, h, w in ((2, 24, 40, 5, 7), (1, 1, 3, 4, 4), (3, 8, 1, 1, 9), (1, 16, 16, 1, 1)):
        conv = PointwiseConv2d(i, o, bias=bias, activation=activation).to(dtype)
        x = maps(n, i, h, w, dtype=dtype, layout=layout)
        residual = maps(n, o, h, w, dtype=dtype, layout=layout) if with_residual else None
        kept = x.clone(), None if residual is None else residual.clone()
        out = conv(x, residual)
        plain = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None)
        expected = ACTIVATIONS[activation](plain)
        if with_residual:
            expected = expected + residual.double()
        assert out.dtype == dtype
        assert out.shape == expected.shape
        assert out.is_contiguous(memory_format=layout)
        assert (out - expected).abs().max() <= limit * max(expected.abs().max(), 1)
        assert torch.equal(x, kept[0])
        assert residual is None or torch.equal(residual, kept[1])


@torch.no_grad()
def test_a_cpu_without_products_of_a_type(monkeypatch):
    """As those without AVX-512 have none of bfloat16: the convolution serves, for that alone."""
    monkeypatch.setattr(pointwise, '_multiplies', lambda dtype: dtype == torch.float32)
    for dtype, count in ((torch.float32, 1), (torch.bfloat16, 0)):
        conv = PointwiseConv2d(6, 10, activation='gelu').to(dtype)
        x = maps(2, 6, 4, 3, dtype=dtype)
        called, out = products(lambda conv=conv, x=x: conv(x))
        assert called == count
        torch.testing.assert_close(out, F.gelu(nn.Conv2d.forward(conv, x)), rtol=0.03, atol=0.03)


def test_what_the_cpu_lacks_is_found_out(monkeypatch):
    def lacking(*args):
        raise RuntimeError('could not create a primitive descriptor')

    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', lacking)
    assert not pointwise._multiplies.__wrapped__(torch.float32)


def test_gradients_are_those_of_conv2d():
    conv = PointwiseConv2d(6, 10, activation='gelu').double()
    x, residual = (maps(2, c, 4, 3, dtype=torch.float64).requires_grad_() for c in (6, 10))
    assert torch.autograd.gradcheck(conv, (x, residual))
    conv.float()
    count, out = products(lambda: conv(x.float(), residual.float()))
    assert count == 0
    assert out.requires_grad


def test_where_products_serve():
    conv, x = PointwiseConv2d(8, 8).requires_grad_(False), maps(1, 8, 5, 5)
    assert products(lambda: conv(x))[0] == 1
    assert products(lambda: conv(x, x))[0] == 1
    assert products(lambda: conv(x.contiguous()))[0] == 0
    assert products(lambda: conv(x, maps(1, 8, 5, 5, layout=torch.contiguous_format)))[0] == 0
    assert products(lambda: conv(x[:0]))[0] == 0
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        assert products(lambda: conv(x))[0] == 0
    with torch.backends.mkldnn.flags(enabled=False):
        assert products(lambda: conv(x))[0] == 0
    conv.requires_grad_(True)
    assert products(lambda: conv(x))[0] == 0
    with torch.no_grad():
        assert products(lambda: conv(x))[0] == 1


@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_nan_and_inf_go_where_they_belong(dtype, activation, with_residual):
    conv = PointwiseConv2d(4, 5, activation=activation).to(dtype)
    x, residual = (maps(1, c, 6, 6, dtype=dtype) for c in (4, 5))
    for t in (x, residual):
        t[0, 1, 2, 3], t[0, 0, 5, 5], t[0, 2, 0, 1] = torch.nan, torch.inf, -torch.inf
    residual = residual if with_residual else None
    out = conv(x, residual)
    expected = ACTIVATIONS[activation](F.conv2d(x.float(), conv.weight.float(), conv.bias.float()))
    expected = (expected if residual is None else residual.float() + expected).to(dtype)
    if activation == 'gelu':
        # Of infinity it is NaN or not in PyTorch too, as the vectors happen to lie.
        assert torch.equal(out.isfinite(), expected.isfinite())
        assert out[expected.isnan()].isnan().all()
        out, expected = (t.nan_to_num(0, 0, 0) for t in (out, expected))
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('arguments', [(3, ), (1, 2), (1, 1, 1), (1, 1, 0, 2)])
def test_only_dense_1x1(arguments):
    with pytest.raises(ValueError, match='dense 1x1'):
        PointwiseConv2d(4, 4, *arguments)
    with pytest.raises(ValueError, match='activation'):
        PointwiseConv2d(4, 4, activation='swish')


@pytest.mark.parametrize('deploy', [False, True])
def test_network_computes_channels_last_and_keeps_the_format(tiny_arch, deploy):
    model = RepLKNet(tiny_arch, deploy=deploy).eval()
    x = torch.randn(2, 3, 65, 40)
    expected = model(x)  # with gradients: convolutions
    assert all(out.is_contiguous() for out in expected)
    with torch.inference_mode():
        count, outs = products(lambda: model(x))
        last = model(x.to(memory_format=torch.channels_last))
    pointwise = sum(isinstance(module, PointwiseConv2d) for module in model.modules())
    assert count == pointwise > 0
    for out, other, want in zip(outs, last, expected, strict=True):
        assert out.is_contiguous()
        assert other.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, other)
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_plain_convolutions_in_its_place(tiny_arch):
    """Who puts other layers in place of ours gets them, in the layout that was given."""
    model = RepLKNet(tiny_arch, deploy=True).eval()
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        conv = getattr(module, 'conv', None)
        if isinstance(conv, PointwiseConv2d):
            module.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 1)
            module.conv.load_state_dict(conv.state_dict())
            if conv.activation:
                module.nonlinear = dict(relu=nn.ReLU, gelu=nn.GELU)[conv.activation]()
    plain.stages[0].blocks[1].nonlinear = nn.GELU()
    x = torch.randn(1, 3, 64, 64)
    assert products(lambda: plain(x))[0] == 0


@torch.no_grad()
def test_tools_that_read_a_network_find_convolutions(tiny_arch):
    model, x = RepLKNet(tiny_arch, deploy=True).eval(), torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        model(x)
    with FlopCounterMode(display=False) as by_hand, torch.backends.mkldnn.flags(enabled=False):
        model(x)
    assert counter.get_total_flops() == by_hand.get_total_flops()
    traced = torch.jit.trace(model, x, check_trace=False)
    assert '_linear_pointwise' not in str(traced.inlined_graph)
