"""The deployed network: no norm is left, and it computes what the trained one computes."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmreplk import RepLKNet
from mmreplk.models import deployed as deployed_layers, fold
from mmreplk.models.reparam import merge_kernels
from mmreplk.ops import large_kernel_dwconv2d

OPTIONS = dict(final_norm=True, norm_intermediate_features=True)


def deployed(model):
    model = copy.deepcopy(model)
    model.switch_to_deploy()
    return model


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize('options', [
    {}, OPTIONS, dict(small_kernel=None, dw_ratio=1.5), dict(out_indices=(1, ), in_channels=5),
    dict(norm_cfg=dict(type='BN', eps=0.1)), dict(norm_cfg=dict(type='BN', affine=False)),
    dict(act_cfg=dict(type='GELU'), ffn_act_cfg=dict(type='ReLU')),
    dict(act_cfg=dict(type='LeakyReLU', negative_slope=0.2))])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_the_same_function(tiny_arch, randomize_norms, options, dtype):
    model = RepLKNet(tiny_arch, **options).to(dtype).eval()
    if options.get('norm_cfg', {}).get('affine', True):
        randomize_norms(model)
    merged = deployed(model)
    assert merged.deploy
    assert not model.deploy
    assert not any(isinstance(module, _NormBase) for module in merged.modules())
    assert not list(merged.buffers())
    x = torch.randn(2, options.get('in_channels', 3), 65, 48, dtype=dtype)
    kept = x.clone()
    expected, found = model(x), merged(x)
    limit = 1e-12 if dtype == torch.float64 else 2e-5
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max()
    assert torch.equal(x, kept)
    # A second time there is nothing to do.
    state = copy.deepcopy(merged.state_dict())
    merged.switch_to_deploy()
    assert equal(merged.state_dict().values(), state.values())


def test_pre_norms_are_exact_at_the_border(tiny_arch, randomize_norms):
    """Behind a shift of 100, a border padded with zeros after the norm would be far off."""
    model = randomize_norms(RepLKNet(tiny_arch)).double().eval()
    for name, norm in fold.norms_of(model).items():
        if name.endswith(('prelkb_bn', 'preffn_bn')):
            nn.init.constant_(norm.bias, 100.0)
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    for a, b in zip(deployed(model)(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('eps', [1e-5, 1e-3])
def test_rounded_once(tiny_arch, randomize_norms, eps):
    """The float32 weights are the float64 ones, rounded."""
    model = randomize_norms(RepLKNet(tiny_arch, norm_cfg=dict(type='BN', eps=eps), **OPTIONS))
    exact = deployed(copy.deepcopy(model).double()).state_dict()
    for name, value in deployed(model).state_dict().items():
        assert torch.equal(value, exact[name].float()), name


def test_what_the_weights_are_called(tiny_arch):
    names = set(deployed(RepLKNet(tiny_arch, **OPTIONS)).state_dict())
    assert {name.rsplit('.', 1)[1] for name in names} == {'weight', 'bias'}
    assert {'stem.0.conv.bias', 'transitions.0.1.conv.bias', 'stages.0.norm.weight', 'norm.bias',
            'stages.1.blocks.2.large_kernel.lkb_reparam.weight',
            'stages.1.blocks.3.pw1.conv.bias'} <= names
    assert not any('bn' in name for name in names)


def test_relu_is_part_of_the_operator(tiny_arch):
    """Called with it, that is; it stands in the network as what it is."""
    blocks = [deployed(model).stages[0].blocks[0]
              for model in (RepLKNet(tiny_arch), RepLKNet(tiny_arch, act_cfg=dict(type='GELU')))]
    x = torch.randn(1, blocks[0].pw1.conv.in_channels, 8, 8)
    with mock.patch.object(deployed_layers, 'large_kernel_dwconv2d',
                           side_effect=large_kernel_dwconv2d) as operator:
        assert blocks[0](x).shape == x.shape
        assert [call.kwargs['activation'] for call in operator.call_args_list] == ['relu']
        blocks[1](x)
        assert operator.call_count == 1
    assert [type(block.lk_nonlinear) for block in blocks] == [nn.ReLU, nn.GELU]
    assert [block.large_kernel.lkb_reparam.activation for block in blocks] == [None, None]


def test_deployed_networks_load_either_layout(tiny_arch, randomize_norms):
    model = randomize_norms(RepLKNet(tiny_arch, norm_cfg=dict(type='BN', eps=0.01), **OPTIONS))
    merged = deployed(model.eval())
    with_norms = copy.deepcopy(model)
    merge_kernels(with_norms)
    assert not with_norms.deploy
    x = torch.rand(1, 3, 64, 64)
    for source in (merged, with_norms):
        fresh = RepLKNet(tiny_arch, deploy=True, norm_cfg=dict(type='BN', eps=0.01), **OPTIONS)
        assert fresh.deploy
        state = source.state_dict()
        names = list(state)
        fresh.eval().load_state_dict(state)
        assert list(state) == names  # the caller's own
        assert equal(fresh(x), merged(x))
    # Inside another module too, where the prefix is another.
    outer = nn.ModuleDict(dict(backbone=RepLKNet(
        tiny_arch, deploy=True, norm_cfg=dict(type='BN', eps=0.01), **OPTIONS))).eval()
    outer.load_state_dict({f'backbone.{key}': value
                           for key, value in with_norms.state_dict().items()})
    assert equal(outer['backbone'](x), merged(x))
    with pytest.raises(RuntimeError, match='Missing key'):
        RepLKNet(tiny_arch, deploy=True, **OPTIONS).load_state_dict(model.state_dict())


def test_a_gap_in_merged_weights_is_named(tiny_arch):
    model = RepLKNet(tiny_arch)
    merge_kernels(model)
    state = model.state_dict()
    del state['stages.0.blocks.0.pw2.conv.weight']
    with pytest.raises(RuntimeError, match=r'Missing key.*stages\.0\.blocks\.0\.pw2\.conv\.weight'):
        RepLKNet(tiny_arch, deploy=True).load_state_dict(state)


def test_dtype_device_and_frozen_state_stay(tiny_arch):
    model = RepLKNet(tiny_arch, frozen_stages=1, final_norm=True).double()
    model.switch_to_deploy()
    assert all(value.dtype == torch.float64 for value in model.state_dict().values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert all(name.startswith(('stem.', 'stages.0.')) for name in frozen)
    assert not any(name.startswith(('stem.', 'stages.0.')) for name in trained)
    with torch.device('meta'):
        assert all(p.is_meta for p in RepLKNet(tiny_arch, deploy=True, **OPTIONS).parameters())


def test_deployed_networks_can_be_trained(tiny_arch, randomize_norms):
    model = deployed(randomize_norms(RepLKNet(tiny_arch, drop_path_rate=0.0))).double()
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    model(x)[-1].square().mean().backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))
    step, losses = 1e-6, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.add_(d, alpha=sign * step)
            losses.append(moved(x)[-1].square().mean())
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('norm_cfg', [
    dict(type='GN', num_groups=2), dict(type='BN', track_running_stats=False)])
def test_norms_that_do_not_fold(tiny_arch, norm_cfg):
    model = RepLKNet(tiny_arch, norm_cfg=norm_cfg)
    names = set(model.state_dict())
    with pytest.raises(TypeError, match=r'cannot merge .*Norm.* \(stem\.0\.bn\)'):
        model.switch_to_deploy()
    assert set(model.state_dict()) == names
    with pytest.raises(TypeError, match='running statistics'):
        RepLKNet(tiny_arch, norm_cfg=norm_cfg, deploy=True)


def test_extreme_statistics(tiny_arch, randomize_norms):
    """A variance of 0 folds; what float16 cannot hold is refused."""
    model = randomize_norms(RepLKNet(tiny_arch)).eval()
    for name in ('stem.1.bn', 'stages.0.blocks.0.prelkb_bn', 'stages.1.blocks.0.pw2.bn',
                 'stages.2.blocks.0.large_kernel.small_conv.bn'):
        model.get_submodule(name).running_var[:3] = torch.tensor([0.0, 1e-30, 1e12])
    x = torch.randn(1, 3, 40, 40)
    merged = deployed(model)
    for a, b in zip(merged(x), model(x), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    half = copy.deepcopy(model).half()
    with torch.no_grad():
        half.stem[1].bn.weight[0] = 6e4
    with pytest.raises(ValueError, match=r'stem\.1\.conv\.weight would not fit into.*float16'):
        half.switch_to_deploy()
    assert not half.deploy
    half.float().switch_to_deploy()
    assert half.deploy
