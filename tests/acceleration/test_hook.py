"""``mmreplk.AccelerateHook`` in a run, and ``--accelerate``."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from torch import nn

from mmreplk.commands.evaluation import use_acceleration
from mmreplk.ops import LargeKernelDWConv2d


@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_before_the_first_iteration_once(phase, caplog):
    hook = HOOKS.build(dict(type='mmreplk.AccelerateHook', input_size=(1, 8, 20, 20)))
    model = nn.Sequential(nn.Conv2d(8, 8, 13, padding=6, groups=8)).eval()
    runner = SimpleNamespace(model=model, logger=logging.getLogger('run'))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            getattr(hook, f'before_{phase}')(runner)
    assert type(model[0]) is LargeKernelDWConv2d
    assert caplog.text.count('accelerated 1 of 1 layers (1 of 13x13)') == 1
    assert model(torch.randn(1, 8, 20, 20)).shape == (1, 8, 20, 20)


def test_option_of_the_tool():
    mine = dict(type='EMAHook')
    for hooks in ([], [mine], [mine, dict(type='mmreplk.AccelerateHook', policy='all')]):
        cfg = Config(dict(custom_hooks=hooks))
        use_acceleration(cfg)
        assert [dict(h) for h in cfg.custom_hooks] == [mine][:len(hooks)] + [
            dict(type='mmreplk.AccelerateHook', inference=True)]
