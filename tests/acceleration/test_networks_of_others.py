"""Same outputs and gradients, within rounding, on networks that nobody here wrote."""

import pytest
import torch
import torchvision
from torch import nn

import mmreplk
from mmreplk.ops import LargeKernelDWConv2d

slow = pytest.mark.slow


def mmpretrain(**cfg):
    return pytest.importorskip('mmpretrain.registry').MODELS.build(cfg)


def mscan():
    return pytest.importorskip('mmseg.models').backbones.MSCAN(
        embed_dims=[16, 32, 40, 64], depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2],
        drop_path_rate=0.0, norm_cfg=dict(type='BN'))


def rtmdet():
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.hub import get_config
    cfg = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    assert isinstance(cfg, Config)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg = None
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    return MODELS.build(cfg.model)


def timm(name):
    return lambda: pytest.importorskip('timm').create_model(name)


NETWORKS = {
    'mmpretrain ConvNeXt': lambda: mmpretrain(type='ConvNeXt', arch='atto'),
    'mmpretrain VAN': lambda: mmpretrain(type='VAN', arch='tiny'),
    'mmpretrain HorNet': lambda: mmpretrain(type='HorNet', arch='tiny'),
    'mmpretrain EfficientNet': lambda: mmpretrain(type='EfficientNet', arch='b0'),
    'mmpretrain MobileNetV3': lambda: mmpretrain(type='MobileNetV3', arch='small_050'),
    'mmpretrain ConvMixer': lambda: mmpretrain(type='ConvMixer', arch='768/32'),
    'mmseg MSCAN': mscan,
    'mmdet RTMDet': rtmdet,
    'torchvision MobileNetV2': torchvision.models.mobilenet_v2,
    'torchvision EfficientNet': torchvision.models.efficientnet_b0,
    'torchvision ConvNeXt': torchvision.models.convnext_tiny,
} | {f'timm {name}': timm(name) for name in (
    'convnext_atto', 'inception_next_atto', 'efficientnet_b0', 'mobilenetv3_small_050',
    'fastvit_t8', 'repvit_m0_9', 'mambaout_femto', 'starnet_s1', 'hgnetv2_b0', 'convmixer_768_32')}
QUICK = ('mmpretrain ConvNeXt', 'mmpretrain MobileNetV3', 'mmseg MSCAN', 'timm inception_next_atto',
         'timm starnet_s1', 'torchvision MobileNetV2')
# All stay: they pad by themselves, in a class of their own.
NONE_TAKEN = ('mmpretrain EfficientNet', )
MARKS = {'mmdet RTMDet': [slow, pytest.mark.needs_mmcv_ops]}


def lively(model):
    """In evaluation, with scales of layers that let every branch be seen."""
    for parameter in model.parameters():
        if parameter.dim() <= 3 and 0 < parameter.abs().max() < 1e-2:
            nn.init.uniform_(parameter, 0.5, 1.0)
    model.eval()  # of mmpretrain's it returns nothing
    return model


def tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    return [tensor for part in out for tensor in tensors(part)]


def results(model, x):
    model.zero_grad()
    outs = tensors(model(x))
    sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs).backward()
    return [out.detach() for out in outs], {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(ours, stock, share):
    assert (ours - stock).abs().max() <= share * stock.abs().max() + 1e-12


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=MARKS.get(name, [] if name in QUICK else [slow]))
    for name in NETWORKS])
def test_same_outputs_and_gradients(name):
    model, x = lively(NETWORKS[name]()), torch.randn(1, 3, 64, 64)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    kinds = [type(m) for m in convs]
    outs, grads = results(model, x)
    table = mmreplk.accelerate(model, input_size=x.shape, policy='all')
    assert bool(table.changed) == (name not in NONE_TAKEN)
    assert len(table.changed) == sum(type(m) is LargeKernelDWConv2d for m in convs)
    ours, our_grads = results(model, x)
    for a, b in zip(ours, outs, strict=True):
        close(a, b, 1e-4)
    assert grads.keys() == our_grads.keys()
    largest = max(grad.abs().max() for grad in grads.values())
    for key, grad in grads.items():
        assert (our_grads[key] - grad).abs().max() <= 1e-3 * grad.abs().max() + 1e-6 * largest, key
    mmreplk.restore(model)
    assert kinds == [type(m) for m in convs]
    mmreplk.accelerate(model, x, inference=True)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            for a, b in zip(tensors(model(x.contiguous(memory_format=layout))), outs, strict=True):
                close(a, b, 1e-4)
