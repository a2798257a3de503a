"""Models of configs, and files that are written without loss; reading: weights/safe_load.py."""

import os
import os.path as osp
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from .types import is_pretrained


def write_new(path: str, write: Callable[[str], bool | None]) -> bool:
    """Write a file that must not exist yet; it appears whole or not at all.

    Args:
        path (str): The file.
        write (Callable[[str], bool | None]): Writes to the path that it is given; False if it has
            found that the file must not be.

    Returns:
        bool: Whether the file is there now.

    Raises:
        FileExistsError: If the file exists by then.
    """
    folder = osp.dirname(osp.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as inside:
        draft = osp.join(inside, osp.basename(path))
        if write(draft) is False:
            return False
        try:
            os.link(draft, path)  # unlike a renaming, refuses to replace a file
        except FileExistsError:
            raise FileExistsError(f'{path!r} exists; it is left as it is') from None
        except OSError:  # a file system without links
            if osp.exists(path):
                raise FileExistsError(f'{path!r} exists; it is left as it is') from None
            os.rename(draft, path)
    return True


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
    model = cfg.model.copy()
    if cfg.get('data_preprocessor') is not None:  # MMPretrain's configs keep it outside
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the Runner will build it again, and say it again
            try:
                with torch.device(device):
                    return registry.build(model)
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
        init = node.get('init_cfg')
        if is_pretrained(init):
            node['init_cfg'] = None
        elif isinstance(init, (list, tuple)):
            node['init_cfg'] = [item for item in init if not is_pretrained(item)]
        if node.get('pretrained'):
            node['pretrained'] = None
        for value in node.values():
            drop_pretrained(value)
