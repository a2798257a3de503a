"""A stand-in for a family of GPU kernels, on the CPU: right or wrong, slow or broken, as told."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import dispatch
from mmreplk.ops.gpu import arch, families, health, measured, safe, selfcheck, versions
from mmreplk.ops.gpu.family import Family


class Call(NamedTuple):
    task: str
    problem: object
    variant: tuple
    tensors: tuple


class StandIn:
    """A family on the CPU. What it does is set from outside.

    Attributes:
        name (str): Of family and backend.
        raises (Callable, optional): ``(task, problem, variant) -> exception`` or None.
        lies (Callable, optional): ``(out, problem) -> out`` as the kernels would have it.
        milliseconds (dict): What a call takes by variant number, for the stand-in timer.
        calls (list[Call]): What was launched.
        source (str): Of its version.
    """

    def __init__(self, name='stand-in'):
        self.name, self.source = name, '1'
        self.raises = self.lies = None
        self.milliseconds = {1: 1.0, 2: 1.0, 3: 1.0}
        self.calls = []

    @property
    def family(self):
        return Family(self.name, self.supports, lambda problem, task: 1e-9,
                      lambda problem, task, mode, device: [(1, ), (2, ), (3, ), (4, )],
                      self.probe, self.forward, self.weight_grad,
                      lambda: dict(source=self.source), self.read)

    def supports(self, problem, task):
        if problem.dtype == torch.float64 or problem.stride != (1, 1) or problem.multiplier != 1:
            return False, 'the stand-in does not'
        return True, ''

    def probe(self, problem, task, mode, variant, device):
        small = problem._replace(batch=2, channels=2, channels_last=False)
        return f'{task} {problem.dtype} {mode} {variant[0]}', small

    def read(self, task, value):
        number, = value
        if number not in (1, 2, 3, 4):
            raise ValueError(value)
        return number,

    def _launch(self, task, problem, variant, tensors):
        self.calls.append(Call(task, problem, tuple(variant), tensors))
        error = self.raises and self.raises(task, problem, variant)
        if error:
            raise error

    def forward(self, x, weight, bias, problem, mode, variant):
        self._launch('forward', problem, variant, (x, weight))
        out = selfcheck.exact_forward(x, weight, bias, problem).to(x.dtype)
        return self.lies(out, problem) if self.lies else out

    def weight_grad(self, x, grad, problem, mode, variant):
        self._launch('weight_grad', problem, variant, (x, grad))
        out = selfcheck.exact_weight_grad(x, grad, problem).to(x.dtype)
        return self.lies(out, problem) if self.lies else out


def install(monkeypatch, one):
    """Put a stand-in among families and backends, first."""
    families_now = {one.name: one.family, **families.FAMILIES}
    monkeypatch.setattr(families, 'FAMILIES', families_now)
    record = dispatch.Backend(
        one.name, one.supports, lambda problem, task: 1e-9,
        lambda *args: safe.forward(one.name, *args),
        lambda *args: safe.weight_grad(one.name, *args))
    monkeypatch.setattr(dispatch, 'BACKENDS', {one.name: record, **dispatch.BACKENDS})
    monkeypatch.setattr(dispatch, 'CHOICES', ('auto', *dispatch.BACKENDS))


def forget():
    """As in a new process."""
    health.forget()
    selfcheck.forget()
    measured.forget()
    safe.forget()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """The user's cache is a folder of this test; what processes remember is forgotten."""
    monkeypatch.setenv('MMREPLK_CACHE', str(tmp_path / 'cache'))
    forget()
    yield tmp_path / 'cache' / 'gpu'
    monkeypatch.undo()
    forget()


@pytest.fixture
def restart():
    """``restart()``: as if the process had ended and another begun."""
    return forget


@pytest.fixture
def on_cpu(monkeypatch):
    """Have the CPU count as a device for families of GPU kernels."""
    monkeypatch.setattr(arch, 'DEVICE_TYPES', ('cuda', 'cpu'))
    monkeypatch.setattr(versions, 'driver', lambda: '580.1')
    dispatch.forget()


@pytest.fixture
def stand_in(monkeypatch, on_cpu):
    """One that works."""
    one = StandIn()
    install(monkeypatch, one)
    return one


@pytest.fixture
def another(monkeypatch, stand_in):
    """``another(name)``: one more, before the first."""
    def another(name):
        one = StandIn(name)
        install(monkeypatch, one)
        dispatch.forget()
        return one

    return another


@pytest.fixture
def capturing(monkeypatch):
    """``capturing(True)``: from now on, a CUDA graph is recorded."""
    state = [False]
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: state[0])
    return lambda now: state.__setitem__(0, now)


@pytest.fixture
def data():
    """x, weight, bias and padding of a small call, float32."""
    return torch.randn(2, 3, 12, 14), torch.randn(3, 1, 5, 7), torch.randn(3), (2, 3)


@pytest.fixture
def right(data, compare):
    """``right(out)``: asserts that this is the call's result."""
    x, weight, bias, padding = data
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding, groups=3)
    return lambda out: compare(out, expected, torch.float32)
