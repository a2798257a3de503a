"""The CUDA kernels on the CPU: `emulated` puts emulate.py in the driver's place."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # of what the tests here share

import emulate  # noqa: E402

from mmreplk.ops.gpu.cuda import driver  # noqa: E402


class Emulated:
    """Runs launches, into outputs that are NaN before.

    Attributes:
        launches (list[Launch]): All so far.
        counts (list[emulate.Counts]): What each has counted.
    """

    def __init__(self):
        self.launches, self.counts = [], []

    @property
    def plain_sums(self):
        """Results that were computed anew: none, unless there is Inf or NaN."""
        return sum(counts.plain_sums for counts in self.counts)

    def run(self, launch, tensors):
        if launch.function != 'sum_parts':
            for name in ('y', 'sums'):
                if tensors.get(name) is not None:
                    tensors[name].fill_(torch.nan)
        self.launches.append(launch)
        self.counts.append(emulate.launch(launch, tensors))


@pytest.fixture
def emulated(monkeypatch):
    if emulate.COMPILER is None:
        pytest.skip('g++, which compiles the kernels for the CPU, is not installed')
    one = Emulated()
    monkeypatch.setattr(driver, 'run', one.run)
    return one
