"""What the parts of `first_gpu.py` share: the problems, the clock, the rows."""

import time
import traceback
from typing import NamedTuple

import torch
from gpu_machine import Machine
from rows import RowFile

from mmreplk.ops.gpu import families, tiles
from mmreplk.ops.problem import Problem

DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'tf32': torch.float32,
          'fp32': torch.float32}
TASKS = ('forward', 'weight_grad')


class Scale(NamedTuple):
    """How large the problems are.

    Attributes:
        batch, channels, layers (int): Of the stack, 64, 384 and 24 in the paper.
        maps (tuple[int, ...]): Its sides.
        kernel (int): Its kernel.
    """

    batch: int = 64
    channels: int = 384
    layers: int = 24
    maps: tuple[int, ...] = (16, 32, 64)
    kernel: int = 31


class OutOfTime(Exception):
    """A part's deadline has passed."""


class Context:
    """What a part works with.

    Args:
        machine (Machine): The GPU.
        file (RowFile): Where rows go, at once.
        scale (Scale): Of the problems.
        common (dict): Columns of each row.
    """

    def __init__(self, machine: Machine, file: RowFile, scale: Scale, common: dict):
        self.machine, self.file, self.scale = machine, file, scale
        self.common, self.part, self.deadline = common, '', float('inf')
        self.rows = list(file.earlier)

    def row(self, **columns) -> dict:
        """Write a row."""
        row = self.common | dict(part=self.part) | columns
        self.rows.append(row)
        self.file.write(row)
        return row

    def check_time(self, what: str) -> None:
        """Raises `OutOfTime` where there is none left for this."""
        if time.monotonic() > self.deadline:
            raise OutOfTime(what)

    def attempt(self, columns: dict, run) -> dict | None:
        """A row of what ``run`` returns, or of what it raises; None if nothing else can run.

        Raises:
            RuntimeError: If the device itself has failed.
        """
        try:
            return self.row(**columns, **({'status': 'ok'} | run()))
        except OutOfTime:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row = self.row(**columns, status='failed', note=(
                f'{type(error).__name__}: {" ".join(str(error).split())[:300]} '
                f'({where.name}, line {where.lineno})'))
            self.machine.synchronize()
            return row

    def problem(self, dtype: str, batch: int, channels: int, height: int, width: int,
                kernel: tuple[int, int], **changes) -> Problem:
        """Padded by half of the kernel."""
        (kh, kw) = kernel
        padding = (kh // 2, kh // 2, kw // 2, kw // 2)
        return Problem(DTYPES[dtype], self.machine.spoken, False, batch, channels, height, width,
                       1, kernel, (1, 1), padding, (1, 1), False)._replace(**changes)

    def stack(self) -> list[tuple[str, Problem]]:
        """One layer of the paper's stack, by dtype and map."""
        s = self.scale
        return [(dtype, self.problem(dtype, s.batch, s.channels, side, side,
                                     (s.kernel, s.kernel)))
                for side in s.maps for dtype in ('fp16', 'tf32')]

    def normal(self, *shape, dtype, scale: float = 1.0) -> torch.Tensor:
        """Random numbers on the device."""
        return (torch.randn(shape, device=self.machine.device) * scale).to(dtype)


def mode_of(dtype: str) -> str:
    """The mode of a dtype by name."""
    return tiles.mode_of(DTYPES[dtype], dtype == 'tf32')


def shape_of(problem: Problem) -> list[int]:
    """For a row: N, C, H, W, Kh, Kw."""
    p = problem
    return [p.batch, p.channels, p.height, p.width, *p.kernel]


def able(problem: Problem, task: str) -> list:
    """The families that serve a problem."""
    return [family for family in families.FAMILIES.values() if family.supports(problem, task)[0]]


def allow_tf32(dtype: str) -> None:
    """Set PyTorch's switches for a dtype by name."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == 'tf32'
