"""What harden() writes into a config, and what our own configs have already."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, OPTIM_WRAPPERS, DefaultScope

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


@pytest.mark.parametrize(('package', 'path'), [
    ('mmseg', 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'),
    ('mmseg', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'),
    ('mmpretrain', 'convnext/convnext-tiny_32xb128_in1k.py'),  # with an average of the weights
    pytest.param('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
                 marks=pytest.mark.needs_mmcv_ops),
    pytest.param('mmdet', 'rtmdet/rtmdet_l_8xb32-300e_coco.py',
                 marks=pytest.mark.needs_mmcv_ops)])
def test_stock_configs(package, path):
    """Ours with the stock arguments, everything else as it was, and all of it can be built."""
    folder = Path(importlib.util.find_spec(package).origin).parent / '.mim/configs'
    cfg, stock = Config.fromfile(folder / path), Config.fromfile(folder / path)
    assert harden(cfg)
    assert HARD.items() <= types(cfg).items()
    for key, hook in stock.default_hooks.items():
        assert {**cfg.default_hooks[key], 'type': 0} == {**hook, 'type': 0}, key
        assert key in HARD or cfg.default_hooks[key] == hook
    assert cfg.get('custom_hooks') == stock.get('custom_hooks')
    importlib.import_module(f'{package}.engine')
    with DefaultScope.overwrite_default_scope(package):
        for hook in cfg.default_hooks.values():
            HOOKS.build(hook)


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
