"""``conv_cfg=dict(type='mmreplk.LargeKernelDWConv2d')`` in networks of the mm packages."""

import subprocess
import sys

import pytest
import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule, build_conv_layer
from mmengine.registry import DefaultScope
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d, module

CONV_CFG = dict(type='mmreplk.LargeKernelDWConv2d')


@pytest.mark.parametrize('scope', [
    'mmseg', 'mmpretrain', 'mmengine', pytest.param('mmdet', marks=pytest.mark.needs_mmcv_ops)])
def test_found_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        layer = build_conv_layer(dict(CONV_CFG, backend='fft'), 4, 4, 13, padding=6, groups=4)
    assert type(layer) is LargeKernelDWConv2d
    assert layer.backend == 'fft'


def test_found_without_any_import_of_mmreplk():
    code = ("from mmcv.cnn import build_conv_layer\n"
            "cfg = dict(type='mmreplk.LargeKernelDWConv2d')\n"
            "layer = build_conv_layer(cfg, 4, 4, 3, groups=4)\n"
            "assert type(layer).__name__ == 'LargeKernelDWConv2d'\n")
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


@pytest.fixture
def calls(monkeypatch):
    """Inputs' shapes of the convolutions that the operator gets."""
    seen, operator = [], module.large_kernel_dwconv2d

    def spy(x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return operator(x, *args, **kwargs)

    monkeypatch.setattr(module, 'large_kernel_dwconv2d', spy)
    return seen


def same_output(ours, plain, x):
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_conv_module(calls):
    torch.manual_seed(0)
    config = dict(kernel_size=21, padding=10, groups=8, norm_cfg=dict(type='BN'))
    ours = ConvModule(8, 8, conv_cfg=CONV_CFG, **config)
    same_output(ours, ConvModule(8, 8, **config), torch.randn(2, 8, 24, 24))
    assert calls == [(2, 8, 24, 24)]


def test_depthwise_separable_module_keeps_its_dense_convolution(calls):
    torch.manual_seed(0)
    ours = DepthwiseSeparableConvModule(8, 6, 13, padding=6, conv_cfg=CONV_CFG)
    plain = DepthwiseSeparableConvModule(8, 6, 13, padding=6)
    assert isinstance(ours.pointwise_conv.conv, LargeKernelDWConv2d)
    same_output(ours, plain, torch.randn(2, 8, 24, 24))
    assert calls == [(2, 8, 24, 24)]


def test_a_stock_backbone(calls):
    """MobileNetV2: dense, strided depth-wise and plain depth-wise convolutions in one network."""
    from mmseg.models import MobileNetV2
    torch.manual_seed(0)
    ours, plain = MobileNetV2(conv_cfg=CONV_CFG), MobileNetV2()
    depthwise = [m for m in ours.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise
    assert all(type(m) is LargeKernelDWConv2d for m in depthwise)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours.eval(), plain.eval()  # which return None in this backbone
        for a, b in zip(ours(x), plain(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert len(calls) == len(depthwise)
