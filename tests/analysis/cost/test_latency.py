"""Latency of models and where it goes, against layers whose kind is known."""

import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmreplk.analysis import cost_of, depthwise_share, format_shares, latency_of, shares_of
from mmreplk.analysis.cost import latency
from mmreplk.analysis.cost.profiling import TIME_KINDS, conv_kind, sum_by_kind, time_by_kind
from mmreplk.ops import LargeKernelDWConv2d

CPU = torch.device('cpu')


@pytest.fixture
def classifier(tiny_arch) -> Config:
    return Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier',
        backbone=dict(type='mmreplk.RepLKNet', arch=tiny_arch, out_indices=(3, ),
                      norm_cfg=dict(type='SyncBN'),
                      init_cfg=dict(type='Pretrained', checkpoint='is-not-looked-for.pth')),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=20))))


@pytest.mark.parametrize('deploy', [False, True])
def test_latency_of_a_classifier(classifier, deploy):
    before = classifier.to_dict()
    found = latency_of(classifier, (48, 64), deploy, batch=2, rounds=2)
    assert classifier.to_dict() == before
    assert found.seconds > 0
    assert tuple(found.shares) == TIME_KINDS
    assert sum(found.shares.values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in found.shares.values())
    assert (found.shape, found.batch, found.rounds) == ((48, 64), 2, 2)
    assert found.device.startswith('CPU, ')
    cost = cost_of(classifier, (48, 64), deploy)
    shares = shares_of(cost, found)
    assert shares['latency'] == found.shares
    text = format_shares(cost, found)
    assert f'{1000 * found.seconds:.1f} ms for 2 images, float32, {found.device}' in text
    rest = next(line for line in text.splitlines() if line.startswith('rest'))
    assert rest.split() == ['rest', f'{100 * found.shares["rest"]:.1f}', '%']


def test_the_median_of_the_passes_is_told(classifier, monkeypatch):
    """Two passes to warm up, three that are timed, three that are profiled."""
    pauses = iter([0.0, 0.0, 0.3, 0.0, 0.1, 0.0, 0.0, 0.0])

    def slowly(model, images):
        time.sleep(next(pauses))
        run_model(model, images)

    run_model = latency.run_model
    monkeypatch.setattr(latency, 'run_model', slowly)
    assert 0.1 <= latency_of(classifier, (32, 32), rounds=3).seconds < 0.3
    assert not list(pauses)


def test_what_cannot_be_timed(classifier):
    with pytest.raises(ValueError, match='shape 0 64'):
        latency_of(classifier, (0, 64))
    with pytest.raises(ValueError, match='batch 0: give a positive'):
        latency_of(classifier, (32, 32), batch=0)
    with pytest.raises(ValueError, match='rounds -1: give a positive'):
        latency_of(classifier, (32, 32), rounds=-1)
    classifier.model.head.in_channels = 19
    with pytest.raises(RuntimeError, match='does not run on 2 images of 32 x 32 pixels'):
        latency_of(classifier, (32, 32), batch=2)
    classifier.model.backbone = dict(type='mmpretrain.MobileNetV2')
    classifier.model.head.in_channels = 1280
    with pytest.raises(ValueError, match='deploy: .* has nothing to merge'):
        latency_of(classifier, (32, 32), deploy=True)


def test_a_device_that_cannot_be_profiled(classifier, monkeypatch):
    monkeypatch.setattr(latency, 'run_model', lambda model, images: None)
    with pytest.raises(RuntimeError, match='latency: the profiler has seen no work on cpu'):
        latency_of(classifier, (32, 32), rounds=1)


# Each is the only layer, so its kind has nearly all of the time and the others none.
@pytest.mark.parametrize(('layer', 'kind'), [
    (LargeKernelDWConv2d(16, 16, 13, padding=6, groups=16), 'depth-wise'),
    (nn.Conv2d(16, 16, 13, padding=6, groups=16), 'depth-wise'),
    (nn.Conv2d(16, 256, 1), '1x1'),
    (nn.Conv2d(16, 64, 3), 'other'),
    (nn.Conv2d(16, 256, 3, groups=2), 'other'),
    (nn.Linear(64, 512), 'other'),
    (nn.MultiheadAttention(64, 2, batch_first=True), 'other'),
    (nn.Softmax(-1), 'rest'),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value)
@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
def test_a_layer_counts_for_its_kind(layer, kind, backward):
    x = torch.randn(2, 16, 64, 64, requires_grad=True)
    if isinstance(layer, nn.MultiheadAttention):
        x = torch.randn(2, 256, 64, requires_grad=True)

    def run():
        out = layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)
        if backward:
            out.backward(torch.ones_like(out))

    run()
    seconds = time_by_kind(run, CPU)
    assert tuple(seconds) == TIME_KINDS
    total = sum(seconds.values())
    # How much the rest takes is the machine's affair.
    assert seconds[kind] > 0.1 * total
    assert all(seconds[other] == 0 for other in TIME_KINDS if other not in (kind, 'rest'))
    assert depthwise_share(run, CPU)[0] > 0 if kind == 'depth-wise' else True


def test_nested_operators_count_once():
    """A convolution calls others that are convolutions too, and its time is within theirs."""

    def event(name, micros, parent=None, shapes=(), cpu=True):
        kind = torch.autograd.DeviceType.CPU if cpu else torch.autograd.DeviceType.CUDA
        return SimpleNamespace(name=name, cpu_time_total=micros, device_time_total=10 * micros,
                               cpu_parent=parent, input_shapes=shapes, device_type=kind)

    dense = [[1, 8, 9, 9], [4, 8, 1, 1], [4]]
    outer = event('aten::conv2d', 100, shapes=dense)
    middle = event('aten::convolution', 90, outer, dense)
    product = event('aten::addmm', 50, middle)
    ours = event('mmreplk::dwconv2d', 40)
    inner = event('aten::convolution', 30, ours, [[1, 8, 9, 9], [8, 1, 3, 3]])
    norm = event('aten::batch_norm', 7)
    kernel = event('gemm', 1000, cpu=False)
    events = [outer, middle, product, ours, inner, norm, kernel]
    expected = {'depth-wise': 40e-6, '1x1': 90e-6, 'other': 0, 'rest': 17e-6}
    assert sum_by_kind(events, 'cpu') == pytest.approx(expected)
    assert sum_by_kind(events, 'cuda') == pytest.approx(
        {kind: 10 * seconds for kind, seconds in expected.items()})


@pytest.mark.parametrize(('shape', 'groups', 'kind'), [
    ((8, 1, 7, 7), 8, 'depth-wise'),
    ((16, 1, 3, 3), 8, 'depth-wise'),  # two outputs a channel
    ((8, 1, 1, 1), 8, 'depth-wise'),
    ((8, 1, 1, 1), 1, '1x1'),  # one input channel is no group
    ((8, 4, 1), 1, '1x1'),
    ((8, 4, 1, 1), 2, 'other'),
    ((8, 4, 1, 3), 1, 'other'),
])
def test_kinds_of_convolutions(shape, groups, kind):
    assert conv_kind(shape, groups) == kind


def test_the_operator_is_seen_without_gradients():
    """Where it needs no gradients it passes PyTorch's dispatcher by, but not a profiler."""
    layer, x = LargeKernelDWConv2d(64, 64, 31, padding=15, groups=64), torch.randn(2, 64, 64, 64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            layer(x)
            seconds = time_by_kind(lambda: layer(x), CPU)
        assert seconds['depth-wise'] > 0.2 * sum(seconds.values())


def test_a_convolution_in_parts_counts_as_one():
    """UperNet's 3x3 convolution of small maps is products that the profiler sees as 1x1 ones."""
    from mmreplk.models.cpu_inference.resized_conv import conv2d_of_resized
    maps, weight = [torch.randn(1, 64, size, size) for size in (8, 16)], torch.randn(64, 128, 3, 3)
    with torch.inference_mode():
        conv2d_of_resized(maps, weight, (32, 32))
        seconds = time_by_kind(lambda: conv2d_of_resized(maps, weight, (32, 32)), CPU)
    assert seconds['other'] > 0.9 * sum(seconds.values())
    assert seconds['1x1'] == seconds['depth-wise'] == 0
