"""torch.fx traces the networks, the operator as one call each; torch.jit.script says what to do."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mmreplk import RepLKNet
from mmreplk.analysis import enlarge_kernels
from mmreplk.models import EnlargedBackbone
from mmreplk.models.enlarge.conv import EnlargedConv, SamePadding
from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d

ARCH = dict(large_kernel_sizes=[13, 9], layers=[1, 1], channels=[8, 12], small_kernel=5)


def calls(graph):
    return [node.target for node in graph.graph.nodes].count(large_kernel_dwconv2d)


def check(network, graph, size=64):
    graph.graph.lint()
    pickled = pickle.loads(pickle.dumps(graph))
    pickled.recompile()
    with torch.no_grad():
        for shape in ((2, 3, size, size), (1, 3, size - 9, size + 5)):
            x = torch.randn(shape)
            want = network(x)
            for same in (graph, copy.deepcopy(graph), pickled):
                torch.testing.assert_close(same(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options', [
    {}, dict(small_kernel=None), dict(with_cp=True), dict(norm_intermediate_features=True)])
def test_backbone(options):
    network = RepLKNet(ARCH, drop_path_rate=0., **options).eval()
    branches = 1 if 'small_kernel' in options else 2
    graph = torch.fx.symbolic_trace(network)
    assert calls(graph) == 2 * branches
    check(network, graph)
    network.switch_to_deploy()
    graph = torch.fx.symbolic_trace(network)
    assert calls(graph) == 2
    check(network, graph)


def test_training():
    """In training mode too, gradients included; stochastic depth stays random."""
    network = RepLKNet(ARCH, drop_path_rate=0.).double().train()
    graph = torch.fx.symbolic_trace(copy.deepcopy(network))
    x = torch.randn(4, 3, 64, 64)
    for module in (network, graph):
        module(x.double())[-1].pow(3).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(graph.get_parameter(name).grad, parameter.grad, rtol=1e-6,
                                   atol=1e-6)
    graph = torch.fx.symbolic_trace(RepLKNet(ARCH, drop_path_rate=0.5).train())
    assert not all(torch.equal(graph(x)[-1], graph(x)[-1]) for _ in range(8))


def test_features_by_name():
    feature_extraction = pytest.importorskip('torchvision.models.feature_extraction')
    network = RepLKNet(ARCH, drop_path_rate=0.).eval()
    small = 'stages.0.blocks.0.large_kernel.small_conv'
    nodes = {'stem.3': 'stem', small: 'small', 'stages.1': 'b'}
    extract = feature_extraction.create_feature_extractor(network, return_nodes=nodes)
    heard = {}
    for name, key in nodes.items():
        network.get_submodule(name).register_forward_hook(
            lambda _, __, out, key=key: heard.update({key: out}))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outs = extract(x)
        final = network(x)[-1]
    torch.testing.assert_close(outs['b'], final, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outs['stem'], heard['stem'], rtol=1e-4, atol=1e-5)
    if 'small' in heard:
        torch.testing.assert_close(outs['small'], heard['small'], rtol=1e-4, atol=1e-5)


def test_enlarged_mobilenet():
    models = pytest.importorskip('torchvision.models')
    network = models.mobilenet_v3_small().eval()
    check(network, torch.fx.symbolic_trace(network))
    names = enlarge_kernels(network, 13)
    graph = torch.fx.symbolic_trace(network)
    assert calls(graph) == 2 * len(names)
    check(network, graph)
    for module in network.modules():
        if isinstance(module, EnlargedConv):
            module.merge_kernel()
    graph = torch.fx.symbolic_trace(network)
    assert calls(graph) == len(names)
    check(network, graph)


def test_enlarged_backbone():
    pytest.importorskip('mmseg')
    network = EnlargedBackbone(
        dict(type='mmseg.MobileNetV2', out_indices=(1, 6)), kernel_size=9).eval()
    graph = torch.fx.symbolic_trace(network)
    assert calls(graph) == 2 * len(network.enlarged)
    check(network, graph)


def test_padding_by_the_size_of_the_map():
    layers = nn.Sequential(SamePadding(nn.Conv2d(3, 3, 5, stride=2)), nn.Conv2d(3, 3, 5, stride=2))
    check(layers, torch.fx.symbolic_trace(layers))


def test_script_names_the_trace():
    network = RepLKNet(ARCH, drop_path_rate=0.).eval()
    for module in (network, nn.Sequential(network), network.stages[0].blocks[0].large_kernel):
        with pytest.raises(NotImplementedError, match=r'^torch\.jit\.script .* torch\.jit\.trace'):
            torch.jit.script(module)
    network.switch_to_deploy()
    with pytest.raises(NotImplementedError, match=r'torch\.jit\.trace'):
        torch.jit.script(network)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(network, x)(x), network(x), rtol=1e-4, atol=1e-5)
    plain = nn.Sequential(LargeKernelDWConv2d(3, 3, 9, padding=4, groups=3))
    torch.testing.assert_close(torch.jit.script(plain)(x), plain(x), rtol=1e-4, atol=1e-5)
