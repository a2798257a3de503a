"""Whole networks: which convolutions and norms are replaced, and that the function stays."""

import copy
from importlib import import_module

import pytest
import timm
import torch
import torchvision
from mmcv.cnn import ConvModule
from torch import nn

import mmreplk
from mmreplk.analysis import enlarge_kernels, merge_kernels, remove_shortcuts
from mmreplk.models.enlarged_conv import EnlargedConv


def mm(scope, **cfg):
    return import_module(f'{scope}.registry').MODELS.build(cfg)


def mmdet_efficientnet():
    pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    return mm('mmdet', type='EfficientNet', arch='b0', out_indices=(4, ))


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
    'mmdet_efficientnet': (mmdet_efficientnet, 16, 16),
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


def mobilenet(**kwargs):
    return torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4, **kwargs)


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
    ('mmdet_efficientnet', 9)
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


@pytest.mark.parametrize(('error', 'kwargs', 'message'), [
    (TypeError, dict(kernel_size='13'), "kernel_size must be an int, got '13'"),
    (TypeError, dict(kernel_size=None), 'kernel_size must be an int, got None'),
    (TypeError, dict(kernel_size=7.0), 'kernel_size must be an int, got 7.0'),
    (ValueError, dict(kernel_size=0), 'kernel_size must be at least 1, got 0'),
    (TypeError, dict(kernel_size=True), 'kernel_size must be an int, got True'),
    (ValueError, dict(kernel_size=[7, 7]), r'kernel_size=\[7, 7\] needs stages'),
    (ValueError, dict(kernel_size=[7, 7], stages=['features.2']), r'has 2 entries, but stages 1'),
    (TypeError, dict(kernel_size=[7, '9'], stages=['features.2', 'features.3']), "int, got '9'"),
    (ValueError, dict(kernel_size=7, dilation=0), 'dilation must be at least 1'),
    (ValueError, dict(kernel_size=7, dilation=2), 'small_kernel=3 does not merge into a kernel of '
                                                  'dilation 2. Choose small_kernel=None'),
    (ValueError, dict(kernel_size=7, small_kernel=9), 'small_kernel=9 must be at most kernel_size'),
    (ValueError, dict(kernel_size=7, small_kernel=4), 'small_kernel=4 .* odd'),
    (TypeError, dict(kernel_size=7, small_kernel='3'), "small_kernel must be an int, got '3'"),
    (TypeError, dict(kernel_size=7, stages=17), 'stages must be names of modules, .* got 17'),
    (TypeError, dict(kernel_size=7, stages=[17]), r'stages must be names of modules, .* \[17\]'),
    (TypeError, dict(kernel_size=7, stages=[]), r'stages must be names of modules, .* \[\]'),
    (ValueError, dict(kernel_size=7, stages='layer4'), "'layer4' has no depth-wise convolution. "
                                                       'Name a module around some of these: fea'),
    (ValueError, dict(kernel_size=7, stages='features.18'), "'features.18' has no depth-wise"),
    (ValueError, dict(kernel_size=7, stages=['features', 'features.3']),
     'features.3.conv.1.0 belongs to two of them'),
    # One that fails after others would have been replaced.
    (ValueError, dict(kernel_size=[7, 8], small_kernel=None, stages=['features.2', 'features.3']),
     r'kernel_size=8 cannot have the centre of a 3x3 kernel.*\(features.3.conv.1.0\)'),
])
def test_errors_leave_the_model_as_it_is(error, kwargs, message):
    model = mobilenet()
    before = {name: id(module) for name, module in model.named_modules()}
    values = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        enlarge_kernels(model, **kwargs)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def depthwise(**kwargs):
    return nn.Conv2d(4, 4, 3, padding=1, groups=4, **kwargs)


class Transposed(nn.Conv2d):
    """Computes something else than its base class."""

    def forward(self, x):
        return super().forward(x.mT).mT


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: nn.utils.parametrizations.weight_norm(depthwise()), '0 has hooks or a parametris'),
    (lambda: nn.utils.spectral_norm(depthwise()), '0 has hooks or a parametrisation'),
    (lambda: Transposed(4, 4, 3, padding=1, groups=4), '0 is a Transposed, which computes'),
    (lambda: nn.LazyConv2d(4, 3, padding=1, groups=4), '0 has no weights yet: run the network'),
])
def test_convolutions_that_cannot_be_replaced(make, message):
    with pytest.raises(ValueError, match=message):
        enlarge_kernels(nn.Sequential(make()), 9)


def test_large_kernels_are_not_enlarged_again(tiny_arch):
    with pytest.raises(ValueError, match='is part of a re-parameterised kernel already'):
        enlarge_kernels(mmreplk.RepLKNet(arch=tiny_arch), 31, stages='stages')
    model = mobilenet()
    enlarge_kernels(model, 9)
    with pytest.raises(ValueError, match='is part of a re-parameterised kernel already'):
        enlarge_kernels(model, 13)


def test_ordinary_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(1, 1, 3),
                          nn.Conv2d(4, 4, 3, groups=2), depthwise())
    assert enlarge_kernels(model, 9) == ['4']


def test_norms_that_are_not_moved(randomize_norms):
    """What else uses a norm, or sees it, goes on doing so."""
    shared = nn.BatchNorm2d(4)
    watched = nn.BatchNorm2d(4)
    seen = []
    watched.register_forward_hook(lambda module, inputs, out: seen.append(out))
    bare = nn.BatchNorm2d(4, affine=False)
    model = nn.Sequential(depthwise(), shared, depthwise(), shared, depthwise(), watched,
                          depthwise(), bare, depthwise(), nn.ReLU(), nn.BatchNorm2d(4),
                          depthwise(), nn.GroupNorm(2, 4), depthwise()).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    nn.init.uniform_(shared.weight, 0.5, 2)
    large = copy.deepcopy(model)
    enlarge_kernels(large, 9)
    x = torch.randn(2, 4, 12, 12).double()
    assert relative(large(x), model(x)) < 1e-9
    kept = [module for module in large.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(kept) == len(norms)
    assert large[1] is large[3]
    assert len(seen) == 2


def test_shared_convolutions_stay_shared():
    conv = depthwise()
    model = nn.ModuleDict(dict(
        a=nn.Sequential(conv, nn.BatchNorm2d(4)), b=nn.Sequential(conv, nn.BatchNorm2d(4))))
    for stages, size in (('a', 9), (['a', 'b'], [9, 7])):
        with pytest.raises(ValueError, match=r'a\.0 and b\.0 are one convolution'):
            enlarge_kernels(model, size, stages=stages)
    expected = model['b'](model['a'](torch.ones(1, 4, 8, 8)))
    assert enlarge_kernels(model, 9) == ['a.0', 'b.0']
    assert model['a'][0] is model['b'][0]
    assert isinstance(model['a'][1], nn.BatchNorm2d)
    torch.testing.assert_close(model['b'](model['a'](torch.ones(1, 4, 8, 8))), expected)


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'), ('norm', 'conv', 'act')])
def test_conv_module_that_folds_its_norm_itself(order, randomize_norms):
    """MMCV's efficient_conv_bn_eval reads the weights of a plain convolution."""
    model = ConvModule(4, 4, 3, padding=1, groups=4, norm_cfg=dict(type='BN'), order=order,
                       efficient_conv_bn_eval=True)
    randomize_norms(model).double().eval()
    x = torch.randn(2, 4, 12, 12).double()
    expected = model(x)
    assert enlarge_kernels(model, 9) == ['conv']
    assert isinstance(model.norm, nn.Identity) is (order[0] == 'conv')
    torch.testing.assert_close(model(x), expected)


def test_sync_bn():
    model = mobilenet()
    enlarge_kernels(model, 9)
    first = copy.deepcopy(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.features[1].conv[0][0].small_conv.bn, nn.SyncBatchNorm)
    # Converted before, its norms go into the branches as well.
    other = nn.SyncBatchNorm.convert_sync_batchnorm(mobilenet())
    enlarge_kernels(other, 9)
    assert other.state_dict().keys() == first.state_dict().keys()
    assert isinstance(other.features[1].conv[0][0].small_conv.bn, nn.SyncBatchNorm)
