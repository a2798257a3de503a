"""What the device can do at most, measured: the two rates behind every bound."""

from typing import NamedTuple

import torch
from timing import seconds_of


class Ceilings(NamedTuple):
    """Measured rates.

    Attributes:
        bandwidth (float): Bytes read plus bytes written a second, of a large copy.
        rate (float): Multiply-adds a second, of a large matrix product.
    """
    bandwidth: float
    rate: float


class Bound(NamedTuple):
    """Milliseconds that no direct sum can beat: the larger of the two parts.

    Attributes:
        memory (float): Every byte moved once at the copy's bandwidth. What fits into a CPU's caches
            may beat it.
        direct (float): Every in-bounds multiply-add at the matrix product's rate. A product of
            spectra needs fewer multiply-adds and may beat it.
    """
    memory: float
    direct: float

    @property
    def both(self) -> float:
        return max(self.memory, self.direct)


def bound(nbytes: int, macs: int, ceilings: Ceilings) -> Bound:
    """The bound of a task that has to move ``nbytes`` and to sum up ``macs`` products."""
    return Bound(nbytes / ceilings.bandwidth * 1e3, macs / ceilings.rate * 1e3)


def measure(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Ceilings:
    """Measure both rates, each as the best of some repeats, under the TF32 switches as they are.

    A CPU may widen 16-bit numbers for a sum, so there float32's rate counts where it is higher.
    """
    gpu = device.type == 'cuda'
    size = (1 << 30) if gpu else (1 << 28)
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / _best(lambda: target.copy_(source), device, repeats)
    dtypes = {dtype} if gpu or dtype.itemsize > 2 else {dtype, torch.float32}
    return Ceilings(bandwidth, max(_matmul_rate(device, d, repeats) for d in dtypes))


def _matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    n = (2048 if dtype == torch.float64 else 8192) if device.type == 'cuda' else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return n**3 / _best(lambda: a @ b, device, repeats)


def _best(run, device: torch.device, repeats: int) -> float:
    run()
    return min(seconds_of(run, device) for _ in range(repeats))
