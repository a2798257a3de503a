"""NVRTC, the CUDA compiler that comes with PyTorch as a library, through ctypes.

Nothing is looked for or loaded before the first call.
"""

import ctypes
import importlib.util
import re
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name('csrc')


class Unavailable(RuntimeError):
    """There is no NVRTC, or it does not work. The message says so in one line."""


class CompileError(RuntimeError):
    """NVRTC has refused a source; the message is what it said."""


def _folders() -> list[Path]:
    """Where PyTorch's packages have the library: their own wheels, or torch's."""
    found = []
    spec = importlib.util.find_spec('nvidia')
    for root in (spec.submodule_search_locations or ()) if spec else ():
        found += [*Path(root).glob('cu[0-9]*/lib'), Path(root, 'cuda_nvrtc', 'lib')]
    return [*found, Path(torch.__file__).with_name('lib')]


def find() -> Path | str:
    """The library that fits PyTorch: its path, or a name for the system's loader.

    Raises:
        Unavailable: If PyTorch brings none and says of no CUDA version whose library to ask for.
    """
    major = (torch.version.cuda or '').partition('.')[0]
    names = [f'libnvrtc.so.{major}'] if major else []
    for folder in _folders():
        # A torch for the CPU alone takes whatever is there.
        for path in sorted(folder.glob(names[0] if names else 'libnvrtc.so.*[0-9]')):
            return path
        for path in sorted(folder.glob('libnvrtc-*.so.*')):  # as torch's own folder names it
            if 'builtins' not in path.name:
                return path
    if names:
        return names[0]
    raise Unavailable('this PyTorch comes without libnvrtc, the CUDA compiler; '
                      'pip install nvidia-cuda-nvrtc, or a PyTorch for CUDA')


@cache
def library() -> ctypes.CDLL:
    """NVRTC, loaded.

    Raises:
        Unavailable: If it is missing or cannot be loaded.
    """
    path = find()
    try:
        if isinstance(path, Path):
            # It looks for this one by name alone when it compiles.
            for builtins in path.parent.glob('libnvrtc-builtins*.so*'):
                if 'alt' not in builtins.name:
                    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        found = ctypes.CDLL(str(path))
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        found.nvrtcVersion  # noqa: B018  (AttributeError for what is no NVRTC)
    except (OSError, AttributeError) as error:
        raise Unavailable(f'libnvrtc cannot be loaded: {error}') from error
    return found


def _check(status: int, what: str) -> None:
    if status:
        text = library().nvrtcGetErrorString(status).decode()
        raise CompileError(f'NVRTC {version()}, {what}: {text}')


@cache
def version() -> str:
    """Its version, as '13.0'."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f'{major.value}.{minor.value}'


@cache
def known() -> tuple[int, ...]:
    """The compute capabilities that it makes machine code for, as 90."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), 'architectures')
    found = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(found), 'architectures')
    return tuple(found)


def target(capability: tuple[int, int]) -> str:
    """What to compile for a device: its own machine code, or PTX where NVRTC is older than it."""
    number = capability[0] * 10 + capability[1]
    if number in known():
        return f'sm_{number}'
    # Within a major version machine code runs on later chips; else the driver translates PTX.
    older = [n for n in known() if n < number]
    if not older:
        raise CompileError(f'NVRTC {version()} knows no capability up to {number / 10}')
    return f'{"sm" if older[-1] // 10 == capability[0] else "compute"}_{older[-1]}'


def sources(name: str) -> dict[str, bytes]:
    """A source and what it includes from our folder, by file name; the source first."""
    found, todo = {}, [f'{name}.cu']
    while todo:
        file = todo.pop(0)
        if file not in found and (SOURCES / file).is_file():
            found[file] = (SOURCES / file).read_bytes()
            todo += re.findall(r'#include "([^"]+)"', found[file].decode())
    return found


def compiled(name: str, defines: tuple[tuple[str, int], ...], arch: str) -> bytes:
    """A source of ours as machine code, or PTX for a ``compute_`` architecture.

    Args:
        name (str): Of the source, without ending.
        defines (tuple[tuple[str, int], ...]): Macros.
        arch (str): As ``'sm_90'``.

    Raises:
        Unavailable: If there is no NVRTC.
        CompileError: If it cannot compile that.
    """
    rt, program = library(), ctypes.c_void_p()
    (_, source), *headers = sources(name).items()
    texts = (ctypes.c_char_p * len(headers))(*(text for _, text in headers))
    names = (ctypes.c_char_p * len(headers))(*(file.encode() for file, _ in headers))
    _check(rt.nvrtcCreateProgram(ctypes.byref(program), source, f'{name}.cu'.encode(),
                                 len(headers), texts, names), name)
    try:
        options = [f'--gpu-architecture={arch}', '--std=c++17',
                   *(f'-D{macro}={value}' for macro, value in defines)]
        status = rt.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(
            *(option.encode() for option in options)))
        if status:
            log = _result(program, 'ProgramLog').rstrip(b'\0').decode(errors='replace')
            raise CompileError(f'NVRTC {version()} cannot compile {name}.cu for {arch}: {log}')
        return _result(program, 'PTX' if arch.startswith('compute') else 'CUBIN')
    finally:
        rt.nvrtcDestroyProgram(ctypes.byref(program))


def _result(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library(), f'nvrtcGet{what}Size')(program, ctypes.byref(size)), what)
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f'nvrtcGet{what}')(program, text), what)
    return text.raw
