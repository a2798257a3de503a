"""Networks under another default device or dtype, and what is kept of that for the process."""

import copy

import pytest
import torch
from torch import nn

from mmreplk import RepLKNet
from mmreplk.analysis import enlarge_kernels
from mmreplk.models.cpu_inference import pointwise, resized_conv
from mmreplk.models.reparam import merge_kernels

ARCH = dict(large_kernel_sizes=[13, 9], layers=[1, 1], channels=[8, 12], small_kernel=5)
DTYPES = [torch.float64, torch.bfloat16, torch.float16]
CHANNELS = (8, 12, 16, 24)


@pytest.fixture
def defaults():
    """Sets a default device or dtype, with nothing kept from before; both are put back."""
    kept = pointwise._multiplies, resized_conv._resizing

    def clear():
        for function in kept:
            function.cache_clear()

    def choose(default):
        clear()
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        else:
            torch.set_default_device(default)

    before = torch.get_default_dtype()
    yield choose
    torch.set_default_device(None)
    torch.set_default_dtype(before)
    clear()


def head(**changes):
    pytest.importorskip('mmseg')
    from mmreplk.models.cpu_inference.uper_head import UPerHead
    torch.manual_seed(0)
    return UPerHead(
        in_channels=list(CHANNELS), in_index=[0, 1, 2, 3], channels=10, num_classes=5,
        norm_cfg=dict(type='BN'), align_corners=False, **changes).eval()


@pytest.mark.parametrize('default', ['meta', *DTYPES], ids=str)
@torch.no_grad()
def test_head(defaults, default):
    maps = [torch.randn(1, c, 32 >> i, 48 >> i) for i, c in enumerate(CHANNELS)]
    network = head()
    defaults('cpu')
    expected = network(maps)
    defaults(default)
    # The first use, after which the process is as it would be without.
    assert torch.equal(network(maps), expected)
    defaults_of_process = torch.empty(0)
    assert default in (defaults_of_process.device.type, defaults_of_process.dtype)
    built = head()
    assert {default} <= {what for p in built.parameters() for what in (p.device.type, p.dtype)}
    built = built.to_empty(device='cpu') if default == 'meta' else built.float()
    built.load_state_dict(network.state_dict())
    assert torch.equal(built(maps), expected)
    assert pointwise._multiplies(torch.float32) == pointwise._multiplies.__wrapped__(torch.float32)


@pytest.mark.parametrize('default', ['meta', *DTYPES], ids=str)
@torch.no_grad()
def test_products_are_not_lost_to_the_process(defaults, default):
    defaults('cpu')
    expected = pointwise._multiplies(torch.float32)
    defaults(default)
    assert pointwise._multiplies(torch.float32) == expected


@pytest.mark.parametrize('default', ['meta', torch.float64], ids=str)
@torch.no_grad()
def test_merging_and_enlarging(defaults, default):
    network = RepLKNet(ARCH, drop_path_rate=0., norm_intermediate_features=True).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = network(x)
    small = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3)).eval()
    enlarged = small(x)
    defaults(default)
    deployed = copy.deepcopy(network)
    deployed.switch_to_deploy()
    assert {(p.device.type, p.dtype) for p in deployed.parameters()} == {('cpu', torch.float32)}
    enlarge_kernels(small, 9)
    merged = copy.deepcopy(small)
    merge_kernels(merged)
    defaults('cpu')
    torch.set_default_dtype(torch.float32)
    for large in small, merged:
        torch.testing.assert_close(large(x), enlarged, rtol=1e-4, atol=1e-5)
    for out, wanted in zip(deployed(x), expected, strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def test_the_backbone_builds_on_meta(defaults):
    defaults('meta')
    for deploy in (False, True):
        network = RepLKNet(ARCH, deploy=deploy).eval()
        assert [out.shape for out in network(torch.empty(1, 3, 64, 64))] == [
            (1, 8, 16, 16), (1, 12, 8, 8)]
