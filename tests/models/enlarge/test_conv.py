"""One convolution: what takes its place computes the same, learns, and merges."""

import copy
import pickle

import pytest
import timm
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from timm.layers import Conv2dSame
from torch import nn

from mmreplk.models.enlarge.conv import EnlargedConv
from mmreplk.ops import LargeKernelDWConv2d

EXACT = dict(rtol=1e-10, atol=1e-10)
CHANNELS = 4
# The old convolution, the large kernel, the small one.
CASES = {
    'mobilenet': (dict(kernel_size=3, padding=1), 13, 3),
    'small_holds_it': (dict(kernel_size=3, padding=1), 9, 5),
    'small_does_not': (dict(kernel_size=7, padding=3), 13, 5),
    'same_size': (dict(kernel_size=3, padding=1), 3, 3),
    'no_small': (dict(kernel_size=3, padding=1), 9, None),
    'stride': (dict(kernel_size=3, padding=1, stride=2), 9, 3),
    'stride_and_1x1': (dict(kernel_size=3, padding=1, stride=2), 9, 1),
    'dilated': (dict(kernel_size=3, padding=4, dilation=4), 13, 3),
    'bias': (dict(kernel_size=3, padding=1, bias=True), 7, 3),
    'bias_beside': (dict(kernel_size=5, padding=2, bias=True), 7, 3),
    'multiplier': (dict(kernel_size=3, padding=1, out_channels=2 * CHANNELS), 7, 3),
    'circular': (dict(kernel_size=3, padding=1, padding_mode='circular'), 7, 3),
    'reflect': (dict(kernel_size=5, padding=2, padding_mode='reflect', stride=2), 7, 3),
    'even': (dict(kernel_size=2, padding=0, stride=2), 8, 2),
    'even_same': (dict(kernel_size=4, padding='same'), 8, 2),
    'same': (dict(kernel_size=5, padding='same', dilation=2), 11, 3),
    'valid': (dict(kernel_size=7, padding='valid'), 9, 3),
    'row': (dict(kernel_size=(1, 7), padding=(0, 3)), 9, 3),
    'other_padding': (dict(kernel_size=5, padding=(0, 3)), 9, 3),
    'mmcv_same': (dict(kernel_size=5, layer=Conv2dAdaptivePadding), 9, 3),
    'mmcv_same_stride': (dict(kernel_size=5, stride=2, layer=Conv2dAdaptivePadding), 9, 3),
    'timm_same_stride': (dict(kernel_size=3, stride=2, layer=Conv2dSame), 9, 3),
    'timm_same_stride_3': (dict(kernel_size=3, stride=3, layer=Conv2dSame), 9, 1),
}
each_case = pytest.mark.parametrize('case', CASES)


def old_conv(kernel_size, out_channels=CHANNELS, layer=nn.Conv2d, bias=False, **kwargs):
    conv = layer(CHANNELS, out_channels, kernel_size, groups=CHANNELS, bias=bias, **kwargs)
    return conv.double()


def old_norm(conv, randomize_norms, **kwargs):
    return randomize_norms(nn.BatchNorm2d(conv.out_channels, **kwargs)).double()


def maps(*sizes):
    return [torch.randn(3, CHANNELS, *size, dtype=torch.double) for size in sizes]


# Even and odd sizes: where both sides of a padding are the same, and where they are not.
SIZES = (12, 15), (13, 11), (14, 14)


@each_case
@pytest.mark.parametrize('with_norm', [True, False], ids=['norm', 'bare'])
def test_same_function_and_merge(case, with_norm, randomize_norms):
    kwargs, kernel, small = CASES[case]
    conv = old_conv(**kwargs)
    norm = old_norm(conv, randomize_norms, eps=1e-2, momentum=0.3) if with_norm else None
    before = nn.Sequential(conv, norm) if with_norm else conv
    kept = copy.deepcopy(before.state_dict())
    large = EnlargedConv(conv, norm, kernel, small)
    inputs = maps(*SIZES)
    for x in inputs:
        torch.testing.assert_close(large.train()(x), before.train()(x), **EXACT)
    if with_norm:
        # The large branch saw what the old norm saw; so did the small one if it holds the kernel.
        new = large.lkb_origin.bn
        torch.testing.assert_close(new.running_mean, norm.running_mean, **EXACT)
        torch.testing.assert_close(new.running_var, norm.running_var, **EXACT)
        assert (new.eps, new.momentum, int(new.num_batches_tracked)) == (1e-2, 0.3, len(SIZES))
    for x in inputs:  # by the statistics that have moved
        torch.testing.assert_close(large.eval()(x), before.eval()(x), **EXACT)
    large.merge_kernel()
    assert set(large.state_dict()) == {'lkb_reparam.weight', 'lkb_reparam.bias'}
    assert large.lkb_reparam.kernel_size == (kernel, kernel)
    for x in inputs:
        torch.testing.assert_close(large(x), before(x), **EXACT)
    assert all(torch.equal(value, kept[name]) for name, value in conv.state_dict(
        prefix='0.' if with_norm else '').items()), 'the old convolution was changed'


@pytest.mark.parametrize('case', ['mobilenet', 'stride', 'reflect', 'valid', 'mmcv_same_stride'])
def test_the_merge_equals_trained_branches(case, randomize_norms):
    """Not only the branches of the start, which are alike."""
    kwargs, kernel, small = CASES[case]
    conv = old_conv(**kwargs)
    large = EnlargedConv(conv, old_norm(conv, randomize_norms), kernel, small, keep_output=False)
    randomize_norms(large).eval()
    inputs = maps(*SIZES)
    expected = [large(x) for x in inputs]
    for x, value in zip(inputs, expected, strict=True):
        padded = x if large.pad is None else large.pad(x)
        first, second = large.lkb_origin(padded), large.small_conv(padded)
        torch.testing.assert_close(value, first + second, **EXACT)
        assert second.abs().max() > 0.1, 'the small branch has no effect'
    large.merge_kernel()
    for x, value in zip(inputs, expected, strict=True):
        torch.testing.assert_close(large(x), value, **EXACT)


@pytest.mark.parametrize('case', ['mobilenet', 'small_holds_it', 'small_does_not', 'bias', 'valid'])
@pytest.mark.parametrize('with_norm', [True, False], ids=['norm', 'bare'])
def test_both_branches_learn(case, with_norm, randomize_norms):
    kwargs, kernel, small = CASES[case]
    conv = old_conv(**kwargs)
    norm = old_norm(conv, randomize_norms) if with_norm else None
    large = EnlargedConv(conv, norm, kernel, small)
    start = {name: value.clone() for name, value in large.named_parameters()}
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    x, = maps((14, 14))
    for _ in range(2):
        optimizer.zero_grad()
        large(x).relu().square().mean().backward()
        optimizer.step()
    for name, value in large.named_parameters():
        if with_norm and name == 'lkb_origin.conv.bias':
            continue  # the norm takes it away
        assert (value - start[name]).abs().max() > 1e-6, name
    corner = large.lkb_origin.conv.weight[..., 0, 0]
    assert corner.abs().min() > 0, 'the taps around the old kernel do not learn'


def test_a_small_kernel_that_cannot_hold_the_old_one_is_new(randomize_norms):
    conv = old_conv(7, padding=3)
    large = EnlargedConv(conv, old_norm(conv, randomize_norms), 13, 3)
    assert not large.small_conv.bn.weight.any()
    assert large.small_conv.conv.weight.abs().min() > 0
    assert torch.equal(large.small_conv.bn.running_var, torch.ones(CHANNELS).double())


def test_without_keep_output(randomize_norms):
    conv = old_conv(3, padding=1)
    norm = old_norm(conv, randomize_norms)
    large = EnlargedConv(conv, norm, 13, 5, keep_output=False)
    for branch, size in ((large.lkb_origin, 13), (large.small_conv, 5)):
        bound = 1 / size  # of PyTorch: 1 / sqrt(fan-in)
        assert 0.8 * bound < branch.conv.weight.abs().max() <= bound
        assert torch.equal(branch.bn.weight, torch.ones(CHANNELS).double())
        assert torch.equal(branch.bn.running_var, torch.ones(CHANNELS).double())
        assert not branch.bn.bias.any()
        assert not branch.bn.running_mean.any()
    assert norm.bias.any()


@pytest.mark.parametrize(('kernel', 'extent'), [(3, 9), (5, 17)])
def test_dilation(kernel, extent, randomize_norms):
    """A dilated kernel looks as far as a dense one, at few points."""
    conv = old_conv(3, padding=1)
    large = EnlargedConv(conv, old_norm(conv, randomize_norms), kernel, None, dilation=4,
                         keep_output=False).eval()
    x = torch.zeros(1, CHANNELS, 21, 21).double().requires_grad_()
    large(x)[0, :, 10, 10].sum().backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    reach = extent // 2
    assert rows.tolist() == list(range(10 - reach, 10 + reach + 1, 4))
    expected = large(x)
    large.merge_kernel()
    torch.testing.assert_close(large(x), expected, **EXACT)


def test_a_dilated_kernel_can_hold_a_dilated_one(randomize_norms):
    conv = old_conv(3, padding=4, dilation=4)
    norm = old_norm(conv, randomize_norms)
    large = EnlargedConv(conv, norm, 9, None, dilation=2)
    assert (large.lkb_origin.conv.weight != 0).sum() == CHANNELS * 9
    x, = maps((15, 18))
    torch.testing.assert_close(large.eval()(x), norm.eval()(conv(x)), **EXACT)


def test_attributes_are_kept(randomize_norms):
    conv = LargeKernelDWConv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, backend='torch')
    norm = randomize_norms(nn.BatchNorm2d(CHANNELS)).eval()
    conv.weight.requires_grad_(False)
    conv.bfloat16()
    norm.bias.requires_grad_(False)
    large = EnlargedConv(conv, norm, 9, 3)
    for branch in (large.lkb_origin, large.small_conv):
        assert branch.conv.weight.dtype == torch.bfloat16
        assert branch.conv.backend == 'torch'
        assert branch.bn.weight.dtype == torch.float32
        assert not branch.bn.training
        assert branch.conv.training
        trainable = {name for name, value in branch.named_parameters() if value.requires_grad}
        assert 'bn.weight' in trainable
        assert not {'conv.weight', 'bn.bias'} & trainable
    # A bias, which nn.Conv2d has unless told otherwise, stays one, and trainable.
    assert large.lkb_origin.conv.bias.requires_grad
    assert large.small_conv.conv.bias is None


def test_on_meta():
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, device='meta')
    norm = nn.BatchNorm2d(CHANNELS, device='meta')
    large = EnlargedConv(conv, norm, 9, 3)
    assert all(value.is_meta for value in large.state_dict().values())
    assert large(torch.empty(1, CHANNELS, 8, 8, device='meta')).shape == (1, CHANNELS, 8, 8)


@pytest.mark.parametrize('deploy', [False, True])
def test_copies(deploy, randomize_norms):
    conv = old_conv(3, stride=2, layer=Conv2dAdaptivePadding)
    large = EnlargedConv(conv, old_norm(conv, randomize_norms), 9, 3).eval()
    if deploy:
        large.merge_kernel()
    x, = maps((13, 14))
    for other in (copy.deepcopy(large), pickle.loads(pickle.dumps(large))):
        assert torch.equal(other(x), large(x))
        assert other.deploy is deploy


@pytest.mark.parametrize(('old', 'new', 'message'), [
    (dict(kernel_size=3, padding=1), (8, None), 'kernel_size=8 cannot have the center of a 3x3 '
                                                'kernel.* Choose kernel_size=9'),
    (dict(kernel_size=(3, 4), padding=1), (9, None), 'the center of a 3x4 kernel'),
    (dict(kernel_size=7, padding=3), (5, None), 'keep_output=True: a kernel of kernel_size=5 '
                                                'cannot hold a 7x7 kernel.* Choose a larger'),
    (dict(kernel_size=5, padding=8, dilation=4), (9, 3), 'cannot hold a 5x5 kernel of dilation'),
    (dict(kernel_size=3, padding=1), (5, None, 4), 'kernel_size=5 of dilation 4 cannot hold a 3x3'),
    (dict(kernel_size=7), (5, None, 1, False), 'kernel_size=5 is too small: in place of a 7x7 '
     r'kernel with padding \(0, 0\) the feature map would grow'),
])
def test_impossible(old, new, message):
    with pytest.raises(ValueError, match=message):
        EnlargedConv(old_conv(**old), None, *new)


def test_timm_is_the_library_that_was_meant():
    """Its padding is known by the name of its class."""
    model = timm.create_model('tf_mobilenetv3_small_minimal_100')
    assert sum(type(module) is Conv2dSame for module in model.modules()) > 0
    assert Conv2dSame.__module__.startswith('timm.')
