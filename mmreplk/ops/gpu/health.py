"""Families of kernels that have failed on a device: a warning each, and no second attempt."""

import warnings

import torch

from .. import caches
from . import arch, versions
from .family import Family


class Unusable(RuntimeError):
    """A family cannot serve on a device. The message says why, in one line."""


class NotReady(Unusable):
    """A family cannot serve this call: it is being captured, and the kernels are not loaded."""


# By device and family, why not. Not a cache: what has failed is not tried again.
_reasons: dict[tuple[str, str], str] = {}
_said: set[str] = set()


def why(device: torch.device, family: str) -> str:
    """Why a family is not used on a device; '' if it may be."""
    return _reasons.get((str(device), family), '')


def unusable(device: torch.device) -> tuple[tuple[str, str], ...]:
    """The families that are not used on a device, and why."""
    if not _reasons:
        return ()
    return tuple((family, reason) for (where, family), reason in _reasons.items()
                 if where == str(device))


def forget() -> None:
    """Try again what has failed."""
    _reasons.clear()
    _said.clear()
    caches.clear_all()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory was too small, which is no fault of the kernels."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, (RuntimeError, MemoryError)) and 'out of memory' in str(error).lower())


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream records a CUDA graph, so that nothing can be looked at."""
    return (device.type in arch.DEVICE_TYPES and torch.cuda.is_initialized()
            and torch.cuda.is_current_stream_capturing())


def mark(device: torch.device, family: Family, error: BaseException) -> Unusable:
    """Give a family up on a device, warn once, and have all choices fall anew.

    Returns:
        Unusable: What to raise.
    """
    first = (str(device), family.name) not in _reasons
    reason = _one_line(error)
    _reasons[str(device), family.name] = f'failed on {device}: {reason}'
    if first:
        caches.clear_all()
        facts = ', '.join(f'{name} {value}' for name, value in versions.about(
            device, family).items() if value)
        warnings.warn(
            f"mmreplk: the {family.name!r} kernels failed on {device} and are not used there again "
            f"in this process; PyTorch's convolution serves. Reason: {reason} ({facts}). "
            f"backend='torch' avoids them, backend={family.name!r} raises the whole error; please "
            'report it with the output of `python -m mmreplk.ops env`.',
            RuntimeWarning, stacklevel=2)
    return Unusable(_reasons[str(device), family.name])


def warn_once(text: str) -> None:
    """A warning, unless it was given before."""
    if text not in _said:
        _said.add(text)
        warnings.warn(f'mmreplk: {text}', RuntimeWarning, stacklevel=2)


def raise_if_broken(device: torch.device) -> None:
    """Raise what CUDA raises where the device itself has failed: then nothing can serve there."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}'[:300] if text else type(error).__name__
