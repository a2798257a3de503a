"""What makes a run safe to be killed and resumed, written into the config of anybody."""

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, LoggerHook

from ..config.edit import import_in_config
from ..config.types import class_of
from .checkpoint_hook import SafeCheckpointHook
from .data_hook import GuardedDataHook
from .finite_loss import FiniteLossHook
from .metrics_file import SafeLoggerHook
from .resumable_rng import RepeatableRandomHook
from .work_dir_lock import WorkDirLockHook

# Key in default_hooks: MMEngine's hook that gives way, the one that takes its place, and the
# arguments with which the Runner builds MMEngine's by default.
REPLACED = dict(
    checkpoint=(CheckpointHook, SafeCheckpointHook, dict(interval=1)),
    logger=(LoggerHook, SafeLoggerHook, {}))
ADDED = dict(
    finite_loss=FiniteLossHook,
    guarded_data=GuardedDataHook,
    repeatable_random=RepeatableRandomHook,
    work_dir_lock=WorkDirLockHook)


def harden(cfg: Config) -> str | None:
    """Write the hooks of :mod:`mmreplk.training` into a config, as in our ``default_runtime*.py``.

    Hooks of MMEngine give way to ours of the same arguments; those of others stay, and so does a
    key that is None, with which a config turns a hook off.

    Args:
        cfg (Config): A full config of any codebase, changed in place.

    Returns:
        str | None: One line that says what was added; None if all was there.
    """
    scope, hooks = cfg.get('default_scope'), dict(cfg.get('default_hooks') or {})
    found = [_class(hook, scope)
             for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])]]
    added = {}
    for key, (old, new, defaults) in REPLACED.items():
        hook = hooks.get(key, dict(type=old, **defaults))
        if hook and _class(hook, scope) is old:
            added[key] = {**hook, 'type': f'mmreplk.{new.__name__}'}
    for key, new in ADDED.items():
        if key not in hooks and new not in found:
            added[key] = dict(type=f'mmreplk.{new.__name__}')
    if not added:
        return None
    cfg.default_hooks = {**hooks, **added}
    import_in_config(cfg, 'mmreplk')
    names = ', '.join(f'{key}={hook["type"]}' for key, hook in added.items())
    return f'Written into default_hooks by mmreplk.training.harden: {names}.'


def _class(hook, scope: str | None) -> type | None:
    """The class of a hook, or of the config of one."""
    return class_of(hook, 'HOOKS', scope) if isinstance(hook, dict) else type(hook)
