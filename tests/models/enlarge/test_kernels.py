"""Whole networks: which convolutions and norms are replaced, and that the function stays."""

import copy
from importlib import import_module

import pytest
import timm
import torch
import torchvision
from torch import nn

from mmreplk.analysis import enlarge_kernels, merge_kernels, remove_shortcuts
from mmreplk.models.enlarge.conv import EnlargedConv


def mm(scope, **cfg):
    return import_module(f'{scope}.registry').MODELS.build(cfg)


def mmdet_efficientnet():
    pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    return mm('mmdet', type='EfficientNet', arch='b0', out_indices=(4, ))  # the blocks up to there


# Builds a network; its depth-wise convolutions, and how many of them have a batch norm behind. The
# kernels are 3x3, 5x5 and 7x7; those of mmseg_mobilenetv2 have extents up to 9 by dilation.
NETWORKS = {
    'torchvision_mobilenetv2': (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4), 17, 17),
    'timm_mobilenetv2': (lambda: timm.create_model('mobilenetv2_035', num_classes=4), 17, 17),
    'timm_mobilenetv3': (
        lambda: timm.create_model('tf_mobilenetv3_small_075', num_classes=4), 11, 11),
    'timm_mobilenetv4': (
        lambda: timm.create_model('mobilenetv4_conv_small_035', num_classes=4), 15, 15),
    'timm_convnext': (lambda: timm.create_model('convnext_atto', num_classes=4), 12, 0),
    'mmpretrain_mobilenetv2': (
        lambda: mm('mmpretrain', type='MobileNetV2', widen_factor=0.25), 17, 17),
    'mmpretrain_efficientnet': (
        lambda: mm('mmpretrain', type='EfficientNet', arch='b0', out_indices=(4, )), 16, 16),
    'mmpretrain_convnext': (
        lambda: mm('mmpretrain', type='ConvNeXt', gap_before_final_norm=False,
                   arch=dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 20])), 5, 0),
    'mmseg_mobilenetv2': (
        lambda: mm('mmseg', type='MobileNetV2', widen_factor=0.25, strides=(1, 2, 2, 1, 1, 1, 1),
                   dilations=(1, 1, 1, 2, 2, 4, 4)), 17, 17),
    'mmdet_efficientnet': (mmdet_efficientnet, 11, 11),
}


@pytest.fixture(params=NETWORKS)
def network(request, randomize_norms):
    """A network in which every layer matters: no scale of it is 0 or nearly so."""
    build, convs, norms = NETWORKS[request.param]
    model = randomize_norms(build().double())
    for name, value in model.named_parameters():
        if name.endswith('gamma'):  # the layer scale of ConvNeXt
            nn.init.uniform_(value, 0.5, 1.5)
    return model, convs, norms


def run(model, x):
    torch.manual_seed(0)  # of drop-path
    out = model(x)
    return out if torch.is_tensor(out) else out[-1]


def relative(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


def test_same_function_in_all_modes(network):
    """Of the network, of its first steps of training, of what these leave, and merged."""
    model, convs, norms = network
    large = copy.deepcopy(model)
    names = enlarge_kernels(large, 9, 3)
    assert len(names) == len(set(names)) == convs
    assert all(isinstance(large.get_submodule(name), EnlargedConv) for name in names)
    kernels = [large.get_submodule(name) for name in names]
    assert sum(isinstance(kernel.lkb_origin.bn, nn.BatchNorm2d) for kernel in kernels) == norms
    # What is in both networks is the same: all but the convolutions and the norms behind them.
    old, new = model.state_dict(), large.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() & new.keys())
    gone = [name for name in old.keys() - new.keys() if name.endswith('.running_var')]
    assert len(gone) == norms
    assert len([name for name in old if name not in new and old[name].dim() == 4]) == convs

    x = torch.randn(2, 3, 33, 44, dtype=torch.double)
    with torch.no_grad():
        for train in (False, True, False):
            model.train(train)
            large.train(train)
            expected = run(model, x)
            assert relative(run(large, x), expected) < 1e-9
        old, new = model.state_dict(), large.state_dict()
        for name in old.keys() & new.keys():  # statistics of the other norms among them
            torch.testing.assert_close(new[name], old[name], rtol=1e-8, atol=1e-8)
        assert merge_kernels(large) == convs
        assert merge_kernels(large) == 0
        assert relative(run(large, x), expected) < 1e-9
    assert not any(isinstance(module, EnlargedConv) and not module.deploy
                   for module in large.modules())


def mobilenet():
    return torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4)


def sizes_of(model, names):
    return [model.get_submodule(name).kernel_size for name in names]


def test_all_parts_learn():
    model = mobilenet()
    names = enlarge_kernels(model, 9, 3)
    start = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(4, 3, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, start[name])]
    assert not still
    for name in names[:7]:  # on maps larger than the reach of the old kernels
        assert model.get_submodule(name).lkb_origin.conv.weight[..., 0, 0].any()


def test_state_dict_of_an_enlarged_network(tmp_path):
    model = mobilenet()
    enlarge_kernels(model, 9, 5, keep_output=False)
    file = tmp_path / 'model.pth'
    torch.save(model.state_dict(), file)
    other = mobilenet()
    enlarge_kernels(other, 9, 5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        assert relative(other.eval()(x), expected) > 1e-3
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), expected)
        merge_kernels(other)
        merged = mobilenet()
        enlarge_kernels(merged, 9, 5)
        merge_kernels(merged)
        merged.load_state_dict(other.state_dict())
        assert relative(merged.eval()(x), expected) < 1e-4


def test_without_keep_output_only_the_convolutions_are_new():
    model = mobilenet().eval()
    large = copy.deepcopy(model)
    enlarge_kernels(large, 9, keep_output=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative(large(x), model(x)) > 1e-3
    old, new = model.state_dict(), large.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() & new.keys())


def test_stages():
    model = mobilenet()
    assert enlarge_kernels(model, 7, stages='features.1') == ['features.1.conv.0.0']
    assert len(enlarge_kernels(model, 13, stages=['features.16', 'features.17'])) == 2
    names = enlarge_kernels(model, [31, 29], 5, stages=('features.2', 'features.3.conv.1.0'))
    assert names == ['features.2.conv.1.0', 'features.3.conv.1.0']
    assert sizes_of(model, names) == [31, 29]
    large = [name for name, module in model.named_modules() if isinstance(module, EnlargedConv)]
    assert sizes_of(model, large) == [7, 31, 29, 13, 13]
    assert [model.get_submodule(name).small_kernel for name in large] == [3, 5, 5, 3, 3]


def test_order_of_stages_is_that_of_the_sizes():
    model = mobilenet()
    names = enlarge_kernels(model, [5, 11], None, stages=['features.17', 'features.2'])
    assert names == ['features.17.conv.1.0', 'features.2.conv.1.0']
    assert sizes_of(model, names) == [5, 11]
    assert not any('small_conv' in name for name in model.state_dict())


def test_dilated_kernels():
    model = mobilenet()
    names = enlarge_kernels(model, 3, None, dilation=4, keep_output=False)
    assert {model.get_submodule(name).lkb_origin.conv.dilation for name in names} == {(4, 4)}
    out = model.features(torch.randn(2, 3, 64, 64))
    assert out.shape == mobilenet().features(torch.randn(2, 3, 64, 64)).shape


@pytest.mark.parametrize(('network', 'count'), [
    ('torchvision_mobilenetv2', 11), ('timm_mobilenetv2', 10), ('timm_mobilenetv3', 6),
    ('mmpretrain_mobilenetv2', 11), ('mmpretrain_efficientnet', 9), ('mmseg_mobilenetv2', 11),
    ('mmdet_efficientnet', 6)
])
def test_remove_shortcuts(network, count):
    """A block without shortcut forgets its input when its last scale is 0."""
    model = NETWORKS[network][0]()
    model.eval()
    names = remove_shortcuts(model)
    assert len(names) == count
    with pytest.raises(ValueError, match='has no block with a shortcut'):
        remove_shortcuts(model)
    block = model.get_submodule(names[-1])
    last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
    assert not block(torch.randn(1, channels, 5, 5)).any()


def test_networks_without_shortcuts_or_depthwise_convolutions():
    model = torchvision.models.resnet18()
    with pytest.raises(ValueError, match='ResNet has no block with a shortcut that can be'):
        remove_shortcuts(model)
    with pytest.raises(ValueError, match='ResNet has no depth-wise convolution with a kernel'):
        enlarge_kernels(model, 13)
