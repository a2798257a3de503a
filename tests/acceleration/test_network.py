"""What `accelerate` takes and leaves, that nobody notices, and that `restore` undoes it."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mmreplk
from mmreplk.acceleration import Row, Table
from mmreplk.ops import LargeKernelDWConv2d


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 13, padding=6, groups=16),
        nn.Conv2d(16, 32, 1), nn.GELU(), nn.Conv2d(32, 32, (1, 21), padding='same', groups=32),
        nn.Conv2d(32, 32, 5, stride=2, padding=2, groups=32),
        nn.Conv2d(32, 32, 3, padding=1, groups=4)).eval()


def image():
    return torch.randn(1, 3, 24, 20)


def by_name(table):
    return {row.name: row for row in table}


@pytest.mark.parametrize('policy', ['estimate', 'measure', 'all'])
@pytest.mark.parametrize('inference', [False, True])
def test_same_function_and_back(policy, inference):
    model, x = network(), image()
    modules, parameters, keys = list(model), list(model.parameters()), list(model.state_dict())
    with torch.no_grad():
        before = model(x)
    table = mmreplk.accelerate(model, x, policy=policy, inference=inference)
    assert isinstance(model[2], LargeKernelDWConv2d)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            torch.testing.assert_close(model(x.contiguous(memory_format=layout)), before,
                                       rtol=1e-5, atol=1e-5)
    assert all(a is b for a, b in zip(modules, model, strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert keys == list(model.state_dict())
    assert sorted(mmreplk.restore(model)) == sorted(table.changed)
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert [vars(m).keys() for m in model] == [vars(m).keys() for m in network()]
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert mmreplk.restore(model) == []


def test_gradients():
    model, x = network().train(), image()
    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]
    before = gradients()
    mmreplk.accelerate(model, policy='all')
    for ours, stock in zip(gradients(), before, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-4 * stock.abs().max().item())


def test_table():
    rows = by_name(mmreplk.accelerate(network(), input_size=(1, 3, 24, 20)))
    assert rows['2'].changed
    assert rows['2'].kernel == '13x13'
    assert rows['2'].size == '1x16x24x20'
    assert 'estimated 0.' in rows['2'].reason
    assert rows['6'].reason == 'stride 2'
    assert rows['7'].reason == 'grouped, not depth-wise'
    assert set(rows) == {'2', '5', '6', '7'}


def test_table_as_text():
    table = Table([Row('a.b', '7x7', '1x8x9x9', True, 'estimated 0.5'),
                   Row('c', '13x13', '', False, 'no clear gain: estimated 2')])
    header, *lines = str(table).splitlines()
    assert header.index('decision') == lines[0].index('faster') == lines[1].index('left')
    assert table.summary() == 'accelerated 1 of 2 layers (1 of 7x7); left: 1 (no clear gain)'


def test_what_the_estimates_say_is_slower_stays():
    """A map of a few pixels: any choice costs more than it brings."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)).eval()
    row, = mmreplk.accelerate(model, input_size=(1, 2, 3, 3))
    assert not row.changed
    assert type(model[0]) is nn.Conv2d


def touched(how):
    conv = nn.Conv2d(8, 8, 13, padding=6, groups=8)
    if how == 'hooks':
        conv.register_forward_hook(lambda *_: None)
    elif how == 'pre-hooks':
        conv.register_forward_pre_hook(lambda *_: None)
    elif how == 'forward':
        conv.forward = lambda x: x
    elif how == 'parametrization':
        parametrizations.weight_norm(conv)
    elif how == 'subclass':
        conv.__class__ = type('Mine', (nn.Conv2d, ), {})
    elif how == 'lazy':
        conv = nn.LazyConv2d(8, 13, groups=8)
    elif how == 'reflect':
        conv.padding_mode = 'reflect'
    return conv


@pytest.mark.parametrize(('how', 'reason'), [
    ('hooks', 'hooks'), ('pre-hooks', 'hooks'), ('forward', 'forward of its own'),
    ('parametrization', 'Parametrized'), ('subclass', 'Mine'), ('lazy', 'not initialized'),
    ('reflect', 'padding mode reflect')])
def test_layers_that_stay(how, reason):
    conv = touched(how)
    kind = type(conv)
    row, = mmreplk.accelerate(nn.Sequential(conv), policy='all')
    assert not row.changed
    assert reason in row.reason
    assert type(conv) is kind


def test_shared_layers_and_copies():
    conv = nn.Conv2d(8, 8, 13, padding=6, groups=8)
    model = nn.Sequential(conv, nn.Sequential(conv))
    assert len(mmreplk.accelerate(model, input_size=(1, 8, 20, 20)).changed) == 1
    assert model[0] is model[1][0]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(copied[0], LargeKernelDWConv2d)
        assert mmreplk.restore(copied) == ['0']
        assert type(copied[0]) is nn.Conv2d
    assert isinstance(model[0], LargeKernelDWConv2d)


def test_training_modes_and_statistics_stay():
    model = nn.Sequential(nn.Conv2d(4, 4, 13, padding=6, groups=4), nn.BatchNorm2d(4)).train()
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    mmreplk.accelerate(model, input_size=(2, 4, 20, 20))
    assert [m.training for m in model.modules()] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(
        state.values(), model.state_dict().values(), strict=True))
    assert not model[0]._forward_pre_hooks


def test_what_was_done_since_survives_restore():
    model = nn.Sequential(nn.Conv2d(4, 4, 13, padding=6, groups=4))
    mmreplk.accelerate(model, policy='all')
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model.double()
    mmreplk.restore(model)
    assert model(torch.randn(1, 4, 9, 9, dtype=torch.float64)).dtype == torch.float64
    assert seen == [1]


def test_restore_of_a_layer_that_was_parametrized_since():
    model = nn.Sequential(nn.Conv2d(4, 4, 13, padding=6, groups=4))
    mmreplk.accelerate(model, policy='all')
    parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match='restore: 0 has become a Parametrized'):
        mmreplk.restore(model)


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    (dict(policy='fast'), ValueError, 'policy must be one of'),
    (dict(policy='measure'), ValueError, 'needs sizes'),
    (dict(input_size=(1, 3, 8, 8), example_inputs=torch.zeros(1)), ValueError, 'not both'),
    (dict(input_size=(1, 3, 0, 8)), ValueError, 'input_size must be'),
    (dict(input_size=(1, 5, 8, 8)), RuntimeError, 'does not run on input_size')])
def test_bad_arguments(arguments, error, message):
    model = network()
    with pytest.raises(error, match=message):
        mmreplk.accelerate(model, **arguments)
    assert [type(m) for m in model] == [type(m) for m in network()]


def test_networks_that_cannot_be_changed():
    with pytest.raises(TypeError, match='compiled by torch.jit'):
        mmreplk.accelerate(torch.jit.script(network()))
    with pytest.raises(ValueError, match='0.weight is on the meta device'):
        mmreplk.accelerate(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, device='meta')))
    with pytest.raises(TypeError, match='an nn.Module, not dict'):
        mmreplk.accelerate({})
    assert mmreplk.accelerate(nn.Conv3d(4, 4, 3, groups=4)) == []


def test_without_the_mm_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmreplk.acceleration.inference', None)
    model = network()
    with pytest.raises(ImportError, match='inference=True needs mmengine and mmcv'):
        mmreplk.accelerate(model, inference=True)
    assert type(model[2]) is nn.Conv2d


def graphs(model, x):
    yield 'fx', torch.fx.symbolic_trace(model)
    yield 'trace', torch.jit.trace(model, x)
    yield 'script', torch.jit.script(model)
    yield 'export', torch.export.export(model, (x, )).module()
    yield 'compile', torch.compile(model, backend='eager', fullgraph=True)


def test_graphs_of_an_accelerated_network():
    model, x = network(), image()
    with torch.no_grad():
        expected = model(x)
        mmreplk.accelerate(model, x)
        for name, graph in graphs(model, x):
            torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_after_compilation():
    model, x = network(), image()
    compiled = torch.compile(model, backend='eager')
    with torch.no_grad():
        expected = compiled(x)
        mmreplk.accelerate(compiled, x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
        assert mmreplk.restore(model)
        assert torch.equal(compiled(x), expected)
