"""How classes of ours take the place of MMEngine's in a config."""

from mmengine.config import Config
from mmengine.hooks import Hook

from .types import class_of


def import_in_config(cfg: Config, module: str) -> None:
    """Let the config that the Runner writes to the work dir load classes of ours by itself.

    Args:
        cfg (Config): The full config, changed in place.
        module (str): The module that registers them.
    """
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = names if module in names else [*names, module]
    cfg.custom_imports = imports


def replace_default_hook(cfg: Config, key: str, old: type[Hook], new: str, **defaults) -> None:
    """Put a hook of ours where a config has MMEngine's, or nothing; other hooks stay.

    Args:
        cfg (Config): The full config, changed in place.
        key (str): The key in ``default_hooks``.
        old (type[Hook]): MMEngine's hook, which the Runner has by default.
        new (str): The registered name of ours; it takes the same arguments.
        **defaults: The arguments with which the Runner builds MMEngine's by default.
    """
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get(key, dict(type=old.__name__, **defaults))
    if hook and class_of(hook, 'HOOKS', cfg.get('default_scope')) is old:
        cfg.default_hooks = {**hooks, key: {**hook, 'type': new}}
        import_in_config(cfg, 'mmreplk')
