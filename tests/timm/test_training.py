"""Layer decay and a training step, by timm's own functions."""

import pytest
import timm
import torch
from timm.models import group_modules, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch.nn.functional import cross_entropy

from mmreplk import RepLKNet
from mmreplk.training.layer_decay import layer_groups

DECAY = 0.7


def scales_of(model):
    """Parameter name to the factor of its learning rate."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=DECAY)
    found = {names[id(p)]: group['lr_scale'] for group in groups for p in group['params']}
    assert set(found) == set(names.values())
    for group in groups:
        for p in group['params']:
            assert group['weight_decay'] == (0 if p.dim() <= 1 else 0.05)
    return found


def test_the_authors_groups(full):
    model = timm.create_model(full, device='meta')
    scales = scales_of(model)
    with torch.device('meta'):
        backbone = RepLKNet(full.removeprefix('replknet_').upper(), final_norm=True)
    groups, top = layer_groups(backbone)
    assert top == 12
    for name, parameter in backbone.named_parameters():
        assert scales[name] == pytest.approx(DECAY**(13 - groups.get(id(parameter), 13))), name
    assert scales['stem.0.conv.weight'] == pytest.approx(DECAY**13)
    assert scales['stages.2.blocks.7.pw1.conv.weight'] == pytest.approx(DECAY**9)
    assert scales['transitions.2.0.conv.weight'] == pytest.approx(DECAY**2)
    assert scales['norm.weight'] == scales['head.fc.weight'] == 1


def test_rates_fall_towards_the_input(narrow):
    model = timm.create_model(narrow)
    scales = scales_of(model)
    parts = ['stem', *(part for i in range(4) for part in (f'stages.{i}', f'transitions.{i}')),
             'norm', 'head']
    found = [{scale for name, scale in scales.items() if name.startswith(f'{part}.')}
             for part in parts]
    assert all(len(each) == 1 for each in found if each)
    rates = [each.pop() for each in found if each]
    assert rates == sorted(rates)
    assert len(set(rates)) == 6  # the stem, one group a stage, the head


def test_a_pruned_network_ends_with_the_full_rate():
    model = timm.create_model('replknet_31b_narrow')
    model.prune_intermediate_layers([1])
    scales = scales_of(model)
    assert scales['stages.1.blocks.0.pw1.conv.weight'] == pytest.approx(1)
    assert scales['stem.0.conv.weight'] == pytest.approx(DECAY**2)


def test_modules_and_coarse_groups():
    model = timm.create_model('replknet_31b', device='meta')
    by_parameter = group_parameters(model, model.group_matcher(), reverse=True)
    by_module = group_modules(model, model.group_matcher(), reverse=True)
    for name, group in by_parameter.items():
        assert by_module[name.rpartition('.')[0]] == group
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {name.split('.')[0]: group for name, group in coarse.items()
            if not name.startswith(('stages', 'transitions'))} == dict(stem=0, norm=5, head=5)
    for name, group in coarse.items():
        if name.startswith(('stages', 'transitions')):
            assert group == int(name.split('.')[1]) + 1


@pytest.mark.parametrize('checkpointing', [False, True])
def test_steps_lower_the_loss(narrow, checkpointing):
    model = timm.create_model(narrow, num_classes=4, drop_path_rate=0.05).train()
    model.set_grad_checkpointing(checkpointing)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=2e-3, weight_decay=0.05,
                                    layer_decay=0.9)
    assert len({group['lr_scale'] for group in optimizer.param_groups}) == 6
    x, y = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(6):
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
