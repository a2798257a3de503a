"""Configs and models by name: mmreplk.hub, and MMEngine's own hub."""

from pathlib import Path

import mmengine.hub
import pytest
import torch

import mmreplk
from mmreplk import RepLKNet, hub

CONFIG = '''
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmreplk'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=2, mean=[90.0] * 3, std=[70.0] * 3)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmreplk.RepLKNet',
        arch=dict(large_kernel_sizes=[7, 5], layers=[1, 1], channels=[4, 8], small_kernel=3),
        out_indices=(1, ),
        final_norm=True,
        norm_cfg=dict(type='SyncBN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8, topk=(1, )))
'''


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package of one config with weights; returns their file."""
    (tmp_path / 'tiny.py').write_text(CONFIG)
    weights = tmp_path / 'tiny.pth'
    (tmp_path / 'metafile.yml').write_text(
        f'Models:\n  - Name: tiny\n    Config: configs/tiny.py\n    Weights: {weights}\n')
    for module in ('hub', 'config.files'):
        monkeypatch.setattr(f'mmreplk.{module}.config_root', lambda: tmp_path)
    return weights


def test_get_config():
    cfg = hub.get_config('mmreplk::upernet_replknet31b_ade20k.py')
    assert cfg.model.backbone.arch == '31B'
    assert 'model_path' not in cfg
    cfg = hub.get_config('mmreplk::replknet31b_imagenet_224', pretrained=True)
    assert cfg.model_path.endswith('replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')


def test_weights_that_no_address_gives_are_refused():
    with pytest.raises(ValueError, match=r'drive\.google\.com.*convert_checkpoint\.py'):
        hub.get_config('mmreplk::upernet_replknet31b_ade20k.py', pretrained=True)
    with pytest.raises(ValueError, match='Nobody has published any'):
        hub.get_config('mmreplk::upernet_kernels_7_7_7_7_ade20k_80k.py', pretrained=True)
    with pytest.raises(FileNotFoundError, match='it has: .*upernet_replknet31b_ade20k'):
        hub.get_model('mmreplk::no_such.py')


def test_get_model_with_weights(packaged):
    model = hub.get_model('mmreplk::tiny.py')
    assert isinstance(model.backbone, RepLKNet)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    torch.save(dict(state_dict=model.state_dict()), packaged)
    loaded = hub.get_model('mmreplk::tiny.py', pretrained=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    loaded.init_weights()  # a Runner calls it
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)


def test_weights_that_do_not_fit_are_refused(packaged):
    model = hub.get_model('mmreplk::tiny.py')
    state = model.state_dict()
    del state['backbone.stem.0.conv.weight']
    torch.save(state, packaged)
    with pytest.raises(ValueError, match=r'mmreplk::tiny\.py: .*stem'):
        hub.get_model('mmreplk::tiny.py', pretrained=True)


@pytest.mark.parametrize(('name', 'kind'), [
    ('upernet_replknet31b_ade20k', 'EncoderDecoder'),
    ('replknet31b_imagenet_224', 'ImageClassifier'),
    ('fcos_replknet31b_coco', 'FCOS')])
def test_mmengines_own_hub(name, kind):
    """By its table of packages, the files in mmreplk/.mim, and the codebase that a model names."""
    if kind == 'FCOS':
        pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    path = f'mmreplk::configs/{name}.py'
    cfg = mmengine.hub.get_config(path)
    assert Path(cfg.filename).resolve() == Path(mmreplk.config_path(name))
    assert cfg.to_dict() == hub.get_config(name).to_dict()
    if kind == 'ImageClassifier':
        cfg = mmengine.hub.get_config(path, pretrained=True)
        assert cfg.model_path == hub.get_config(name, pretrained=True).model_path
    with torch.device('meta'):
        model = mmengine.hub.get_model(path)
    assert type(model).__name__ == kind
    assert type(model.backbone) is RepLKNet


def test_other_packages_are_left_to_mmengine():
    with pytest.raises(AssertionError, match='does not support to load nothing'):
        mmengine.hub.get_config('nothing::folder/file.py')
