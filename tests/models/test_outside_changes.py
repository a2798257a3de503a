"""What outside does to a built network: attributes, hooks, replaced layers. The layers decide."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import mkldnn

from mmreplk import RepLKNet
from mmreplk.models import reparam
from mmreplk.models.cpu_inference.pointwise import PointwiseConv2d
from mmreplk.models.enlarge.conv import EnlargedConv
from mmreplk.models.reparam import ReparamLargeKernelConv


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def set_all(layer, **attributes):
    for branch in (layer.lkb_origin, layer.small_conv):
        for key, value in attributes.items():
            setattr(branch.conv, key, value)


def dilate(layer, dilation=2, stride=1, small=True):
    for branch in (layer.lkb_origin, layer.small_conv)[:1 + small]:
        conv = branch.conv
        conv.dilation, conv.stride = (dilation, dilation), (stride, stride)
        conv.padding = tuple(dilation * (k // 2) for k in conv.kernel_size)


def unpadded(layer):
    layer.lkb_origin.conv.padding, layer.small_conv.conv.padding = (2, 2), (0, 0)


def biases(layer):
    for branch in (layer.lkb_origin, layer.small_conv):
        branch.conv.bias = nn.Parameter(torch.randn_like(branch.conv.weight[:, 0, 0, 0]))


# Of what can be set, that which merges exactly, and that which cannot.
MERGING = {
    'bias': biases,
    'circular': lambda layer: set_all(layer, padding_mode='circular'),
    'reflect': lambda layer: set_all(layer, padding_mode='reflect'),
    'dilation': dilate,
    'stride and dilation': lambda layer: dilate(layer, 2, 2),
    'stride': lambda layer: dilate(layer, 1, 2),
    'backend': lambda layer: set_all(layer, backend='torch'),
    'same': lambda layer: set_all(layer, padding='same'),
    'parametrized weight norm': lambda layer: parametrizations.weight_norm(layer.small_conv.conv),
    'fused': fuse_conv_bn,
    'unpadded': unpadded,
}
REFUSED = {
    'dilation of one': lambda layer: dilate(layer, small=False),
    'circular one': lambda layer: setattr(layer.small_conv.conv, 'padding_mode', 'circular'),
    'activation': lambda layer: setattr(layer.lkb_origin.conv, 'activation', 'relu'),
    'another class': lambda layer: setattr(
        layer.lkb_origin, 'conv', Doubled(6, 6, 9, padding=4, groups=6).double()),
    'own forward': lambda layer: setattr(
        layer.small_conv.conv, 'forward', lambda x: x.sin()),
    'another layer': lambda layer: layer.small_conv.add_module('more', nn.Tanh()),
    'hook': lambda layer: layer.lkb_origin.bn.register_forward_hook(lambda m, i, o: o + 1),
}


def layer_with(change):
    torch.manual_seed(0)
    layer = ReparamLargeKernelConv(6, 9, 5).double()
    for branch in (layer.lkb_origin, layer.small_conv):
        for value in (branch.bn.running_mean, branch.bn.weight.data, branch.bn.bias.data):
            value.normal_()
    layer.eval()
    change(layer)
    return layer


@pytest.mark.parametrize('change', [*MERGING.values(), *REFUSED.values()],
                         ids=[*MERGING, *REFUSED])
@torch.no_grad()
def test_the_branches_decide(change):
    layer, x = layer_with(change), torch.randn(2, 6, 20, 23, dtype=torch.float64)
    expected = layer.lkb_origin(x) + layer.small_conv(x)
    torch.testing.assert_close(layer(x), expected)
    before = set(layer.state_dict())
    if change in REFUSED.values():
        with pytest.raises((TypeError, ValueError), match=r'^cannot merge'):
            layer.merge_kernel()
        assert set(layer.state_dict()) == before
    else:
        layer.merge_kernel()
        assert set(layer.state_dict()) == {'lkb_reparam.weight', 'lkb_reparam.bias'}
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_plain_branches_still_run_as_a_pair():
    layer, x = ReparamLargeKernelConv(6, 9, 5), torch.randn(1, 6, 8, 8)
    with mock.patch.object(reparam, 'large_kernel_dwconv2d_pair',
                           side_effect=reparam.large_kernel_dwconv2d_pair) as pair:
        layer(x)
        assert pair.call_count == 1
        with nn.modules.module.register_module_forward_hook(lambda *args: None):
            layer(x)
        assert pair.call_count == 1


@pytest.mark.parametrize('kind', ['forward', 'pre', 'backward', 'backward pre'])
@pytest.mark.parametrize('deploy', [False, True])
def test_every_hook_is_called(tiny_arch, deploy, kind):
    model = RepLKNet(tiny_arch, drop_path_rate=0.0, deploy=deploy).train()
    names = [name for name, module in model.named_modules()
             if name and not isinstance(module, nn.ModuleList)
             and not (name.endswith('.norm') and isinstance(module, nn.Identity))]
    seen = []
    for name in names:
        module = model.get_submodule(name)
        register = dict(
            forward=module.register_forward_hook, pre=module.register_forward_pre_hook,
            backward=module.register_full_backward_hook)
        register['backward pre'] = module.register_full_backward_pre_hook
        register[kind](lambda *args, name=name: seen.append(name))
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    sum(out.sum() for out in model(x)).backward()
    assert set(names) == set(seen)


def test_hooks_in_an_enlarged_convolution():
    layer, seen = EnlargedConv(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
                               nn.BatchNorm2d(6), 9, 3), []
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda *args, name=name: seen.append(name))
    layer(torch.randn(2, 6, 8, 8))
    assert set(seen) == {name for name, _ in layer.named_modules()}


def with_plain_convolutions(model):
    """What quantisers and wrappers do."""
    model = copy.deepcopy(model)
    for name, old in list(model.named_modules()):
        if isinstance(old, nn.Conv2d):
            new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride,
                            old.padding, old.dilation, old.groups, old.bias is not None)
            new.load_state_dict(old.state_dict())
            parent, _, own = name.rpartition('.')
            setattr(model.get_submodule(parent), own, new)
    return model


@pytest.mark.parametrize('options', [
    {}, dict(act_cfg=dict(type='GELU'), ffn_act_cfg=dict(type='ReLU'))])
@torch.no_grad()
def test_replaced_convolutions_keep_the_activations(tiny_arch, randomize_norms, options):
    model = randomize_norms(RepLKNet(tiny_arch, **options)).eval()
    model.switch_to_deploy()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    replaced = with_plain_convolutions(model)
    others = [replaced(x), pickle.loads(pickle.dumps(model))(x)]
    if not options:  # without GELU in place of every ReLU
        others.append([out.to_dense() for out in mkldnn.to_mkldnn(model)(x.to_mkldnn())])
    for outs in others:
        for out, want in zip(outs, expected, strict=True):
            assert (out - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(('key', 'value'), [('stride', (2, 2)), ('padding', (1, 1))])
@torch.no_grad()
def test_attributes_of_1x1_convolutions(key, value):
    conv, x = PointwiseConv2d(8, 8), torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last)
    setattr(conv, key, value)
    torch.testing.assert_close(conv(x), nn.Conv2d.forward(conv, x))
