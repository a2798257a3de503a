"""Every config in configs/ through the real tools: train, save, resume, evaluate, predict.

The network is narrow (`train.py --reduce`), the data are few, and all else is the config's own.
"""

import json
import math
import multiprocessing
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmreplk  # noqa: F401
from mmreplk.engine.preflight import has_replknet

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(ROOT.glob('configs/*.py'))
METRICS = {
    'mmseg': {'mIoU'},
    'mmdet': {'coco/bbox_mAP'},
    'mmpretrain': {'accuracy/top1'},
}
IMAGES = {
    'ADE20KDataset': 'ade/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg',
    'CityscapesDataset': 'cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png',
    'CocoDataset': 'coco/val2017/000000000001.jpg',
    'ImageNet': 'imagenet/val/ILSVRC2012_val_00000001.JPEG',
}
# Of an untrained detector no score is above the thresholds, and without a detection no AP is
# computed.
NO_THRESHOLDS = ('model.test_cfg.score_thr', 'model.test_cfg.rcnn.score_thr')
TOO_LONG = 240  # seconds


def innermost(dataset: dict) -> dict:
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def has(cfg: Config, name: str) -> bool:
    for key in name.split('.'):
        if not isinstance(cfg, (dict, Config)) or key not in cfg:
            return False
        cfg = cfg[key]
    return True


def is_narrow(cfg: Config) -> bool:
    arch = cfg.model.backbone.arch
    return isinstance(arch, dict) and arch['channels'][0] < 64


def half_crops(cfg: Config) -> list[str]:
    """Options for crops of half the side in segmentation: the loss of 150 classes takes longest."""
    if cfg.default_scope != 'mmseg':
        return []
    pipeline = innermost(cfg.train_dataloader.dataset).pipeline
    index, crop = next((i, step) for i, step in enumerate(pipeline) if step['type'] == 'RandomCrop')
    size = tuple(length // 2 for length in crop['crop_size'])
    return [f'train_dataloader.dataset.pipeline.{index}.crop_size={size}'.replace(' ', ''),
            f'model.data_preprocessor.size={size}'.replace(' ', '')]


def short_run(cfg: Config, steps: int) -> list[str]:
    """Options for so many steps of two images, with a validation and a checkpoint at the end."""
    options = [
        'train_dataloader.batch_size=2',
        *(f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val', 'test')),
        'default_hooks.logger.interval=1', 'randomness.seed=0',
        *(f'{name}=0.0' for name in NO_THRESHOLDS if has(cfg, name)), *half_crops(cfg),
    ]
    if 'max_iters' in cfg.train_cfg:
        return [*options, f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps}',
                f'default_hooks.checkpoint.interval={steps}']
    # The drawn sets have four images: two steps an epoch.
    return [*options, f'train_cfg.max_epochs={steps // 2}', f'train_cfg.val_interval={steps // 2}',
            f'default_hooks.checkpoint.interval={steps // 2}']


@pytest.fixture(scope='module')
def server():
    """Starts processes that have imported the codebases already, as forks of one that has."""
    context = multiprocessing.get_context('forkserver')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        patch.setenv('MPLBACKEND', 'Agg')
        context.set_forkserver_preload(
            ['mmreplk', 'mmseg.apis', 'mmdet.apis', 'mmpretrain.apis', 'matplotlib.pyplot'])
        yield context


def run(server, folder: Path, *commands) -> str:
    """Run tools in turn in one new process; returns what they wrote."""
    log = folder / 'log.txt'
    lines = [[str(ROOT / 'tools' / tool), *map(str, args)] for tool, *args in commands]
    process = server.Process(
        target=runpy.run_path,
        args=(str(Path(__file__).with_name('tools_in_turn.py')),
              dict(COMMANDS=lines, FOLDER=str(folder), LOG=str(log))))
    process.start()
    process.join(TOO_LONG)
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text()
    assert process.exitcode == 0, text
    return text


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_through_the_tools(path, data_folder, tmp_path, server):
    cfg = Config.fromfile(path)
    if cfg.get('runner_type') == 'FlexibleRunner':
        pytest.skip('FSDP shards over GPUs; a CPU can only build it, see test_builds.py')
    (tmp_path / 'data').symlink_to(data_folder)
    image = data_folder / IMAGES[innermost(cfg.test_dataloader.dataset).type]
    reduce = ('--reduce', 16) if has_replknet(cfg) and not is_narrow(cfg) else ()
    train = ('train.py', path, *reduce, '--work-dir', 'work')
    by_iter = 'max_iters' in cfg.train_cfg
    first, last = ('iter_2.pth', 'iter_4.pth') if by_iter else ('epoch_1.pth', 'epoch_2.pth')
    trained = (f'work/{path.name}', f'work/{last}')
    text = run(
        server, tmp_path,
        (*train, '--cfg-options', *short_run(cfg, 2)),
        (*train, '--resume', '--cfg-options', *short_run(cfg, 4)),
        ('test.py', *trained, '--work-dir', 'tested'),
        ('image_demo.py', image, *trained, '--out', 'drawn.png', '--device', 'cpu'))

    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', text)]
    assert len(losses) == 4
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert re.search(rf'resumed epoch: {0 if by_iter else 1}, iter: 2', text)
    weights = [torch.load(tmp_path / 'work' / name, weights_only=False)['state_dict']
               for name in (first, last)]
    assert weights[0].keys() == weights[1].keys()
    moved = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    assert any(name.startswith('backbone.') for name in moved)

    result, = (tmp_path / 'tested').glob('2*/2*.json')
    metrics = json.loads(result.read_text())
    wanted = METRICS[cfg.default_scope]
    if 'mask_head' in str(cfg.model):
        wanted = wanted | {'coco/segm_mAP'}
    assert wanted <= metrics.keys()
    assert all(0 <= metrics[name] <= 100 for name in wanted)
    drawn, given = cv2.imread(str(tmp_path / 'drawn.png')), cv2.imread(str(image))
    assert drawn.shape == given.shape
    assert not np.array_equal(drawn, given)
