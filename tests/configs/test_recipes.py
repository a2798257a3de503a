"""Every configuration against one table of the recipes, typed from the paper's and the authors'."""

import importlib
from dataclasses import dataclass

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmreplk import RepLKNet
from mmreplk.config.edit import innermost, replace_sync_bn
from mmreplk.config.files import config_root

EXAMPLES = {'upernet_replknet_narrow_scenes', 'kernel_study_far_context', 'replknet31b_shape_bias',
            'replknet_kernels_3_3_3_3_shape_bias'}
IMAGENET_STATISTICS = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
XL_STATISTICS = ([127.5] * 3, [127.5] * 3)
CHANNELS = {
    '31B': (128, 256, 512, 1024),
    '31L': (192, 384, 768, 1536),
    'XL': (256, 512, 1024, 2048)
}
KERNELS = {'31B': (31, 29, 27, 13), '31L': (31, 29, 27, 13), 'XL': (27, 27, 27, 13)}
TRAIN_IMAGES = dict(coco=117266, imagenet=1281167)


@dataclass(frozen=True)
class Recipe:
    """What a config has to say. ``length`` and ``warmup`` count iterations in segmentation and
    epochs in classification; in detection the length counts epochs, the warm-up iterations.
    """
    arch: str
    size: int  # crop, resolution, or 0 where the pictures keep different sizes
    length: int
    batch: int
    lr: float
    wd: float
    drop_path: float
    warmup: int
    params: float  # millions, with the unmerged 5x5 branches
    weights: str | None  # part of the name of the file that training starts from
    min_lr: float = 0.0
    layer_decay: float | None = None
    kernels: tuple[int, ...] | None = None
    fsdp: bool = False


def study(kernels, dense_params, params):
    name = '_'.join(map(str, kernels))
    common = dict(arch='31B', lr=0.0, wd=0.05, drop_path=0.5, kernels=kernels)
    return {
        f'replknet_kernels_{name}_imagenet_120e':
            Recipe(**common | dict(size=224, length=120, batch=2048, lr=4e-3, warmup=10,
                                   params=params, weights=None, min_lr=1e-6)),
        f'upernet_kernels_{name}_ade20k_80k':
            Recipe(**common | dict(size=512, length=80000, batch=32, lr=2e-4, warmup=750,
                                   params=dense_params, weights=f'{name}_imagenet_120e')),
    }


def finetune(arch, size, batch, drop_path, params, weights, min_lr, fsdp=False):
    return Recipe(arch, size, 30, batch, 4e-4, 1e-8, drop_path, 1, params, weights, min_lr, 0.7,
                  fsdp=fsdp)


def cascade(arch, drop_path, params, weights, fsdp=False):
    return Recipe(arch, 0, 36, 32, 4e-4, 0.05, drop_path, 500, params, weights, fsdp=fsdp)


def upernet(arch, size, drop_path, params, weights, fsdp=False):
    return Recipe(arch, size, 160000, 32, 2e-4, 0.05, drop_path, 1500, params, weights, fsdp=fsdp)


ONE_K = '31B_3rdparty_in1k_'
B_22K, L_22K, XL_73M = '31B_in21k-pre', '31L_in21k-pre', 'XL_meg73m-pre'
RECIPES = {
    'upernet_replknet31b_ade20k': upernet('31B', 512, 0.5, 113.4, ONE_K),
    'upernet_replknet31b_in22k_ade20k_640': upernet('31B', 640, 0.3, 113.4, B_22K),
    'upernet_replknet31l_in22k_ade20k_640': upernet('31L', 640, 0.3, 209.9, L_22K),
    'upernet_replknetxl_meg73m_ade20k_640': upernet('XL', 640, 0.5, 376.4, XL_73M),
    'upernet_replknetxl_meg73m_ade20k_640_fsdp': upernet('XL', 640, 0.5, 376.4, XL_73M, True),
    'upernet_replknet31b_cityscapes':
        Recipe('31B', 769, 80000, 16, 2e-4, 0.05, 0.5, 1600, 113.3, ONE_K),
    'cascade_mask_rcnn_replknet31b_coco': cascade('31B', 0.6, 137, ONE_K),
    'cascade_mask_rcnn_replknet31b_in22k_coco': cascade('31B', 0.4, 137, B_22K),
    'cascade_mask_rcnn_replknet31l_in22k_coco': cascade('31L', 0.7, 229, L_22K),
    'cascade_mask_rcnn_replknetxl_meg73m_coco': cascade('XL', 0.5, 392, XL_73M),
    'cascade_mask_rcnn_replknetxl_meg73m_coco_fsdp': cascade('XL', 0.5, 392, XL_73M, True),
    'fcos_replknet31b_coco': Recipe('31B', 0, 24, 16, 2e-4, 0.05, 0.5, 500, 87, ONE_K),
    'replknet31b_imagenet_224':
        Recipe('31B', 224, 300, 2048, 4e-3, 0.05, 0.5, 10, 79.86, None, 1e-6),
    'replknet31b_imagenet_384_finetune': finetune('31B', 384, 1024, 0.8, 79.86, ONE_K, 1e-6),
    'replknet31b_in22k_imagenet_224_finetune':
        finetune('31B', 224, 512, 0.2, 79.86, 'replknet31b_in22k.pth', 1e-6),
    'replknet31b_in22k_imagenet_384_finetune':
        finetune('31B', 384, 512, 0.3, 79.86, 'replknet31b_in22k.pth', 3e-4),
    'replknet31l_in22k_imagenet_384_finetune':
        finetune('31L', 384, 512, 0.3, 172.7, 'replknet31l_in22k.pth', 3e-4),
    'replknetxl_meg73m_imagenet_320_finetune':
        finetune('XL', 320, 512, 0.3, 335.4, 'replknetxl_meg73m.pth', 3e-4),
    'replknetxl_meg73m_imagenet_320_finetune_fsdp':
        finetune('XL', 320, 512, 0.3, 335.4, 'replknetxl_meg73m.pth', 3e-4, True),
    **study((3, 3, 3, 3), 105.4, 71.9),
    **study((7, 7, 7, 7), 106.2, 72.7),
    **study((13, 13, 13, 13), 107.7, 74.2),
    **study((25, 25, 25, 13), 112.2, 78.7),
    **study((31, 29, 27, 13), 113.4, 79.86),
}
SCOPES = dict(upernet='mmseg', cascade='mmdet', fcos='mmdet')


def load(name: str) -> Config:
    return Config.fromfile(str(config_root() / f'{name}.py'))


def scope_of(name: str) -> str:
    return SCOPES.get(name.split('_')[0], 'mmpretrain')


recipes = pytest.mark.parametrize('name', RECIPES)


def test_the_table_is_complete():
    # The guideline study has test_guidelines.py.
    names = {path.stem for path in config_root().glob('*.py') if 'mobilenetv2' not in path.stem}
    # Those of CamVid and of the nuts have test_real_pictures.py.
    names = {name for name in names if not name.endswith(('_camvid', '_nuts'))}
    assert names == {*RECIPES, *EXAMPLES}


@recipes
def test_architecture(name):
    recipe, cfg = RECIPES[name], load(name)
    backbone = dict(cfg.model.backbone)
    assert backbone.pop('type') == 'mmreplk.RepLKNet'
    backbone.pop('init_cfg', None)
    with torch.device('meta'):
        built = RepLKNet(**backbone)
    assert built.arch.large_kernel_sizes == (recipe.kernels or KERNELS[recipe.arch])
    assert built.arch.layers == (2, 2, 18, 2)
    assert built.arch.channels == CHANNELS[recipe.arch]
    without_small = recipe.arch == 'XL' or recipe.kernels == (3, 3, 3, 3)
    assert built.arch.small_kernel == (None if without_small else 5)
    assert built.arch.dw_ratio == (1.5 if recipe.arch == 'XL' else 1)
    assert built.arch.ffn_ratio == 4
    assert backbone['drop_path_rate'] == recipe.drop_path
    dense = scope_of(name) != 'mmpretrain'
    assert hasattr(built, 'norm') is not dense
    normed = [isinstance(stage.norm, torch.nn.modules.batchnorm._BatchNorm)
              for stage in built.stages]
    assert normed == [dense and recipe.arch == 'XL'] * 4
    assert backbone.get('norm_cfg', dict(type='BN'))['type'] == ('SyncBN' if dense else 'BN')
    # What needs memory recomputes: detection, resolutions from 384, and the wider networks.
    wide = recipe.arch != '31B' or scope_of(name) == 'mmdet' or recipe.size == 384
    assert backbone.get('with_cp', False) is wide


@recipes
def test_optimizer(name):
    recipe, cfg = RECIPES[name], load(name)
    wrapper = cfg.optim_wrapper
    optimizer = wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', recipe.lr, recipe.wd)
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert optimizer.get('eps', 1e-8) == 1e-8
    assert optimizer.fused is True
    classifier = scope_of(name) == 'mmpretrain'
    no_decay = dict(norm_decay_mult=0.0) | (dict(bias_decay_mult=0.0) if classifier else {})
    if recipe.layer_decay:
        assert wrapper.constructor == 'RepLKNetLayerDecayConstructor'
        no_decay['layer_decay'] = recipe.layer_decay
    else:
        assert 'constructor' not in wrapper
    assert dict(wrapper.paramwise_cfg) == no_decay
    clip = dict(max_norm=35, norm_type=2) if name.startswith('fcos') else None
    assert wrapper.get('clip_grad') == clip


@recipes
def test_schedule(name):
    recipe, cfg = RECIPES[name], load(name)
    scope = scope_of(name)
    first, second = cfg.param_scheduler
    length = cfg.train_cfg.get('max_iters' if scope == 'mmseg' else 'max_epochs')
    assert length == second.end == recipe.length
    assert cfg.train_cfg.type.startswith('Iter' if scope == 'mmseg' else 'Epoch')
    assert (first.begin, first.end) == (0, recipe.warmup)
    assert first.get('by_epoch') is (scope == 'mmpretrain')
    if scope == 'mmseg':
        assert (first.type, first.start_factor) == ('LinearLR', 1e-6)
        assert (second.type, second.power, second.eta_min) == ('PolyLR', 1.0, 0.0)
        assert second.begin == recipe.warmup
    elif scope == 'mmpretrain':
        assert (first.type, first.start_factor) == ('LinearLR', 1e-6)
        assert (second.type, second.begin) == ('CosineAnnealingLR', recipe.warmup)
        # As a ratio: an absolute minimum would lie above the rates of the lowest layers.
        assert 'eta_min' not in second
        assert second.eta_min_ratio * recipe.lr == pytest.approx(recipe.min_lr)
        assert first.convert_to_iter_based
        assert second.convert_to_iter_based
    else:
        fcos = name.startswith('fcos')
        assert first.type == ('ConstantLR' if fcos else 'LinearLR')
        factor = first.factor if fcos else first.start_factor
        assert factor == pytest.approx(1 / 3 if fcos else 0.001)
        assert (second.type, second.gamma) == ('MultiStepLR', 0.1)
        assert second.milestones == ([16, 22] if fcos else [27, 33])


@recipes
def test_batch_and_samples(name):
    recipe, cfg = RECIPES[name], load(name)
    steps = cfg.optim_wrapper.get('accumulative_counts', 1)
    assert 8 * cfg.train_dataloader.batch_size * steps == recipe.batch
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=recipe.batch)
    data = dict(mmdet='coco', mmpretrain='imagenet').get(scope_of(name))
    per_length = TRAIN_IMAGES[data] if data else recipe.batch
    hook = cfg.default_hooks.recipe_samples
    assert hook == dict(type='mmreplk.RecipeSamplesHook', samples=recipe.length * per_length)


@recipes
def test_data(name):
    recipe, cfg = RECIPES[name], load(name)
    scope = scope_of(name)
    assert cfg.default_scope == scope
    preprocessor = cfg.data_preprocessor if scope == 'mmpretrain' else cfg.model.data_preprocessor
    statistics = XL_STATISTICS if recipe.arch == 'XL' else IMAGENET_STATISTICS
    assert (preprocessor.mean, preprocessor.std) == statistics
    assert preprocessor['to_rgb' if scope == 'mmpretrain' else 'bgr_to_rgb'] is True
    train = {step['type']: step for step in innermost(cfg.train_dataloader.dataset)['pipeline']}
    test = {step['type']: step for step in innermost(cfg.test_dataloader.dataset)['pipeline']}
    assert 'RandomFlip' in train
    assert 'RandomFlip' not in test
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    globals()[f'check_{scope}'](name, recipe, cfg, train, test)


def check_mmseg(name, recipe, cfg, train, test):
    cityscapes = 'cityscapes' in name
    size = (recipe.size, recipe.size)
    scale = (2049, 1025) if cityscapes else (2048, 512)
    assert train['RandomCrop'] == dict(type='RandomCrop', crop_size=size, cat_max_ratio=0.75)
    assert cfg.model.data_preprocessor['size'] == size
    assert train['RandomResize'] == dict(
        type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True)
    assert 'PhotoMetricDistortion' in train
    assert test['Resize'] == dict(type='Resize', scale=scale, keep_ratio=True)
    model = cfg.model
    slide = dict(mode='slide', crop_size=(640, 640), stride=(426, 426))
    assert model.test_cfg == (slide if recipe.size == 640 else dict(mode='whole'))
    channels = CHANNELS[recipe.arch]
    assert tuple(model.decode_head.in_channels) == channels
    assert model.auxiliary_head.in_channels == channels[2]
    assert (model.decode_head.type, model.decode_head.channels) == ('UPerHead', 512)
    assert model.decode_head.pool_scales == (1, 2, 3, 6)
    assert (model.auxiliary_head.type, model.auxiliary_head.in_index) == ('FCNHead', 2)
    assert (model.auxiliary_head.channels, model.auxiliary_head.num_convs) == (256, 1)
    assert model.decode_head.loss_decode.loss_weight == 1.0
    assert model.auxiliary_head.loss_decode.loss_weight == 0.4
    for head in (model.decode_head, model.auxiliary_head):
        assert head.num_classes == (19 if cityscapes else 150)
        assert head.align_corners is cityscapes
        assert head.norm_cfg.type == 'SyncBN'
        assert head.dropout_ratio == 0.1
    scales, flips = cfg.tta_pipeline[-1].transforms[:2]
    assert [step['scale'][0] / scale[0] for step in scales] == pytest.approx(
        [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], rel=1e-3)
    assert [step['prob'] for step in flips] == [0.0, 1.0]
    reduced = [step.get('reduce_zero_label', False) for step in (train['LoadAnnotations'],
                                                                 test['LoadAnnotations'])]
    assert reduced == [not cityscapes] * 2


def check_mmdet(name, recipe, cfg, train, test):
    model = cfg.model
    assert model.neck == dict(
        type='FPN', in_channels=list(CHANNELS[recipe.arch]), out_channels=256, num_outs=5,
        **(dict(start_level=1, add_extra_convs='on_output', relu_before_extra_convs=True)
           if name.startswith('fcos') else {}))
    assert test['Resize']['scale'] == (1333, 800)
    if name.startswith('fcos'):
        assert train['RandomChoiceResize']['scales'] == [(1333, 640), (1333, 800)]
        assert cfg.val_evaluator.metric == 'bbox'
        assert model.bbox_head.num_classes == 80
        assert model.bbox_head.strides == [8, 16, 32, 64, 128]
        assert model.bbox_head.norm_cfg.type == 'GN'
        return
    assert cfg.val_evaluator.metric == ['bbox', 'segm']
    plain, cropped = train['RandomChoice']['transforms']
    sizes = [(size, 1333) for size in range(480, 801, 32)]
    assert plain[0]['scales'] == cropped[2]['scales'] == sizes
    assert cropped[0]['scales'] == [(400, 1333), (500, 1333), (600, 1333)]
    assert cropped[1]['crop_size'] == (384, 600)
    roi_head, stages = model.roi_head, model.train_cfg.rcnn
    assert [head.bbox_coder.target_stds[0] for head in roi_head.bbox_head] == [0.1, 0.05, 0.033]
    assert [stage.assigner.pos_iou_thr for stage in stages] == [0.5, 0.6, 0.7]
    assert roi_head.stage_loss_weights == [1, 0.5, 0.25]
    assert roi_head.mask_head.loss_mask == dict(
        type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)
    assert (roi_head.mask_head.num_convs, roi_head.mask_head.num_classes) == (4, 80)
    for head in roi_head.bbox_head:
        assert head.num_classes == 80
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert head.norm_cfg.type == 'SyncBN'
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
        assert head.reg_class_agnostic is False
        assert head.reg_decoded_bbox is True


def check_mmpretrain(name, recipe, cfg, train, test):
    assert train['RandomResizedCrop']['scale'] == recipe.size
    if recipe.size == 384:
        assert test['Resize']['scale'] == (384, 384)
    else:
        assert test['CenterCrop']['crop_size'] == recipe.size
        assert test['ResizeEdge']['scale'] == int(recipe.size * 256 / 224)
    augment = train['RandAugment']
    assert (augment['magnitude_level'], augment['magnitude_std']) == (9, 0.5)
    assert augment['policies'] == 'timm_increasing'
    assert (augment['num_policies'], augment['total_level']) == (2, 10)
    erasing = train['RandomErasing']
    # timm's mode "pixel": noise of the statistics of the normalized pictures.
    assert (erasing['erase_prob'], erasing['mode']) == (0.25, 'rand')
    assert erasing['fill_color'] == cfg.data_preprocessor.mean[::-1]
    assert erasing['fill_std'] == cfg.data_preprocessor.std[::-1]
    resizing = next(test[name] for name in ('Resize', 'ResizeEdge') if name in test)
    for step in (train['RandomResizedCrop'], resizing):
        assert (step['backend'], step['interpolation']) == ('pillow', 'bicubic')
    bgr = [round(value) for value in cfg.data_preprocessor.mean[::-1]]
    assert augment['hparams']['pad_val'] == bgr
    assert cfg.model.head.loss == dict(
        type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    assert cfg.model.head.in_channels == CHANNELS[recipe.arch][-1]
    mixes = (cfg.model.get('train_cfg') or {}).get('augments', [])
    assert mixes == ([] if recipe.layer_decay else
                     [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    if recipe.fsdp:
        assert cfg.custom_hooks == []
        return
    ema, = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', pytest.approx(1 - 0.9999))
    assert ema.interval == cfg.optim_wrapper.accumulative_counts
    assert ema.update_buffers is True


@recipes
def test_starting_weights(name):
    recipe, cfg = RECIPES[name], load(name)
    init = cfg.model.backbone.get('init_cfg') or cfg.model.get('init_cfg')
    if recipe.weights is None:
        assert init is None
        return
    assert init['type'] == 'Pretrained'
    assert recipe.weights in init['checkpoint']
    if init['checkpoint'].startswith('https://'):
        assert init['checkpoint'].startswith(
            'https://download.openmmlab.com/mmclassification/v0/replknet/replknet-')
    # The head starts anew where the classes change, and is kept from 224 to 384.
    assert ('init_cfg' in cfg.model) is (name == 'replknet31b_imagenet_384_finetune')


@recipes
def test_it_builds_at_full_size(name):
    """The whole model on the meta device, and every transform of its pipelines."""
    recipe, cfg = RECIPES[name], load(name)
    scope = scope_of(name)
    if scope == 'mmdet':
        pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    init_default_scope(scope)
    registry = importlib.import_module(f'{scope}.registry')
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    replace_sync_bn(cfg.model)
    with DefaultScope.overwrite_default_scope(scope):
        with torch.device('meta'):
            model = registry.MODELS.build(cfg.model)
        pipelines = [innermost(loader.dataset)['pipeline'] for loader in (
            cfg.train_dataloader, cfg.val_dataloader)] + [cfg.get('tta_pipeline', [])]
        for step in (step for pipeline in pipelines for step in pipeline):
            registry.TRANSFORMS.build(step)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    assert params == pytest.approx(recipe.params, rel=0.005)
    kind = 'Flexible' if recipe.fsdp else ''
    assert cfg.get('runner_type', 'Runner') == f'{kind}Runner'


@recipes
def test_the_header_names_figures_and_batch(name):
    text = (config_root() / f'{name}.py').read_text()
    header = ' '.join(line[1:].strip() for line in text.split('_base_')[0].splitlines())
    assert 'Published by the authors' in header
    assert 'otal batch' in header or 'x 32 = 5.12M samples' in header
    assert f'{RECIPES[name].batch}' in header
