"""The guideline study on MobileNetV2: every config builds the network that its name promises."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmreplk.analysis.cost.count import build_on_meta
from mmreplk.config.files import config_root
from mmreplk.models.enlarge.conv import EnlargedConv

# Name: kernel, whether in the last stage alone, 3x3 branch, dilation, shortcuts.
STUDY = {
    'kernels_3': (3, False, False, 1, True),
    'kernels_3_no_shortcut': (3, False, False, 1, False),
    'kernels_13_no_shortcut': (13, False, False, 1, False),
    'kernels_9': (9, False, False, 1, True),
    'kernels_9_reparam': (9, False, True, 1, True),
    'kernels_13': (13, False, False, 1, True),
    'kernels_13_reparam': (13, False, True, 1, True),
    'last_stage_7': (7, True, True, 1, True),
    'last_stage_13': (13, True, True, 1, True),
    'dilated_3': (3, False, False, 4, True),
}
# facts.md 7: ImageNet top-1, Cityscapes mIoU.
PUBLISHED = {
    'kernels_3': (71.76, 72.31),
    'kernels_3_no_shortcut': (68.67, None),
    'kernels_13_no_shortcut': (53.98, None),
    'kernels_9': (72.67, 76.11),
    'kernels_9_reparam': (73.09, 76.30),
    'kernels_13': (72.53, 75.67),
    'kernels_13_reparam': (73.24, 76.60),
    'last_stage_7': (72.00, 74.30),
    'last_stage_13': (71.97, 74.62),
}
CONFIGS = {
    **{f'mobilenetv2_{name}_imagenet_100e': name for name in STUDY},
    **{f'deeplabv3plus_mobilenetv2_{name}_cityscapes_80k': name
       for name in STUDY if 'shortcut' not in name},
}


def load(name: str) -> Config:
    return Config.fromfile(str(config_root() / f'{name}.py'))


def build(name: str) -> torch.nn.Module:
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_on_meta(cfg)


def depthwise(model) -> dict[str, torch.nn.Conv2d]:
    return {name: module for name, module in model.backbone.named_modules()
            if isinstance(module, torch.nn.Conv2d) and module.groups == module.in_channels > 1
            and not name.endswith('small_conv.conv')}


def test_the_list_is_complete():
    # Those on CamVid have test_real_pictures.py.
    assert {path.stem for path in config_root().glob('*mobilenetv2*.py')
            if not path.stem.endswith('_camvid')} == set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_network(name):
    kernel, last, branch, dilation, shortcut = STUDY[CONFIGS[name]]
    model = build(name)
    convs = depthwise(model)
    assert len(convs) == 17
    dense = 'cityscapes' in name
    for where, conv in convs.items():
        chosen = not last or 'layer6' in where or 'layer7' in where
        assert conv.kernel_size == ((kernel, kernel) if chosen else (3, 3)), where
        if kernel == 3 and dilation == 1:
            continue
        assert where.endswith('.conv.lkb_origin.conv') or not chosen
        extent = dilation * (kernel - 1) + 1
        if chosen:
            assert conv.dilation == (dilation, dilation)
            assert conv.padding == (extent // 2, extent // 2)
    enlarged = [m for m in model.backbone.modules() if isinstance(m, EnlargedConv)]
    assert len(enlarged) == (0 if CONFIGS[name] == 'kernels_3' else 4 if last else 17)
    assert all((m.small_kernel == 3) is branch for m in enlarged)
    switches = [m.use_res_connect for m in model.backbone.modules()
                if hasattr(m, 'use_res_connect')]
    # Of a stage's blocks all but the first have one: 1 + 2 + 3 + 2 + 2 (table 2 of MobileNetV2).
    assert sum(switches) == (10 if shortcut else 0)
    strides = [conv.stride[0] for conv in convs.values()]
    assert strides.count(2) == (2 if dense else 4)


@pytest.mark.parametrize('name', CONFIGS)
def test_figures(name):
    text = (config_root() / f'{name}.py').read_text()
    header = text.split('_base_')[0]
    figure = PUBLISHED.get(CONFIGS[name], (None, None))['cityscapes' in name]
    if figure is None:
        assert 'No figure is known' in header
    else:
        assert f'Published by the authors: {figure:.2f} ' in header


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'cityscapes' in name])
def test_segmentors_start_from_the_classifier_of_the_same_kernels(name):
    """Every weight of the backbone is in the classifier, under the name that is looked for."""
    classifier = f'mobilenetv2_{CONFIGS[name]}_imagenet_100e'
    init = load(name).model.backbone.init_cfg
    assert init == dict(type='Pretrained', prefix='backbone.',
                        checkpoint=f'work_dirs/{classifier}/epoch_100.pth')
    wanted = build(name).backbone.state_dict()
    given = build(classifier).backbone.state_dict()
    assert {key: value.shape for key, value in wanted.items()}.items() <= {
        key: value.shape for key, value in given.items()}.items()


@pytest.mark.parametrize('name', CONFIGS)
def test_recipe(name):
    cfg = load(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum) == ('SGD', 0.9)
    dense = 'cityscapes' in name
    assert (optimizer.lr, optimizer.weight_decay) == ((0.01, 5e-4) if dense else (0.045, 4e-5))
    schedule = cfg.param_scheduler
    if dense:
        assert (schedule.type, schedule.power, schedule.end) == ('PolyLR', 0.9, 80000)
        assert cfg.train_cfg.max_iters == 80000
        assert cfg.default_hooks.recipe_samples.samples == 80000 * 8
        batch, crop = 8, (512, 1024)
        assert cfg.model.data_preprocessor['size'] == crop
    else:
        assert (schedule.type, schedule.T_max, schedule.end) == ('CosineAnnealingLR', 100, 100)
        assert cfg.train_cfg.max_epochs == 100
        assert cfg.default_hooks.recipe_samples.samples == 100 * 1281167
        batch, crop = 256, 224
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch)
    train = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    assert crop in (train.get('RandomCrop', {}).get('crop_size'),
                    train.get('RandomResizedCrop', {}).get('scale'))
    assert 'RandAugment' not in train
    assert cfg.val_dataloader == cfg.test_dataloader
