"""``mmengine.hub`` for the configs packaged with mmreplk: ``get_model('mmreplk::NAME.py')``.

MMEngine's hub knows a fixed list of packages with ``folder/file`` configs and one registry each.
Ours are flat files for three codebases, so paths with the scope ``mmreplk`` are answered here, and
every other path by MMEngine unchanged.
"""

import functools

import mmengine.hub
from mmengine.config import Config
from mmengine.fileio import load
from torch import nn

from .config.files import PREFIX, config_root, resolve


def find_weights(name: str) -> str:
    """The address of the weights that ``configs/metafile.yml`` lists for a config.

    Args:
        name (str): The config's file name, with ``.py``.

    Returns:
        str: The address.

    Raises:
        ValueError: If it lists none that can be downloaded by their address.
    """
    models = {entry['Config'].partition('/')[-1]: entry
              for entry in load(config_root() / 'metafile.yml')['Models']}
    entry = models.get(name, {})
    if 'Weights' in entry:
        return entry['Weights']
    source = entry.get('Converted From', {}).get('Weights')
    remedy = (f'The authors offer theirs at {source}; download them, convert them with '
              'tools/convert_checkpoint.py, and load the result' if source else
              'Nobody has published any')
    raise ValueError(f'{PREFIX}{name}: pretrained=True, but no weights can be downloaded by an '
                     f'address. {remedy}.')


def get_config(cfg_path: str, pretrained: bool = False) -> Config:
    """Read a packaged config, as ``mmengine.hub.get_config``.

    Args:
        cfg_path (str): ``mmreplk::NAME.py``.
        pretrained (bool): Whether to store the address of its weights as ``model_path``. Defaults
            to False.

    Returns:
        Config: The full config.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If its weights are asked for and cannot be downloaded.
    """
    cfg = Config.fromfile(resolve(cfg_path))
    if pretrained:
        name = cfg_path[len(PREFIX):]
        cfg.model_path = find_weights(name if name.endswith('.py') else f'{name}.py')
    return cfg


def get_model(cfg_path: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """Build a model for one process from a packaged config, as ``mmengine.hub.get_model``.

    BN stands in for SyncBN; the weights are the same.

    Args:
        cfg_path (str): ``mmreplk::NAME.py``.
        pretrained (bool): Whether to load its weights. Defaults to False.
        **kwargs: Default arguments of the model.

    Returns:
        nn.Module: The model, on the CPU.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If its weights are asked for and cannot be downloaded, or do not fit.
    """
    from mmengine.runner.checkpoint import load_state_dict

    from .config.edit import replace_sync_bn
    from .config.model import build_model
    from .weights.checks import check_model_weights, state_for_mmengine
    from .weights.safe_load import read_any
    cfg = get_config(cfg_path, pretrained)
    for key, value in kwargs.items():
        cfg.model.setdefault(key, value)
    replace_sync_bn(cfg.model)
    model = build_model(cfg, 'cpu')
    if pretrained:
        checkpoint = read_any(cfg.model_path)
        try:
            check_model_weights(build_model(cfg), checkpoint)
        except ValueError as error:
            raise ValueError(f'{cfg_path}: {cfg.model_path!r} {error}.') from error
        load_state_dict(model, state_for_mmengine(checkpoint))
        model._is_init = True  # MMEngine's mark for weights that a Runner must not draw again
    return model


def register_hub_scope() -> None:
    """Teach ``mmengine.hub`` the scope ``mmreplk``, once."""
    if getattr(mmengine.hub.get_model, 'knows_mmreplk', False):
        return
    for ours in (get_config, get_model):
        name = ours.__name__
        routed = _route(ours, getattr(mmengine.hub, name))
        setattr(mmengine.hub, name, routed)
        setattr(mmengine.hub.hub, name, routed)


def _route(ours, theirs):

    @functools.wraps(theirs)
    def by_scope(cfg_path, *args, **kwargs):
        function = ours if cfg_path.startswith(PREFIX) else theirs
        return function(cfg_path, *args, **kwargs)

    by_scope.knows_mmreplk = True
    return by_scope
