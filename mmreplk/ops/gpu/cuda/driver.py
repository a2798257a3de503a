"""The CUDA driver through ctypes: loads what NVRTC has compiled, and launches it.

Nothing is loaded before the first call. Launches go to PyTorch's current stream, do not wait, and
read no memory of the device, so that CUDA graphs can record them.
"""

import ctypes
import threading
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ..arch import arch_of
from . import binary
from .plan import Kernel, Launch

_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_modules: dict[tuple[int, Kernel], ctypes.c_void_p] = {}
_functions: dict[tuple[int, Kernel, str], ctypes.c_void_p] = {}
_lock = threading.Lock()


class DriverError(RuntimeError):
    """The CUDA driver has refused something; the message is what it said."""


@cache
def library() -> ctypes.CDLL:
    """The driver's library, initialized.

    Raises:
        DriverError: If there is none, or it does not start.
    """
    try:
        found = ctypes.CDLL('libcuda.so.1')
    except OSError as error:
        raise DriverError(f'the CUDA driver, libcuda.so.1, cannot be loaded: {error}') from error
    _check(found.cuInit(0), 'start', found)
    return found


def _check(status: int, what: str, found: ctypes.CDLL | None = None) -> None:
    if status:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        found = found or library()
        found.cuGetErrorName(status, ctypes.byref(name))
        found.cuGetErrorString(status, ctypes.byref(text))
        known = [part.value.decode() for part in (name, text) if part.value]
        raise DriverError(f'the CUDA driver cannot {what}: {": ".join(known) or status}')


def run(launch: Launch, tensors: Mapping[str, Tensor | None]) -> None:
    """Launch a kernel on the current stream of the tensors' device.

    Args:
        launch (Launch): The launch.
        tensors (Mapping[str, Tensor | None]): By the name of the pointer that they are.

    Raises:
        DriverError: If the driver refuses it.
        nvrtc.Unavailable, nvrtc.CompileError: At the first launch: see `binary.machine_code`.
    """
    arguments = type(launch.arguments).from_buffer_copy(launch.arguments)
    for name, tensor in tensors.items():
        setattr(arguments, name, 0 if tensor is None else tensor.data_ptr())
    device = next(tensor.device for tensor in tensors.values() if tensor is not None)
    with torch.cuda.device(device):
        _ensure_context(device.index)
        stream = torch.cuda.current_stream().cuda_stream
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _check(library().cuLaunchKernel(
            _function(launch, device), launch.grid, 1, 1, launch.threads, 1, 1, launch.shared,
            ctypes.c_void_p(stream), pointers, None), f'launch {launch.function}')


def _ensure_context(index: int) -> None:
    """Have the device's primary context, which PyTorch works in, be that of this thread."""
    cuda, context = library(), ctypes.c_void_p()
    _check(cuda.cuCtxGetCurrent(ctypes.byref(context)), 'tell its context')
    if not context.value:
        device = ctypes.c_int()
        _check(cuda.cuDeviceGet(ctypes.byref(device), index), f'find device {index}')
        _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), 'share the context')
        _check(cuda.cuCtxSetCurrent(context), 'set the context')


def _function(launch: Launch, device: torch.device) -> ctypes.c_void_p:
    key = device.index, launch.kernel, launch.function
    found = _functions.get(key)
    if found is None:
        with _lock:
            module = _module(launch.kernel, device)
            found = ctypes.c_void_p()
            _check(library().cuModuleGetFunction(
                ctypes.byref(found), module, launch.function.encode()), f'find {launch.function}')
            # The largest that any launch of it asks for.
            _check(library().cuFuncSetAttribute(found, _MOST_SHARED, arch_of(device).shared),
                   'give shared memory')
            _functions[key] = found
    return found


def _module(kernel: Kernel, device: torch.device) -> ctypes.c_void_p:
    key = device.index, kernel
    if key not in _modules:
        capability = torch.cuda.get_device_capability(device)
        module = ctypes.c_void_p()
        _check(library().cuModuleLoadData(
            ctypes.byref(module), binary.machine_code(kernel, capability)),
            f'load {kernel.source}')
        _modules[key] = module
    return _modules[key]

