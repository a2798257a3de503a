import copy
from collections import Counter
from dataclasses import asdict

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmreplk import RepLKNet
from mmreplk.models.blocks import ConvFFN, RepLKBlock

BN_KEYS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def official_keys(layers, small_kernel=True, stage_norms=()):
    """The key names of facts about the official checkpoints, spelled out."""
    keys = set()

    def conv_bn(prefix):
        keys.add(f'{prefix}.conv.weight')
        keys.update(f'{prefix}.bn.{key}' for key in BN_KEYS)

    for i in range(4):
        conv_bn(f'stem.{i}')
    for stage, depth in enumerate(layers):
        for i in range(depth):
            block = f'stages.{stage}.blocks.{2 * i}'
            keys.update(f'{block}.prelkb_bn.{key}' for key in BN_KEYS)
            conv_bn(f'{block}.pw1')
            conv_bn(f'{block}.pw2')
            conv_bn(f'{block}.large_kernel.lkb_origin')
            if small_kernel:
                conv_bn(f'{block}.large_kernel.small_conv')
            ffn = f'stages.{stage}.blocks.{2 * i + 1}'
            keys.update(f'{ffn}.preffn_bn.{key}' for key in BN_KEYS)
            conv_bn(f'{ffn}.pw1')
            conv_bn(f'{ffn}.pw2')
        if stage in stage_norms:
            keys.update(f'stages.{stage}.norm.{key}' for key in BN_KEYS)
        if stage + 1 < len(layers):
            conv_bn(f'transitions.{stage}.0')
            conv_bn(f'transitions.{stage}.1')
    return keys


def outputs_equal(a, b):
    assert len(a) == len(b)
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TestPublishedArchitectures:

    @pytest.mark.parametrize(('arch', 'millions'), [('31B', 79), ('31L', 172), ('XL', 335)])
    def test_size_when_merged(self, arch, millions):
        """Facts: 79M, 172M and 335M with the classification head of 1000 classes."""
        with torch.device('meta'):
            model = RepLKNet(arch, deploy=True, final_norm=True)
            head = nn.Linear(model.arch.channels[-1], 1000)
        count = sum(p.numel() for m in (model, head) for p in m.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.01)

    def test_size_with_small_kernels(self):
        with torch.device('meta'):
            model = RepLKNet('31B', final_norm=True)
        count = sum(p.numel() for p in model.parameters()) + 1024 * 1000 + 1000
        assert count / 1e6 == pytest.approx(79.86, abs=0.01)

    def test_official_keys(self):
        depths = (2, 2, 18, 2)
        with torch.device('meta'):
            assert set(RepLKNet('31B').state_dict()) == official_keys(depths)
            xl = RepLKNet('XL', norm_intermediate_features=True)
            assert set(xl.state_dict()) == official_keys(
                depths, small_kernel=False, stage_norms=range(4))
            final = set(RepLKNet('31L', final_norm=True).state_dict()) - official_keys(depths)
        assert final == {f'norm.{key}' for key in BN_KEYS}


class TestOracle:
    """mmpretrain's own class, where it is right: it always has norms on its outputs."""

    @pytest.fixture(params=['both branches', 'large kernel only'])
    def pair(self, request, tiny_arch, randomize_norms):
        from mmpretrain.models.backbones import RepLKNet as Oracle
        if request.param == 'large kernel only':
            tiny_arch.update(small_kernel=None, dw_ratio=1.5)
        ffn_ratio = tiny_arch.pop('ffn_ratio')
        oracle = Oracle(arch=tiny_arch, ffn_ratio=ffn_ratio, out_indices=(0, 1, 2, 3),
                        drop_path_rate=0.0)
        randomize_norms(oracle)
        ours = RepLKNet(tiny_arch, norm_intermediate_features=True, drop_path_rate=0.0)
        ours.load_state_dict(oracle.state_dict())
        return ours, oracle

    @pytest.mark.parametrize('size', [(64, 64), (33, 50)])
    def test_evaluation(self, pair, size):
        ours, oracle = pair
        ours.eval()
        oracle.train(False)
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(ours(x), oracle(x), rtol=1e-5, atol=1e-5)

    def test_training_gradients_and_statistics(self, pair):
        ours, oracle = pair
        x = torch.randn(2, 3, 65, 64)
        for model in pair:
            model.train()
            sum(out.square().mean() for out in model(x)).backward()
        grads = {name: p.grad for name, p in oracle.named_parameters()}
        for name, p in ours.named_parameters():
            torch.testing.assert_close(p.grad, grads[name], rtol=1e-4, atol=1e-5, msg=name)
        buffers = dict(oracle.named_buffers())
        for name, buffer in ours.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], rtol=1e-5, atol=1e-5, msg=name)

    def test_merged(self, pair):
        ours, oracle = pair
        ours.eval()
        oracle.train(False)
        expected = oracle(x := torch.randn(1, 3, 48, 48))
        oracle.switch_to_deploy()
        loaded = RepLKNet(asdict(ours.arch), norm_intermediate_features=True, deploy=True).eval()
        loaded.load_state_dict(oracle.state_dict())
        ours.switch_to_deploy()
        for model in (ours, oracle, loaded):
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


class TestArguments:

    def test_arch_sets_widths_depths_and_kernels(self, tiny_arch):
        model = RepLKNet(tiny_arch)
        for i, stage in enumerate(model.stages):
            assert len(stage.blocks) == 2 * tiny_arch['layers'][i]
            assert isinstance(stage.blocks[0], RepLKBlock)
            assert isinstance(stage.blocks[1], ConvFFN)
            conv = stage.blocks[0].large_kernel.lkb_origin.conv
            assert conv.kernel_size == (tiny_arch['large_kernel_sizes'][i], ) * 2
            assert conv.groups == conv.in_channels == tiny_arch['channels'][i]

    def test_arch_from_a_config_file(self, tiny_arch):
        assert RepLKNet(ConfigDict(tiny_arch)).arch == RepLKNet(tiny_arch).arch

    @pytest.mark.parametrize('num_stages', [1, 3, 5])
    def test_other_numbers_of_stages(self, num_stages):
        arch = dict(large_kernel_sizes=[7] * num_stages, layers=[1] * num_stages,
                    channels=[4] * num_stages)
        assert len(RepLKNet(arch)(torch.rand(2, 3, 96, 96))) == num_stages

    def test_in_channels(self, tiny_arch):
        model = RepLKNet(tiny_arch, in_channels=5)
        assert model(torch.rand(2, 5, 64, 64))[0].shape == (2, 8, 16, 16)
        with pytest.raises(ValueError, match='in_channels'):
            RepLKNet(tiny_arch, in_channels=0)

    def test_out_indices_choose_outputs_and_prune(self, tiny_arch):
        full = RepLKNet(tiny_arch).eval()
        part = RepLKNet(tiny_arch, out_indices=(0, 2)).eval()
        missing, unexpected = part.load_state_dict(full.state_dict(), strict=False)
        assert not missing
        assert {key.split('.')[0] + '.' + key.split('.')[1] for key in unexpected} == {
            'stages.3', 'transitions.2'}
        x = torch.rand(1, 3, 64, 64)
        assert outputs_equal(part(x), (full(x)[0], full(x)[2]))
        with pytest.raises(ValueError, match='stage 4'):
            RepLKNet(tiny_arch, out_indices=(0, 4))

    def test_drop_path_rate_rises_linearly_over_the_pairs(self):
        model = RepLKNet(
            dict(large_kernel_sizes=[5] * 4, layers=[2, 2, 18, 2], channels=[4] * 4),
            drop_path_rate=0.46)
        rates = [[getattr(b.drop_path, 'drop_prob', 0.0) for b in s.blocks] for s in model.stages]
        flat = [rate for stage in rates for rate in stage]
        assert flat[0::2] == flat[1::2]
        assert flat[0::2] == pytest.approx([0.02 * i for i in range(24)])
        with pytest.raises(ValueError, match='drop_path_rate'):
            RepLKNet('31B', drop_path_rate=1.0)
        with pytest.raises(ValueError, match="with_cp must be True, False, 'large_kernel' or"):
            RepLKNet('31B', with_cp='stem')

    def test_drop_path_rate_acts_in_training_only(self, tiny_arch):
        model = RepLKNet(tiny_arch, drop_path_rate=0.9, norm_eval=True)
        x = torch.rand(8, 3, 64, 64)
        assert not outputs_equal(model.train()(x), model(x))
        assert outputs_equal(model.eval()(x), model(x))

    def test_small_kernel(self, tiny_arch):
        def small_conv(**kwargs):
            block = RepLKNet(tiny_arch, **kwargs).stages[0].blocks[0]
            return getattr(block.large_kernel, 'small_conv', None)

        assert small_conv().conv.kernel_size == (5, 5)
        assert small_conv(small_kernel=3).conv.kernel_size == (3, 3)
        assert small_conv(small_kernel=None) is None
        with pytest.raises(ValueError, match='small_kernel=9'):
            RepLKNet(tiny_arch, small_kernel=9)

    def test_dw_ratio_and_ffn_ratio(self, tiny_arch):
        blocks = RepLKNet(tiny_arch, dw_ratio=1.5, ffn_ratio=3).stages[0].blocks
        assert blocks[0].large_kernel.lkb_origin.conv.groups == 12
        assert blocks[1].pw1.conv.out_channels == 24

    def test_norm_intermediate_features(self, tiny_arch):
        """The norms act on what is returned, not on what the next stage sees."""
        plain = RepLKNet(tiny_arch, out_indices=(1, 3)).eval()
        normed = RepLKNet(tiny_arch, out_indices=(1, 3), norm_intermediate_features=True).eval()
        missing, _ = normed.load_state_dict(plain.state_dict(), strict=False)
        assert {key.rpartition('.')[0] for key in missing} == {'stages.1.norm', 'stages.3.norm'}
        nn.init.constant_(normed.stages[1].norm.bias, 3.0)
        x = torch.rand(1, 3, 64, 64)
        a, b = plain(x), normed(x)
        torch.testing.assert_close(b[0], a[0] / (1 + 1e-5)**0.5 + 3.0)
        torch.testing.assert_close(b[1], a[1] / (1 + 1e-5)**0.5)

    def test_final_norm(self, tiny_arch):
        model = RepLKNet(tiny_arch, final_norm=True).eval()
        plain = RepLKNet(tiny_arch).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        nn.init.constant_(model.norm.bias, 2.0)
        x = torch.rand(1, 3, 64, 64)
        a, b = plain(x), model(x)
        assert outputs_equal(a[:3], b[:3])
        torch.testing.assert_close(b[3], a[3] / (1 + 1e-5)**0.5 + 2.0)
        with pytest.raises(ValueError, match='final_norm'):
            RepLKNet(tiny_arch, out_indices=(0, 1), final_norm=True)

    def test_norm_cfg_reaches_every_norm(self, tiny_arch):
        model = RepLKNet(tiny_arch, norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=False),
                         norm_intermediate_features=True, final_norm=True)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        default = [m for m in RepLKNet(tiny_arch, norm_intermediate_features=True,
                                       final_norm=True).modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == len(default)
        for norm in norms:
            assert isinstance(norm, nn.SyncBatchNorm)
            assert norm.eps == 1e-3
            assert not norm.weight.requires_grad

    def test_act_cfgs_reach_their_places(self, tiny_arch):
        model = RepLKNet(tiny_arch, act_cfg=dict(type='SiLU'), ffn_act_cfg=dict(type='Tanh'))
        kinds = {}
        for name, m in model.named_modules():
            if isinstance(m, (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)):
                kinds.setdefault(type(m), []).append(name)
        assert set(kinds) == {nn.SiLU, nn.Tanh}
        assert len(kinds[nn.Tanh]) == 5
        assert len(kinds[nn.SiLU]) == 4 + 2 * 5 + 2 * 3
        default = {type(m) for m in RepLKNet(tiny_arch).modules()}
        assert {nn.ReLU, nn.GELU} <= default

    @pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
    def test_frozen_stages(self, tiny_arch, frozen_stages):
        model = RepLKNet(tiny_arch, frozen_stages=frozen_stages).train()
        frozen = set()
        if frozen_stages >= 0:
            frozen.add('stem')
        frozen.update(f'stages.{i}' for i in range(max(frozen_stages, 0)))
        frozen.update(f'transitions.{i}' for i in range(max(frozen_stages - 1, 0)))

        def is_frozen(name):
            return any(name.startswith(prefix + '.') for prefix in frozen)

        for name, p in model.named_parameters():
            assert p.requires_grad != is_frozen(name), name
        for name, m in model.named_modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.training != is_frozen(name), name
        # What is frozen does not move in a training step either.
        before = copy.deepcopy(model.state_dict())
        out = sum(o.mean() for o in model(torch.rand(2, 3, 64, 64)))
        if frozen_stages < 4:
            out.backward()
            for name, p in model.named_parameters():
                assert (p.grad is None) == is_frozen(name), name
        for name, value in model.state_dict().items():
            if is_frozen(name):
                assert torch.equal(value, before[name]), name

    def test_norm_eval(self, tiny_arch):
        model = RepLKNet(tiny_arch, norm_eval=True).train()
        assert model.training
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert all(m.training for m in RepLKNet(tiny_arch).train().modules())

    def test_train_and_eval_return_self(self, tiny_arch):
        model = RepLKNet(tiny_arch, frozen_stages=1, norm_eval=True)
        assert model.train() is model
        assert model.train(False) is model
        assert model.eval() is model

    @pytest.mark.parametrize(('with_cp', 'share'), [
        (True, 0.5), (1, 0.5), ('large_kernel', 0.85), ('ffn', 0.85)])
    def test_with_cp_changes_nothing_but_memory(self, tiny_arch, with_cp, share):
        plain = RepLKNet(tiny_arch, drop_path_rate=0.5).train()
        cp = RepLKNet(tiny_arch, drop_path_rate=0.5, with_cp=with_cp).train()
        cp.load_state_dict(plain.state_dict())
        x = torch.rand(2, 3, 64, 64)
        saved = {}
        for name, model in (('plain', plain), ('cp', cp)):
            torch.manual_seed(1)
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(
                    lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
                outs = model(x)
            saved[name] = sum(sizes)
            sum(out.square().mean() for out in outs).backward()
        # Only the layers outside the blocks named keep their activations.
        assert saved['cp'] < share * saved['plain']
        for (name, a), b in zip(plain.named_parameters(), cp.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        # Running statistics must not move twice, although the blocks run twice.
        for (name, a), b in zip(plain.named_buffers(), cp.buffers(), strict=True):
            assert torch.equal(a, b), name

    def test_with_cp_recomputes_the_blocks_that_it_names(self, tiny_arch):
        for with_cp, kind in (('large_kernel', RepLKBlock), ('ffn', ConvFFN)):
            model = RepLKNet(tiny_arch, with_cp=with_cp).train()
            calls = Counter()
            for module in model.modules():
                if isinstance(module, (RepLKBlock, ConvFFN)) or module in model.stem:
                    module.register_forward_pre_hook(
                        lambda module, *_, calls=calls: calls.update([type(module)]))
            sum(out.mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
            others = {RepLKBlock, ConvFFN} - {kind}
            assert calls[kind] == 10
            assert calls[others.pop()] == 5
            assert calls[nn.Sequential] == 4

    def test_with_cp_under_frozen_stages_and_no_grad(self, tiny_arch):
        model = RepLKNet(tiny_arch, with_cp=True, frozen_stages=2).train()
        sum(out.mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
        assert model.stages[2].blocks[0].pw1.conv.weight.grad is not None
        with torch.no_grad():
            model.eval()(torch.rand(1, 3, 64, 64))

    def test_deploy_loads_merged_weights(self, tiny_arch, randomize_norms):
        model = randomize_norms(RepLKNet(tiny_arch)).eval()
        x = torch.rand(1, 3, 64, 64)
        expected = model(x)
        assert not model.deploy
        model.switch_to_deploy()
        assert model.deploy
        fresh = RepLKNet(tiny_arch, deploy=True).eval()
        assert fresh.deploy
        fresh.load_state_dict(model.state_dict())
        assert outputs_equal(fresh(x), model(x))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        model.switch_to_deploy()
        assert outputs_equal(fresh(x), model(x))


    def test_init_cfg_loads_a_pretrained_backbone(self, tiny_arch, tmp_path):
        source = RepLKNet(tiny_arch)
        state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
        torch.save(dict(state_dict=state), tmp_path / 'pretrained.pth')
        model = RepLKNet(
            tiny_arch,
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'),
                          prefix='backbone.'))
        model.init_weights()
        x = torch.rand(1, 3, 64, 64)
        assert outputs_equal(model.eval()(x), source.eval()(x))

    def test_init_cfg_constant(self, tiny_arch):
        model = RepLKNet(tiny_arch, init_cfg=dict(type='Constant', val=0.25, layer='Conv2d'))
        model.init_weights()
        assert (model.stem[0].conv.weight == 0.25).all()


class TestInputs:

    @pytest.mark.parametrize('size', [(32, 32), (33, 47), (100, 35), (63, 64)])
    @pytest.mark.parametrize('training', [True, False])
    def test_any_size_from_32(self, tiny_arch, size, training):
        model = RepLKNet(tiny_arch).train(training)
        outs = model(torch.rand(2, 3, *size))
        for i, out in enumerate(outs):
            stride = 2**(i + 2)
            assert out.shape == (2, tiny_arch['channels'][i], -(-size[0] // stride),
                                 -(-size[1] // stride))

    @pytest.mark.parametrize('kwargs', [{}, dict(out_indices=(1, )), dict(final_norm=True),
                                        dict(norm_intermediate_features=True)])
    def test_every_parameter_gets_a_gradient(self, tiny_arch, kwargs):
        model = RepLKNet(tiny_arch, drop_path_rate=0.0, **kwargs).train()
        outs = model(torch.rand(2, 3, 64, 64))
        sum((out * torch.randn_like(out)).sum() for out in outs).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name

    @pytest.mark.slow
    @pytest.mark.parametrize('arch', ['31B', '31L', 'XL'])
    def test_full_size_merge(self, arch, randomize_norms):
        model = randomize_norms(RepLKNet(arch)).eval()
        x = torch.rand(1, 3, 97, 64)
        with torch.no_grad():
            expected = model(x)
            model.switch_to_deploy()
            actual = model(x)
        for a, b in zip(actual, expected, strict=True):
            assert ((a - b).norm() / b.norm()).item() < 1e-4
