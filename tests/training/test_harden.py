"""What harden() writes into a config, and what our own configs have already."""

import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, OPTIM_WRAPPERS

from mmreplk.config.files import config_root
from mmreplk.training import harden
from mmreplk.training.finite_loss import FiniteLossHook

HARD = dict(
    checkpoint='mmreplk.SafeCheckpointHook', logger='mmreplk.SafeLoggerHook',
    finite_loss='mmreplk.FiniteLossHook', guarded_data='mmreplk.GuardedDataHook',
    repeatable_random='mmreplk.RepeatableRandomHook', work_dir_lock='mmreplk.WorkDirLockHook')


class OwnHook(Hook):
    """Of a user."""


def types(cfg):
    return {key: hook and hook['type'] for key, hook in cfg.default_hooks.items()}


def test_an_empty_config():
    cfg = Config(dict(default_scope='mmseg'))
    line = harden(cfg)
    assert types(cfg) == HARD
    assert all(f'{key}={name}' in line for key, name in HARD.items())
    assert '\n' not in line
    assert cfg.default_hooks.checkpoint.interval == 1
    assert cfg.custom_imports == dict(imports=['mmreplk'], allow_failed_imports=False)
    again = cfg.copy()
    assert harden(cfg) is None
    assert cfg.default_hooks == again.default_hooks


def test_it_stands_in_the_dumped_config(tmp_path):
    cfg = Config(dict(default_scope='mmseg'))
    harden(cfg)
    cfg.dump(str(tmp_path / 'dumped.py'))
    assert types(Config.fromfile(tmp_path / 'dumped.py')) == HARD


@pytest.mark.parametrize(('key', 'old', 'new'), [
    ('checkpoint', CheckpointHook, 'mmreplk.SafeCheckpointHook'),
    ('logger', LoggerHook, 'mmreplk.SafeLoggerHook')])
def test_which_hooks_give_way(key, old, new):
    for kind in (old.__name__, f'mmengine.{old.__name__}', old):
        cfg = Config(dict(default_hooks={key: dict(type=kind, interval=3)}))
        harden(cfg)
        assert cfg.default_hooks[key] == dict(type=new, interval=3)
        assert 'mmreplk' in cfg.custom_imports.imports
    for hook in (None, dict(type='MyHook')):
        cfg = Config(dict(default_hooks={key: hook}))
        harden(cfg)
        assert cfg.default_hooks[key] == hook


@pytest.mark.parametrize('hook', [
    dict(type='FiniteLossHook', policy='skip'), dict(type='mmreplk.FiniteLossHook'),
    dict(type=FiniteLossHook), FiniteLossHook()])
def test_what_a_config_has_stays(hook):
    cfg = Config(dict(default_scope='mmseg', custom_hooks=[hook, dict(type=OwnHook)],
                      default_hooks=dict(repeatable_random=None)))
    harden(cfg)
    assert 'finite_loss' not in cfg.default_hooks
    assert cfg.default_hooks.repeatable_random is None
    assert len(cfg.custom_hooks) == 2


@pytest.mark.parametrize('path', sorted(config_root().glob('*.py')), ids=lambda path: path.stem)
def test_our_configs_have_it_all(path):
    cfg = Config.fromfile(path)
    assert harden(cfg) is None
    assert HARD.items() <= types(cfg).items()


def test_both_names():
    """In the scope mmreplk, and bare at the root, where configs of before look them up."""
    for registry, names in (
            (HOOKS, ('SafeCheckpointHook', 'SafeLoggerHook', 'FiniteLossHook', 'GuardedDataHook',
                     'RepeatableRandomHook', 'RecipeSamplesHook', 'AverageBuffersHook')),
            (DATASETS, ('GuardedDataset', )), (DATA_SAMPLERS, ('NumberingSampler', )),
            (OPTIM_WRAPPERS, ('CpuAmpOptimWrapper', ))):
        for name in names:
            assert registry.get(f'mmreplk.{name}') is registry.get(name) is not None, name


def test_names_are_found_without_an_import():
    code = ("from mmengine.registry import HOOKS, STRATEGIES\n"
            "assert HOOKS.get('mmreplk.SafeCheckpointHook')\n"
            "assert STRATEGIES.get('mmreplk.ResumableFSDPStrategy')")
    subprocess.run([sys.executable, '-c', code], check=True)
