"""Layouts of weights: what is recognized, and what a backbone starts from or refuses."""

import pytest
import torch
from mmengine.model import BaseModule

from mmreplk import RepLKNet
from mmreplk.models.arch import ARCHS
from mmreplk.models.keys import is_folded, is_merged
from mmreplk.models.reparam import merge_kernels
from mmreplk.weights import layouts as checkpoint


def numbered(model):
    """A state dict whose every tensor differs, also where the module starts from constants."""
    return {name: torch.full_like(value, index + 1) + torch.rand(value.shape).to(value)
            for index, (name, value) in enumerate(model.state_dict().items())}


def prefixed(state, prefix='backbone.'):
    return {prefix + name: value for name, value in state.items()}


def mmpretrain_names(state, last=3):
    """The layout that facts about MMPretrain's files describe, spelled out."""
    return prefixed({name.replace('norm.', f'stages.{last}.norm.', 1)
                     if name.startswith('norm.') else name: value for name, value in state.items()})


def equal(model, state):
    own = model.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


class TestArch:

    @pytest.mark.parametrize('name', list(ARCHS))
    @pytest.mark.parametrize('options', [
        dict(), dict(deploy=True), dict(final_norm=True), dict(norm_intermediate_features=True)])
    def test_published_ones_are_told_by_shapes(self, name, options):
        with torch.device('meta'):
            state = RepLKNet(name, **options).state_dict()
        merged = options.get('deploy', False)
        assert is_merged(state) == merged
        assert checkpoint.name_of(checkpoint.arch_of(state), merged) == name
        assert checkpoint.describe_arch(checkpoint.arch_of(state), merged) == name

    def test_others_are_described(self, tiny_arch):
        model = RepLKNet(tiny_arch, dw_ratio=1.5, ffn_ratio=3)
        found = checkpoint.arch_of(model.state_dict())
        assert found == model.arch
        assert checkpoint.name_of(found) is None
        text = checkpoint.describe_arch(found)
        assert 'large_kernel_sizes 13-11-9-7' in text
        assert 'dw_ratio 1.5' in text
        assert 'small_kernel 5' in text

    def test_a_small_kernel_more_or_less_is_another_arch(self):
        with torch.device('meta'):
            state = RepLKNet('31B', small_kernel=None).state_dict()
        assert checkpoint.name_of(checkpoint.arch_of(state)) is None

    def test_a_gap(self, tiny_arch):
        state = RepLKNet(tiny_arch).state_dict()
        del state['stages.2.blocks.0.pw1.conv.weight']
        with pytest.raises(ValueError, match=r'lacks stages\.2\.blocks\.0\.pw1'):
            checkpoint.arch_of(state)


class TestUnwrap:

    @pytest.mark.parametrize('wrap', [
        lambda s: s, lambda s: dict(state_dict=s, meta={}), lambda s: dict(model=s, epoch=3),
        lambda s: dict(module=s), lambda s: dict(model=dict(module=s)),
        lambda s: dict(model=prefixed(s, 'module.'))])
    def test_wrappers(self, wrap):
        state = {'stem.0.conv.weight': torch.ones(2), 'norm.bias': torch.zeros(1)}
        assert checkpoint.unwrap(wrap(state)) == state

    def test_moving_average(self):
        one, two = {'a': torch.ones(1)}, {'a': torch.zeros(1)}
        assert checkpoint.unwrap(dict(model=one, model_ema=two)) == one
        assert checkpoint.unwrap(dict(model=one, model_ema=two), ema=True) == two
        assert checkpoint.unwrap(dict(state_dict=one, state_dict_ema=two), ema=True) == two
        with pytest.raises(ValueError, match='no moving average'):
            checkpoint.unwrap(dict(model=one), ema=True)

    @pytest.mark.parametrize('bad', [[1, 2], dict(), dict(model={}), dict(epoch=1),
                                     dict(state_dict={'a': torch.ones(1), 'b': 'text'})])
    def test_no_weights(self, bad):
        with pytest.raises(ValueError, match='holds'):
            checkpoint.unwrap(bad)


class TestPretrained:
    """``init_cfg=dict(type='Pretrained', ...)`` with files of every layout."""

    @pytest.fixture
    def source(self, tiny_arch):
        return numbered(RepLKNet(tiny_arch, final_norm=True))

    def start(self, tmp_path, arch, content, prefix='backbone.', **options):
        file = tmp_path / 'weights.pth'
        torch.save(content, file)
        options.setdefault('init_cfg', dict(type='Pretrained', checkpoint=str(file), prefix=prefix))
        model = RepLKNet(arch, **options)
        model.init_weights()
        return model

    @pytest.mark.parametrize('final_norm', [False, True])
    @pytest.mark.parametrize('layout', ['ours', 'mmpretrain', 'authors', 'authors, wrapped'])
    def test_layouts(self, tmp_path, tiny_arch, source, layout, final_norm):
        head = {'head.weight': torch.ones(7, 20), 'head.bias': torch.ones(7)}
        content = {
            'ours': dict(state_dict={**prefixed(source), 'head.fc.weight': torch.ones(7, 20)}),
            'mmpretrain': dict(state_dict=mmpretrain_names(source)),
            'authors': {**source, **head},
            'authors, wrapped': dict(model={**source, **head}),
        }[layout]
        model = self.start(tmp_path, tiny_arch, content, final_norm=final_norm)
        assert equal(model, source)

    def test_without_prefix_and_among_others(self, tmp_path, tiny_arch, source):
        file = str(tmp_path / 'weights.pth')
        cfgs = [dict(type='Constant', layer='Conv2d', val=0.5),
                dict(type='Pretrained', checkpoint=file)]
        model = self.start(tmp_path, tiny_arch, source, init_cfg=cfgs)
        assert equal(model, source)
        assert model.init_cfg == cfgs

    def test_by_its_own_name(self, tmp_path, tiny_arch, source):
        """Also for networks of others, which it refuses."""
        file = tmp_path / 'weights.pth'
        init_cfg = dict(type='mmreplk.Pretrained', checkpoint=str(file))
        assert equal(self.start(tmp_path, tiny_arch, source, init_cfg=init_cfg), source)
        other = BaseModule(init_cfg)
        with pytest.raises(TypeError, match='starts RepLKNet and EnlargedBackbone, not BaseModule'):
            other.init_weights()

    def test_later_calls_change_nothing(self, tmp_path, tiny_arch, source):
        model = self.start(tmp_path, tiny_arch, source)
        torch.nn.init.zeros_(model.stem[0].conv.weight)
        model.init_weights()
        assert not model.stem[0].conv.weight.any()

    def test_norms_of_stage_outputs_start_afresh(self, tmp_path, tiny_arch, source):
        """As the authors' XL does: MMPretrain's name for the final norm must not slip in."""
        model = self.start(tmp_path, tiny_arch, mmpretrain_names(source),
                           norm_intermediate_features=True)
        assert all(bool((stage.norm.weight == 1).all()) for stage in model.stages)
        plain = {name: value for name, value in model.state_dict().items() if '.norm.' not in name}
        assert all(torch.equal(value, source[name]) for name, value in plain.items())

    def test_norms_of_stage_outputs_are_loaded(self, tmp_path, tiny_arch):
        dense = numbered(RepLKNet(tiny_arch, norm_intermediate_features=True))
        model = self.start(tmp_path, tiny_arch, prefixed(dense), norm_intermediate_features=True)
        assert equal(model, dense)
        with pytest.raises(ValueError, match=r'unexpected \(stages\.0\.norm'):
            self.start(tmp_path, tiny_arch, prefixed(dense))

    def test_stages_that_are_not_built(self, tmp_path, tiny_arch, source):
        assert equal(self.start(tmp_path, tiny_arch, source, out_indices=(0, 1)), source)

    def test_other_arch(self, tmp_path, tiny_arch, source):
        other = dict(tiny_arch, large_kernel_sizes=[13, 11, 9, 5])
        with pytest.raises(ValueError, match=r'13-11-9-7.*but the backbone of.*13-11-9-5'):
            self.start(tmp_path, other, source)
        with pytest.raises(ValueError, match='small_kernel 5, but.*small_kernel None'):
            self.start(tmp_path, tiny_arch, source, small_kernel=None)

    def test_merged(self, tmp_path, tiny_arch):
        merged = numbered(RepLKNet(tiny_arch, deploy=True))
        with pytest.raises(ValueError, match='is merged already'):
            self.start(tmp_path, tiny_arch, merged)
        assert equal(self.start(tmp_path, tiny_arch, merged, deploy=True), merged)
        with pytest.raises(ValueError, match='is not merged'):
            self.start(tmp_path, tiny_arch, numbered(RepLKNet(tiny_arch)), deploy=True)
        # Merged by others, who leave the norms: these are folded.
        model = RepLKNet(tiny_arch)
        merge_kernels(model)
        others = {name: value.abs() for name, value in numbered(model).items()}
        assert not is_folded(others)
        model.load_state_dict(others)
        model.switch_to_deploy()
        assert is_folded(model.state_dict())
        assert equal(self.start(tmp_path, tiny_arch, others, deploy=True), model.state_dict())

    def test_gaps_and_other_networks(self, tmp_path, tiny_arch, source):
        del source['stages.1.blocks.2.pw2.bn.weight']
        with pytest.raises(ValueError, match=r'1 missing \(stages\.1\.blocks\.2\.pw2\.bn\.weight'):
            self.start(tmp_path, tiny_arch, source)
        with pytest.raises(ValueError, match='holds no RepLKNet.*but conv1.weight'):
            self.start(tmp_path, tiny_arch, {'conv1.weight': torch.ones(2)})

    def test_old_files_without_counters(self, tmp_path, tiny_arch, source):
        kept = {name: value for name, value in source.items() if 'num_batches' not in name}
        model = self.start(tmp_path, tiny_arch, kept)
        assert torch.equal(model.stem[0].bn.running_var, source['stem.0.bn.running_var'])

    @pytest.mark.parametrize('channels', [1, 2, 4, 6, 7])
    @pytest.mark.parametrize('deploy', [False, True])
    def test_other_channels(self, tmp_path, tiny_arch, source, channels, deploy, caplog):
        """The first convolution as timm makes it of weights for color images."""
        if deploy:
            source = numbered(RepLKNet(tiny_arch, deploy=True, final_norm=True))
        start = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
        options = dict(in_channels=channels, deploy=deploy)
        with pytest.raises(ValueError, match=r"for images of 3 channels, the network for "
                           rf"{channels}: in_channels='adapt'.*init_cfg"):
            self.start(tmp_path, tiny_arch, source, init_cfg=start, **options)
        with caplog.at_level('INFO'):
            model = self.start(tmp_path, tiny_arch, source,
                               init_cfg=dict(start, in_channels='adapt'), **options)
        weight = source['stem.0.conv.weight']
        if channels == 1:
            wanted = weight.sum(1, keepdim=True)
        else:
            wanted = torch.stack([weight[:, i % 3] for i in range(channels)], 1) * (3 / channels)
        own = model.state_dict()
        torch.testing.assert_close(own['stem.0.conv.weight'], wanted)
        for name in own.keys() - {'stem.0.conv.weight'}:
            assert torch.equal(own[name], source[name]), name
        # A network that sees the same in all channels sees what it saw.
        gray = torch.rand(1, 1, 32, 32)
        if channels in (1, 6):
            color = self.start(tmp_path, tiny_arch, source, deploy=deploy).stem[0].conv
            torch.testing.assert_close(model.stem[0].conv(gray.expand(-1, channels, -1, -1)),
                                       color(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-3)

    def test_adapting_says_so_once(self, tmp_path, tiny_arch, source, capfd):
        from mmengine.logging import MMLogger
        file = str(tmp_path / 'weights.pth')
        start = dict(type='Pretrained', checkpoint=file, in_channels='adapt')
        MMLogger.get_instance('adapt', logger_name='adapt')
        for channels, times in ((6, 1), (3, 0)):
            capfd.readouterr()
            self.start(tmp_path, tiny_arch, source, init_cfg=start, in_channels=channels)
            text = ''.join(capfd.readouterr())
            assert text.count('repeated and scaled by 3/6 for the 6') == times

    def test_adapting_is_for_colors_and_the_first_convolution(self, tmp_path, tiny_arch, source):
        start = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
        six = dict(source)
        stem = source['stem.0.conv.weight']
        six['stem.0.conv.weight'] = torch.cat([stem, -stem], 1)
        with pytest.raises(ValueError, match="weights for 3 channels, but .* is for 6"):
            self.start(tmp_path, tiny_arch, six, in_channels=4,
                       init_cfg=dict(start, in_channels='adapt'))
        with pytest.raises(ValueError, match="in_channels='repeat' in init_cfg must be 'adapt'"):
            self.start(tmp_path, tiny_arch, source, init_cfg=dict(start, in_channels='repeat'))
        adapt = dict(start, in_channels='adapt')
        assert equal(self.start(tmp_path, tiny_arch, six, in_channels=6, init_cfg=adapt), six)
        other = dict(tiny_arch, large_kernel_sizes=[13, 11, 9, 5])
        with pytest.raises(ValueError, match=r'13-11-9-7.*but the backbone of.*13-11-9-5'):
            self.start(tmp_path, other, source, init_cfg=adapt, in_channels=6)


class TestLoadStateDict:
    """Plain ``load_state_dict`` of a classifier takes MMPretrain's final norm by its name there."""

    def test_mmpretrain(self, tiny_arch):
        source = numbered(RepLKNet(tiny_arch, final_norm=True))
        renamed = {name.removeprefix('backbone.'): value
                   for name, value in mmpretrain_names(source).items()}
        model = RepLKNet(tiny_arch, final_norm=True)
        model.load_state_dict(renamed)
        assert equal(model, source)
        assert 'stages.3.norm.weight' in renamed, 'the dict of the caller was changed'

    def test_a_norm_on_the_last_stage_alone_is_not_renamed(self, tiny_arch):
        options = dict(out_indices=(3, ), norm_intermediate_features=True)
        source = numbered(RepLKNet(tiny_arch, **options))
        model = RepLKNet(tiny_arch, **options)
        model.load_state_dict(source)
        assert equal(model, source)

    def test_strict_still_refuses_what_is_foreign(self, tiny_arch):
        source = numbered(RepLKNet(tiny_arch, final_norm=True))
        with pytest.raises(RuntimeError, match=r'norm\.weight'):
            RepLKNet(tiny_arch).load_state_dict(source)
