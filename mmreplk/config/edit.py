"""How a config comes to load classes of ours."""

from mmengine.config import Config


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
