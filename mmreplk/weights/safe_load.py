"""Reading weight files without running what may be in them.

A PyTorch file is a pickle, which can name any function to be called. ``weights_only=True`` lets
tensors and plain values through and refuses the rest. Whoever trusts a file that needs more says so
by PyTorch's own switch, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, or by ``--trust-checkpoints`` of the
tools.
"""

import argparse
import os
import os.path as osp
import re
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from pickle import UnpicklingError

import torch
from mmengine.config import ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader

from ..config.text import forbid_config_code
from .numpy_values import STAND_INS

# PyTorch's own switches, which hold for every torch.load of a process.
ALWAYS, NEVER = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_BROKEN = 'is truncated, damaged or no PyTorch file: fetch or save it again'


class UnsafeFileError(ValueError):
    """A file that holds more than weights and plain values, so that reading it may run code."""


def harmless_types() -> list:
    """Types that common training scripts store beside the weights and that are safe to unpickle."""
    return [argparse.Namespace, ConfigDict, *STAND_INS]


def _harmless():
    if not hasattr(torch.serialization, 'safe_globals'):
        return nullcontext()
    # Leaving the context forbids all that it was given, also what was allowed before.
    allowed = torch.serialization.get_safe_globals()
    return torch.serialization.safe_globals(
        [kind for kind in harmless_types() if kind not in allowed])


def trusted() -> bool:
    """Whether the user has said that files may run code."""
    return os.environ.get(NEVER, '0').lower() in ('1', 'y', 'yes', 'true')


def forbid_code(trust: bool = False) -> None:
    """Let no file that this process reads run code, by MMEngine neither; for programs.

    Args:
        trust (bool): Whether the user trusts the files all the same, as where :func:`trusted` says
            so already. Defaults to False.
    """
    if trust:
        os.environ[NEVER] = '1'
    if trusted():
        return
    os.environ[ALWAYS] = '1'
    forbid_config_code()
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(harmless_types())
    # MMEngine's own reader has a list of types, and tries without weights_only what is not on it.
    CheckpointLoader.register_scheme('', load_from_local, force=True)


def load_from_local(filename: str, map_location=None) -> dict:
    """MMEngine's function of this name, with ``weights_only=True``.

    Args:
        filename (str): A file.
        map_location (str | Callable, optional): As of ``torch.load``. Defaults to None.

    Returns:
        dict: What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As of :func:`read_checkpoint`.
    """
    if not osp.isfile(osp.expanduser(filename)):
        raise FileNotFoundError(f'{filename} can not be found.')
    try:
        return read_checkpoint(filename, map_location)
    except ValueError as error:
        raise type(error)(f'{filename!r} {error}') from error


@contextmanager
def _code_forbidden():
    """As :func:`forbid_code`, for a block."""
    before = os.environ.get(ALWAYS)
    os.environ[ALWAYS] = '1'
    try:
        with _harmless():
            yield
    finally:
        if before is None:
            del os.environ[ALWAYS]
        else:
            os.environ[ALWAYS] = before


def read_checkpoint(path: str, map_location='cpu') -> dict:
    """Read a file with PyTorch's ``weights_only=True``. Tensors stay on disk until they are used.

    Files that end in ``.safetensors`` are read by the package of that name, to the CPU.

    Args:
        path (str): A file.
        map_location (str | Callable, optional): As of ``torch.load``. Defaults to 'cpu'.

    Returns:
        dict: What was saved.

    Raises:
        ImportError: If it needs safetensors, which is not installed.
        UnsafeFileError: If reading it needs more than tensors and plain values.
        ValueError: If it is truncated, or no file of PyTorch's.
    """
    path = osp.expanduser(path)
    if not osp.isfile(path):  # a pipe would be waited for, without end
        raise ValueError('is no file')
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    try:
        # Not in the scope of NEVER, which holds where weights_only is not given.
        with _harmless():
            checkpoint = torch.load(
                path, map_location=map_location, weights_only=True,
                mmap=(map_location == 'cpu' and _is_stored(path)) or None)
    except UnpicklingError as error:
        raise _explained(error) from error
    except MemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split('. ')[0]
        raise ValueError(f'{_BROKEN} ({reason})') from error
    except Exception as error:
        # What old formats, damaged ones, or none at all, raise says nothing about the file: the
        # reader calls functions with whatever stands there.
        raise ValueError(_BROKEN) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'holds no weights but {type(checkpoint).__name__}')
    return checkpoint


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'CHECKPOINT {path}: needs safetensors, which is not installed here; '
                          '`pip install safetensors` adds it.') from error
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f'cannot be read ({type(error).__name__}: {error})') from error


def _is_stored(path: str) -> bool:
    """Whether a file is an archive without compression, whose bytes can be used where they are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _explained(error: UnpicklingError) -> ValueError:
    text = str(error).rsplit('WeightsUnpickler error: ', 1)
    if len(text) == 1 or text[1].startswith('Unsupported operand'):
        return ValueError(_BROKEN)
    name = re.search(r'GLOBAL (\S+)', text[1])
    reason = name[1] if name else text[1].splitlines()[0].strip()
    return UnsafeFileError(
        f'needs more than weights to be read ({reason}), which could run any code. Save its state '
        f'dict alone, where it comes from; or, if you trust that place, set {NEVER}=1 (train.py, '
        'test.py: --trust-checkpoints)')


def read_any(path: str, map_location: str = 'cpu') -> Mapping:
    """Read a file, or whatever MMEngine can fetch; one that could run code only if trusted.

    Args:
        path (str): A file or an address.
        map_location (str): Where to read to. Defaults to 'cpu'.

    Returns:
        Mapping: What was saved.

    Raises:
        UnsafeFileError: If it needs more than weights to be read, and the user did not say that
            such files may be read (:func:`trusted`).
        ValueError: If a file is truncated, or none of PyTorch's.
    """
    if osp.isfile(osp.expanduser(path)):
        try:
            checkpoint = read_checkpoint(path)
        except UnsafeFileError:
            if not trusted():
                raise
        else:
            if map_location == 'cpu':
                return checkpoint
    if trusted():
        return CheckpointLoader.load_checkpoint(path, map_location)
    try:
        with _code_forbidden():
            return CheckpointLoader.load_checkpoint(path, map_location)
    except UnpicklingError as error:
        raise _explained(error) from error
