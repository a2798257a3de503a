"""Merging with extreme running statistics: as exact as the unmerged network, or refused."""

import copy

import pytest
import torch

from mmreplk import RepLKNet
from mmreplk.models.fold import fold_norms
from mmreplk.models.reparam import ReparamLargeKernelConv, merge_kernels


def norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def set_norms(module, variance=1.0, gamma=1.0, mean=0.0):
    for norm in norms(module):
        norm.running_var.fill_(variance)
        norm.running_mean.fill_(mean)
        norm.weight.data.fill_(gamma)
        norm.bias.data.uniform_(-1, 1)
    return module


def error(module, exact, x):
    """The largest deviation of a float32 module from a float64 one, relative to its outputs."""
    with torch.no_grad():
        truth = exact(x.double())
        return ((module(x).double() - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize('statistics', [
    dict(variance=0.0), dict(variance=1e-12), dict(variance=1e-30), dict(variance=1e30),
    dict(gamma=1e20), dict(gamma=1e-20), dict(variance=1e-12, gamma=1e6, mean=100.0),
    dict(mean=1e10)])
def test_kernels(statistics):
    layer = set_norms(ReparamLargeKernelConv(4, 9, 3), **statistics).eval()
    exact = copy.deepcopy(layer).double()
    x = torch.randn(1, 4, 12, 12)
    before = error(layer, exact, x)
    layer.merge_kernel()
    assert error(layer, exact, x) <= 4 * before + 1e-6


@pytest.mark.parametrize('statistics', [
    dict(variance=0.0), dict(variance=1e-12), dict(variance=1e12), dict(variance=1e-12, mean=1e-3)])
def test_networks(statistics, tiny_arch):
    """All norms folded, those of a large-kernel block scale by up to 316 each."""
    model = RepLKNet(tiny_arch, norm_intermediate_features=True).eval()
    set_norms(model.stages[0].blocks[0], **statistics)
    exact = copy.deepcopy(model).double()
    x = torch.randn(1, 3, 64, 64)

    def last(module):
        return lambda inputs: module(inputs)[-1]

    before = error(last(model), last(exact), x)
    model.switch_to_deploy()
    assert error(last(model), last(exact), x) <= 10 * before + 1e-5


@pytest.mark.parametrize(('statistics', 'dtype', 'message'), [
    (dict(gamma=6e4, variance=0.0), torch.float16,
     'the weight of a large kernel would not fit into torch.float16'),
    (dict(gamma=1e38, variance=0.0), torch.float32, 'would not fit into torch.float32'),
    (dict(variance=-1.0), torch.float32, 'is not finite.*variance plus eps is not positive'),
    (dict(variance=float('nan')), torch.float32, 'is not finite'),
])
def test_refused_and_nothing_changed(statistics, dtype, message):
    """The second of two layers cannot be merged: neither is."""
    layers = torch.nn.Sequential(
        ReparamLargeKernelConv(2, 9, 3),
        set_norms(ReparamLargeKernelConv(2, 9, 3), **statistics)).to(dtype).eval()
    before = copy.deepcopy(layers.state_dict())
    with pytest.raises(ValueError, match=message):
        merge_kernels(layers)
    with pytest.raises(ValueError, match=message):
        layers[1].merge_kernel()
    after = layers.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_a_damaged_norm_is_not_folded(tiny_arch):
    model = RepLKNet(tiny_arch)
    merge_kernels(model)
    state = model.state_dict()
    state['stem.1.bn.running_var'].fill_(-1)
    before = dict(state)
    with pytest.raises(ValueError, match=r'stem\.1\.conv\.(weight|bias) is not finite'):
        fold_norms(state)
    assert state.keys() == before.keys()
