"""Layer-wise decay of the learning rate, parameter by parameter."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmreplk import RepLKNet
from mmreplk.config.files import config_root

DECAY = 0.7


class Segmentor(BaseModel):
    """A backbone and a head with each kind of parameter, as in any of the codebases."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode_head(self.backbone(inputs)[-1])


def backbone(arch, **kwargs):
    with torch.device('meta'):
        return RepLKNet(arch, **kwargs)


def build(model, lr=1.0, wd=0.1, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=wd),
            constructor='RepLKNetLayerDecayConstructor',
            paramwise_cfg=dict(layer_decay=DECAY) | paramwise))


def groups_by_name(model, wrapper):
    """Parameter name to its one group in the optimizer."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            assert names[id(p)] not in found
            found[names[id(p)]] = group
    return found


def expected_group(name):
    """The authors' numbering for depths 2-2-18-2, by name alone."""
    name = name.removeprefix('backbone.')
    if name.startswith('stem.'):
        return 0
    match = re.match(r'stages\.(\d)\.blocks\.(\d+)\.', name)
    if match:
        stage, block = int(match[1]), int(match[2])
        return {0: 1, 1: 2, 2: 3 + block // 4, 3: 12}[stage]
    match = re.match(r'transitions\.(\d)\.', name)
    if match:
        return {0: 1, 1: 2, 2: 11}[int(match[1])]
    return 13


@pytest.mark.parametrize(('arch', 'kwargs'), [
    ('31B', dict(final_norm=True)),
    ('31B', dict(deploy=True)),
    ('31L', {}),
    ('XL', dict(norm_intermediate_features=True)),
])
@pytest.mark.parametrize('alone', [True, False])
def test_every_parameter(arch, kwargs, alone):
    net = backbone(arch, **kwargs)
    model = net if alone else Segmentor(net)
    found = groups_by_name(model, build(model, norm_decay_mult=0.0, bias_decay_mult=0.0))
    names = [name for name, _ in model.named_parameters()]
    assert list(found) == names
    for name, p in model.named_parameters():
        assert found[name]['lr'] == pytest.approx(DECAY**(13 - expected_group(name))), name
        # Norms and biases are all the parameters of one dimension.
        assert found[name]['weight_decay'] == (0.0 if p.ndim == 1 else 0.1), name
    assert {expected_group(name) for name in names} >= set(range(13))


def test_without_the_other_options_everything_decays_alike():
    model = Segmentor(backbone('31B'))
    assert {g['weight_decay'] for g in build(model).optimizer.param_groups} == {0.1}


def test_factors_of_the_default_constructor_multiply(tiny_arch):
    model = Segmentor(backbone(tiny_arch))
    custom = {
        'backbone.stem.0': dict(lr_mult=0.5, decay_mult=2.0),
        'decode_head': dict(lr_mult=10.0)
    }
    found = groups_by_name(model, build(model, custom_keys=custom, dwconv_decay_mult=0.3))
    lowest = found['backbone.stem.1.conv.weight']
    assert found['backbone.stem.0.conv.weight']['lr'] == pytest.approx(0.5 * lowest['lr'])
    assert found['backbone.stem.0.conv.weight']['weight_decay'] == pytest.approx(0.2)
    assert lowest['weight_decay'] == pytest.approx(0.03)
    assert found['decode_head.0.weight']['lr'] == pytest.approx(10.0)


@pytest.mark.parametrize(('layers', 'expected'), [
    # A stage of an odd number of pairs ends in a group of one.
    ([1, 3], {'stages.0.blocks.1.': 1, 'transitions.0.': 1, 'stages.1.blocks.3.': 2,
              'stages.1.blocks.4.': 3, 'stages.1.blocks.5.': 3}),
    ([4], {'stages.0.blocks.3.': 1, 'stages.0.blocks.4.': 2}),
])
def test_other_depths(layers, expected):
    count = len(layers)
    net = backbone(dict(large_kernel_sizes=[7] * count, layers=layers, channels=[8] * count))
    found = groups_by_name(net, build(net))
    top = max(expected.values())
    assert found['stem.0.conv.weight']['lr'] == pytest.approx(DECAY**(top + 1))
    for prefix, group in expected.items():
        inside = [g['lr'] for name, g in found.items() if name.startswith(prefix)]
        assert inside
        assert inside == pytest.approx([DECAY**(top + 1 - group)] * len(inside)), prefix


def test_stages_that_are_not_built_do_not_count(tiny_arch):
    net = backbone(tiny_arch, out_indices=(0, 1))  # 1 and 2 pairs: two groups
    found = groups_by_name(net, build(net))
    assert found['stages.1.blocks.3.pw1.conv.weight']['lr'] == pytest.approx(DECAY)
    assert found['stem.0.conv.weight']['lr'] == pytest.approx(DECAY**3)


def test_frozen_parameters_are_left_out(tiny_arch):
    net = backbone(tiny_arch, frozen_stages=2)
    found = groups_by_name(net, build(net))
    assert set(found) == {name for name, p in net.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('stem', 'stages.0', 'stages.1')) for name in found)
    # What is frozen still counts as depth.
    assert found['stages.2.blocks.0.pw1.conv.weight']['lr'] == pytest.approx(DECAY**2)


def test_a_wrapped_model_is_looked_into(tiny_arch):
    model = Segmentor(backbone(tiny_arch))
    wrapped = nn.Module()
    wrapped.module = model
    assert {g['lr'] for g in build(wrapped).optimizer.param_groups} == {
        g['lr'] for g in build(model).optimizer.param_groups}


def test_other_networks_are_refused():
    model = Segmentor(nn.Conv2d(3, 8, 3))
    with pytest.raises(TypeError, match=r'no mmreplk\.RepLKNet in it .*Conv2d is not one'):
        build(model)
    from mmpretrain.models import RepLKNet as Mmpretrains
    other = Mmpretrains(dict(large_kernel_sizes=[7] * 4, layers=[1] * 4, channels=[8] * 4,
                             small_kernel=5, dw_ratio=1))
    with pytest.raises(TypeError, match=r'mmpretrain\.models\.backbones\.replknet\.RepLKNet'):
        build(Segmentor(other))


@pytest.mark.parametrize('decay', [None, 0, -0.1, 1.5, '0.7', True])
def test_impossible_decays_are_refused(tiny_arch, decay):
    with pytest.raises(ValueError, match=r'paramwise_cfg\.layer_decay'):
        build(backbone(tiny_arch), layer_decay=decay)


def test_a_missing_learning_rate_is_refused(tiny_arch):
    cfg = dict(
        optimizer=dict(type='AdamW'),
        constructor='RepLKNetLayerDecayConstructor',
        paramwise_cfg=dict(layer_decay=DECAY))
    with pytest.raises(ValueError, match=r'optimizer\.lr is missing'):
        build_optim_wrapper(backbone(tiny_arch), cfg)


def test_the_config_of_the_authors_fine_tuning(tiny_arch):
    """Rates at the start and at the end of the schedule, of the head and of the stem."""
    from mmengine.registry import PARAM_SCHEDULERS
    cfg = Config.fromfile(str(config_root() / 'replknet31b_in22k_imagenet_384_finetune.py'))
    model = Segmentor(RepLKNet(tiny_arch))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    schedulers = [
        PARAM_SCHEDULERS.build(item, default_args=dict(optimizer=wrapper, epoch_length=10))
        for item in cfg.param_scheduler
    ]
    found = groups_by_name(model, wrapper)
    head, stem = found['decode_head.0.weight'], found['backbone.stem.0.conv.weight']
    depth = stem['initial_lr'] / head['initial_lr']
    assert depth == pytest.approx(0.7**5)  # four stages of at most two pairs: groups 1 to 4
    peak, history = 4e-4, []
    for _ in range(300):
        history.append((head['lr'], stem['lr']))
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert history[0][0] == pytest.approx(peak * 1e-6)
    assert max(lr for lr, _ in history) == pytest.approx(peak)
    assert history[-1][0] == pytest.approx(3e-4, rel=1e-3)
    assert all(low == pytest.approx(high * depth) for high, low in history)
