"""Numbers of NumPy and records of MMEngine in checkpoints, read without trust in the file.

MMEngine saves numbers of NumPy beside weights. NumPy's own classes cannot be let into a reader of
untrusted files: a file can give a dtype the state of one that holds objects, and then make an
array of objects over bytes of its own, whose elements are addresses. Here every name of NumPy's
that stands in such pickles is answered by one of these stand-ins, which take plain numbers alone,
as many as there are bytes.
"""

import math
import re
from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer

# Kind and bytes of an item: bool, integers, floats, complex numbers.
_CODE = re.compile(r'b1|[iu][1248]|f[248]|c(8|16)|[?bBhHiIlLqQefdFD]')
_ORDERS = ('<', '>', '=', '|')


class _NumberType:
    """Stands in for ``np.dtype``: the dtype of a number."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype({code!r:.40})')
        self.real = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order of NumPy's state of a dtype, and nothing else."""
        if (not isinstance(state, tuple) or len(state) < 5 or state[1] not in _ORDERS
                or any(part is not None for part in state[2:5])):
            raise UnpicklingError('Unsupported global: GLOBAL numpy.dtype of no number')
        if state[1] in '<>':
            self.real = self.real.newbyteorder(state[1])

    def __reduce__(self):
        return self.real.__reduce__()


class _Array(np.ndarray):
    """Stands in for ``np.ndarray``; becomes one when it is pickled, so that no file names this."""

    def __new__(cls, *args, **kwargs):
        raise UnpicklingError('Unsupported global: GLOBAL numpy.ndarray(...)')

    def __setstate__(self, state: tuple) -> None:
        """Take shape and numbers of NumPy's state of an array, once."""
        if vars(self).get('filled') or not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError('Unsupported global: GLOBAL numpy.ndarray with another state')
        _, shape, kind, fortran, content = state
        real = _plain(kind)
        if (not isinstance(shape, tuple) or len(shape) > 32
                or not all(type(size) is int and size >= 0 for size in shape)
                or type(content) is not bytes
                or math.prod(shape) * real.itemsize != len(content)):
            raise UnpicklingError('Unsupported global: GLOBAL numpy.ndarray of other sizes')
        self.filled = True
        super().__setstate__((1, shape, real, bool(fortran), content))

    def __reduce_ex__(self, protocol: int):
        return np.asarray(self).__reduce_ex__(protocol)


def _reconstruct(subtype: type, shape: tuple, code: bytes) -> _Array:
    if subtype is not _Array:
        raise UnpicklingError('Unsupported global: GLOBAL numpy array of another class')
    return np.ndarray.__new__(_Array, (0, ), np.dtype('b'))


def _scalar(kind: _NumberType, content: bytes) -> np.generic:
    real = _plain(kind)
    if type(content) is not bytes or len(content) != real.itemsize:
        raise UnpicklingError('Unsupported global: GLOBAL numpy scalar of another size')
    return np.frombuffer(content, real)[0]


def _plain(kind) -> np.dtype:
    if type(kind) is not _NumberType:
        raise UnpicklingError('Unsupported global: GLOBAL numpy value without a dtype')
    return kind.real


def _no_bytes(*args) -> bytes:
    """Old protocols pickle the content of an empty array as ``bytes()``."""
    if args:
        raise UnpicklingError('Unsupported global: GLOBAL builtins.bytes')
    return b''


class _History(HistoryBuffer):
    """Stands in for MMEngine's ``HistoryBuffer``, and is one once it has its numbers.

    Its own ``__setstate__`` puts the methods that a file names into the class, for all buffers of
    the process.
    """

    def __init__(self, *args, **kwargs):
        raise UnpicklingError('Unsupported global: GLOBAL HistoryBuffer(...)')

    def __setstate__(self, state: dict) -> None:
        """Take the two arrays and their greatest length; the methods are those of the class."""
        values, counts, longest = (
            state.get(key) if isinstance(state, dict) else None
            for key in ('_log_history', '_count_history', 'max_length'))
        if (not isinstance(values, np.ndarray) or not isinstance(counts, np.ndarray)
                or values.shape != counts.shape or values.ndim != 1 or type(longest) is not int):
            raise UnpicklingError('Unsupported global: GLOBAL HistoryBuffer with another state')
        # As MMEngine's own __init__ does. Tried with mmengine 0.10.7 and onedl-mmengine 0.10.12.
        self._set_default_statistics()
        self.max_length = longest
        self._log_history, self._count_history = np.array(values), np.array(counts)
        self.__class__ = HistoryBuffer


def _history_method(owner, name: str):
    """Stands in for ``getattr``, with which a buffer pickles its own methods."""
    if owner is not _History or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError('Unsupported global: GLOBAL builtins.getattr')
    return getattr(HistoryBuffer, name)


def _under(name: str, function):
    """The function under the name that stands in files: torch 2.5 goes by a function's own name."""

    def stand_in(*args):
        return function(*args)

    stand_in.__module__, _, stand_in.__name__ = name.rpartition('.')
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


_NumberType.__module__, _NumberType.__qualname__ = 'numpy', 'dtype'
_History.__module__, _History.__qualname__ = HistoryBuffer.__module__, HistoryBuffer.__qualname__
_Array.__module__, _Array.__name__, _Array.__qualname__ = 'numpy', 'ndarray', 'ndarray'

# NumPy 1 and 2 save under different names.
STAND_INS = [_NumberType, _Array, _History, _under('builtins.bytes', _no_bytes),
             _under('builtins.getattr', _history_method), *(
    _under(f'numpy.{core}.multiarray.{name}', function) for core in ('core', '_core')
    for name, function in (('_reconstruct', _reconstruct), ('scalar', _scalar)))]
