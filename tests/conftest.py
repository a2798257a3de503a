"""Shared by all tests: one thread, one seed, a small architecture, and checks of the machine."""

import os
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_scope_kept():
    """A runner's scope outlives it, and a name without a scope is looked up there first."""
    if find_spec('mmengine') is None:  # tests of the operator alone, on a machine lent
        yield
        return
    from mmengine.registry import DefaultScope
    kept = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(kept)


@pytest.fixture
def tiny_arch():
    """A RepLKNet with every kind of block that a test can afford: a fresh dict each time."""
    return dict(
        large_kernel_sizes=[13, 11, 9, 7], layers=[1, 2, 1, 1], channels=[8, 12, 16, 20],
        small_kernel=5, dw_ratio=1, ffn_ratio=4)


def randomize_norms(module):
    """Give every batch norm statistics and parameters that make a wrong merge visible."""
    for m in module.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(m.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(m.running_var, 0.3, 3.0)
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
            torch.nn.init.uniform_(m.bias, -0.5, 0.5)
    return module


@pytest.fixture(name='randomize_norms')
def _randomize_norms():
    return randomize_norms


def pytest_configure(config):
    # The suite's install step builds the operators: CI must not pass by skipping what needs them.
    if os.environ.get('CI') and find_spec('mmcv._ext') is None:
        raise pytest.UsageError(
            'mmcv has no compiled operators; run `bash tools/install.sh --with-ops`')


@pytest.fixture
def run_state():
    """What a checkpoint of a training run holds beside the weights."""
    return dict(
        meta=dict(epoch=0, iter=2),
        optimizer=dict(state={}, param_groups=[dict(params=[0], lr=0.1)]),
        param_schedulers=[],
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}))
