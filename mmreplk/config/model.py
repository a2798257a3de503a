"""Reading a config, and building its model."""

import warnings
from copy import deepcopy
from importlib import import_module

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from ..packages import importable
from ..paths import check_file
from . import files
from .types import CODEBASES, scope_of, split_init_cfg


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge options into it.

    Args:
        path (str): A file, or ``mmreplk::NAME.py``.
        options (dict, optional): Dotted names to values. Defaults to None.

    Returns:
        Config: The full config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the options cannot be understood.
    """
    if '::' not in path:
        check_file(path, 'CONFIG',
                   'Check the path, or name a packaged config as mmreplk::NAME.py.')
    try:
        cfg = files.read(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise ValueError(f'CONFIG {path}: {type(error).__name__}: {error}') from error
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:
        raise ValueError(f'options: {type(error).__name__}: {error}. Compare the keys with '
                         f'those of {path}.') from error
    if cfg.get('model') is None:
        raise ValueError(f'CONFIG {path}: has no model.')
    if cfg.get('default_scope') is None and (scope := scope_of(cfg.model)):
        cfg.default_scope = scope
    return cfg


def check_scope(cfg: Config) -> None:
    """Check that the config belongs to a known codebase, and that this one is installed.

    Args:
        cfg (Config): The full config.

    Raises:
        ValueError: If ``default_scope`` is missing or of no known codebase.
        ModuleNotFoundError: If the codebase, or what it needs from MMCV, is not installed.
    """
    scope = cfg.get('default_scope')
    if scope not in CODEBASES:
        raise ValueError(
            f'CONFIG {cfg.filename}: default_scope is {scope!r}, not one of '
            f'{", ".join(CODEBASES)}. '
            "Set it in the config, such as default_scope = 'mmseg'.")
    if not importable(scope):
        raise ModuleNotFoundError(
            f'CONFIG {cfg.filename} needs {scope}, which is not installed here. From a clone, '
            '`bash tools/install.sh` installs the tested versions.')
    if scope == 'mmdet' and not importable('mmcv._ext'):
        raise ModuleNotFoundError(
            f'CONFIG {cfg.filename} needs mmdet, and mmdet needs the compiled operators of MMCV '
            '(mmcv._ext), which are missing here. From a clone, `bash tools/install.sh --with-ops` '
            'builds them.')


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a config, with the numbers that its modules are constructed with.

    Args:
        cfg (Config): The full config; its codebase is installed.
        device (str): Where. On 'meta' it has names and shapes but no numbers. Defaults to 'meta'.

    Returns:
        nn.Module: The model.

    Raises:
        ValueError: If it cannot be built.
    """
    registry = import_module(f'{cfg.default_scope}.registry').MODELS
    model = deepcopy(cfg.model)  # some constructors write into it
    if cfg.get('data_preprocessor') is not None:  # MMPretrain's configs keep it outside
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the Runner will build it again, and say it again
            try:
                with torch.device(device):
                    return registry.build(deepcopy(model))
            except Exception:
                # Many constructors compute with numbers, drop-path rates and the like.
                return registry.build(model).to(device)
    except Exception as error:  # whatever goes wrong in a model's constructor
        raise ValueError(f'CONFIG {cfg.filename}: model cannot be built: {type(error).__name__}: '
                         f'{error}') from error


def drop_pretrained(node) -> None:
    """Take the weights to start from out of a model's config; other ``init_cfg`` stay.

    Args:
        node (dict | list): The config of a model or of a part of it, changed in place.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            drop_pretrained(item)
    elif isinstance(node, dict):
        rules, files = split_init_cfg(node.get('init_cfg'))
        if files:
            node['init_cfg'] = rules or None
        if node.get('pretrained'):
            node['pretrained'] = None
        for value in node.values():
            drop_pretrained(value)
