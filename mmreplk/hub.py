"""Packaged configs with their weights, and models for one process.

``mmengine.hub`` finds them too, as ``mmreplk::configs/NAME.py``. What it lacks: BN in place of
SyncBN, a check that the weights fit, and a word on where weights come from that it cannot fetch.
"""

from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load
from torch import nn

from .config.files import PREFIX, config_path, config_root

# What the metafile has for an address where there is none, in words for MIM's users.
NONE = 'none '


def find_weights(name: str) -> str:
    """The address of the weights that ``configs/metafile.yml`` lists for a config.

    Args:
        name (str): The config's file name, with ``.py``.

    Returns:
        str: The address.

    Raises:
        ValueError: If it lists none that can be downloaded by their address.
    """
    models = {Path(entry['Config']).name: entry
              for entry in load(config_root() / 'metafile.yml')['Models']}
    entry = models.get(name, {})
    weights = entry.get('Weights', NONE)
    if not weights.startswith(NONE):
        return weights
    source = entry.get('Converted From', {}).get('Weights')
    remedy = (f'The authors offer theirs at {source}; download them, convert them with '
              'tools/convert_checkpoint.py, and load the result' if source else
              'Nobody has published any')
    raise ValueError(f'{name}: pretrained=True, but no weights can be downloaded by an '
                     f'address. {remedy}.')


def get_config(cfg_path: str, pretrained: bool = False) -> Config:
    """Read a packaged config, as ``mmengine.hub.get_config``.

    Args:
        cfg_path (str): ``NAME`` or ``NAME.py``, also with ``mmreplk::`` before it.
        pretrained (bool): Whether to store the address of its weights as ``model_path``. Defaults
            to False.

    Returns:
        Config: The full config.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If its weights are asked for and cannot be downloaded.
    """
    path = config_path(cfg_path.removeprefix(PREFIX))
    cfg = Config.fromfile(path)
    if pretrained:
        cfg.model_path = find_weights(Path(path).name)
    return cfg


def get_model(cfg_path: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """Build a model for one process from a packaged config, as ``mmengine.hub.get_model``.

    BN stands in for SyncBN; the weights are the same.

    Args:
        cfg_path (str): ``NAME`` or ``NAME.py``, also with ``mmreplk::`` before it.
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
        model.is_init = True  # MMEngine's mark for weights that a Runner must not draw again
    return model
