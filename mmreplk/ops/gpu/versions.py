"""What saved outcomes depend on: device, driver and the versions of what makes the kernels."""

import ctypes
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch

from ..caches import cached
from . import arch
from .family import Family


def about(device: torch.device, *families: Family) -> dict[str, str]:
    """Device, capability, driver, torch, CUDA, and the versions of some families, by name."""
    found = dict(_of_device(str(device)))
    for family in families:
        with suppress(Exception):  # of what is not installed, or broken, there is none
            found.update((f'{family.name} {name}' if name == 'source' else name, version)
                         for name, version in family.versions().items())
    return found


def fingerprint(facts: dict[str, str]) -> str:
    """A short name for what `about` says."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@cached
def source_digest(*files: Path) -> str:
    """A short hash of some files, which stands for the version of what they hold."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@cached
def _of_device(name: str) -> tuple[tuple[str, str], ...]:
    device, known = torch.device(name), arch.properties()
    what, capability = name, ''
    if device.type == 'cuda' and (device.index or 0) < len(known):
        one = known[device.index or 0]
        what, capability = getattr(one, 'name', name), f'{one.major}.{one.minor}'
    return (('device', what), ('capability', capability), ('driver', driver()),
            ('torch', torch.__version__), ('cuda', torch.version.cuda or ''),
            ('cudnn', str(torch.backends.cudnn.version() or '')))


def driver() -> str:
    """The NVIDIA driver's version, and the newest CUDA version that it knows; '' without one."""
    parts = []
    try:
        text = Path('/proc/driver/nvidia/version').read_text(encoding='utf-8')
        parts += [word for word in text.split() if word[:1].isdigit() and '.' in word][:1]
    except (OSError, UnicodeDecodeError):
        pass
    try:
        number = ctypes.c_int()
        if ctypes.CDLL('libcuda.so.1').cuDriverGetVersion(ctypes.byref(number)) == 0:
            parts.append(f'CUDA {number.value // 1000}.{number.value % 1000 // 10}')
    except (OSError, AttributeError):
        pass
    return ', '.join(parts)
