"""Tiny data and configs of the three codebases, and the tools run as a user runs them."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmreplk.config.edit import replace_sync_bn

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
BACKBONE = dict(
    type='mmreplk.RepLKNet',
    arch=dict(large_kernel_sizes=[7, 5], layers=[1, 1], channels=[4, 8], small_kernel=3),
    drop_path_rate=0.0,
    norm_cfg=dict(type='SyncBN', requires_grad=True))
RUNTIME = dict(
    custom_imports=dict(imports=['mmreplk'], allow_failed_imports=False),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
    val_cfg=dict(type='ValLoop'),
    test_cfg=dict(type='TestLoop'),
    default_hooks=dict(
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
    log_processor=dict(by_epoch=False),
    randomness=dict(seed=0))


class Run:
    """A finished tool.

    Attributes:
        code (int): Its exit code.
        text (str): What it wrote, both streams.
    """

    def __init__(self, code: int, text: str):
        self.code, self.text = code, text

    @property
    def warns(self) -> bool:
        """Whether it wrote a warning; torch 2.5's about an import of MMEngine does not count."""
        return 'Warning' in re.sub(r'zero_optimizer\.py:\d+: DeprecationWarning', '', self.text)

    def metric(self, name: str) -> float:
        """The last value that the log gives for a metric."""
        return float(re.findall(rf'{name}: +(-?[\d.]+)', self.text)[-1])


class Bench:
    """A folder with a tiny data set and its config, and the tools run from inside it.

    Attributes:
        folder (Path): The folder; tools have it as their working directory.
        config (dict): The config, written to ``tiny.py`` by :meth:`write`.
    """

    def __init__(self, folder: Path, config: dict, server):
        self.folder, self.config, self.server = folder, config, server
        self.write()

    def write(self, name: str = 'tiny.py', **changes) -> str:
        """Write the config with top-level changes; returns the file's name."""
        config = {**RUNTIME, **self.config, **changes}
        lines = [f'{key} = {value!r}' for key, value in config.items()]
        (self.folder / name).write_text('\n'.join(lines) + '\n')
        return name

    def run(self, tool: str, *args, **env) -> Run:
        """Run ``tools/<tool>`` with arguments and environment variables.

        A tool is a fork of a process that has the libraries; see tests/tool_server.py. Scripts are
        started anew, and tools with other variables: one may matter at an import.
        """
        command = [str(TOOLS / tool), *map(str, args)]
        environment = self.server.environment_now(**env)
        if tool.endswith('.py') and environment == self.server.environment:
            return Run(*self.server.run(command, self.folder, timeout=300))
        done = subprocess.run([sys.executable if tool.endswith('.py') else 'bash', *command],
                              cwd=self.folder,
                              env=environment,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT,
                              text=True,
                              timeout=300,
                              check=False)
        return Run(done.returncode, done.stdout)

    def done(self, tool: str, *args, **env) -> Run:
        """Like :meth:`run`, but the tool has to succeed."""
        run = self.run(tool, *args, **env)
        assert run.code == 0, run.text
        return run

    def refused(self, tool: str, *args, **env) -> str:
        """Like :meth:`run`, but the tool has to refuse; returns its whole message."""
        before = sorted(self.folder.rglob('*'))
        run = self.run(tool, *args, **env)
        assert run.code == 2, run.text
        assert 'Traceback' not in run.text, run.text
        assert sorted(self.folder.rglob('*')) == before, 'it wrote something all the same'
        return run.text

    def metrics(self, work_dir: str) -> dict:
        """The metrics that the only test run of a work dir wrote; the times are left out."""
        file, = (self.folder / work_dir).glob('2*/2*.json')
        values = json.loads(file.read_text())
        return {key: value for key, value in values.items() if 'time' not in key}

    def checkpoint(self, name: str = 'random.pth') -> str:
        """Write random weights as a training run would; returns the file's name."""
        cfg = Config.fromfile(str(self.folder / 'tiny.py'))
        init_default_scope(cfg.default_scope)
        replace_sync_bn(cfg.model)
        model = MODELS.build(cfg.model)
        meta = cfg.test_dataloader.dataset.get('metainfo', dict(classes=('bright', 'dark')))
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta.copy())),
            self.folder / name)
        return name

    def files(self, folder: str, pattern: str = '*') -> set[str]:
        """The names of the files in a folder."""
        return {path.name for path in (self.folder / folder).glob(pattern) if path.is_file()}


def _loader(dataset: dict, batch_size: int = 2, train: bool = False) -> dict:
    sampler = 'InfiniteSampler' if train else 'DefaultSampler'
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type=sampler, shuffle=False),
        dataset=dataset)


def _draw(rng, height: int = 32, width: int = 48):
    """A dark picture with a bright box; returns picture and box (x, y, w, h)."""
    x, y = (int(value) for value in rng.integers(2, 12, 2))
    w, h = (int(value) for value in rng.integers(14, 20, 2))
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    image[y:y + h, x:x + w] += 140
    return image, (x, y, w, h)


@pytest.fixture
def seg_bench(tmp_path, tool_server) -> Bench:
    """A segmentor of two classes; four images to train on, five (an odd number) to test."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 5)):
        for kind in ('img', 'ann'):
            (tmp_path / 'data' / kind / split).mkdir(parents=True)
        for index in range(count):
            image, (x, y, w, h) = _draw(rng)
            label = np.zeros(image.shape[:2], np.uint8)
            label[y:y + h, x:x + w] = 1
            cv2.imwrite(str(tmp_path / 'data/img' / split / f'{index}.png'), image)
            cv2.imwrite(str(tmp_path / 'data/ann' / split / f'{index}.png'), label)

    def dataset(split):
        return dict(
            type='BaseSegDataset',
            data_root='data',
            metainfo=dict(classes=('dark', 'bright'), palette=[[0, 0, 0], [250, 250, 0]]),
            img_suffix='.png',
            data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs')
            ])

    return Bench(
        tmp_path,
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[90.0] * 3, std=[70.0] * 3, size=(32, 48)),
                backbone=BACKBONE,
                decode_head=dict(
                    type='FCNHead',
                    in_channels=8,
                    in_index=1,
                    channels=8,
                    num_convs=1,
                    concat_input=False,
                    dropout_ratio=0.0,
                    num_classes=2,
                    norm_cfg=dict(type='SyncBN'),
                    align_corners=False,
                    loss_decode=dict(type='CrossEntropyLoss')),
                train_cfg=dict(),
                test_cfg=dict(mode='whole')),
            train_dataloader=_loader(dataset('train'), train=True),
            val_dataloader=_loader(dataset('val'), batch_size=1),
            test_dataloader=_loader(dataset('val'), batch_size=1),
            val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
            test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU'])),
        tool_server)


@pytest.fixture
def cls_bench(tmp_path, tool_server) -> Bench:
    """A classifier of two classes; the data loaders are as bare as MMPretrain's own configs."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 5)):
        for index in range(count):
            folder = tmp_path / 'data' / split / ('dark' if index % 2 else 'bright')
            folder.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f'{index}.png'), image if index % 2 else image + 140)

    def dataset(split):
        return dict(
            type='CustomDataset',
            data_root='data',
            data_prefix=split,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=32),
                dict(type='PackInputs')
            ])

    return Bench(
        tmp_path,
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=2, mean=[90.0] * 3, std=[70.0] * 3),
            model=dict(
                type='ImageClassifier',
                backbone=dict(BACKBONE, out_indices=(1, )),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=2,
                    in_channels=8,
                    topk=(1, ),
                    loss=dict(type='CrossEntropyLoss'))),
            train_dataloader=_loader(dataset('train'), train=True),
            val_dataloader=_loader(dataset('val')),
            test_dataloader=_loader(dataset('val')),
            val_evaluator=dict(type='Accuracy', topk=(1, )),
            test_evaluator=dict(type='Accuracy', topk=(1, ))),
        tool_server)


@pytest.fixture
def det_bench(tmp_path, tool_server) -> Bench:
    """A one-stage detector (FCOS) on drawn boxes in COCO's format."""
    pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 5)):
        (tmp_path / 'data' / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            image, (x, y, w, h) = _draw(rng)
            cv2.imwrite(str(tmp_path / 'data' / split / f'{index}.png'), image)
            images.append(dict(id=index, file_name=f'{index}.png', height=32, width=48))
            annotations.append(
                dict(
                    id=index,
                    image_id=index,
                    category_id=1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
        (tmp_path / 'data' / f'{split}.json').write_text(
            json.dumps(
                dict(
                    images=images,
                    annotations=annotations,
                    categories=[dict(id=1, name='box')])))

    def dataset(split):
        load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
        meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        train = [*load, dict(type='PackDetInputs')]
        test = [
            load[0],
            dict(type='Resize', scale=(48, 32), keep_ratio=True), load[1],
            dict(type='PackDetInputs', meta_keys=meta)
        ]
        return dict(
            type='CocoDataset',
            data_root='data',
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=('box', ), palette=[(220, 20, 60)]),
            test_mode=split == 'val',
            pipeline=train if split == 'train' else test)

    return Bench(
        tmp_path,
        dict(
            default_scope='mmdet',
            model=dict(
                type='FCOS',
                data_preprocessor=dict(
                    type='DetDataPreprocessor',
                    mean=[90.0] * 3,
                    std=[70.0] * 3,
                    pad_size_divisor=32),
                backbone=BACKBONE,
                neck=dict(type='FPN', in_channels=[4, 8], out_channels=8, num_outs=2),
                bbox_head=dict(
                    type='FCOSHead',
                    num_classes=1,
                    in_channels=8,
                    stacked_convs=1,
                    feat_channels=8,
                    strides=[4, 8],
                    regress_ranges=((-1, 16), (16, 1e8)),
                    norm_cfg=None),
                test_cfg=dict(
                    nms_pre=50,
                    min_bbox_size=0,
                    score_thr=0.0,
                    nms=dict(type='nms', iou_threshold=0.5),
                    max_per_img=10)),
            train_dataloader=_loader(dataset('train'), train=True),
            val_dataloader=_loader(dataset('val'), batch_size=1),
            test_dataloader=_loader(dataset('val'), batch_size=1),
            val_evaluator=dict(type='CocoMetric', ann_file='data/val.json', metric='bbox'),
            test_evaluator=dict(type='CocoMetric', ann_file='data/val.json', metric='bbox')),
        tool_server)


@pytest.fixture(scope='module')
def crashes():
    """The module crash.py: tools in processes that can be killed."""
    spec = importlib.util.spec_from_file_location('crash', Path(__file__).with_name('crash.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(CUDA_VISIBLE_DEVICES='', MPLBACKEND='Agg').items():
            patch.setenv(name, value)
        yield module
