import copy

import pytest
import torch
from torch import nn

from mmreplk.models.layers import fuse_conv_bn
from mmreplk.models.reparam import ReparamLargeKernelConv


@pytest.mark.parametrize(('kernel_size', 'small_kernel'), [(31, 5), (13, 13), (7, 1), (9, None)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_merge_equals_the_branches(kernel_size, small_kernel, dtype, randomize_norms):
    layer = randomize_norms(ReparamLargeKernelConv(6, kernel_size, small_kernel)).to(dtype).eval()
    x = torch.randn(2, 6, 17, 20, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        layer.merge_kernel()
        actual = layer(x)
    assert set(layer.state_dict()) == {'lkb_reparam.weight', 'lkb_reparam.bias'}
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(
        rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual, expected, **tolerance)


def test_merge_is_rounded_once(randomize_norms):
    """The fp32 merged weight is the float64 one, rounded, to the last bit."""
    layer = randomize_norms(ReparamLargeKernelConv(4, 9, 3)).eval()
    exact = copy.deepcopy(layer).double()
    layer.merge_kernel()
    exact.merge_kernel()
    assert torch.equal(layer.lkb_reparam.weight, exact.lkb_reparam.weight.float())
    assert torch.equal(layer.lkb_reparam.bias, exact.lkb_reparam.bias.float())


def test_merge_twice_changes_nothing(randomize_norms):
    layer = randomize_norms(ReparamLargeKernelConv(4, 9, 3)).eval()
    layer.merge_kernel()
    before = copy.deepcopy(layer.state_dict())
    layer.merge_kernel()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize('norm_cfg', [
    dict(type='GN', num_groups=2),
    dict(type='BN', track_running_stats=False),
])
def test_norm_that_does_not_fold_is_refused(norm_cfg):
    layer = ReparamLargeKernelConv(4, 9, 3, norm_cfg)
    before = set(layer.state_dict())
    with pytest.raises(TypeError, match='running statistics'):
        layer.merge_kernel()
    assert set(layer.state_dict()) == before


def test_fuse_handles_bias_and_no_affine():
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
    nn.init.uniform_(bn.running_mean, -1, 1)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weight, bias = fuse_conv_bn(conv, bn)
    expected = bn.double().eval()(conv.double()(x))
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), expected)
