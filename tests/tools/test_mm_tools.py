"""The mm packages' own train.py and test.py keep the promises of ours, by our runtime alone."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch

from mmreplk.config.files import config_root
from mmreplk.training.work_dir_lock import NAME, lock_work_dir, unlock_work_dir
from mmreplk.weights.safe_load import read_checkpoint

ITERS = 4
RUNTIMES = dict(mmseg='default_runtime.py', mmdet='default_runtime_det.py',
                mmpretrain='default_runtime_cls.py')
STATE = ('state_dict', 'optimizer', 'param_schedulers')


class Foreign:
    """The tools of an mm package, run on a tiny config with our runtime as its base."""

    def __init__(self, bench, **changes):
        self.bench, self.package = bench, bench.config['default_scope']
        self.folder = bench.folder
        package = Path(importlib.util.find_spec(self.package).origin).parent
        self.tools = package / '.mim/tools'
        if not (self.tools / 'train.py').is_file():
            pytest.skip(f'{self.package} is installed without its tools ({self.tools})')
        checkpoint = dict(by_epoch=False, interval=1, max_keep_ckpts=-1, save_best=None)
        bench.write(
            _base_=str(config_root() / '_base_' / RUNTIMES[self.package]),
            default_hooks=dict(logger=dict(interval=1), checkpoint=checkpoint),
            # No seed: a resumed run has to take that of the checkpoint.
            randomness=dict(seed=None),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERS, val_interval=ITERS),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[dict(type='PolyLR', begin=0, end=ITERS, by_epoch=False)],
            **changes)

    def run(self, tool, *args):
        return self.bench.run(str(self.tools / tool), 'tiny.py', *args)

    def done(self, tool, *args):
        run = self.run(tool, *args)
        assert run.code == 0, run.text
        return run.text

    def refused(self, tool, *args):
        run = self.run(tool, *args)
        assert run.code not in (0, 2), run.text
        return run.text

    def state(self, folder):
        checkpoint = read_checkpoint(str(self.folder / folder / f'iter_{ITERS}.pth'))
        return {key: checkpoint[key] for key in STATE}

    def resume_the_damaged(self):
        """Train to the end, and again from a work dir whose newest checkpoint is truncated."""
        self.done('train.py', '--work-dir', 'whole')
        shutil.copytree(self.folder / 'whole', self.folder / 'cut')
        (self.folder / 'cut' / f'iter_{ITERS}.pth').unlink()
        damaged = self.folder / 'cut' / f'iter_{ITERS - 1}.pth'
        os.truncate(damaged, damaged.stat().st_size // 2)
        (self.folder / 'cut/last_checkpoint').write_text(str(damaged))
        text = self.done('train.py', '--work-dir', 'cut', '--resume')
        assert f"iter_{ITERS - 1}.pth' is truncated" in text
        assert f"cut/iter_{ITERS - 2}.pth' instead" in text
        assert f'iter: {ITERS - 2}' in text
        same(self.state('whole'), self.state('cut'))
        dumped = (self.folder / 'cut/tiny.py').read_text()
        for hook in ('SafeCheckpointHook', 'FiniteLossHook', 'GuardedDataHook',
                     'RepeatableRandomHook', 'SafeLoggerHook'):
            assert f"'mmreplk.{hook}'" in dumped


def same(first, second, name='checkpoint'):
    """Compare bit by bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            same(first[key], second[key], f'{name}.{key}')
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for index, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, f'{name}.{index}')
    else:
        assert first == second, name


def random_model(config, **options):
    """The model with dropped paths, and norms that a CPU has."""
    model = dict(config['model'], **options)
    model['backbone'] = dict(model['backbone'], drop_path_rate=0.5, norm_cfg=dict(type='BN'))
    return model


def loader(config, *steps):
    """The loader of the training data in a worker, shuffled, with random transforms."""
    train = dict(config['train_dataloader'], num_workers=1, persistent_workers=True)
    train['sampler'] = dict(type='InfiniteSampler', shuffle=True)
    *load, pack = train['dataset']['pipeline']
    train['dataset'] = dict(train['dataset'], pipeline=[*load, *steps, pack])
    return train


@pytest.fixture
def seg(seg_bench):
    config = seg_bench.config
    head = dict(config['model']['decode_head'], dropout_ratio=0.3, norm_cfg=dict(type='BN'))
    return Foreign(
        seg_bench, model=random_model(config, decode_head=head),
        train_dataloader=loader(config, dict(type='RandomFlip', prob=0.5),
                                dict(type='PhotoMetricDistortion')))


def test_mmseg_goes_on_to_the_same_bits_past_a_damaged_checkpoint(seg):
    seg.resume_the_damaged()
    # Without our seeding it differs: the comparison can see it.
    (seg.folder / 'cut' / f'iter_{ITERS}.pth').unlink()
    (seg.folder / 'cut' / f'iter_{ITERS - 1}.pth').unlink()
    (seg.folder / 'cut/last_checkpoint').unlink()
    seg.done('train.py', '--work-dir', 'cut', '--resume', '--cfg-options', 'repeatable=False')
    with pytest.raises(AssertionError, match='state_dict'):
        same(seg.state('whole'), seg.state('cut'))


def test_mmseg_stops_at_a_loss_that_is_no_number(seg):
    text = seg.refused('train.py', '--work-dir', 'run', '--cfg-options',
                       'model.decode_head.loss_decode.loss_weight=inf')
    assert 'FloatingPointError: Iteration 1: ' in text
    assert "Files of the batch: 'data/img/train/" in text
    assert not list((seg.folder / 'run').glob('*.pth'))


def test_mmseg_refuses_a_second_run_in_a_work_dir(seg):
    folder = seg.folder / 'run'
    folder.mkdir()
    lock_work_dir(str(folder))
    try:
        text = seg.refused('train.py', '--work-dir', 'run')
    finally:
        unlock_work_dir(str(folder))
    assert f"run' is in use by another run (process {os.getpid()} on " in text
    assert not list(folder.glob('*.pth'))
    seg.done('train.py', '--work-dir', 'run')
    assert not (folder / NAME).exists()


def test_mmseg_names_a_broken_sample(seg):
    (seg.folder / 'data/img/train/2.png').write_bytes(b'')
    text = seg.refused('train.py', '--work-dir', 'run')
    assert "data/img/train/2.png' with 'data/ann/train/2.png'" in text
    assert 'cannot be loaded' in text


def test_mmseg_tests(seg):
    seg.bench.checkpoint('weights.pth')
    seg.done('test.py', 'weights.pth', '--work-dir', 'run')
    assert 'mIoU' in seg.bench.metrics('run')
    (seg.folder / 'data/ann/val/3.png').write_bytes(b'')
    text = seg.refused('test.py', 'weights.pth', '--work-dir', 'other')
    assert "data/ann/val/3.png' (sample 3 of BaseSegDataset) cannot be loaded" in text


@pytest.mark.slow
def test_mmpretrain(cls_bench):
    config = cls_bench.config
    cls = Foreign(cls_bench, model=random_model(config),
                  train_dataloader=loader(config, dict(type='RandomFlip', prob=0.5),
                                          dict(type='ColorJitter', brightness=0.4)),
                  val_dataloader=dict(config['val_dataloader'], num_workers=1),
                  test_dataloader=dict(config['test_dataloader'], num_workers=1))
    cls.resume_the_damaged()
    cls.done('test.py', f'whole/iter_{ITERS}.pth', '--work-dir', 'tested')
    assert 'accuracy/top1' in cls.bench.metrics('tested')


@pytest.mark.slow
def test_mmdet(det_bench):
    config = det_bench.config
    det = Foreign(det_bench, model=random_model(config),
                  train_dataloader=loader(config, dict(type='RandomFlip', prob=0.5)))
    det.resume_the_damaged()
    det.done('test.py', f'whole/iter_{ITERS}.pth', '--work-dir', 'tested')
    assert 'coco/bbox_mAP' in det.bench.metrics('tested')
