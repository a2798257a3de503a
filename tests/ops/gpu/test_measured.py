"""Choices by measurement: where users ask PyTorch for them, once a kind of problem, kept."""

import json
import warnings

import pytest
import torch

from mmreplk.ops import dispatch, explain, large_kernel_dwconv2d
from mmreplk.ops.gpu import arch, health, measured


@pytest.fixture
def timer(monkeypatch, stand_in):
    """A stand-in for the clock: what a call of the stand-in takes, PyTorch 3 ms."""
    times = dict(torch=3.0)
    taken = []

    def seconds_of(run, device):
        count = len(stand_in.calls)
        run()
        last = stand_in.calls[-1] if len(stand_in.calls) > count else None
        name = 'torch' if last is None else last.variant[0]
        taken.append(name)
        return 1e-3 * (times['torch'] if last is None else stand_in.milliseconds[name])

    monkeypatch.setattr(measured, 'seconds_of', seconds_of)
    seconds_of.times, seconds_of.taken = times, taken
    return seconds_of


def switches(benchmark, deterministic=False):
    """PyTorch's, while the context lasts."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=benchmark,
                                      deterministic=deterministic)


@pytest.fixture
def asked():
    """PyTorch's switches, as mm configs set them."""
    dispatch.forget()
    with switches(True):
        yield


def test_nothing_is_timed_unless_asked_for(stand_in, timer, data, right, own_cache):
    x, weight, bias, padding = data
    assert not torch.backends.cudnn.benchmark
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    with switches(True, deterministic=True):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    with switches(True):
        torch.use_deterministic_algorithms(True)
        try:
            right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
        finally:
            torch.use_deterministic_algorithms(False)
        assert not timer.taken
        assert not list(own_cache.glob('measured-*'))
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert timer.taken == ['torch', 1, 2, 3]


def test_the_fastest_variant_is_taken(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 2.0, 2: 0.5, 3: 0.7}
    for _ in range(3):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
        assert stand_in.calls[-1].variant == (2, )
    assert timer.taken == ['torch', 1, 2, 3], 'once a kind of problem'
    choice = explain(x, weight, bias, padding=padding)
    assert choice.backend == stand_in.name
    assert 'measured, 0.5 ms; torch takes 6 times as long' in choice.reason
    assert choice.candidates['torch'] == pytest.approx(3e-3)
    assert 'stand-in measured 0.5 ms' in str(choice)


def test_pytorch_where_it_is_faster(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    timer.times['torch'] = 0.1
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    count = len(stand_in.calls)
    for _ in range(2):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert len(stand_in.calls) == count
    assert explain(x, weight, bias, padding=padding).backend == 'torch'
    # Asked for by name, the best variant of the family.
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=stand_in.name))
    assert len(stand_in.calls) == count + 1


def test_where_the_model_would_take_pytorch(stand_in, timer, asked, data, right, monkeypatch):
    """A model that thinks too little of the kernels is overruled, in training as well."""
    x, weight, bias, padding = data
    monkeypatch.setitem(dispatch.BACKENDS, 'torch', dispatch.BACKENDS['torch']._replace(
        estimate=lambda problem, task: 1e-12))
    dispatch.forget()
    assert explain(x, weight, bias, padding=padding).backend == 'torch'
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert explain(x, weight, bias, padding=padding).backend == stand_in.name
    count = len(stand_in.calls)
    out = large_kernel_dwconv2d(x, weight.requires_grad_(), bias, padding=padding)
    out.sum().backward()
    assert {call.task for call in stand_in.calls[count:]} == {'forward', 'weight_grad'}
    assert timer.taken == ['torch', 1, 2, 3] * 2


def test_kinds_of_problems(stand_in, timer, asked, data):
    """Batch and channels count to a power of two; sizes, dtype, layout and padding in full."""
    _, weight, bias, padding = data

    def run(*shape, dtype=torch.float32, channels_last=False, bias=None, relu=None):
        timer.taken.clear()
        x = torch.randn(shape).to(dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        large_kernel_dwconv2d(x, weight.to(dtype), bias, padding=padding, activation=relu)
        return len(timer.taken)

    assert run(3, 3, 12, 14) == 4
    assert run(4, 3, 12, 14) == 0
    for change in (dict(dtype=torch.float16), dict(channels_last=True), dict(bias=bias),
                   dict(relu='relu')):
        assert run(3, 3, 12, 14, **change) == 4
        assert run(4, 3, 12, 14, **change) == 0
    assert run(5, 3, 12, 14) == 4
    assert run(3, 3, 12, 15) == 4


def test_kept_for_other_processes(stand_in, timer, asked, data, right, restart, own_cache):
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 2.0, 2: 0.5, 3: 0.7}
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    file, = own_cache.glob('measured-*.json')
    assert json.loads(file.read_text())['about']['driver'] == '580.1'
    restart()
    choice = explain(x, weight, bias, padding=padding)  # runs nothing, reads
    assert choice.backend == stand_in.name
    assert 'measured' in choice.reason
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert timer.taken == ['torch', 1, 2, 3]
    assert stand_in.calls[-1].variant == (2, )
    # Another version measures anew, beside what is there.
    restart()
    stand_in.source = '2'
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert len(timer.taken) == 8
    assert len(list(own_cache.glob('measured-*.json'))) == 2


DAMAGE = {
    'empty': lambda rows: '', 'cut': lambda rows: json.dumps(rows)[:60],
    'binary': lambda rows: b'\x80\x00\xff' * 9, 'a list': lambda rows: '[1]',
    'deep': lambda rows: '[' * 100000,
    'NaN': lambda rows: json.dumps(rows).replace('0.0005', 'NaN'),
    'negative': lambda rows: json.dumps(rows).replace('0.0005', '-1'),
    'no such variant': lambda rows: json.dumps(rows).replace('[2]', '[99]'),
    'no such family': lambda rows: json.dumps(rows).replace('"stand-in": ', '"gone": '),
    'text': lambda rows: json.dumps(rows).replace('[2]', '"x"'),
    'another format': lambda rows: json.dumps(rows | dict(format=99)),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_cache_is_measured_anew(stand_in, timer, asked, data, right, restart, own_cache,
                                          damage):
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 2.0, 2: 0.5, 3: 0.7}
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    for file in own_cache.glob('*.json'):
        text = DAMAGE[damage](json.loads(file.read_text()))
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    restart()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert timer.taken == ['torch', 1, 2, 3] * 2
    assert stand_in.calls[-1].variant == (2, )
    restart()
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert len(timer.taken) == 8, 'it was written again'


def test_a_variant_that_fails_is_left_out(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 2.0, 2: 0.5, 3: 0.7}
    stand_in.raises = lambda task, problem, variant: (
        ValueError('out of resource: shared memory') if variant == (2, ) else None)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert stand_in.calls[-1].variant == (3, )


def test_the_first_variant_fails(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    stand_in.raises = lambda *_: RuntimeError('PTXAS error')
    with pytest.warns(RuntimeWarning, match='PTXAS error'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert timer.taken == ['torch']
    assert explain(x, weight, bias, padding=padding).backend == 'torch'


def test_a_variant_that_lies_gives_the_family_up(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    stand_in.lies = lambda out, problem: out * (stand_in.calls[-1].variant != (2, ))
    with pytest.warns(RuntimeWarning, match='is wrong'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert health.why(x.device, stand_in.name)
    assert explain(x, weight, bias, padding=padding).backend != stand_in.name


def test_what_memory_is_too_small_for_is_left_out(stand_in, timer, asked, data, right, restart,
                                                  own_cache):
    """And measured anew by the next process, which may have more."""
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 0.2, 2: 0.5, 3: 0.7}
    for short, expected in (((1, ), (2, )), ((2, ), (1, ))):
        restart()
        stand_in.raises = lambda task, problem, variant, short=short: (
            torch.OutOfMemoryError('CUDA out of memory') if variant == short else None)
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
        assert stand_in.calls[-1].variant == expected
        assert not health.why(x.device, stand_in.name)
        assert not list(own_cache.glob('measured-*'))
    restart()
    stand_in.raises = lambda *_: torch.OutOfMemoryError('CUDA out of memory')
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert explain(x, weight, bias, padding=padding).backend == 'torch'


def test_families_beside_each_other(stand_in, another, timer, asked, data, right, monkeypatch):
    other = another('other')
    x, weight, bias, padding = data
    times = {'stand-in': 0.6, 'other': 0.4}

    def seconds_of(run, device):
        counts = len(stand_in.calls), len(other.calls)
        run()
        moved = len(stand_in.calls) > counts[0], len(other.calls) > counts[1]
        return 1e-3 * (times['stand-in'] if moved[0] else times['other'] if moved[1] else 5.0)

    monkeypatch.setattr(measured, 'seconds_of', seconds_of)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    choice = explain(x, weight, bias, padding=padding)
    assert choice.backend == 'other'
    assert choice.candidates['stand-in'] == pytest.approx(6e-4)
    # The faster one fails later: the other takes over, still by what was measured.
    other.raises = lambda *_: RuntimeError('launch failed')
    with pytest.warns(RuntimeWarning, match="'other' kernels failed"):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    choice = explain(x, weight, bias, padding=padding)
    assert choice.backend == 'stand-in'
    assert 'measured, 0.6 ms' in choice.reason


def test_never_while_a_graph_is_recorded(stand_in, timer, asked, data, right, capturing):
    x, weight, bias, padding = data
    capturing(True)
    with pytest.warns(RuntimeWarning, match='call it once before'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert not timer.taken
    capturing(False)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert timer.taken == ['torch', 1, 2, 3]
    capturing(True)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))


def test_compiled(stand_in, timer, asked, data, right):
    x, weight, bias, padding = data
    stand_in.milliseconds = {1: 2.0, 2: 0.5, 3: 0.7}
    torch.compiler.reset()
    compiled = torch.compile(lambda x: large_kernel_dwconv2d(x, weight, bias, padding=padding),
                             backend='aot_eager', fullgraph=True)
    right(compiled(x))
    assert timer.taken == ['torch', 1, 2, 3]
    right(compiled(x))
    assert stand_in.calls[-1].variant == (2, )


def test_what_nothing_else_serves_is_not_timed(stand_in, timer, asked):
    large_kernel_dwconv2d(torch.randn(1, 2, 9, 9).double(), torch.randn(2, 1, 5, 5).double())
    large_kernel_dwconv2d(torch.randn(1, 2, 19, 19), torch.randn(2, 1, 5, 5), stride=2)
    assert not timer.taken


def test_another_device_measures_for_itself(stand_in, timer, asked, data, monkeypatch, restart,
                                            own_cache):
    """A GPU of another kind has a file of its own."""
    from types import SimpleNamespace
    device = torch.device('cuda', 0)
    found = set()
    for name, major in (('H100', 9), ('A100', 8)):
        monkeypatch.setattr(arch, 'properties', lambda name=name, major=major: (SimpleNamespace(
            name=name, major=major, minor=0, multi_processor_count=100), ))
        restart()
        found.add(measured.path(device))
    assert len(found) == 2
    assert all(path.parent == own_cache for path in found)


def test_the_clock(stand_in):
    """The real one, on the CPU."""
    import time
    seconds = measured.seconds_of(lambda: time.sleep(2e-3), torch.device('cpu'))
    assert 2e-3 <= seconds < 0.1
