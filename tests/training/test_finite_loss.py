"""Losses that are not finite: the run stops or leaves them out, and no checkpoint holds them."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmreplk.training.finite_loss import FiniteLossHook

BAD = 2  # the iteration, from 0


class Numbers(Dataset):
    """One of eight samples is spoiled; each knows its file."""

    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 8

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo=dict(img_path=f'pictures/{index}.png'))
        x = torch.rand(2, generator=torch.Generator().manual_seed(index))
        return dict(inputs=x * self.value if index == BAD * 2 + 1 else x, data_samples=sample)


class Model(BaseModel):

    def __init__(self, scale=1.0):
        super().__init__()
        self.norm, self.linear, self.scale = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1), scale

    def forward(self, inputs, data_samples, mode='tensor'):
        return dict(loss=self.scale * self.linear(self.norm(torch.stack(inputs))).square().mean())


class Watch(Hook):
    priority = 'LOWEST'

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def train(folder, *hooks, value=float('nan'), model=None, **wrapper):
    """Four iterations; returns the states after each of them, or raises."""
    watch = Watch()
    torch.manual_seed(0)
    runner = Runner(
        model=model or Model(), work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2, num_workers=0, dataset=Numbers(value),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        optim_wrapper={'type': 'OptimWrapper', 'optimizer': dict(type='SGD', lr=0.1), **wrapper},
        train_cfg=dict(by_epoch=False, max_iters=4), custom_hooks=[*hooks, watch],
        default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=1)),
        experiment_name=str(folder), default_scope='mmengine', randomness=dict(seed=0))
    runner.train()
    return watch.states


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_and_names_the_files(tmp_path, value):
    with pytest.raises(FloatingPointError, match=r"Iteration 3: loss = nan\. Files of the batch: "
                       r"'pictures/4\.png', 'pictures/5\.png'.*policy='skip'"):
        train(tmp_path, FiniteLossHook(), value=value)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_1.pth', 'iter_2.pth']


def test_leaves_the_iteration_out(tmp_path):
    states = train(tmp_path, FiniteLossHook('skip'))
    assert len(states) == 4
    for name in states[0]:
        before, after, later = (states[index][name] for index in (BAD - 1, BAD, BAD + 1))
        assert torch.equal(before, after), name  # running statistics too
        assert later.isfinite().all(), name
    assert not torch.equal(states[BAD]['linear.weight'], states[BAD + 1]['linear.weight'])


def test_too_many_in_a_row(tmp_path):
    with pytest.raises(FloatingPointError, match=r'Iteration 3: .*one too many in a row'):
        train(tmp_path, FiniteLossHook('skip', most=2), model=Model(scale=float('inf')))


@pytest.mark.parametrize('arguments', [dict(policy='ignore'), dict(most=0)])
def test_arguments(arguments):
    with pytest.raises(ValueError, match='FiniteLossHook: '):
        FiniteLossHook(**arguments)


def test_damaged_weights_are_not_saved(tmp_path):
    """A gradient may be NaN where the loss is not: the checkpoint before stays the last."""

    class Damage(Hook):
        priority = 'VERY_HIGH'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == BAD:
                runner.model.linear.weight.data[0, 0] = float('nan')

    with pytest.raises(FloatingPointError, match=r'linear\.weight is not finite at iteration 3'):
        train(tmp_path, FiniteLossHook(), Damage(), value=1)
    assert not (tmp_path / 'iter_3.pth').exists()
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')


def test_overflow_of_gradients_in_mixed_precision(tmp_path, monkeypatch):
    """The scaler leaves the step out and halves its factor; the run goes on."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler',
                        lambda **options: torch.amp.GradScaler('cpu', **options))
    scales = []

    class Scale(Hook):

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            scales.append(runner.optim_wrapper.loss_scaler.get_scale())

    model = Model(scale=1e4)
    before = copy.deepcopy(model.state_dict())
    states = train(tmp_path, FiniteLossHook(), Scale(), value=1, model=model,
                   type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=1e-6),
                   loss_scale=dict(init_scale=2.0**127, backoff_factor=2.0**-64))
    assert scales == [2.0**63] * 4
    assert torch.equal(states[0]['linear.weight'], before['linear.weight'])
    for first, second in zip(states, states[1:], strict=False):
        assert not torch.equal(first['linear.weight'], second['linear.weight'])
        assert second['linear.weight'].isfinite().all()
