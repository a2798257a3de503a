"""The configs of CamVid and of the nuts: classes, splits, what is ignored, and the networks."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmreplk.analysis.cost.count import build_on_meta
from mmreplk.config.edit import replace_sync_bn
from mmreplk.config.files import config_root
from mmreplk.config.model import build_model
from mmreplk.models.arch import parse_arch
from mmreplk.models.enlarge.conv import EnlargedConv

UNLABELLED = 11
CAMVID = sorted(path.stem for path in config_root().glob('*_camvid.py'))
# What each UperNet has: kernels and small kernel.
UPERNETS = {
    'upernet_replknet_narrow_camvid': ((31, 29, 27, 13), 5),
    'upernet_replknet_narrow_kernels_3_camvid': ((3, ) * 4, None),
    'upernet_replknet_narrow_kernels_7_camvid': ((7, ) * 4, 5),
    'upernet_replknet_narrow_kernels_13_camvid': ((13, ) * 4, 5),
    'upernet_replknet31b_camvid': ((31, 29, 27, 13), 5),
}
# Kernel, 3x3 branch, shortcuts.
GUIDELINES = {
    'kernels_3': (3, False, True),
    'kernels_3_no_shortcut': (3, False, False),
    'kernels_9': (9, False, True),
    'kernels_9_reparam': (9, True, True),
    'kernels_9_no_shortcut': (9, False, False),
    'kernels_13': (13, False, True),
    'kernels_13_reparam': (13, True, True),
    'kernels_13_no_shortcut': (13, False, False),
}
GUIDELINES = {f'deeplabv3plus_mobilenetv2_narrow_{name}_camvid': what
              for name, what in GUIDELINES.items()}
# Pixels of the classes in the training split, and of the images that show each class (367 of
# 480 x 360 where it is in all of them), counted from the annotations as SegNet's authors give them.
CLASS_WEIGHTS = [0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.41, 0.89, 2.52, 2.98]


def load(name: str) -> Config:
    return Config.fromfile(str(config_root() / f'{name}.py'))


def test_the_list_is_complete():
    assert set(CAMVID) == {*UPERNETS, *GUIDELINES}


@pytest.mark.parametrize('name', CAMVID)
def test_what_nobody_labelled_counts_nowhere(name):
    cfg = load(name)
    assert len(cfg.metainfo['classes']) == len(cfg.metainfo['palette']) == UNLABELLED
    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    assert all(head.num_classes == head.ignore_index == UNLABELLED for head in heads)
    assert cfg.model.data_preprocessor.seg_pad_val == UNLABELLED
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator['ignore_index'] == UNLABELLED
    crop, = (step for step in cfg.train_dataloader.dataset.pipeline
             if step['type'] == 'RandomCrop')
    assert crop['ignore_index'] == UNLABELLED
    assert crop['crop_size'] == cfg.model.data_preprocessor['size']
    folders = [loader.dataset.data_prefix for loader in (
        cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)]
    assert folders == [dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
                       for split in ('train', 'val', 'test')]
    if 'narrow' in name:
        assert [head.loss_decode.class_weight for head in heads] == [CLASS_WEIGHTS] * 2
    else:  # with class weights the mean is that of the labelled pixels anyway
        assert all(head.loss_decode.avg_non_ignore for head in heads)


def test_unlabelled_pixels_change_neither_loss_nor_score(data_folder, tmp_path, monkeypatch):
    """The loss of a batch is the same whatever is predicted there, and so is the mIoU."""
    cfg = load('upernet_replknet_narrow_camvid')
    replace_sync_bn(cfg.model)
    init_default_scope('mmseg')
    monkeypatch.chdir(data_folder.parent)
    from mmseg.registry import DATASETS, METRICS
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = build_model(cfg, 'cpu')
        metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    sample = dataset[0]['data_samples']
    labels = sample.gt_sem_seg.data
    nobody = labels[0] == UNLABELLED
    assert 0 < nobody.float().mean() < 1
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, UNLABELLED, *nobody.shape, generator=rng)
    other = torch.where(nobody, torch.randn(logits.shape, generator=rng), logits)
    losses = [model.decode_head.loss_by_feat(scores, [sample])['loss_ce']
              for scores in (logits, other)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    areas = [metric.intersect_and_union(scores[0].argmax(0), labels[0], UNLABELLED, UNLABELLED)
             for scores in (logits, other)]
    for one, two in zip(*areas, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert areas[0][3].sum() == (~nobody).sum()


@pytest.mark.parametrize('name', UPERNETS)
def test_upernets(name):
    cfg = load(name)
    backbone = cfg.model.backbone
    arch = parse_arch(backbone.arch, backbone.get('small_kernel', 'arch'))
    assert (arch.large_kernel_sizes, arch.small_kernel) == UPERNETS[name]
    assert list(arch.channels) == list(cfg.model.decode_head.in_channels)
    if 'narrow' in name:  # what the study compares differs in nothing but the kernels
        base = load('upernet_replknet_narrow_camvid')
        for part in (base, cfg):
            part.model.backbone.arch.pop('large_kernel_sizes')
            part.model.backbone.arch.pop('small_kernel')
        assert cfg.to_dict() == base.to_dict()


@pytest.mark.parametrize('name', GUIDELINES)
def test_guidelines(name):
    kernel, branch, shortcut = GUIDELINES[name]
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_on_meta(cfg)
    convs = [module for where, module in model.backbone.named_modules()
             if isinstance(module, torch.nn.Conv2d) and module.groups == module.in_channels > 1
             and not where.endswith('small_conv.conv')]
    assert len(convs) == 17
    assert {conv.kernel_size for conv in convs} == {(kernel, kernel)}
    enlarged = [m for m in model.backbone.modules() if isinstance(m, EnlargedConv)]
    assert len(enlarged) == (0 if name.endswith('narrow_kernels_3_camvid') else 17)
    assert all((m.small_kernel == 3) is branch for m in enlarged)
    switches = [m.use_res_connect for m in model.backbone.modules()
                if hasattr(m, 'use_res_connect')]
    # One more than at full width, where the second stage is wider than the first.
    assert sum(switches) == (11 if shortcut else 0)
    cfg.model.pop('backbone')
    base = load('deeplabv3plus_mobilenetv2_narrow_kernels_3_camvid')
    base.model.pop('backbone')
    assert cfg.to_dict() == base.to_dict()


@pytest.mark.needs_mmcv_ops
def test_nuts_are_divided_into_fourteen_and_four(data_folder, monkeypatch):
    cfg = load('cascade_mask_rcnn_replknet_narrow_nuts')
    init_default_scope('mmdet')
    monkeypatch.chdir(data_folder.parent)
    from mmdet.registry import DATASETS
    train, test = (DATASETS.build(loader.dataset)
                   for loader in (cfg.train_dataloader, cfg.test_dataloader))
    ids = [{dataset.get_data_info(index)['img_id'] for index in range(len(dataset))}
           for dataset in (train, test)]
    assert [len(group) for group in ids] == [14, 4]
    assert ids[0] | ids[1] == set(range(18))
    # The metric is told of the four alone: it reads no file, and the samples bring the truth.
    assert 'ann_file' not in cfg.test_evaluator
    sample = test[0]['data_samples']
    assert sample.img_id in ids[1]
    known = json.loads((data_folder / 'nuts/trainval.json').read_text())['annotations']
    wanted = [one['bbox'] for one in known if one['image_id'] == sample.img_id]
    found = [(one['bbox'][0], one['bbox'][1], one['bbox'][2] - one['bbox'][0],
              one['bbox'][3] - one['bbox'][1]) for one in sample.instances]
    np.testing.assert_allclose(found, wanted)
    image = cv2.imread(sample.img_path)
    assert sample.ori_shape == image.shape[:2]
