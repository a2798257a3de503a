"""A training run that is killed goes on as if nothing had happened, to the last bit."""

import os
import random
import time

import pytest
import torch

from mmreplk.weights.safe_load import read_checkpoint

KILLS = int(os.environ.get('MMREPLK_KILLS', 4))  # 30 for the campaign
LAST = 'iter_9.pth'
OF_THE_FOLDER = ('time', 'experiment_name', 'cfg', 'last_ckpt', 'best_ckpt')


def same(first, second, name='checkpoint'):
    """Compare anything in a checkpoint bit by bit; dates and names of folders aside."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            if key not in OF_THE_FOLDER:
                same(first[key], second[key], f'{name}.{key}')
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for index, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, f'{name}.{index}')
    elif hasattr(first, '_log_history'):
        pass  # of the log: the times of iterations are among them
    else:
        assert first == second, name


@pytest.fixture
def bench(seg_bench):
    """The segmentor with all that is random or remembered in a training run."""
    bench = seg_bench
    model = dict(bench.config['model'])
    model['backbone'] = dict(model['backbone'], drop_path_rate=0.5)
    model['decode_head'] = dict(model['decode_head'], dropout_ratio=0.3)
    model['data_preprocessor'] = dict(model['data_preprocessor'], size=(24, 24))
    loader = dict(bench.config['train_dataloader'], num_workers=1, persistent_workers=True)
    loader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
    dataset = dict(loader['dataset'])
    load, labels, pack = dataset['pipeline']
    dataset['pipeline'] = [
        load, labels,
        dict(type='RandomResize', scale=(48, 32), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(24, 24), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'), pack]
    loader['dataset'] = dataset
    bench.config.update(
        model=model,
        train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=9, val_interval=4),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01, fused=True),
            accumulative_counts=2),
        param_scheduler=[dict(type='PolyLR', power=1.0, begin=0, end=9, by_epoch=False)],
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
            # Saves within accumulated steps, and one checkpoint less than the fallback needs.
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2,
                            save_best='mIoU')))
    bench.write()
    return bench


def final(bench, folder):
    return read_checkpoint(str(bench.folder / folder / LAST))


@pytest.mark.slow
def test_killed_at_random_moments(bench, crashes):
    """Kills at any moment, every third while a checkpoint is being written; nothing is lost."""
    (bench.folder / 'slow_disk.py').write_text(crashes.SLOW_DISK)
    bench.write(custom_imports=dict(imports=['mmreplk', 'slow_disk'], allow_failed_imports=False))
    run = crashes.Crashes(bench.folder)
    run.finish('get_flops.py', 'tiny.py', '--shape', 64, 64)  # has everything imported
    begin = time.monotonic()
    run.finish('train.py', 'tiny.py', '--work-dir', 'whole')
    length = time.monotonic() - begin
    rng = random.Random(0)
    command = ('tiny.py', '--work-dir', 'killed', '--resume')
    writing = 0
    whole_runs = 0
    while run.kills < KILLS:
        if run.kills % 3 == 2:
            killed = run.kill_while(f'killed/.iter_{rng.randint(1, 9)}.pth.writing', *command)
            writing += killed
        else:
            killed = run.kill_after(rng.uniform(0.2, 1.0) * length, *command)
        if not killed:  # it came to its end: begin again
            whole_runs += 1
            (bench.folder / 'killed').rename(bench.folder / f'killed_{whole_runs}')
    text = run.finish('train.py', *command)
    print(f'{run.kills} kills, {writing} of them while a checkpoint was being written, over '
          f'{whole_runs + 1} runs')
    assert writing
    assert 'resumed epoch' in text
    for folder in bench.folder.glob('killed*'):
        same(final(bench, 'whole'), final(bench, folder.name))
        assert not list(folder.glob('.*.writing'))


@pytest.mark.slow
def test_what_mmengine_alone_does(bench, crashes):
    """Without our seeding a resumed run differs: the comparison of this file can see it."""
    run = crashes.Crashes(bench.folder)
    bench.write(repeatable=False)
    run.finish('train.py', 'tiny.py', '--work-dir', 'whole')
    run.finish('train.py', 'tiny.py', '--work-dir', 'two', '--resume', 'whole/iter_8.pth')
    with pytest.raises(AssertionError, match='state_dict'):
        same(final(bench, 'whole'), final(bench, 'two'))
