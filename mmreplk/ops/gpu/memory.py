"""Where the kernels' results and workspaces are allocated; poisoned while they are checked."""

import threading
from contextlib import contextmanager

import torch
from torch import Tensor

# Elements before and behind a poisoned tensor: a multiple of 16 bytes, so alignment is as ever.
MARGIN = 64
# Far from any value that is computed with, and finite: NaN that is read by mistake would send the
# kernels to where they sum up again what is not finite, and the mistake would not show.
POISON = 12288.0
_local = threading.local()


def empty(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor on the device of x, in its dtype unless another is given."""
    dtype, kept = dtype or x.dtype, getattr(_local, 'kept', None)
    if kept is None:
        return torch.empty(shape, dtype=dtype, device=x.device)
    whole, inside = _surrounded(torch.Size(shape), dtype, x.device)
    kept.append(whole)
    return inside


def in_poison(values: Tensor) -> Tensor:
    """A copy between margins of `POISON`, so that what reads beside it shows."""
    _, inside = _surrounded(values.shape, values.dtype, values.device)
    return inside.copy_(values)


@contextmanager
def poisoned():
    """What `empty` makes in here, by this thread, is full of `POISON`, and so are its margins.

    Yields a function that tells whether all margins are as they were.
    """
    _local.kept = kept = []
    try:
        yield lambda: all(bool((whole[part] == POISON).all()) for whole in kept
                          for part in (slice(None, MARGIN), slice(-MARGIN, None)))
    finally:
        _local.kept = None


def _surrounded(shape, dtype, device) -> tuple[Tensor, Tensor]:
    whole = torch.full((shape.numel() + 2 * MARGIN, ), POISON, dtype=dtype, device=device)
    return whole, whole[MARGIN:-MARGIN].view(shape)
