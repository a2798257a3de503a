"""The spectra of weights that nobody trains, kept from one call of 'fft' to the next."""

import os
import threading
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..arithmetic import to_opmath
from ..caches import register
from ..problem import Problem
from . import kernels as native


class _Entry(NamedTuple):
    weight: Tensor
    spectrum: Tensor


class KeptSpectra:
    """The spectra of weights that do not change, as in inference.

    They live as long as their weight tensor. Before use the weights are compared with a copy:
    reading them costs next to nothing, and unlike a version counter it also notices a change
    through ``weight.data``, numpy or shared memory. At most a few geometries a weight are kept.
    """

    GEOMETRIES = 4

    def __init__(self):
        self._entries = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def get(self, weight: Tensor, problem: Problem, transform) -> Tensor:
        """``transform(weight, problem)``, or what it gave last time for the same values."""
        geometry = (problem.height, problem.width, problem.padding, problem.dilation,
                    problem.out_size, transform)
        with self._lock:
            entry = self._entries.get(weight, {}).get(geometry)
        if entry is not None and _same_bits(entry.weight, weight):
            return entry.spectrum
        copy = weight.detach().clone(memory_format=torch.contiguous_format)
        spectrum = transform(to_opmath(copy), problem)
        with self._lock:
            entries = self._entries.setdefault(weight, {})
            entries.pop(geometry, None)
            while len(entries) >= self.GEOMETRIES:
                entries.pop(next(iter(entries)))
            entries[geometry] = _Entry(copy, spectrum)
        return spectrum

    def forget(self) -> None:
        """Start anew: in a forked child, where a thread that does not exist may hold the lock."""
        self.__init__()

    def bytes(self) -> int:
        """Memory held."""
        with self._lock:
            return sum(t.numel() * t.element_size() for entries in self._entries.values()
                       for entry in entries.values() for t in entry)


def _same_bits(kept: Tensor, weight: Tensor) -> bool:
    if kept.dtype != weight.dtype or kept.shape != weight.shape:
        return False
    if native.available()[0] and weight.is_contiguous():
        return native.same_bits(kept, weight)
    # NaN never equals itself here: such weights are transformed anew, which is right if slow.
    return torch.equal(kept, weight)


kept_spectra = KeptSpectra()
register(kept_spectra.forget)
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=kept_spectra.forget)
