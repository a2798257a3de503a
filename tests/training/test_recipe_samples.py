"""The check of a run's samples against its recipe, inside MMEngine's real loops."""

import itertools
import logging
import re

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, Dataset

from mmreplk.training.recipe_samples import RecipeSamplesHook

SIZE = 24
RUNS = itertools.count()
PAIRS = dict(type=BatchSampler, drop_last=False)


class Numbers(Dataset):
    metainfo = dict(classes=('number', ))

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(list(inputs))).square().mean())


def train(tmp_path, samples, batch=2, by_epoch=False, length=12, resume=False, sampler=None,
          batch_sampler=None, cfg=None, **wrapper):
    """Train; returns the warnings of the hook and the Runner."""
    loader = dict(
        batch_size=batch,
        num_workers=0,
        dataset=Numbers(),
        sampler=sampler or dict(
            type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=False))
    if batch_sampler:
        loader.update(batch_sampler=batch_sampler)
    runner = Runner(
        model=Line(),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4), **wrapper),
        train_cfg=dict(by_epoch=True, max_epochs=length) if by_epoch else dict(
            by_epoch=False, max_iters=length),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=length),
            recipe_samples=dict(type='RecipeSamplesHook', samples=samples)),
        log_level='WARNING',
        resume=resume,
        cfg=cfg,
        experiment_name=f'{tmp_path}_{next(RUNS)}')
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    return [line for line in lines if 'recipe' in line], runner


def test_silent_where_the_samples_agree(tmp_path):
    assert train(tmp_path / 'iter', 24)[0] == []
    assert train(tmp_path / 'epoch', 3 * SIZE, by_epoch=True, length=3)[0] == []
    assert train(tmp_path / 'none', None)[0] == []


def test_one_line_where_iterations_are_too_few(tmp_path):
    lines, _ = train(tmp_path, 240)
    assert lines == [
        'This run sees 24 samples, the recipe 240: set train_cfg.max_iters=120, stretch begin, '
        'end and milestones of param_scheduler by 10, or expect a lower result.'
    ]


@pytest.mark.parametrize(('enable', 'steps', 'named'), [
    (False, 1, 'scale the learning rate from a batch of 8 to 2 (auto_scale_lr), or expect'),
    (False, 2, 'scale the learning rate from a batch of 8 to 4 (auto_scale_lr), or expect'),
    (False, 4, None),
    (True, 1, None),
])
def test_the_learning_rate_is_named_where_the_batch_differs(tmp_path, enable, steps, named):
    cfg = dict(
        auto_scale_lr=dict(base_batch_size=8, enable=enable),
        optim_wrapper=dict(accumulative_counts=steps))
    line, = train(tmp_path, 240, cfg=cfg)[0]
    assert (named in line) if named else ('learning rate' not in line)


@pytest.mark.parametrize(('base', 'enable', 'steps', 'warned'), [
    (8, False, 1, True), (8, True, 1, False), (8, False, 4, False), (1, False, 1, False)])
def test_a_smaller_batch_is_named_where_the_samples_agree(tmp_path, base, enable, steps, warned):
    """As in an epoch, which has the same images on one GPU as on eight."""
    cfg = dict(
        auto_scale_lr=dict(base_batch_size=base, enable=enable),
        optim_wrapper=dict(accumulative_counts=steps))
    lines = train(tmp_path, 3 * SIZE, by_epoch=True, length=3, cfg=cfg)[0]
    assert lines == [
        'This run sees as many samples as the recipe, but 2 in a batch and not 8: scale the '
        'learning rate (auto_scale_lr), or expect a lower result.'
    ][:warned]


@pytest.mark.parametrize(('by_epoch', 'samples', 'end', 'warned'), [
    (False, 24, 6, True), (False, 24, 12, False), (False, 24, 20, False),
    (True, 12 * SIZE, 6, True), (True, 12 * SIZE, 12, False)])
def test_a_schedule_that_ends_early_is_named(tmp_path, by_epoch, samples, end, warned):
    """As of a run of which the length alone was raised."""
    cfg = dict(
        auto_scale_lr=dict(base_batch_size=8),
        param_scheduler=[dict(type='ConstantLR', by_epoch=not by_epoch, begin=0, end=3),
                         dict(type='PolyLR', by_epoch=by_epoch, begin=0, end=end)])
    line, = train(tmp_path, samples, by_epoch=by_epoch, cfg=cfg)[0]
    assert ('param_scheduler ends at 6 and the run at 12: stretch its begin, end and milestones '
            'by 2, scale the learning rate from a batch of 8 to 2' in line) is warned


def test_schedules_are_stretched_from_where_they_end(tmp_path):
    cfg = dict(param_scheduler=dict(type='PolyLR', by_epoch=False, begin=0, end=60))
    assert 'max_iters=120, stretch begin, end and milestones of param_scheduler by 2,' in train(
        tmp_path, 240, cfg=cfg)[0][0]


def test_the_advice_works(tmp_path):
    lines, _ = train(tmp_path / 'bad', 36, batch=3, length=6)
    length = int(re.search(r'max_iters=(\d+)', lines[0])[1])
    assert train(tmp_path / 'good', 36, batch=3, length=length)[0] == []
    lines, _ = train(tmp_path / 'bad_epochs', 96, by_epoch=True, length=1)
    length = int(re.search(r'max_epochs=(\d+)', lines[0])[1])
    assert length == 4
    assert train(tmp_path / 'good_epochs', 96, by_epoch=True, length=length)[0] == []


def test_too_many_are_named_too(tmp_path):
    lines, _ = train(tmp_path, 6)
    assert 'sees 24 samples, the recipe 6: set train_cfg.max_iters=3, ' in lines[0]
    assert lines[0].endswith('or expect a longer run.')


def test_accumulated_gradients_change_no_samples(tmp_path):
    assert train(tmp_path, 24, accumulative_counts=4)[0] == []


def test_a_batch_sampler_is_asked(tmp_path):
    lines, _ = train(tmp_path / 'a', 24, batch_sampler=PAIRS)
    assert lines == []
    lines, _ = train(tmp_path / 'b', 48, batch_sampler=PAIRS)
    assert len(lines) == 1


def test_every_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr('mmreplk.training.recipe_samples.get_world_size', lambda: 8)
    assert train(tmp_path / 'a', 8 * 24)[0] == []
    assert 'sees 192 samples, the recipe 24' in train(tmp_path / 'b', 24)[0][0]


def test_small_differences_pass(tmp_path):
    assert train(tmp_path / 'a', 1000, batch=10, length=99)[0] == []
    assert len(train(tmp_path / 'b', 1000, batch=10, length=98)[0]) == 1


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_resumed_run_counts_what_it_saw_before(tmp_path, by_epoch):
    """Half of the recipe at a batch of 2, then the rest at 4: as many samples, fewer iterations."""
    total = 4 * SIZE if by_epoch else 48
    length = 2 if by_epoch else 12
    lines, runner = train(tmp_path, total, by_epoch=by_epoch, length=length)
    assert len(lines) == 1  # half of the samples
    name = 'epoch_2.pth' if by_epoch else 'iter_12.pth'
    saved = torch.load(tmp_path / name, weights_only=False)
    assert saved['meta']['samples_seen'] == total // 2
    if by_epoch:
        assert train(tmp_path, total, by_epoch=True, length=4, resume=True)[0] == []
        return
    # Six more iterations of 4 are the 24 samples that are missing.
    lines, _ = train(tmp_path, total, batch=4, length=18, resume=True)
    assert lines == []
    saved = torch.load(tmp_path / 'iter_18.pth', weights_only=False)
    assert saved['meta']['samples_seen'] == 48


def test_a_resumed_run_is_told_the_rest(tmp_path):
    train(tmp_path, None)
    lines, _ = train(tmp_path, 48, batch=4, length=13, resume=True)
    assert 'sees 28 samples, the recipe 48: set train_cfg.max_iters=18, ' in lines[0]


def test_checkpoints_of_others_are_taken_at_this_batch(tmp_path):
    train(tmp_path, None)
    path = tmp_path / 'iter_12.pth'
    saved = torch.load(path, weights_only=False)
    del saved['meta']['samples_seen']
    torch.save(saved, path)
    assert train(tmp_path, 26, length=13, resume=True)[0] == []


@pytest.mark.parametrize('samples', [0, -1, 1.5, '5.12M', True])
def test_impossible_numbers_are_refused(samples):
    with pytest.raises(ValueError, match='RecipeSamplesHook: samples='):
        RecipeSamplesHook(samples)
