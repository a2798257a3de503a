"""Every config in configs/: built at full size, and run through the real tools.

The tools train, save, resume, evaluate and predict. There the network is narrow (`train.py
--reduce`), the data are few, and all else is the config's own.
"""

import json
import math
import multiprocessing
import re
import runpy
import socket
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmreplk.analysis.cost.count import build_on_meta
from mmreplk.config.edit import innermost
from mmreplk.models.from_config import has_replknet
from mmreplk.training.fsdp import is_sharded

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(ROOT.glob('configs/*.py'))
METRICS = {
    'mmseg': {'mIoU'},
    'mmdet': {'coco/bbox_mAP'},
    'mmpretrain': {'accuracy/top1'},
}
IMAGES = {
    'BaseSegDataset': 'camvid/images/test/0000.jpg',
    'ADE20KDataset': 'ade/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg',
    'CityscapesDataset': 'cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png',
    'CocoDataset': 'coco/val2017/000000000001.jpg',
    'CustomDataset': 'cue-conflict/cat/cat1-dog2.png',
    'ImageNet': 'imagenet/val/ILSVRC2012_val_00000001.JPEG',
}
TOO_LONG = 240  # seconds, for one tool

each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


def read(path: Path) -> Config:
    cfg = Config.fromfile(path)
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    return cfg


@each_config
def test_builds_at_full_size(path):
    cfg = read(path)
    model = build_on_meta(cfg)
    backbone = cfg.model.backbone
    if isinstance(backbone.get('arch'), str):
        assert sum(p.numel() for p in model.backbone.parameters()) > 75e6  # that of 31B
    assert cfg.custom_imports.imports == ['mmreplk']


@pytest.fixture(scope='module')
def server():
    """Starts processes as forks of one that has imported the codebases already."""
    context = multiprocessing.get_context('forkserver')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        patch.setenv('MPLBACKEND', 'Agg')
        context.set_forkserver_preload(
            ['mmreplk', 'mmseg.apis', 'mmdet.apis', 'mmpretrain.apis', 'matplotlib.pyplot'])
        yield context


@pytest.fixture
def tool(server, tmp_path):
    """Runs a tool to its end, in a process of its own; returns what it wrote."""

    def run(name, *args, **env) -> str:
        log = tmp_path / f'{name}_{len(list(tmp_path.glob("*.log")))}.log'
        job = dict(
            ARGV=[str(ROOT / 'tools' / name), *map(str, args)], FOLDER=str(tmp_path), LOG=str(log),
            ENV={key: str(value) for key, value in env.items()})
        process = server.Process(
            target=runpy.run_path, args=(str(Path(__file__).with_name('tool_process.py')), job))
        process.start()
        process.join(TOO_LONG)
        if process.is_alive():
            process.kill()
            process.join()
        text = log.read_text()
        assert process.exitcode == 0, text
        return text

    return run


def is_narrow(cfg: Config) -> bool:
    arch = cfg.model.backbone.get('arch')
    return isinstance(arch, dict) and arch['channels'][0] < 64


def no_thresholds(cfg: Config) -> list[str]:
    """Options that keep all detections: of an untrained detector none has a score of 0.05."""
    if cfg.default_scope != 'mmdet':
        return []
    owner = 'model.test_cfg.rcnn' if 'rcnn' in cfg.model.test_cfg else 'model.test_cfg'
    return [f'{owner}.score_thr=0.0']


def half_crops(cfg: Config) -> list[str]:
    """Options for crops of half the side in segmentation: the loss of 150 classes takes longest.

    --reduce makes them small by itself.
    """
    if cfg.default_scope != 'mmseg' or (has_replknet(cfg) and not is_narrow(cfg)):
        return []
    pipeline = innermost(cfg.train_dataloader.dataset).pipeline
    index, crop = next((i, step) for i, step in enumerate(pipeline) if step['type'] == 'RandomCrop')
    size = '({},{})'.format(*(length // 2 for length in crop['crop_size']))
    return [f'train_dataloader.dataset.pipeline.{index}.crop_size={size}',
            f'model.data_preprocessor.size={size}']


def small_pictures(cfg: Config) -> list[str]:
    """Options for test pictures of a quarter of the side, where --reduce has nothing to reduce."""
    if cfg.default_scope != 'mmseg' or has_replknet(cfg):
        return []
    options = []
    for phase in ('val', 'test'):
        pipeline = innermost(cfg[f'{phase}_dataloader'].dataset).pipeline
        index, step = next((i, step) for i, step in enumerate(pipeline) if step['type'] == 'Resize')
        size = '({},{})'.format(*(length // 4 for length in step['scale']))
        options.append(f'{phase}_dataloader.dataset.pipeline.{index}.scale={size}')
    return options


def random_weights(cfg: Config) -> list[str]:
    """Options against files that only a long training makes; --reduce drops them by itself."""
    if has_replknet(cfg) or not cfg.model.backbone.get('init_cfg'):
        return []
    return ['model.backbone.init_cfg=None']


def short_run(cfg: Config, steps: int) -> list[str]:
    """Options for so many steps of two images, with a validation and a checkpoint at the end."""
    options = [
        'train_dataloader.batch_size=2',
        *(f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val', 'test')),
        'default_hooks.logger.interval=1', 'randomness.seed=0',
        *no_thresholds(cfg), *half_crops(cfg), *small_pictures(cfg), *random_weights(cfg)
    ]
    if 'max_iters' in cfg.train_cfg:
        return [*options, f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps}',
                f'default_hooks.checkpoint.interval={steps}']
    # The drawn sets have four images: two steps an epoch.
    return [*options, f'train_cfg.max_epochs={steps // 2}', f'train_cfg.val_interval={steps // 2}',
            f'default_hooks.checkpoint.interval={steps // 2}']


@cache
def augmented() -> set[Path]:
    """Of RepLKNet configs, the first with each test-time augmentation and mode."""
    cfgs = {path: Config.fromfile(path) for path in CONFIGS}
    first = {}
    for path, cfg in cfgs.items():
        if 'tta_pipeline' in cfg and has_replknet(cfg):
            first.setdefault((str(cfg.tta_pipeline), str(cfg.model.get('test_cfg'))), path)
    return set(first.values())


def kinds(path: Path):
    """What a sample of the configs shows: each word of their names, and each augmentation."""
    words = {word for word in path.stem.split('_') if not word[:1].isdigit()}
    return words | ({path} & augmented())


def one_process() -> dict:
    """The environment that torchrun gives to a single process."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)


def training_weights(path: Path) -> dict:
    """The weights in training; with EMA, a checkpoint's state_dict holds the averages."""
    checkpoint = torch.load(path, weights_only=False)
    weights = checkpoint.get('ema_state_dict', checkpoint['state_dict'])
    return {name.removeprefix('module.'): value for name, value in weights.items()}


@pytest.mark.sample(by=kinds)
@pytest.mark.slow
@each_config
def test_every_config_runs_through_the_tools(path, data_folder, tmp_path, tool):
    cfg = read(path)
    (tmp_path / 'data').symlink_to(data_folder)
    image = data_folder / IMAGES[innermost(cfg.test_dataloader.dataset).type]
    reduce = ('--reduce', 16) if has_replknet(cfg) and not is_narrow(cfg) else ()
    launcher = ('--launcher', 'pytorch') if is_sharded(cfg) else ()
    train = ('train.py', path, *reduce, *launcher, '--work-dir', 'work')
    by_iter = 'max_iters' in cfg.train_cfg
    first, last = ('iter_2.pth', 'iter_4.pth') if by_iter else ('epoch_1.pth', 'epoch_2.pth')

    text = tool(*train, '--cfg-options', *short_run(cfg, 2), **one_process())
    text += tool(*train, '--resume', '--cfg-options', *short_run(cfg, 4), **one_process())
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', text)]
    assert len(losses) == 4
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert f'resumed epoch: {0 if by_iter else 1}, iter: 2' in text
    before, after = (training_weights(tmp_path / 'work' / name) for name in (first, last))
    assert before.keys() == after.keys()
    for part in ('backbone.stages' if has_replknet(cfg) else 'backbone.', 'head'):
        moved = [name for name, value in before.items()
                 if part in name and value.is_floating_point() and value.dim() > 1
                 and not torch.equal(value, after[name])]
        assert moved, f'no weight of {part} has changed'

    trained = (f'work/{path.name}', f'work/{last}')
    tool('test.py', *trained, '--work-dir', 'tested')
    result, = (tmp_path / 'tested').glob('2*/2*.json')
    metrics = json.loads(result.read_text())
    wanted = METRICS[cfg.default_scope]
    if 'mask_head' in str(cfg.model):
        wanted = wanted | {'coco/segm_mAP'}
    assert wanted <= metrics.keys()
    assert all(0 <= metrics[name] <= 100 for name in wanted)
    # Twelve views take long, most of all of a network in its full width.
    if path in augmented():
        text = tool('test.py', *trained, '--tta', '--work-dir', 'augmented', '--cfg-options',
                    'test_dataloader.dataset.indices=1')
        assert re.search(r'\(test\) \[1/1\] .*mIoU', text)

    tool('image_demo.py', image, *trained, '--out', 'drawn.png', '--score-thr', 0.0)
    drawn, given = cv2.imread(str(tmp_path / 'drawn.png')), cv2.imread(str(image))
    # Small images are enlarged by a whole factor; the legend stands below them.
    factor = drawn.shape[1] // given.shape[1]
    enlarged = given.repeat(factor, 0).repeat(factor, 1)
    assert drawn.shape[1] == enlarged.shape[1] >= 480
    assert np.ptp(drawn[len(enlarged):]) > 100
    # The classes of a whole image stand in the legend alone.
    assert np.array_equal(drawn[:len(enlarged)], enlarged) == (cfg.default_scope == 'mmpretrain')
