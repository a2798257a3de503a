"""switch_to_deploy with computed weights, and after any failure: all of it, or nothing."""

import copy

import pytest
import torch
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

from mmreplk import RepLKNet
from mmreplk.models import fold, reparam


def network(tiny_arch, randomize_norms):
    torch.manual_seed(0)
    return randomize_norms(RepLKNet(tiny_arch, drop_path_rate=0.0, final_norm=True)).double().eval()


def on(kind, change, where=''):
    def apply(model):
        for name, layer in list(model.named_modules()):
            if isinstance(layer, kind) and where in name:
                change(layer)
    return apply


def cut(layer):
    prune.l1_unstructured(layer, 'weight', 0.3)


CHANGES = {
    'pruned convolutions': on(nn.Conv2d, cut),
    'pruned twice': on(nn.Conv2d, lambda conv: (cut(conv), prune.random_unstructured(
        conv, 'weight', 0.2)), 'pw1'),
    'pruned norms': on(nn.BatchNorm2d, cut),
    'pruned biases of norms': on(nn.BatchNorm2d, lambda norm: prune.l1_unstructured(
        norm, 'bias', 0.3)),
    'weight norm by hooks': on(nn.Conv2d, utils.weight_norm),
    'weight norm': on(nn.Conv2d, parametrizations.weight_norm),
    'spectral norm by hooks': on(nn.Conv2d, utils.spectral_norm),
    'spectral norm': on(nn.Conv2d, parametrizations.spectral_norm),
}


def same_outputs(model, expected, x):
    return all((out - want).abs().max() <= 1e-10 * want.abs().max()
               for out, want in zip(model(x), expected, strict=True))


# Warnings of PyTorch about its older weight norm.
@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize('training', [False, True])
@torch.no_grad()
def test_computed_weights(tiny_arch, randomize_norms, change, training):
    model = network(tiny_arch, randomize_norms)
    change(model)
    for name, parameter in model.named_parameters():
        if name.endswith(('_orig', 'original0', '_g')):
            parameter.mul_(1.5)  # as an optimizer does: what the last call left is out of date
    reference = RepLKNet(tiny_arch, final_norm=True).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    model.train(training)
    model.switch_to_deploy()
    model.eval()
    assert model.deploy
    assert same_outputs(model, expected, x)
    reference.switch_to_deploy()
    assert list(model.state_dict()) == list(reference.state_dict())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())
    assert len(list(model.parameters())) == len(list(reference.parameters()))
    reference.load_state_dict(model.state_dict())
    assert same_outputs(reference.eval(), expected, x)
    assert same_outputs(copy.deepcopy(model), expected, x)


class Injected(BaseException):
    """Such as Ctrl-C."""


@pytest.mark.parametrize('error', [MemoryError, RuntimeError, Injected])
@pytest.mark.parametrize(('owner', 'name'), [
    (reparam.ReparamLargeKernelConv, '_replace_branches'), (fold, 'fold_norms'),
    (fold, 'set_values'), (fold, '_affine_of'), (fold, 'value_of'), (nn.Identity, '__init__')])
@pytest.mark.parametrize('change', ['none', 'pruned convolutions', 'spectral norm by hooks',
                                    'weight norm'])
@torch.no_grad()
def test_a_failure_changes_nothing(tiny_arch, randomize_norms, monkeypatch, owner, name, error,
                                   change):
    model = network(tiny_arch, randomize_norms)
    CHANGES.get(change, lambda model: None)(model)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    state, layers = copy.deepcopy(model.state_dict()), str(model)
    modules = dict(model.named_modules())
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == (1 if name in ('fold_norms', '_affine_of') else 3):
            raise error('injected')
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(error, match='injected'):
            model.switch_to_deploy()
    assert not model.deploy
    assert str(model) == layers
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(out, want) for out, want in zip(model(x), expected, strict=True))
    # And then it works.
    model.switch_to_deploy()
    assert same_outputs(model, expected, x)


REPLACED = {
    'stem.0.conv': lambda old: nn.Sequential(old, nn.Tanh()),
    'stages.0.blocks.1.pw1': lambda old: nn.Sequential(nn.Tanh(), old),
    'stages.0.blocks.1.pw1.conv': lambda old: nn.Conv2d(
        old.in_channels, old.out_channels, 3, padding=1, bias=False),
    'stages.0.blocks.0.pw2.bn': lambda old: nn.GroupNorm(1, old.num_features),
    'stages.0.blocks.0.pw2.conv': lambda old: hooked(old),
    'stages.0.blocks.0.prelkb_bn': lambda old: Activated(old.num_features),
    'stages.0.blocks.0.large_kernel.lkb_origin.bn': lambda old: Activated(old.num_features),
}


class Activated(nn.BatchNorm2d):
    """A norm with an activation, as timm has them."""

    def forward(self, x):
        return super().forward(x).relu()


def hooked(layer):
    layer.register_forward_hook(lambda module, args, out: out + 1)
    return layer


@pytest.mark.parametrize('name', REPLACED)
@torch.no_grad()
def test_what_does_not_merge_is_refused(tiny_arch, randomize_norms, name):
    model = network(tiny_arch, randomize_norms)
    parent, _, own = name.rpartition('.')
    parent = model.get_submodule(parent)
    setattr(parent, own, REPLACED[name](getattr(parent, own)))
    model.double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected, layers = model(x), str(model)
    with pytest.raises((TypeError, ValueError), match=r'^cannot merge'):
        model.switch_to_deploy()
    assert not model.deploy
    assert str(model) == layers
    assert all(torch.equal(out, want) for out, want in zip(model(x), expected, strict=True))


@pytest.mark.parametrize('name', ['stem.0', 'stages.0.blocks.0.pw2',
                                  'stages.0.blocks.0.large_kernel.lkb_origin'])
@torch.no_grad()
def test_a_hook_where_a_norm_was_fused(tiny_arch, randomize_norms, name):
    """Other tools leave an ``nn.Identity`` there, whose hooks are neither lost nor passed over."""
    model = network(tiny_arch, randomize_norms)
    hooked(fuse_conv_bn(model.get_submodule(name)).bn)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    if name.endswith('lkb_origin'):
        with pytest.raises(TypeError, match=r'^cannot merge .*lkb_origin.bn: it has forward hooks'):
            model.switch_to_deploy()
    else:
        model.switch_to_deploy()
        assert model.deploy
    assert same_outputs(model, expected, x)
