"""Compiled kernels, kept in the user's cache: see ``gpu/cache.py`` for its folder.

A file is named after all that it was made of, begins with a digest of the rest, and is replaced as
a whole. What is missing or damaged is compiled, and what cannot be written is compiled again in the
next process.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from .. import cache
from . import nvrtc
from .plan import Kernel

FORMAT = b'mmreplk 1\n'


def path_of(kernel: Kernel, arch: str) -> Path | None:
    """The file of a kernel; None where no folder is known."""
    folder = cache.folder()
    if folder is None:
        return None
    facts = [kernel.source, kernel.defines, arch, nvrtc.version(), nvrtc.sources(kernel.source)]
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    return folder / 'cuda' / f'{kernel.source}-{arch}-{name}.bin'


def machine_code(kernel: Kernel, capability: tuple[int, int]) -> bytes:
    """A kernel for a device, from the cache or compiled, which takes one to three seconds.

    Raises:
        nvrtc.Unavailable, nvrtc.CompileError: As `nvrtc.compiled`.
    """
    arch = nvrtc.target(capability)
    path = path_of(kernel, arch)
    found = None if path is None else _read(path)
    if found is None:
        found = nvrtc.compiled(kernel.source, kernel.defines, arch)
        if path is not None:
            _write(path, found)
    return found


def _read(path: Path) -> bytes | None:
    try:
        text = path.read_bytes()
    except OSError:
        return None
    head, digest, code = text[:len(FORMAT)], text[len(FORMAT):][:32], text[len(FORMAT) + 32:]
    return code if head == FORMAT and digest == hashlib.sha256(code).digest() else None


def _write(path: Path, code: bytes) -> None:
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix='.writing-')
        with os.fdopen(handle, 'wb') as file:
            file.write(FORMAT + hashlib.sha256(code).digest() + code)
        os.replace(draft, path)
    except (OSError, ValueError):  # ValueError: of a path that is none
        if draft is not None:
            with suppress(OSError):
                os.remove(draft)
