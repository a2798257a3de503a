"""Launches the CUDA kernels on the CPU, lane by lane: see emulator.h.

Every kernel is compiled by g++ from the very source that NVRTC gets, and kept in the directory for
temporary files by a hash of all that it depends on.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from mmreplk.ops.gpu.cuda import plan as plans

HERE = Path(__file__).parent
SOURCES = Path(plans.__file__).parent / 'csrc'
COMPILER = shutil.which('g++')
ARGUMENTS = {'forward': 'Forward', 'weight_grad': 'WeightGrad'}
# A byte of which NaNs of every dtype are made. Where they get into results, these are computed
# anew, which `Counts.plain_sums` tells.
POISON = 0xff


class _Array(ctypes.Structure):
    _fields_ = [('begin', ctypes.c_void_p), ('bytes', ctypes.c_size_t), ('writable', ctypes.c_int)]


@functools.cache
def library(kernel, function):
    """The emulated kernel as a loaded library."""
    flags = [f'-D{name}={value}' for name, value in kernel.defines]
    flags += [f'-DSOURCE="{SOURCES / kernel.source}.cu"',
              f'-DARGUMENTS={ARGUMENTS[kernel.source]}', f'-DFUNCTION={function}']
    files = [*sorted(SOURCES.iterdir()), HERE / 'emulator.h', HERE / 'emulator.cpp']
    key = hashlib.sha256(repr(flags).encode() + b''.join(f.read_bytes() for f in files))
    folder = Path(tempfile.gettempdir()) / f'mmreplk-emulator-{os.getuid()}'
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f'{function}-{key.hexdigest()[:24]}.so'
    if not path.exists():
        part = path.with_suffix(f'.{os.getpid()}')
        # Without checks of longjmp's target: that is how fibers are switched.
        subprocess.run([COMPILER, '-O1', '-std=c++17', '-w', '-fPIC', '-shared',
                        '-U_FORTIFY_SOURCE', f'-I{SOURCES}', f'-I{HERE}', *flags,
                        str(HERE / 'emulator.cpp'), '-o', str(part)], check=True)
        part.replace(path)
    run = ctypes.CDLL(str(path)).run
    run.restype = ctypes.c_char_p
    return run


class Counts(NamedTuple):
    """What a launch did.

    Attributes:
        products (int): Of 16 x 8 results, by warps.
        matrices (int): Loads of matrices, by warps.
        cycles (int): Cycles of shared memory for these, by the banks that they meet in.
        barriers (int): By blocks.
        plain_sums (int): Results that were not finite, and were computed anew.
    """

    products: int
    matrices: int
    cycles: int
    barriers: int
    plain_sums: int


def launch(what, tensors):
    """Run a `plans.Launch` and return its `Counts`.

    Args:
        what (Launch): The launch.
        tensors (dict[str, Tensor | None]): By the name of the pointer; ``y`` and ``sums`` are
            written, what else there is only read.
    """
    arguments = type(what.arguments).from_buffer_copy(what.arguments)
    arrays = []
    for name, tensor in tensors.items():
        setattr(arguments, name, 0 if tensor is None else tensor.data_ptr())
        if tensor is not None:
            arrays.append(_Array(tensor.data_ptr(), tensor.numel() * tensor.element_size(),
                                 name in ('y', 'sums')))
    counts = (ctypes.c_long * 5)()
    message = library(what.kernel, what.function)(
        ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments)), what.grid, what.threads,
        ctypes.c_size_t(what.shared), POISON, (_Array * len(arrays))(*arrays), len(arrays), counts)
    if message:
        raise RuntimeError(message.decode())
    return Counts(*counts)
