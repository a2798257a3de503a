"""UperNet's head against MMSegmentation's, with the same weights."""

from copy import deepcopy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('mmseg')

CHANNELS = (8, 12, 16, 24)


@pytest.fixture
def heads(randomize_norms):
    """Returns ours and MMSegmentation's, in evaluation mode."""
    init_default_scope('mmseg')

    def build(**changes):
        cfg = dict(in_channels=list(CHANNELS), in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6),
                   channels=10, dropout_ratio=0.1, num_classes=5, norm_cfg=dict(type='BN'),
                   align_corners=False, loss_decode=dict(type='CrossEntropyLoss')) | changes
        torch.manual_seed(0)
        own = MODELS.build(deepcopy(cfg) | dict(type='mmreplk.UPerHead'))
        cfg.pop('resize_last', None)
        other = MODELS.build(cfg | dict(type='mmseg.UPerHead'))
        for each in own, other:
            each.init_weights()
        randomize_norms(own)
        other.load_state_dict(own.state_dict())  # the same names
        return own.eval(), other.eval()

    return build


def maps(size=(32, 48), batch=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, c, size[0] >> i, size[1] >> i, generator=generator)
            for i, c in enumerate(CHANNELS)]


@pytest.fixture
def ways(monkeypatch):
    """Counts the convolutions that are done before resizing."""
    from mmreplk.models.cpu_inference import uper_head
    calls = []
    real = uper_head.conv2d_of_resized

    def count(*args):
        calls.append(len(args[0]))
        return real(*args)

    monkeypatch.setattr(uper_head, 'conv2d_of_resized', count)
    return calls


@pytest.mark.parametrize('changes', [
    {}, dict(align_corners=True), dict(norm_cfg=None), dict(norm_cfg=dict(type='GN', num_groups=2)),
    dict(act_cfg=dict(type='GELU')), dict(pool_scales=(1, )), dict(norm_cfg=dict(type='SyncBN'))])
@pytest.mark.parametrize('size', [(32, 48), (33, 47), (8, 8)])
def test_same_results(heads, ways, changes, size):
    own, other = heads(**changes)
    inputs = maps(size)
    with torch.no_grad():
        out, expected = own(inputs), other(inputs)
    assert ways == [1 + len(own.psp_modules), 4]
    assert expected.std() > 0.001
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_where_it_is_mmsegs(heads, ways):
    """With gradients, in 16 bits, when told so and for what listens: the same bits."""
    own, other = heads()
    inputs = maps()
    assert torch.equal(own(inputs), other(inputs))  # gradients are wanted
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(own(inputs), other(inputs))
        heard = []
        handle = own.fpn_bottleneck.register_forward_hook(lambda *args: heard.append(args))
        own.bottleneck.conv.register_forward_pre_hook(lambda *args: heard.append(args))
        assert torch.equal(own(inputs), other(inputs))
        assert len(heard) == 2
        handle.remove()
        assert ways == []
        own(inputs)
        assert ways == [4]
        own.psp_modules.register_forward_hook(lambda *args: heard.append(args))
        assert torch.equal(own(inputs), other(inputs))
        assert len(heard) == 5
    own, other = heads(resize_last=False)
    with torch.no_grad():
        assert torch.equal(own(inputs), other(inputs))
    assert ways == [4]


def test_other_convolutions_are_left_alone(heads, ways):
    own, other = heads(conv_cfg=dict(type='Conv2dAdaptivePadding'))
    with torch.no_grad():
        assert torch.equal(own(maps()), other(maps()))
    assert ways == []


def test_gradients_are_those_of_mmsegs(heads):
    grads = []
    for head in heads(dropout_ratio=0.0):
        inputs = [x.requires_grad_() for x in maps()]
        head.train()(inputs).square().mean().backward()
        grads.append([x.grad for x in (*inputs, *head.parameters())])
    assert all(map(torch.equal, *grads))
    assert grads[0][0].any()
