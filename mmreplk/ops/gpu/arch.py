"""What the cost models know of a GPU: a table of architectures, and the devices of this process."""

from typing import NamedTuple

import torch

from ..caches import cached

# Types of the devices that families of kernels run on; tests with a stand-in add the CPU.
DEVICE_TYPES = ('cuda', )


class Arch(NamedTuple):
    """What the models know of a device; rates per clock and multiprocessor.

    Attributes:
        capability (tuple[int, int]): Compute capability: that of the table's row, so that relatives
            share tiles; below 8.0 the device's own.
        sms (int): Multiprocessors.
        clock (float): Hz under load.
        macs (int): Dense 16-bit tensor-core multiply-adds; TF32 has half.
        least_rows (int): Rows of the smallest matrix instruction.
        shared (int): Bytes of shared memory per multiprocessor that one program may take.
        l2 (float): Bytes from L2.
        memory (float): Bytes per second from memory, of the whole device.
    """

    capability: tuple[int, int]
    sms: int
    clock: float
    macs: int
    least_rows: int
    shared: int
    l2: float
    memory: float


# Datasheet figures; the L2 rate is a guess until measured.
_ARCHS = (
    Arch((8, 0), 108, 1.35e9, 1024, 16, 163 << 10, 30.0, 1.6e12),
    Arch((8, 6), 84, 1.7e9, 256, 16, 99 << 10, 25.0, 0.8e12),
    Arch((8, 9), 128, 2.4e9, 256, 16, 99 << 10, 25.0, 0.9e12),
    Arch((9, 0), 132, 1.7e9, 2048, 64, 227 << 10, 32.0, 3.5e12),
    Arch((10, 0), 148, 1.8e9, 4096, 64, 227 << 10, 32.0, 7e12),
    Arch((12, 0), 170, 2.4e9, 512, 16, 99 << 10, 25.0, 1.6e12),
)
_UNDER_LOAD = 0.9  # share of the boost clock, a guess


@cached
def arch(capability: tuple[int, int] = (9, 0), sms: int | None = None) -> Arch:
    """The newest known architecture not newer than the capability."""
    known = [a for a in _ARCHS if a.capability <= tuple(capability)]
    found = known[-1] if known else _ARCHS[0]._replace(capability=tuple(capability))
    return found._replace(sms=sms) if sms else found


def properties() -> tuple:
    """What ``torch.cuda.get_device_properties`` says of each visible NVIDIA GPU, by index.

    Empty where there is none. The one place where devices are looked at: tests replace it.
    """
    if torch.version.hip or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))


@cached
def devices() -> tuple[Arch, ...]:
    """The visible GPUs, by index."""
    return tuple(_described(p) for p in properties())


def _described(p) -> Arch:
    known = arch((p.major, p.minor), p.multi_processor_count)
    # In kHz, and the bus in bits; two transfers a clock. Zero or absent in some versions.
    clock = getattr(p, 'clock_rate', 0) * 1e3 * _UNDER_LOAD
    memory = getattr(p, 'memory_clock_rate', 0) * 1e3 * 2 * getattr(p, 'memory_bus_width', 0) / 8
    return known._replace(clock=clock or known.clock, memory=memory or known.memory)


def arch_of(device: torch.device | str) -> Arch:
    """A CUDA device; the table's Hopper where there is none."""
    device = torch.device(device)
    if device.type != 'cuda' or not devices():
        return arch()
    return devices()[torch.cuda.current_device() if device.index is None else device.index]


@cached
def weakest() -> Arch:
    """The device that choices are made for, so that they hold on each: see `backend.estimate`."""
    return min(devices(), key=lambda a: (a.capability, a.sms * a.clock), default=arch())
