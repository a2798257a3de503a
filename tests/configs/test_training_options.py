"""EMA, accumulated steps and clipped gradients as the configs set them, in a Runner."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmreplk import RepLKNet
from mmreplk.config.files import config_root

BATCH = 2


class Pictures(Dataset):

    def __len__(self):
        return 8 * BATCH

    def __getitem__(self, index):
        picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return dict(inputs=picture)


class Model(BaseModel):
    """A tiny RepLKNet whose loss has gradients of any wished size."""

    def __init__(self, arch, scale):
        super().__init__()
        self.backbone = RepLKNet(arch)
        self.scale = scale

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.scale * self.backbone(torch.stack(inputs))[-1].square().mean())


class Watch(Hook):
    """Keeps the weights after every iteration, and the gradients that the optimizer was given."""

    priority = 'VERY_HIGH'  # before the averages are updated

    def __init__(self):
        self.weights, self.norms = [], []

    def before_train(self, runner):
        step = runner.optim_wrapper.optimizer.step

        def watched(*args, **kwargs):
            grads = [p.grad.norm() for p in runner.model.parameters() if p.grad is not None]
            self.norms.append(torch.stack(grads).norm().item())
            return step(*args, **kwargs)

        runner.optim_wrapper.optimizer.step = watched

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append(copy.deepcopy(runner.model.state_dict()))


def train(tmp_path, name, arch, scale=1.0, **wrapper):
    """One epoch of eight iterations; returns the Runner and what was watched."""
    cfg = Config.fromfile(str(config_root() / f'{name}.py'))
    cfg.optim_wrapper.update(wrapper)
    watch = Watch()
    torch.manual_seed(0)
    runner = Runner(
        model=Model(arch, scale),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=BATCH, num_workers=0, dataset=Pictures(),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        optim_wrapper=cfg.optim_wrapper,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        custom_hooks=[watch, *cfg.get('custom_hooks', [])],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        randomness=dict(seed=0),
        default_scope=cfg.default_scope,  # MMPretrain has an EMAHook of its own
        log_level='ERROR',
        experiment_name=str(tmp_path))
    runner.train()
    return runner, watch


def test_accumulated_steps_and_averages(tmp_path, tiny_arch):
    """An optimizer step in two, and as many updates of the averages, running statistics too."""
    name = 'replknet31b_in22k_imagenet_224_finetune'
    runner, watch = train(tmp_path, name, tiny_arch)
    assert len(watch.weights) == 8
    assert len(watch.norms) == 4
    key, mean = 'backbone.stages.3.blocks.0.pw1.conv.weight', 'backbone.stem.0.bn.running_mean'
    moved = [not torch.equal(before[key], after[key])
             for before, after in zip(watch.weights, watch.weights[1:], strict=False)]
    assert moved == [True, False, True, False, True, False, True]

    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for name in (key, mean):
        average = watch.weights[0][name]
        for weights in watch.weights[2::2]:
            average = average + 1e-4 * (weights[name] - average)
        torch.testing.assert_close(saved['state_dict'][name], average, rtol=1e-6, atol=0)
        assert not torch.equal(average, watch.weights[-1][name])
        # The weights in training go into the same file, for --resume.
        torch.testing.assert_close(saved['ema_state_dict'][f'module.{name}'],
                                   watch.weights[-1][name])
    assert runner.optim_wrapper.get_lr()['lr'][0] < 4e-4 * 0.7  # the stem's


@pytest.mark.needs_mmcv_ops
@pytest.mark.parametrize('scale', [1e-3, 1e6])
def test_fcos_clips_its_gradients(tmp_path, tiny_arch, scale):
    norms = train(tmp_path, 'fcos_replknet31b_coco', tiny_arch, scale)[1].norms
    free = train(tmp_path / 'free', 'fcos_replknet31b_coco', tiny_arch, scale,
                 clip_grad=None)[1].norms
    assert len(norms) == 8
    if scale > 1:
        assert min(free) > 350
        assert norms == pytest.approx([35.0] * 8, rel=1e-4)
    else:
        assert max(free) < 35
        assert norms == free
