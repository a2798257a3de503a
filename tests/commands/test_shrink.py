from pathlib import Path

import pytest
from mmengine.config import Config

from mmreplk.commands.shrink import reduce_model

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def config(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def test_segmentor():
    cfg = config('upernet_replknetxl_meg73m_ade20k_640')
    full = config('upernet_replknetxl_meg73m_ade20k_640')
    note = reduce_model(cfg, 16)
    assert '--reduce 16: widths divided by 16' in note
    model = cfg.model
    assert model.backbone.arch == dict(
        large_kernel_sizes=[27, 27, 27, 13], layers=[1, 1, 1, 1], channels=[16, 32, 64, 128],
        small_kernel=None, dw_ratio=1.5, ffn_ratio=4)
    assert model.backbone.init_cfg is None
    assert full.model.backbone.init_cfg is not None
    assert model.decode_head.in_channels == [16, 32, 64, 128]
    assert (model.decode_head.channels, model.auxiliary_head.in_channels) == (32, 64)
    # All that is not a width is as it was.
    assert model.decode_head.num_classes == 150
    before = full.model.data_preprocessor
    assert model.data_preprocessor == {**before, 'size': (160, 160)}
    assert before['size'] == (640, 640)
    assert cfg.val_dataloader == full.val_dataloader
    assert {**cfg.train_dataloader.dataset, 'pipeline': 0} == {
        **full.train_dataloader.dataset, 'pipeline': 0}
    assert model.backbone.drop_path_rate == full.model.backbone.drop_path_rate
    assert model.backbone.norm_intermediate_features


@pytest.mark.parametrize(('name', 'sizes'), [
    ('upernet_replknet31b_ade20k', [(512, 128), (128, 128)]),
    ('upernet_replknet31b_cityscapes', [(544, 288), (224, 224)]),
    ('replknet31b_imagenet_384_finetune', [96])])
def test_images_and_batch(name, sizes):
    cfg, full = config(name), config(name)
    note = reduce_model(cfg, 16)
    pipeline = cfg.train_dataloader.dataset.pipeline
    found = [value for step in pipeline for key, value in step.items()
             if key in ('scale', 'crop_size')]
    assert found == sizes
    assert cfg.train_dataloader.batch_size == 2
    assert 'sides of images to train on divided by 4' in note
    before = full.train_dataloader.batch_size
    assert (f'batch 2 in place of {before}' in note) == (before > 2)
    assert cfg.test_dataloader == full.test_dataloader
    # All that is no size is as it was.
    for step, was in zip(pipeline, full.train_dataloader.dataset.pipeline, strict=True):
        assert {**step, 'scale': 0, 'crop_size': 0} == {**was, 'scale': 0, 'crop_size': 0}
    half = config(name)
    half.train_dataloader.batch_size = 1
    note = reduce_model(half, 2)
    assert 'sides of images to train on divided by 2.' in note
    assert half.train_dataloader.batch_size == 1


@pytest.mark.needs_mmcv_ops
def test_detectors():
    cfg = config('fcos_replknet31b_coco')
    reduce_model(cfg, 16)
    assert cfg.model.neck.in_channels == cfg.model.backbone.arch.channels == [8, 16, 32, 64]
    head = cfg.model.bbox_head
    assert cfg.model.neck.out_channels == head.in_channels == head.feat_channels == 16
    assert head.norm_cfg.num_groups == 2
    assert cfg.model.neck.num_outs == 5
    scales = [step.scales for step in cfg.train_dataloader.dataset.pipeline if 'scales' in step]
    assert scales
    assert all(side % 32 == 0 and side <= 352 for pair in scales[0] for side in pair)

    cfg = config('cascade_mask_rcnn_replknet31l_in22k_coco')
    reduce_model(cfg, 8)
    roi_head = cfg.model.roi_head
    assert cfg.model.neck.in_channels == cfg.model.backbone.arch.channels == [24, 48, 96, 192]
    assert [head.conv_out_channels for head in roi_head.bbox_head] == [32] * 3
    assert [head.fc_out_channels for head in roi_head.bbox_head] == [128] * 3
    assert roi_head.mask_roi_extractor.out_channels == roi_head.mask_head.in_channels == 32
    assert roi_head.bbox_head[0].num_classes == 80


def test_classifier_and_overridden_arch():
    cfg = config('replknet31b_imagenet_224')
    cfg.merge_from_dict({'model.backbone.small_kernel': 3, 'model.backbone.ffn_ratio': 2,
                         'model.backbone.in_channels': 4})
    reduce_model(cfg, 64)
    backbone = cfg.model.backbone
    assert backbone.arch.channels == [2, 4, 8, 16]
    assert (backbone.arch.small_kernel, backbone.arch.ffn_ratio) == (3, 2)
    assert not {'small_kernel', 'ffn_ratio', 'dw_ratio'} & backbone.keys()
    assert backbone.in_channels == 4
    assert (cfg.model.head.in_channels, cfg.model.head.num_classes) == (16, 1000)


def test_weights_to_start_from_are_dropped_and_a_resumed_checkpoint_is_not():
    cfg = config('upernet_replknet31b_ade20k')
    weights = dict(type='Pretrained', checkpoint='gone.pth')
    kaiming = dict(type='Kaiming', layer='Conv2d')
    cfg.model.decode_head.init_cfg = [kaiming, weights]
    cfg.load_from = 'gone.pth'
    reduce_model(cfg, 16)
    assert cfg.model.decode_head.init_cfg == [kaiming]
    assert cfg.load_from is None
    cfg = config('upernet_replknet31b_ade20k')
    cfg.merge_from_dict(dict(load_from='run/iter_2.pth', resume=True))
    reduce_model(cfg, 16)
    assert cfg.load_from == 'run/iter_2.pth'


@pytest.mark.parametrize('divisor', [-16, 0, 1, 12])
def test_divisors_that_leave_groups_of_channels_in_pieces(divisor):
    with pytest.raises(ValueError, match=f'--reduce {divisor}: give a power of two'):
        reduce_model(config('fcos_replknet31b_coco'), divisor)


def test_other_backbones_and_impossible_ones():
    cfg = config('upernet_replknet31b_ade20k')
    cfg.model.backbone.arch = '31C'
    with pytest.raises(ValueError, match="model.backbone: arch='31C' is unknown"):
        reduce_model(cfg, 16)
    cfg.model.backbone.type = 'ResNet'
    with pytest.raises(ValueError, match="model.backbone of CONFIG .* is 'ResNet'"):
        reduce_model(cfg, 16)
