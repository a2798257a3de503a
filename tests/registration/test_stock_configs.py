"""RepLKNet in stock configs of the three codebases, put there by configuration alone."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

ARCH = ('arch=dict(large_kernel_sizes=[13, 11, 9, 7], layers=[1, 1, 1, 1], '
        'channels={channels}, small_kernel=5)')


def replace_backbone(tmp_path, package, stock, backbone, rest=''):
    """A user's config over a stock one: the path, custom_imports and the new backbone."""
    base = Path(importlib.import_module(package).__file__).parent / '.mim' / 'configs' / stock
    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = '{base}'\n"
                    "custom_imports = dict(imports=['mmreplk'], allow_failed_imports=False)\n"
                    f"model = dict(backbone=dict(_delete_=True, {backbone}){rest})\n")
    return Config.fromfile(file)


def build(cfg):
    registry = importlib.import_module(f'{cfg.default_scope}.registry').MODELS
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the Runner does
    model = revert_sync_batchnorm(registry.build(cfg.model))
    model.init_weights()
    return model


def check_step_and_prediction(cfg, model, data, read_prediction):
    before = model.backbone.stages[0].blocks[0].large_kernel.lkb_origin.conv.weight.clone()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train().train_step(data, optim_wrapper)
    assert torch.isfinite(losses['loss'])
    after = model.backbone.stages[0].blocks[0].large_kernel.lkb_origin.conv.weight
    assert not torch.equal(before, after)
    predictions = model.eval().test_step(data)
    assert len(predictions) == 2
    return [read_prediction(p) for p in predictions]


def test_mmseg_upernet_swin(tmp_path):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    cfg = replace_backbone(
        tmp_path, 'mmseg',
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        "type='mmreplk.RepLKNet', " + ARCH.format(channels=[96, 192, 384, 768]),
        ', decode_head=dict(channels=32), auxiliary_head=dict(channels=16)')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = build(cfg)
        samples = []
        for _ in range(2):
            sample = SegDataSample(
                metainfo=dict(ori_shape=(128, 128), img_shape=(128, 128), img_path='none'))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 128, 128)))
            samples.append(sample)
        data = dict(
            inputs=[torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8) for _ in range(2)],
            data_samples=samples)
        shapes = check_step_and_prediction(cfg, model, data, lambda p: p.pred_sem_seg.data.shape)
    assert shapes == [(1, 128, 128)] * 2


@pytest.mark.needs_mmcv_ops
@pytest.mark.parametrize('name', ['mmreplk.RepLKNet', 'RepLKNet'])
def test_mmdet_mask_rcnn(tmp_path, name):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    cfg = replace_backbone(
        tmp_path, 'mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        f"type='{name}', norm_eval=True, frozen_stages=0, "
        + ARCH.format(channels=[16, 32, 64, 128]), ', neck=dict(in_channels=[16, 32, 64, 128])')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(cfg)
        samples = []
        for _ in range(2):
            sample = DetDataSample(
                metainfo=dict(
                    ori_shape=(128, 160), img_shape=(128, 160), pad_shape=(128, 160),
                    batch_input_shape=(128, 160), scale_factor=(1.0, 1.0), img_id=0))
            masks = np.zeros((1, 128, 160), np.uint8)
            masks[:, 20:80, 30:90] = 1
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[30.0, 20.0, 90.0, 80.0]]), labels=torch.tensor([3]),
                masks=BitmapMasks(masks, 128, 160))
            samples.append(sample)
        data = dict(
            inputs=[torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8) for _ in range(2)],
            data_samples=samples)
        boxes = check_step_and_prediction(cfg, model, data, lambda p: p.pred_instances.bboxes)
    assert all(b.shape[1:] == (4, ) for b in boxes)


def test_mmpretrain_swin(tmp_path):
    from mmpretrain.structures import DataSample
    cfg = replace_backbone(
        tmp_path, 'mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py',
        "type='mmreplk.RepLKNet', final_norm=True, "
        + ARCH.format(channels=[16, 32, 64, 768]))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build(cfg)
        data = dict(
            inputs=torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8),
            data_samples=[DataSample().set_gt_label(torch.tensor([i])) for i in range(2)])
        scores = check_step_and_prediction(cfg, model, data, lambda p: p.pred_score)
    assert all(score.shape == (1000, ) for score in scores)
