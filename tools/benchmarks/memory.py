"""Peak memory of one call."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def peak_of(run: Callable[[], Any], device: torch.device) -> tuple[int | None, str]:
    """Bytes that one call needs at its peak beyond what was held before it, outputs included.

    On a GPU, what PyTorch's allocator counts (a library's own allocations are outside). On Linux,
    the growth of the process's resident memory: everything counts, also the scratch of compiled
    libraries, but buffers that such a library keeps from an earlier call do not, and pages come in
    batches, so that a few hundred KiB are noise.

    Returns:
        tuple[int | None, str]: The bytes, and how they were measured; None and why not.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, 'torch.cuda.max_memory_allocated'
    try:
        # Freed memory that the process still holds would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text('5')  # the peak starts anew
        before = _status('VmRSS')
        run()
        return max(0, _status('VmHWM') - before), 'growth of peak resident memory'
    except (OSError, AttributeError, TypeError) as error:
        return None, f'no resettable peak on this system ({type(error).__name__})'


def _status(name: str) -> int:
    return int(re.search(rf'^{name}:\s*(\d+) kB', _STATUS.read_text(), re.MULTILINE)[1]) << 10
