"""What timm's own tests ask of its models, asked of ours."""

import copy
from dataclasses import asdict

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from timm.utils.model import reparameterize_model

import mmreplk.timm
from mmreplk import RepLKNet
from mmreplk.timm import RepLKNetClassifier


def build(name='replknet_31b_narrow', **kwargs):
    return timm.create_model(name, **kwargs)


def test_registered(full, narrow):
    assert {full, narrow} <= set(timm.list_models(module='replknet'))
    assert timm.is_model(full)
    assert set(timm.list_pretrained('replknet*')) == {
        'replknet_31b.in1k', 'replknet_31b.in1k_384', 'replknet_31b.in22k_ft_in1k',
        'replknet_31b.in22k_ft_in1k_384', 'replknet_31l.in22k_ft_in1k_384',
        'replknet_xl.meg73m_ft_in1k_320'}
    assert full in mmreplk.timm.__all__


@pytest.mark.parametrize('size', [(224, 224), (64, 96), (33, 50), (32, 32)])
def test_forward(narrow, size):
    model = build(narrow, num_classes=11).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        out = model(x)
        features = model.forward_features(x)
    assert out.shape == (2, 11)
    assert features.shape == (2, model.num_features, -(-size[0] // 32), -(-size[1] // 32))
    assert out.isfinite().all()
    torch.testing.assert_close(model.forward_head(features), out)


def test_backward(narrow):
    model = build(narrow, drop_path_rate=0.).train()
    out = model(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 1000)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


class TestTheSameNetwork:
    """As ``mmreplk.RepLKNet`` with the same weights."""

    def pair(self, *name, **kwargs):
        model = build(*name, **kwargs)
        backbone = RepLKNet(asdict(model.arch), final_norm=True,
                            drop_path_rate=kwargs.get('drop_path_rate', 0.),
                            in_channels=kwargs.get('in_chans', 3))
        body = {name: value for name, value in model.state_dict().items()
                if not name.startswith('head.')}
        assert set(body) == set(backbone.state_dict())
        backbone.load_state_dict(body)
        return model, backbone

    @pytest.mark.parametrize('in_chans', [1, 3])
    def test_evaluation(self, in_chans, randomize_norms):
        model, backbone = self.pair(in_chans=in_chans, num_classes=5)
        backbone.load_state_dict({k: v for k, v in randomize_norms(model).state_dict().items()
                                  if not k.startswith('head.')})
        model.eval()
        backbone.eval()
        x = torch.randn(2, in_chans, 65, 64)
        with torch.no_grad():
            maps = backbone(x)
            assert torch.equal(model.forward_features(x), maps[-1])
            torch.testing.assert_close(model(x), model.head.fc(maps[-1].mean((2, 3))))
            model.switch_to_deploy()
            assert model.deploy
            torch.testing.assert_close(model.forward_features(x), maps[-1], rtol=1e-4, atol=1e-4)

    def test_training_with_stochastic_depth(self):
        model, backbone = self.pair(drop_path_rate=0.5)
        model.train()
        backbone.train()
        x = torch.randn(4, 3, 64, 64)
        outs = []
        for network in (model.forward_features, lambda x: backbone(x)[-1]):
            torch.manual_seed(1)
            outs.append(network(x))
            outs[-1].square().mean().backward()
        assert torch.equal(*outs)
        grads = dict(model.named_parameters())
        for name, parameter in backbone.named_parameters():
            assert torch.equal(parameter.grad, grads[name].grad), name

    @pytest.mark.slow
    def test_31b_at_full_size(self):
        model, backbone = self.pair('replknet_31b')
        model.eval()
        backbone.eval()
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            assert torch.equal(model.forward_features(x), backbone(x)[-1])
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(79.86, abs=0.01)


class TestHead:

    def test_reset(self, narrow):
        model = build(narrow).eval()
        x = torch.randn(2, 3, 64, 64)
        assert model.get_classifier() is model.head.fc
        for classes in (7, 0, 5):
            model.reset_classifier(classes)
            assert model.num_classes == classes
            assert model(x).shape == (2, classes or model.num_features)
        model.reset_classifier(0, '')
        assert model(x).shape == (2, model.num_features, 2, 2)
        assert torch.equal(model(x), model.forward_features(x))
        model.reset_classifier(4, 'avg')
        assert model(x).shape == (2, 4)

    @pytest.mark.parametrize('pool', ['avg', 'max', 'avgmax', 'catavgmax', ''])
    def test_pooling(self, pool):
        model = build(global_pool=pool, num_classes=0).eval()
        x = torch.randn(2, 3, 64, 64)
        features = model.forward_features(x)
        average, most = features.mean((2, 3)), features.amax((2, 3))
        expected = dict(avg=average, max=most, avgmax=(average + most) / 2,
                        catavgmax=torch.cat([average, most], 1)).get(pool, features)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)

    def test_dropout_before_the_classifier(self):
        model = build(drop_rate=0.5).train()
        features = model.forward_features(torch.randn(2, 3, 64, 64))
        assert not torch.equal(model.forward_head(features), model.forward_head(features))
        model.eval()
        assert torch.equal(model.forward_head(features), model.forward_head(features))


def test_checkpoint_round_trip(narrow, tmp_path, randomize_norms):
    model = randomize_norms(build(narrow, num_classes=6)).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    again = build(narrow, num_classes=6, checkpoint_path=str(tmp_path / 'a.pth')).eval()
    whole = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(again(x), expected)
        model.switch_to_deploy()
        torch.save(model.state_dict(), tmp_path / 'merged.pth')
        merged = build(narrow, num_classes=6, deploy=True,
                       checkpoint_path=str(tmp_path / 'merged.pth')).eval()
        torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            reparameterize_model(whole)(x), expected, rtol=1e-4, atol=1e-4)
        assert not any('lkb_reparam' in name for name in whole.state_dict())
        assert any('lkb_reparam' in name for name in reparameterize_model(whole).state_dict())


def test_fx_in_evaluation_and_training():
    model = build(num_classes=3)
    nodes = {'stages.1': 'b', 'head.fc': 'logits'}
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    graph = create_feature_extractor(model, nodes).eval()
    with torch.no_grad():
        outs = graph(x)
        torch.testing.assert_close(outs['logits'], model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outs['b'], model.forward_intermediates(x, [1])[1][0],
                                   rtol=1e-4, atol=1e-5)
    graph.train()
    graph(x)['logits'].square().sum().backward()
    grads = {name: p.grad.clone() for name, p in graph.named_parameters()}
    reference = copy.deepcopy(model).train()
    reference.zero_grad()
    reference(x).square().sum().backward()
    assert set(grads) == {name for name, _ in reference.named_parameters()}
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize('rate', [0., 0.4])
def test_grad_checkpointing(rate):
    model = build(drop_path_rate=rate, num_classes=3).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    calls = []
    x = torch.randn(2, 3, 64, 64)
    for network in (model, other):
        heard = []
        network.stages[2].blocks[0].register_forward_pre_hook(lambda *_, h=heard: h.append(1))
        torch.manual_seed(5)
        network(x).square().sum().backward()
        calls.append(len(heard))
    assert calls == [1, 2]
    grads = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name].grad, parameter.grad, msg=name)
    buffers = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=name)
    other.set_grad_checkpointing(False)
    assert not other.with_cp
    assert not any(stage.with_cp for stage in other.stages)


def test_stochastic_depth_rises_to_the_rate():
    model = build(drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.) for stage in model.stages
             for block in stage.blocks]
    assert rates == pytest.approx([0, 0, .1, .1, .2, .2, .3, .3, .4, .4])


def test_device_and_dtype(full):
    model = build(full, device='meta', dtype=torch.bfloat16, num_classes=2)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    assert model(torch.empty(1, 3, 64, 64, device='meta', dtype=torch.bfloat16)).shape == (1, 2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r'drop_path_rate must lie in \[0, 1\), got 1\.5'):
        build(drop_path_rate=1.5)
    with pytest.raises(ValueError, match='in_channels must be a positive int, got 0'):
        RepLKNetClassifier('31B', in_chans=0, device='meta')
    with pytest.raises(TypeError, match='something'):
        build(something=1)
