"""The promises of a training run, written into a config: see the README of mmreplk.training."""

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.runner import FlexibleRunner, Runner

from ..config.edit import import_in_config
from ..config.types import class_of
from .finite_loss import FiniteLossHook
from .resumable_rng import RepeatableRandomHook

RUNNERS_OF = {Runner: 'mmreplk.SafeRunner', FlexibleRunner: 'mmreplk.SafeFlexibleRunner'}
# Key in default_hooks to MMEngine's hook, the name of ours and what the Runner builds by default.
REPLACED = {'checkpoint': (CheckpointHook, 'mmreplk.SafeCheckpointHook', dict(interval=1)),
            'logger': (LoggerHook, 'mmreplk.SafeLoggerHook', {})}
ADDED = {'repeatable': RepeatableRandomHook, 'finite_loss': FiniteLossHook}


def harden(cfg: Config) -> str | None:
    """Give any config what the configs of mmreplk have: hooks and a runner that guard a run.

    MMEngine's runner, checkpoint hook and logger hook are replaced by ours, which take the same
    arguments; hooks and runners of others stay. A hook that stops at losses that are not finite and
    one that makes resumed runs repeat are added, unless the config has its own or, for the latter,
    says ``repeatable = False``.

    Args:
        cfg (Config): The full config, changed in place; it is what the work dir shows.

    Returns:
        str | None: One line about what was changed; None if the config had it all.
    """
    scope, changed = cfg.get('default_scope'), []
    runner = _class(dict(type=cfg.get('runner_type', 'Runner')), 'RUNNERS', scope)
    if runner in RUNNERS_OF:
        cfg.runner_type = RUNNERS_OF[runner]
        changed.append(f'runner_type={cfg.runner_type}')
    hooks = dict(cfg.get('default_hooks') or {})
    for key, (old, new, defaults) in REPLACED.items():
        hook = hooks.get(key, dict(type=old.__name__, **defaults))
        if hook and _class(hook, 'HOOKS', scope) is old:
            hooks[key] = {**hook, 'type': new}
            changed.append(f'default_hooks.{key}={new}')
    others = [_class(hook, 'HOOKS', scope) for hook in (
        *(cfg.get('custom_hooks') or ()), *hooks.values()) if hook]
    for key, kind in ADDED.items():
        unwanted = key == 'repeatable' and not cfg.get('repeatable', True)
        if kind not in others and key not in hooks and not unwanted:
            hooks[key] = dict(type=f'mmreplk.{kind.__name__}')
            changed.append(f'default_hooks.{key}={hooks[key]["type"]}')
    if not changed:
        return None
    cfg.default_hooks = hooks
    import_in_config(cfg, 'mmreplk')
    return f'Added to the config by mmreplk.training.harden: {", ".join(changed)}.'


def _class(node, registry: str, scope: str | None) -> type | None:
    # Hooks may be objects in a config that was built in Python.
    return class_of(node, registry, scope) if isinstance(node, dict) else type(node)
