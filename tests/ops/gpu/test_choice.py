"""Which backend a GPU would get. No GPU is needed: what devices say of themselves is made up."""

from types import SimpleNamespace

import pytest
import torch

from mmreplk.ops import dispatch
from mmreplk.ops.functional import problem_of
from mmreplk.ops.gpu import arch as triton_arch, backend as gpu
from mmreplk.ops.gpu.cuda import backend as cuda
from mmreplk.ops.problem import Problem


def properties(major, minor, sms, clock, memory_clock, bus, **more):
    """As of ``torch.cuda.get_device_properties``: clocks in kHz, the bus in bits."""
    return SimpleNamespace(major=major, minor=minor, multi_processor_count=sms, clock_rate=clock,
                           memory_clock_rate=memory_clock, memory_bus_width=bus, **more)


H100 = properties(9, 0, 132, 1980000, 2619000, 5120)
A100 = properties(8, 0, 108, 1410000, 1215000, 5120)
RTX4090 = properties(8, 9, 128, 2520000, 10501000, 384)
B200 = properties(10, 0, 148, 1965000, 3996000, 8192)
T4 = properties(7, 5, 40, 1590000, 5001000, 256)
RTX2080TI = properties(7, 5, 68, 1780000, 7000000, 352)
NEW = {'H100': H100, 'A100': A100, 'RTX 4090': RTX4090, 'B200': B200}
TASKS = {'forward': dispatch.choose, 'weight_grad': dispatch.choose_weight_grad}


@pytest.fixture(name='on')
def _on(monkeypatch):
    """``on(H100)``: a machine with these devices, on which Triton starts."""
    def on(*devices):
        dispatch.forget()
        monkeypatch.setattr(triton_arch, 'properties', lambda: devices)
        monkeypatch.setattr(gpu, '_start', lambda: None)
        monkeypatch.setattr(cuda, '_without_cuda', lambda: 'not in these tests')

    yield on
    monkeypatch.undo()
    dispatch.forget()


def problem(batch=64, channels=384, size=64, kernel=31, dtype=torch.float16, **changes):
    return Problem(dtype, 'cuda', False, batch, channels, size, size, 1, (kernel, kernel), (1, 1),
                   (kernel // 2, ) * 4, (1, 1), False)._replace(**changes)


@pytest.mark.parametrize('device', NEW)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('sizes', [
    dict(size=16), dict(size=32), dict(size=64), dict(size=7, channels=1024, kernel=13),
    dict(batch=2, channels=128, size=128), dict(batch=1, channels=512, height=50, width=80),
    dict(channels_last=True)])
def test_large_kernels_go_to_triton(on, device, dtype, sizes):
    pytest.importorskip('triton', minversion='3.3')
    on(NEW[device])
    for choose in TASKS.values():
        choice = choose(problem(dtype=dtype, **sizes))
        assert choice.backend == 'triton', choice
        assert 2 * choice.candidates['triton'] < choice.candidates['torch']
        assert choice.candidates['fft'] is None
        assert 'estimate' in choice.reason


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('device', NEW)
@pytest.mark.parametrize('kernel', [1, 3, 5, 7, 13])
def test_small_kernels_go_where_the_model_says(on, device, kernel, task):
    on(NEW[device])
    choice = TASKS[task](problem(kernel=kernel))
    times = {name: time for name, time in choice.candidates.items() if isinstance(time, float)}
    assert choice.backend == min(times, key=times.get)
    assert times.keys() <= {'triton', 'torch'}
    assert 'torch' in times


@pytest.mark.parametrize('device', NEW)
def test_tiny_problems_stay_with_one_launch(on, device):
    """Two launches through Python cost more than PyTorch's whole sum."""
    on(NEW[device])
    for size, kernel in ((7, 3), (7, 13), (14, 5), (1, 1)):
        for choose in TASKS.values():
            choice = choose(problem(batch=1, channels=8, size=size, kernel=kernel))
            assert choice.backend == 'torch', choice


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize(('changes', 'why'), [
    (dict(dtype=torch.float64), 'float64'),
    (dict(stride=(2, 2)), 'stride 1'),
    (dict(dilation=(2, 2)), 'dilation 1'),
    (dict(multiplier=2), 'as many outputs'),
    (dict(kernel=103), '101 taps'),
    (dict(batch=1 << 30, height=1, width=1), '32 bits'),
])
def test_what_triton_cannot_serve_goes_to_pytorch(on, changes, why, task):
    pytest.importorskip('triton', minversion='3.3')
    on(H100)
    choice = TASKS[task](problem(**changes))
    assert choice.backend == 'torch'
    assert why in choice.candidates['triton']
    with pytest.raises(RuntimeError, match=why):
        TASKS[task](problem(**changes), 'triton')


def test_old_devices_stay_with_pytorch(on):
    pytest.importorskip('triton', minversion='3.3')
    for devices in ((T4, ), (RTX2080TI, ), (H100, T4), (T4, H100)):
        on(*devices)
        choice = dispatch.choose(problem())
        assert choice.backend == 'torch'
        assert 'compute capability 8.0, not (7, 5)' in choice.candidates['triton']


def test_the_product_of_spectra_is_only_taken_by_name(on):
    for dtype in (torch.float32, torch.float64):
        on(A100)
        for choose in TASKS.values():
            assert choose(problem(dtype=dtype)).backend != 'fft'
            assert choose(problem(dtype=dtype), 'fft').backend == 'fft'


def test_without_triton(on, monkeypatch):
    on(H100)
    monkeypatch.setattr(gpu.importlib.util, 'find_spec', lambda name: None)
    for choose in TASKS.values():
        choice = choose(problem())
        assert choice.backend == 'torch'
        assert choice.candidates['triton'] == 'Triton is not installed'


def test_where_triton_does_not_start(on, monkeypatch):
    """As on a machine without a C compiler: PyTorch takes over, and says why."""
    pytest.importorskip('triton', minversion='3.3')

    def fails():
        raise RuntimeError('Failed to find C compiler')

    on(H100)
    monkeypatch.setattr(gpu, '_start', fails)
    choice = dispatch.choose(problem())
    assert choice.backend == 'torch'
    assert 'Failed to find C compiler' in choice.candidates['triton']
    with pytest.raises(RuntimeError, match='Failed to find C compiler'):
        dispatch.choose(problem(), 'triton')


def test_without_a_device_nothing_is_started(on):
    on()
    assert triton_arch.weakest() == triton_arch.arch_of('cuda:3') == triton_arch.arch()
    assert dispatch.choose(problem()).candidates['torch'] > 0


def test_devices_are_described(on):
    on(H100, A100, T4)
    h100, a100, t4 = (triton_arch.arch_of(f'cuda:{i}') for i in range(3))
    assert (h100.capability, a100.capability, t4.capability) == ((9, 0), (8, 0), (7, 5))
    assert [round(d.memory / 1e9) for d in (h100, a100, t4)] == [3352, 1555, 320]
    assert h100.sms == 132
    assert 1.7e9 < h100.clock < 1.98e9
    assert triton_arch.weakest() == t4
    # Relatives take their row's capability, and its figures where the driver tells none.
    on(properties(8, 7, 16, 0, 0, 0), SimpleNamespace(major=12, minor=1, multi_processor_count=48))
    for device, row in enumerate([(8, 6), (12, 0)]):
        known, found = triton_arch.arch(row), triton_arch.arch_of(f'cuda:{device}')
        assert found == known._replace(sms=found.sms)


def test_more_of_a_device_is_never_slower(on):
    p = problem()
    for change in (dict(multi_processor_count=66), dict(clock_rate=990000),
                   dict(memory_clock_rate=1300000)):
        on(H100)
        whole = {task: dispatch.candidates(p, task) for task in TASKS}
        on(SimpleNamespace(**{**vars(H100), **change}))
        for task in TASKS:
            less = dispatch.candidates(p, task)
            assert all(less[name] >= whole[task][name]
                       for name in ('torch', 'triton') if isinstance(less[name], float))


# The authors' table, 24 layers on a 2080 Ti in float32, milliseconds: PyTorch's rows.
PUBLISHED = {
    16: [5.6, 11.0, 14.4, 17.6, 36.0, 57.2, 83.4, 133.5, 150.7, 171.4],
    32: [21.9, 34.1, 54.8, 76.1, 141.2, 230.5, 342.3, 557.8, 638.6, 734.8],
    64: [69.6, 141.2, 228.6, 319.8, 600.0, 977.7, 1454.4, 2371.1, 2698.4, 3090.4],
}


@pytest.mark.parametrize('size', PUBLISHED)
def test_pytorchs_estimate_follows_the_published_latencies(on, size):
    on(RTX2080TI)
    for kernel, milliseconds in zip((3, 5, 7, 9, 13, 17, 21, 27, 29, 31), PUBLISHED[size],
                                    strict=True):
        time = 24e3 * dispatch.candidates(problem(size=size, kernel=kernel, dtype=torch.float32),
                                    'forward')['torch']
        assert 0.8 < time / milliseconds < 1.4


def test_maps_are_not_copied_as_a_whole(stand_in):
    """A family's launchers copy what is not contiguous a few channels at a time, to save memory."""
    x = torch.randn(1, 4, 20, 20).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 1, 13, 13)
    problem = problem_of(x, weight, None, 1, 6, 1)
    dispatch.forward(x, weight, None, problem, stand_in.name, False)
    dispatch.weight_grad(x, x, problem, stand_in.name)
    seen = [call.tensors for call in stand_in.calls if call.problem == problem]
    assert [len(tensors) for tensors in seen] == [2, 2]
    assert seen[0][0] is seen[1][0] is seen[1][1] is x
