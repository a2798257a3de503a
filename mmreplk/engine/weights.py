"""Weight files and the models that they are for: reading safely, building, writing without loss."""

import argparse
import os
import os.path as osp
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import import_module
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

_BROKEN = 'is truncated, damaged or no PyTorch file: fetch or save it again'


class UnsafeFileError(ValueError):
    """A file that holds more than weights and plain values, so that reading it may run code."""


def _history_method(owner, name: str):
    """Stands in for ``getattr``, with which HistoryBuffer pickles its own methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError('Unsupported global: GLOBAL builtins.getattr')
    return getattr(owner, name)


def _harmless_types():
    """What training scripts of the field save beside weights, and can do nothing by being read."""
    if not hasattr(torch.serialization, 'safe_globals'):
        return nullcontext()
    numpy_core = np._core if hasattr(np, '_core') else np.core
    numbers = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8', 'u4', 'u8')}
    return torch.serialization.safe_globals([
        argparse.Namespace, ConfigDict, HistoryBuffer, (_history_method, 'builtins.getattr'),
        np.ndarray, np.dtype, numpy_core.multiarray._reconstruct, numpy_core.multiarray.scalar,
        *numbers
    ])


def read_checkpoint(path: str) -> dict:
    """Read a file with PyTorch's ``weights_only=True``. Tensors stay on disk until they are used.

    Args:
        path (str): A file.

    Returns:
        dict: What was saved.

    Raises:
        UnsafeFileError: If reading it needs more than tensors and plain values.
        ValueError: If it is truncated, or no file of PyTorch's.
    """
    path = osp.expanduser(path)
    try:
        with _harmless_types():
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except UnpicklingError as error:
        text = str(error).rsplit('WeightsUnpickler error: ', 1)
        if len(text) == 1 or text[1].startswith('Unsupported operand'):
            raise ValueError(_BROKEN) from error
        name = re.search(r'GLOBAL (\S+)', text[1])
        reason = name[1] if name else text[1].splitlines()[0].strip()
        raise UnsafeFileError(
            f'needs more than weights to be read ({reason}), which could run any code. Save its '
            'state dict alone, where it comes from') from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split('. ')[0]
        raise ValueError(f'{_BROKEN} ({reason})') from error
    except (EOFError, KeyError, OSError, TypeError, ValueError) as error:
        # What old formats, or none at all, raise says nothing about the file.
        raise ValueError(_BROKEN) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'holds no weights but {type(checkpoint).__name__}')
    return checkpoint


def read_for_mmengine(path: str) -> Mapping:
    """Read a file as MMEngine would: where it is not safe, all the same, with MMEngine's warning.

    Args:
        path (str): A file.

    Returns:
        Mapping: What was saved.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return read_checkpoint(path)
    except UnsafeFileError:
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')


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
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        elif isinstance(init, (list, tuple)):
            node['init_cfg'] = [item for item in init if item.get('type') != 'Pretrained']
        if node.get('pretrained'):
            node['pretrained'] = None
        for value in node.values():
            drop_pretrained(value)
