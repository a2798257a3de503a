"""``features_only=True`` and the feature maps of single stages."""

import pytest
import timm
import torch


def build(**kwargs):
    return timm.create_model('replknet_31b_narrow', **kwargs)


@pytest.mark.parametrize('kwargs', [{}, dict(feature_cls='fx')], ids=['getter', 'fx'])
@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3), (1, 3), (0, ), (2, ), (-2, -1)])
def test_channels_and_reductions(narrow, indices, kwargs):
    model = timm.create_model(narrow, features_only=True, out_indices=indices, **kwargs).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) == (4 if indices is None else len(indices))
    with torch.no_grad():
        outs = model(torch.randn(2, 3, 96, 64))
    assert len(outs) == len(channels)
    for out, width, reduction in zip(outs, channels, reductions, strict=True):
        assert out.shape == (2, width, 96 // reduction, 64 // reduction)
        assert out.isfinite().all()


@pytest.mark.parametrize('indices', [None, (1, 3), (0, 1), 2])
def test_against_the_classifier(indices, randomize_norms):
    model = randomize_norms(build()).eval()
    features = build(features_only=True, out_indices=indices).eval()
    own = {name.removeprefix('model.') for name in features.state_dict()}
    features.model.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in own})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, indices)
        torch.testing.assert_close(final, model.forward_features(x))
        for out, expected in zip(features(x), maps, strict=True):
            torch.testing.assert_close(out, expected)
        if indices in (None, (1, 3), 2):
            torch.testing.assert_close(model.norm(maps[-1]), final)
            normed = model.forward_intermediates(x, indices, norm=True,
                                                 intermediates_only=True)
            torch.testing.assert_close(normed[-1], final)
            assert torch.equal(normed[0], maps[0])


def test_stages_that_are_not_needed_are_not_there():
    model = build(features_only=True, out_indices=(0, 1))
    names = set(model.state_dict())
    assert any(name.startswith('model.stages.1') for name in names)
    assert not any('stages.2' in name or 'transitions.1' in name or 'head' in name
                   or 'norm.' in name.replace('bn.', '') for name in names)
    outs = model.train()(torch.randn(2, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_early_stop():
    model = build().eval()
    heard = []
    model.stages[2].register_forward_hook(lambda *_: heard.append(2))
    x = torch.randn(1, 3, 64, 64)
    final, maps = model.forward_intermediates(x, [1, 0], stop_early=True)
    assert not heard
    assert [out.shape[1] for out in maps] == [32, 16]
    assert torch.equal(final, maps[0])
    model.forward_intermediates(x, [1])
    assert heard


def test_pruned_classifier_pools_what_is_left():
    model = build(num_classes=3)
    assert model.prune_intermediate_layers([0, -2], prune_head=False) == [0, 2]
    assert model.num_features == 64
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 64, 4, 4)


def test_gray_images_and_deployment(randomize_norms):
    model = randomize_norms(build(features_only=True, in_chans=1)).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        before = model(x)
        model.model.switch_to_deploy()
        for out, expected in zip(model(x), before, strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_go():
    for kind in ('list', 'dict', 'hook'):
        with pytest.raises(ValueError, match=f"feature_cls='{kind}'.* 'getter'"):
            build(features_only=True, feature_cls=kind)
    with pytest.raises(ValueError, match=r"output_fmt must be 'NCHW', got 'NLC'"):
        build().forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt='NLC')
