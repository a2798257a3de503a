"""What `harden` writes into configs, and leaves alone."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.runner import FlexibleRunner

from mmreplk.config.files import config_root
from mmreplk.training import harden

OURS = {'checkpoint': 'mmreplk.SafeCheckpointHook', 'logger': 'mmreplk.SafeLoggerHook'}


@pytest.mark.parametrize(('key', 'old'), [('checkpoint', CheckpointHook), ('logger', LoggerHook)])
def test_which_hooks_are_replaced(key, old):
    for hooks in ({}, {key: dict(type=old.__name__, interval=3)}, {key: dict(type=old, interval=3)},
                  {key: dict(type=f'mmengine.{old.__name__}', interval=3)}):
        cfg = Config(dict(default_hooks=hooks))
        assert f'default_hooks.{key}={OURS[key]}' in harden(cfg)
        kept = dict(interval=3) if hooks else dict(interval=1) if key == 'checkpoint' else {}
        assert cfg.default_hooks[key] == dict(type=OURS[key], **kept)
        assert 'mmreplk' in cfg.custom_imports.imports
    for hook in (None, dict(type='MyHook')):
        cfg = Config(dict(default_hooks={key: hook}))
        harden(cfg)
        assert cfg.default_hooks[key] == hook


def test_which_runners_are_replaced():
    for given, ours in ((None, 'mmreplk.SafeRunner'), ('Runner', 'mmreplk.SafeRunner'),
                        ('mmengine.FlexibleRunner', 'mmreplk.SafeFlexibleRunner'),
                        (FlexibleRunner, 'mmreplk.SafeFlexibleRunner'),
                        ('TheirRunner', 'TheirRunner')):
        cfg = Config({} if given is None else dict(runner_type=given))
        harden(cfg)
        assert cfg.runner_type == ours


def test_hooks_of_the_user_stay():
    own = dict(type='mmreplk.FiniteLossHook', policy='skip')
    cfg = Config(dict(custom_hooks=[own], repeatable=False))
    harden(cfg)
    assert cfg.custom_hooks == [own]
    assert not {'finite_loss', 'repeatable'} & set(cfg.default_hooks)
    cfg = Config({})
    harden(cfg)
    assert cfg.default_hooks.finite_loss == dict(type='mmreplk.FiniteLossHook')
    assert cfg.default_hooks.repeatable == dict(type='mmreplk.RepeatableRandomHook')
    assert harden(cfg) is None  # it is all there


@pytest.mark.parametrize('path', sorted(config_root().glob('*.py')), ids=lambda path: path.stem)
def test_our_configs_have_it_all(path):
    cfg = Config.fromfile(path)
    assert harden(cfg) is None
