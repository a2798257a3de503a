"""What ``enlarge_kernels`` refuses, and what it leaves alone."""

import copy

import pytest
import torch
import torchvision
from mmcv.cnn import ConvModule
from torch import nn

import mmreplk
from mmreplk.analysis import enlarge_kernels


def mobilenet():
    return torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4)


def relative(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


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
     r'kernel_size=8 cannot have the center of a 3x3 kernel.*\(features.3.conv.1.0\)'),
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
    (lambda: nn.utils.parametrizations.weight_norm(depthwise()), '0 has hooks or a parametriz'),
    (lambda: nn.utils.spectral_norm(depthwise()), '0 has hooks or a parametrization'),
    (lambda: Transposed(4, 4, 3, padding=1, groups=4), '0 is a Transposed, which computes'),
    (lambda: nn.LazyConv2d(4, 3, padding=1, groups=4), '0 has no weights yet: run the network'),
])
def test_convolutions_that_cannot_be_replaced(make, message):
    with pytest.raises(ValueError, match=message):
        enlarge_kernels(nn.Sequential(make()), 9)


def test_large_kernels_are_not_enlarged_again(tiny_arch):
    with pytest.raises(ValueError, match='is part of a re-parameterized kernel already'):
        enlarge_kernels(mmreplk.RepLKNet(arch=tiny_arch), 31, stages='stages')
    model = mobilenet()
    enlarge_kernels(model, 9)
    with pytest.raises(ValueError, match='is part of a re-parameterized kernel already'):
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
    assert not any(module.training for module in model.modules())
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
