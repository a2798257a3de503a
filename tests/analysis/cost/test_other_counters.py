"""FLOP counters of others: by what runs, and by rules for exact classes, given ours."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmreplk import RepLKNet
from mmreplk.analysis import enlarge_kernels

ARCH = dict(large_kernel_sizes=[13, 9], layers=[1, 1], channels=[8, 12], small_kernel=5)
X = torch.zeros(1, 3, 64, 64)


def networks():
    backbone = RepLKNet(ARCH, drop_path_rate=0.).eval()
    deployed = RepLKNet(ARCH, deploy=True).eval()
    enlarged = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    enlarge_kernels(enlarged.eval(), 9)
    return dict(backbone=backbone, deployed=deployed, enlarged=enlarged)


def convolutions(network):
    return [m for m in network.modules() if getattr(m, 'weight', None) is not None
            and m.weight.dim() == 4]


def multiply_adds(network):
    """By the arithmetic of every layer that PyTorch's own counter sees."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(X)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize('name', ['backbone', 'deployed', 'enlarged'])
def test_counters_with_rules_by_class(name):
    """As thop and ptflops do: a forward hook on every module whose exact class has a rule."""
    network = networks()[name]
    expected = multiply_adds(network)
    classes = {type(m) for m in convolutions(network)}
    assert len(classes) > 1
    calls, total = Counter(), []

    def count(module, inputs, output):
        calls[module] += 1
        total.append(output.numel() * module.weight[0].numel())

    for module in network.modules():
        if type(module) in classes:
            module.register_forward_hook(count)
    with torch.no_grad():
        network(X)
    assert calls == Counter(convolutions(network))
    assert sum(total) == expected


@pytest.mark.parametrize('name', ['backbone', 'deployed', 'enlarged'])
def test_thop(name):
    thop = pytest.importorskip('thop')
    from thop.vision.basic_hooks import count_convNd
    network = networks()[name]
    expected = multiply_adds(network)
    rules = {type(m): count_convNd for m in convolutions(network)}
    for norm in (nn.BatchNorm2d, nn.SyncBatchNorm):
        rules[norm] = lambda *_: None  # its rule for norms counts their additions
    found, parameters = thop.profile(network, (X, ), custom_ops=rules, verbose=False)
    assert found == expected
    assert parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize('name', ['backbone', 'deployed', 'enlarged'])
def test_ptflops(name):
    ptflops = pytest.importorskip('ptflops')
    from ptflops.pytorch_ops import conv_flops_counter_hook
    network = networks()[name]
    expected = multiply_adds(network)
    found, parameters = ptflops.get_model_complexity_info(
        network, (3, 64, 64), backend='pytorch', as_strings=False, print_per_layer_stat=False,
        verbose=False, custom_modules_hooks={
            type(m): conv_flops_counter_hook for m in convolutions(network)})
    # It adds what norms, activations and biases cost.
    assert expected <= found < 1.3 * expected
    assert parameters == sum(p.numel() for p in network.parameters())
