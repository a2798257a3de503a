"""The operator and its layer in the graphs of torch.fx, and under torch.jit.script."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d, large_kernel_dwconv2d_pair

LAYERS = {
    'plain': dict(padding=6), 'no bias': dict(padding=6, bias=False),
    'relu': dict(padding=6, activation='relu'), 'same': dict(padding='same'),
    'stride, multiplier': dict(stride=2, padding=(6, 5), out_channels=8),
    'dilation': dict(dilation=2, padding=12), 'circular': dict(padding=6, padding_mode='circular'),
    'backend': dict(padding=6, backend='torch'),
    'grouped': dict(groups=2, padding=6), 'dense, relu': dict(groups=1, activation='relu'),
}


def make(case):
    return LargeKernelDWConv2d(**dict(dict(
        in_channels=4, out_channels=4, kernel_size=13, groups=4), **LAYERS[case]))


def calls(graph):
    return [node for node in graph.graph.nodes if node.target is large_kernel_dwconv2d]


def copies(graph):
    """A graph, and what one does with graphs."""
    pickled = pickle.loads(pickle.dumps(graph))
    pickled.recompile()
    return graph, copy.deepcopy(graph), pickled


@pytest.mark.parametrize('case', LAYERS)
def test_layer_is_one_call(case):
    layer = make(case)
    graph = torch.fx.symbolic_trace(layer)
    depthwise = layer.groups == 4
    assert len(calls(graph)) == depthwise
    graph.graph.lint()
    for shape in ((2, 4, 30, 27), (1, 4, 14, 40), (4, 30, 31)):
        x = torch.randn(shape)
        for same in copies(graph):
            torch.testing.assert_close(same(x), layer(x))
    for shape in ((1, 2, 30, 30), (1, 8, 30, 30), (30, 30)):  # as the layer
        with pytest.raises(RuntimeError):
            graph(torch.zeros(shape))


def test_gradients_of_a_graph():
    layer, x = make('plain'), torch.randn(2, 4, 20, 20)
    graph = torch.fx.symbolic_trace(copy.deepcopy(layer))
    for module in (layer, graph):
        module(x).square().sum().backward()
    torch.testing.assert_close(graph.weight.grad, layer.weight.grad)
    torch.testing.assert_close(graph.bias.grad, layer.bias.grad)


class Functional(nn.Module):

    def __init__(self):
        super().__init__()
        self.large = nn.Parameter(torch.randn(4, 1, 13, 13))
        self.small = nn.Parameter(torch.randn(4, 1, 5, 5))

    def forward(self, x):
        one, two = large_kernel_dwconv2d_pair(x, self.large, self.small)
        return large_kernel_dwconv2d(one + two, self.large, padding=6, activation='relu')


def test_functions_are_calls():
    module, x = Functional(), torch.randn(2, 4, 18, 21)
    graph = torch.fx.symbolic_trace(module)
    call, = calls(graph)
    assert call.kwargs['activation'] == 'relu'
    assert [node.target for node in graph.graph.nodes].count(large_kernel_dwconv2d_pair) == 1
    for same in copies(graph):
        torch.testing.assert_close(same(x), module(x))


def test_groups_are_checked():
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(8, 1, 3, 3)
    out = large_kernel_dwconv2d(x, weight, groups=4)
    torch.testing.assert_close(out, nn.functional.conv2d(x, weight, groups=4))
    with pytest.raises(RuntimeError, match='groups=8: x must be'):
        large_kernel_dwconv2d(x, weight, groups=8)


@pytest.mark.parametrize('case', LAYERS)
def test_script_is_pytorchs_convolution(case):
    layer, x = make(case), torch.randn(2, 4, 30, 27)
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(x), layer(x), rtol=1e-4, atol=1e-5)
    assert list(scripted.state_dict()) == list(layer.state_dict())
    network = nn.Sequential(layer, nn.ReLU())
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=1e-4, atol=1e-5)
    assert network[0] is layer
