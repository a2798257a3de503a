"""``EnlargedBackbone``: large kernels in the backbone of any config."""

import copy
from importlib import import_module

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmreplk.models import EnlargedBackbone
from mmreplk.models.enlarge.conv import EnlargedConv
from mmreplk.registry import MODELS

ORIGINAL = dict(type='mmpretrain.MobileNetV2', widen_factor=0.25)
X = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def config(**changes):
    default = dict(type='mmreplk.EnlargedBackbone', backbone=dict(ORIGINAL), kernel_size=7)
    return {**default, **changes}


def build(**changes) -> EnlargedBackbone:
    return MODELS.build(config(**changes))


def output(model):
    model.eval()
    with torch.no_grad():
        return model(X)[-1]


def kernels(model) -> dict[str, EnlargedConv]:
    return {name: module for name, module in model.named_modules()
            if isinstance(module, EnlargedConv)}


@pytest.fixture
def original(tmp_path, randomize_norms):
    """A trained original network and its file, as a classifier would save it."""
    model = randomize_norms(MODELS.build(dict(ORIGINAL)))
    file = tmp_path / 'original.pth'
    torch.save(dict(state_dict={f'backbone.{name}': value
                                for name, value in model.state_dict().items()}), file)
    return model, dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')


@pytest.fixture
def enlarged(tmp_path, randomize_norms):
    """A trained enlarged network, as it was and merged, with the files of both."""
    model = randomize_norms(build(keep_output=False))
    merged = copy.deepcopy(model)
    merged.switch_to_deploy()
    inits = []
    for name, network in (('model', model), ('merged', merged)):
        file = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict={f'backbone.{name}': value
                                    for name, value in network.state_dict().items()}), file)
        inits.append(dict(type='Pretrained', checkpoint=str(file)))
    return model, *inits


@pytest.mark.parametrize(('scope', 'kind'), [
    ('mmpretrain', 'MobileNetV2'), ('mmseg', 'MobileNetV2'), ('mmdet', 'MobileNetV2'),
    ('mmpretrain', 'ConvNeXt'), ('mmseg', 'mmpretrain.MobileNetV2'),
    ('mmdet', 'mmpretrain.MobileNetV2')
])
def test_every_scope(scope, kind):
    """A bare name is looked up in the config's scope, also when the weights are initialized."""
    if scope == 'mmdet':
        pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    registry = import_module(f'{scope}.registry').MODELS
    arch = dict(arch=dict(depths=[1, 1, 1, 1], channels=[4, 6, 8, 10])) if kind == 'ConvNeXt' else (
        dict(widen_factor=0.25))
    cfg = dict(type='mmreplk.EnlargedBackbone', backbone=dict(type=kind, **arch), kernel_size=9)
    with DefaultScope.overwrite_default_scope(scope):
        model = registry.build(cfg)
    assert type(model) is EnlargedBackbone
    assert type(model.backbone).__module__.startswith(f'{kind.rpartition(".")[0] or scope}.models')
    with DefaultScope.overwrite_default_scope('mmengine'):
        model.init_weights()
    assert model(X)[-1].shape[0] == 2
    assert cfg['backbone'] == dict(type=kind, **arch), 'the config was changed'


def test_arguments_arrive():
    model = build(small_kernel=5, stages=['layer6', 'layer7'])
    assert set(kernels(model)) == {f'backbone.{name}' for name in model.enlarged}
    assert {name.split('.')[1] for name in kernels(model)} == {'layer6', 'layer7'}
    assert len(kernels(model)) == 4
    assert all((k.kernel_size, k.small_kernel) == (7, 5) for k in kernels(model).values())
    several = build(stages=['layer1', 'layer7'], kernel_size=[9, 13])
    assert [k.kernel_size for k in kernels(several).values()] == [9, 13]
    dilated = build(small_kernel=None, dilation=3, keep_output=False)
    assert all(k.lkb_origin.conv.dilation == (3, 3) and not hasattr(k, 'small_conv')
               for k in kernels(dilated).values())
    switches = [block.use_res_connect for block in build(shortcut=False).modules()
                if hasattr(block, 'use_res_connect')]
    assert len(switches) == 17
    assert not any(switches)


@pytest.mark.parametrize(('changes', 'error', 'message'), [
    (dict(stages='layer9'), ValueError, "'layer9' has no depth-wise convolution"),
    (dict(small_kernel=9), ValueError, 'small_kernel=9 must be at most kernel_size=7'),
    (dict(dilation=2), ValueError, 'Choose small_kernel=None'),
    (dict(init_cfg=dict(type='Kaiming', layer='Conv2d')), ValueError,
     'Other initializations belong into backbone.init_cfg'),
    (dict(init_cfg=[dict(type='Pretrained', checkpoint='a.pth')]), ValueError, 'init_cfg must be'),
    (dict(backbone=dict(type='mmpretrain.ResNet', depth=18)), ValueError, 'nothing to enlarge'),
    (dict(backbone=dict(type='mmpretrain.ResNet', depth=18), shortcut=False), ValueError,
     'nothing to enlarge'),
])
def test_impossible_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


class TestStart:

    @pytest.mark.parametrize('deploy', [False, True])
    def test_from_the_original(self, original, deploy):
        trained, init_cfg = original
        model = build(backbone=dict(ORIGINAL, init_cfg=init_cfg), deploy=deploy)
        model.init_weights()
        assert model.deploy is deploy
        torch.testing.assert_close(output(model), output(trained), rtol=1e-3, atol=1e-4)

    def test_from_the_original_with_new_kernels(self, original):
        trained, init_cfg = original
        model = build(backbone=dict(ORIGINAL, init_cfg=init_cfg), keep_output=False)
        model.init_weights()
        old, new = trained.state_dict(), model.backbone.state_dict()
        kept = old.keys() & new.keys()
        assert len(kept) == len(old) - 17 * 6  # a kernel, and five tensors of the norm behind it
        assert all(torch.equal(new[name], old[name]) for name in kept)
        for kernel in kernels(model).values():
            assert torch.equal(kernel.lkb_origin.bn.weight, torch.ones_like(
                kernel.lkb_origin.bn.weight))
            assert kernel.lkb_origin.conv.weight[..., 0, 0].abs().max() > 0

    @pytest.mark.parametrize('keep_output', [True, False])
    def test_from_nothing(self, keep_output):
        """The init_cfg of the original network is that of the new kernels too."""
        rules = [dict(type='Constant', layer='Conv2d', val=0.25),
                 dict(type='Constant', layer='_BatchNorm', val=0.5)]
        model = build(backbone=dict(ORIGINAL, init_cfg=rules), small_kernel=None,
                      keep_output=keep_output)
        model.init_weights()
        for kernel in kernels(model).values():
            weight = kernel.lkb_origin.conv.weight
            taps = 3 * 3 if keep_output else 7 * 7
            assert (weight != 0).sum() == taps * len(weight)
            assert set(weight.unique().tolist()) <= {0.0, 0.25}
            assert set(kernel.lkb_origin.bn.weight.tolist()) == {0.5}
        assert set(model.backbone.layer1[0].conv[1].conv.weight.unique().tolist()) == {0.25}

    def test_a_second_call_does_nothing(self, original):
        model = build(backbone=dict(ORIGINAL, init_cfg=original[1]))
        model.init_weights()
        with torch.no_grad():
            nn.init.zeros_(model.backbone.conv1.conv.weight)
        model.init_weights()
        assert not model.backbone.conv1.conv.weight.any()

    def test_from_an_enlarged_one(self, enlarged):
        trained, init_cfg, merged = enlarged
        expected = output(trained)
        for keep_output in (True, False):
            model = build(init_cfg=init_cfg, keep_output=keep_output)
            model.init_weights()
            assert torch.equal(output(model), expected)
        model = build(init_cfg=merged, deploy=True)
        model.init_weights()
        assert set(kernels(model)) == set(kernels(trained))
        torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-4)

    def test_from_an_enlarged_one_without_prefix(self, enlarged, tmp_path):
        file = tmp_path / 'bare.pth'
        torch.save(enlarged[0].state_dict(), file)
        model = build(init_cfg=dict(type='Pretrained', checkpoint=str(file), prefix=''))
        model.init_weights()
        assert torch.equal(output(model), output(enlarged[0]))

    def test_from_an_enlarged_one_for_colors(self, tmp_path, randomize_norms):
        backbone = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1], channels=[8, 12]),
                        out_indices=(0, 1))
        color = randomize_norms(build(backbone=backbone, kernel_size=9))
        file = tmp_path / 'color.pth'
        torch.save(dict(state_dict={f'backbone.{name}': value
                                    for name, value in color.state_dict().items()}), file)
        start = dict(type='Pretrained', checkpoint=str(file))
        six = config(backbone=dict(backbone, in_channels=6), kernel_size=9)
        with pytest.raises(ValueError, match="the network for 6: in_channels='adapt'"):
            MODELS.build(dict(six, init_cfg=start)).init_weights()
        model = MODELS.build(dict(six, init_cfg=dict(start, in_channels='adapt')))
        model.init_weights()
        # The same in both halves is what the colors are.
        first = 'backbone.downsample_layers.0.0.weight'
        own, old = model.state_dict(), color.state_dict()
        assert torch.equal(own[first], torch.cat([old[first]] * 2, 1) / 2)
        assert all(torch.equal(own[name], old[name]) for name in own.keys() - {first})

    def test_weights_that_do_not_fit(self, original, enlarged):
        _, init_cfg, merged = enlarged

        def refused(**changes):
            model = build(**changes)
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(ValueError, match='init_cfg: the checkpoint') as error:
                model.init_weights()
            after = model.state_dict()
            assert all(torch.equal(value, after[name]) for name, value in before.items())
            return str(error.value)

        assert 'Weights of the original network belong into backbone.init_cfg' in refused(
            init_cfg=original[1])
        assert 'is merged already' in refused(init_cfg=merged)
        assert 'is not merged, but' in refused(init_cfg=init_cfg, deploy=True)
        assert '(8, 1, 7, 7) instead of (8, 1, 9, 9)' in refused(init_cfg=init_cfg, kernel_size=9)
        assert 'missing' in refused(init_cfg=dict(init_cfg, prefix='student.backbone'))


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain', 'mmdet'])
def test_in_a_model(scope):
    """A segmentor, a classifier and a detector take a step on it, and every weight gets a gradient.
    """
    if scope == 'mmdet':
        pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    backbone = config(backbone=dict(type='MobileNetV2', widen_factor=0.25))
    cfg = dict(
        mmseg=dict(type='EncoderDecoder', backbone=backbone, test_cfg=dict(mode='whole'),
                   decode_head=dict(type='FCNHead', in_channels=80, in_index=-1, channels=8,
                                    num_convs=1, num_classes=2)),
        mmpretrain=dict(type='ImageClassifier', backbone=backbone,
                        neck=dict(type='GlobalAveragePooling'),
                        head=dict(type='LinearClsHead', num_classes=2, in_channels=1280)),
        mmdet=dict(type='FCOS', backbone=dict(
            backbone, backbone=dict(type='MobileNetV2', widen_factor=0.25, out_indices=(2, 4, 6))),
            neck=dict(type='FPN', in_channels=[8, 24, 80], out_channels=8, num_outs=3),
            bbox_head=dict(type='FCOSHead', num_classes=2, in_channels=8)),
    )[scope]
    with DefaultScope.overwrite_default_scope(scope):
        import_module(f'{scope}.models')
        model = import_module(f'{scope}.registry').MODELS.build(cfg)
        model.init_weights()
    features = model.extract_feat(X)
    features = features if torch.is_tensor(features[-1]) else features[-1]
    sum(feature.square().mean() for feature in features).backward()
    parts = [value for name, value in model.backbone.named_parameters() if '.lkb_origin.' in name]
    assert len(parts) == 17 * 3
    assert all(value.grad.abs().max() > 0 for value in parts)
