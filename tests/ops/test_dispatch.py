"""Which backend runs: what `explain` says, and that it is what happens."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from mmreplk.ops import LargeKernelDWConv2d, dispatch, explain, large_kernel_dwconv2d
from mmreplk.ops.cpu import backend as cpu, kernels as native
from mmreplk.ops.functional import TINY, problem_of

NAMES = set(dispatch.BACKENDS) - {'auto'}


class Spies:
    """Names of the backends that ran, in order; patched in by hand, for hypothesis's sake."""

    def __init__(self):
        self.forward, self.weight_grad = [], []

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        both, plain = cpu.backward, F.conv2d

        def watched(name, seen, run):
            def call(*args):
                seen.append(name)
                return run(*args)
            return call

        def backward(*args):  # both gradients in one pass
            self.forward.append('fft')
            self.weight_grad.append('fft')
            return both(*args)

        def conv2d(*args, **keywords):
            self.forward.append('torch')
            return plain(*args, **keywords)

        for name in ('fft', 'direct'):
            backend = dispatch.BACKENDS[name]
            self._patch.setitem(dispatch.BACKENDS, name, backend._replace(
                forward=watched(name, self.forward, backend.forward),
                weight_grad=watched(name, self.weight_grad, backend.weight_grad)))
        prepared = cpu.prepared

        def prepare(problem, name, strides):  # for the calls after the first of a kind
            run = prepared(problem, name, strides)
            return run and watched(name, self.forward, run)

        self._patch.setattr(cpu, 'prepared', prepare)
        self._patch.setattr(dispatch, 'prepared_calls', {})
        self._patch.setattr(cpu, 'backward', backward)
        self._patch.setattr(F, 'conv2d', conv2d)
        return self

    def __exit__(self, *error):
        self._patch.undo()


@pytest.fixture
def spies():
    with Spies() as spies:
        yield spies


@pytest.fixture
def fresh():
    """A cache without the choices of this test, before and after."""
    dispatch.forget()
    yield dispatch.forget
    dispatch.forget()


@st.composite
def calls(draw):
    """Positional arguments: small and large maps and kernels of all kinds."""
    size = draw(st.sampled_from([3, 7, 14, 40])), draw(st.sampled_from([4, 9, 33]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 31), (13, 13), (31, 31), (8, 4)]))
    channels, multiplier = draw(st.sampled_from([1, 3, 20])), draw(st.sampled_from([1, 1, 2]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x = normal(draw(st.integers(1, 2)), channels, *size)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    dilation = draw(st.sampled_from([1, 1, 2]))
    padding = tuple(dilation * (k - 1) // 2 + draw(st.integers(0, 2)) + 1 for k in kernel)
    bias = normal(channels * multiplier) if draw(st.booleans()) else None
    return (x, normal(channels * multiplier, 1, *kernel), bias, draw(st.sampled_from([1, 1, 1, 2])),
            padding, dilation)


def right(x, weight, bias, stride, padding, dilation):
    wide = [None if t is None else t.detach().double() for t in (x, weight, bias)]
    return F.conv2d(*wide, stride, padding, dilation, x.shape[1])


def attempt(function, *args, **keywords):
    """The answer and the words of the error, one of which is None."""
    try:
        return function(*args, **keywords), None
    except RuntimeError as error:
        return None, str(error)


# -- what explain says -----------------------------------------------------------------------------

@settings(max_examples=60, deadline=None, derandomize=True)
@given(call=calls())
def test_explain_answers_in_full(call):
    choice = explain(*call)
    assert choice.backend in NAMES
    assert choice.reason
    assert '\n' not in choice.reason
    assert set(choice.candidates) == NAMES
    for name, value in choice.candidates.items():
        assert value is None or isinstance(value, str) or 0 < value < 60, name
    assert not isinstance(choice.candidates[choice.backend], str)
    text = str(choice)
    assert text.startswith(f'{choice.backend}: {choice.reason}\n')
    assert all(f'\n  {name}' in text for name in NAMES)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(call=calls())
def test_auto_takes_the_smallest_estimate(call):
    choice = explain(*call)
    known = {name: time for name, time in choice.candidates.items() if isinstance(time, float)}
    if known and 'so small' not in choice.reason:
        assert known[choice.backend] == min(known.values())


def test_explain_computes_nothing(spies):
    # A map of 40 TB: nothing of its size may be touched.
    x = torch.empty(1).expand(10**4, 10**3, 10**3, 10**3)
    explain(x, torch.randn(10**3, 1, 31, 31), None, 1, 15)
    explain(x[:1, :3, :64, :64], torch.randn(3, 1, 31, 31), None, 1, 15)
    assert spies.forward == []


def test_answers_are_the_callers_own(fresh):
    """Writing into one does not change the next."""
    call = torch.randn(1, 3, 64, 64), torch.randn(3, 1, 31, 31), None, 1, 15
    before = str(explain(*call))
    for name in NAMES:
        explain(*call).candidates[name] = 'spoilt'
    assert str(explain(*call)) == before


def test_explain_follows_autocast():
    call = torch.randn(1, 3, 64, 64), torch.randn(3, 1, 31, 31).bfloat16(), None, 1, 15
    with pytest.raises(RuntimeError):
        explain(*call)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert explain(*call).backend in NAMES


# -- it is what happens ----------------------------------------------------------------------------

@settings(max_examples=120, deadline=None, derandomize=True)
@given(call=calls(), backend=st.sampled_from(['auto', *sorted(NAMES)]), training=st.booleans())
def test_explain_agrees_with_what_runs(call, backend, training):
    x, weight, *rest = call
    weight.requires_grad_(training)
    choice, refusal = attempt(explain, x, weight, *rest, backend=backend)
    with Spies() as spies:
        _, error = attempt(large_kernel_dwconv2d, x, weight, *rest, backend=backend)
    assert error == refusal
    if error:
        assert spies.forward == []
        assert f"backend='{backend}' cannot serve this convolution" in error
        return
    assert spies.forward == [choice.backend]
    if backend != 'auto':
        assert choice.backend == backend
        assert choice.reason == 'asked for by name'


@settings(max_examples=50, deadline=None, derandomize=True)
@given(call=calls())
def test_every_backend_that_can_serve_gives_the_same(compare, call):
    expected = right(*call)
    compare(large_kernel_dwconv2d(*call), expected, call[0].dtype)
    for name, why in explain(*call).candidates.items():
        if isinstance(why, str):
            with pytest.raises(RuntimeError, match=f"backend='{name}' cannot serve") as error:
                large_kernel_dwconv2d(*call, backend=name)
            assert why in str(error.value)
        else:
            compare(large_kernel_dwconv2d(*call, backend=name), expected, call[0].dtype)


def test_the_module_asks_for_its_backend(spies):
    x = torch.randn(1, 3, 40, 40)
    for backend in ('fft', 'torch'):
        layer = LargeKernelDWConv2d(3, 3, 13, padding=6, groups=3, backend=backend)
        layer(x)
        with torch.no_grad():
            layer(x)
    assert spies.forward == ['fft', 'fft', 'torch', 'torch']


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct', 'torch'])
def test_gradients_use_the_backend_asked_for(spies, backend):
    if backend == 'direct' and not native.available()[0]:
        pytest.skip(native.available()[1])
    x = torch.randn(1, 3, 40, 40, requires_grad=True)
    weight = torch.randn(3, 1, 13, 13, requires_grad=True)
    problem = problem_of(x, weight, None, 1, 6, 1)
    want = [dispatch.choose(problem, backend).backend,
            dispatch.choose_weight_grad(problem, backend).backend]
    large_kernel_dwconv2d(x, weight, None, 1, 6, backend=backend).sum().backward()
    if backend == 'torch':  # all of it is PyTorch's
        assert spies.forward == ['torch']
        assert spies.weight_grad == []
    else:
        # The gradient of the input of a "same" convolution has the geometry of the convolution.
        assert spies.forward == [want[0]] * 2
        assert spies.weight_grad == [want[1]]


def test_gradients_of_a_backend_that_cannot_serve_them(compare, monkeypatch, fresh):
    """They take what auto would take, and do not raise."""
    backend = dispatch.BACKENDS['fft']
    monkeypatch.setitem(dispatch.BACKENDS, 'fft', backend._replace(
        supports=lambda problem, task: (False, 'left out by the test') if task == 'weight_grad'
        else backend.supports(problem, task)))
    x, weight = torch.randn(1, 3, 24, 24), torch.randn(3, 1, 13, 13, requires_grad=True)
    with Spies() as spies:
        large_kernel_dwconv2d(x, weight, None, 1, 6, backend='fft').sum().backward()
    assert spies.forward == ['fft']
    assert 'fft' not in spies.weight_grad
    wide = weight.detach().double().requires_grad_()
    F.conv2d(x.double(), wide, None, 1, 6, 1, 3).sum().backward()
    compare(weight.grad, wide.grad, torch.float32)


# -- what the choice depends on --------------------------------------------------------------------

VALUES = {
    'zeros': torch.zeros, 'ones': torch.ones, 'random': torch.randn,
    'NaN': lambda *s: torch.full(s, torch.nan), 'infinite': lambda *s: torch.full(s, torch.inf),
    'subnormal': lambda *s: torch.full(s, 1e-42), 'huge': lambda *s: torch.full(s, 3e38),
    'repeated': lambda *s: torch.randn(1).expand(s).contiguous()}


@pytest.mark.parametrize(('size', 'kernel'), [(40, 31), (14, 13), (40, 3)])
def test_never_on_values(size, kernel):
    seen = set()
    for make in VALUES.values():
        for other in (torch.randn, make):
            x, weight = make(1, 4, size, size), other(4, 1, kernel, kernel)
            choice = explain(x, weight, None, 1, kernel // 2)
            with Spies() as spies:
                large_kernel_dwconv2d(x, weight, None, 1, kernel // 2)
            # What comes later is the repair of planes that hold NaN or Inf.
            assert spies.forward[0] == choice.backend
            seen.add(str(choice))
    assert len(seen) == 1


def test_on_nothing_but_the_problem(fresh):
    """Not on the order of calls, the threads, the strides or who needs a gradient."""
    x, weight = torch.randn(2, 3, 40, 40), torch.randn(3, 1, 13, 13)
    once = explain(x, weight, None, 1, 6)
    for size in (5, 90, 7, 64):
        explain(torch.randn(1, 3, size, size), weight, None, 1, 6)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            fresh()
            assert explain(x, weight, None, 1, 6) == once
    finally:
        torch.set_num_threads(threads)
    assert explain(torch.randn(2, 3, 40, 80)[..., ::2], weight, None, 1, 6) == once
    assert explain(x.clone().requires_grad_(), torch.nn.Parameter(weight), None, 1, 6) == once
    with torch.inference_mode():
        assert explain(x, weight, None, (1, 1), [6, 6], (1, )) == once
    assert explain(x[0], weight, None, 1, 'same') == explain(x[:1], weight, None, 1, 6)


def test_choices_of_several_threads(fresh):
    calls = [(torch.randn(1, 3, size, size), torch.randn(3, 1, 13, 13), None, 1, 6)
             for size in range(10, 30)]
    once = [explain(*call) for call in calls]
    fresh()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append([explain(*c) for c in calls]))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [once] * 4


# -- small and empty -------------------------------------------------------------------------------

def test_tiny_problems_go_straight_to_pytorch(spies):
    weight, longest = torch.randn(1, 1, 3, 3), (TINY - 1) // 9
    for length, tiny in ((1, True), (longest, True), (longest + 1, False)):
        x = torch.randn(1, 1, 1, length)
        choice = explain(x, weight, None, 1, 1)
        assert ('so small' in choice.reason) == tiny
        assert choice.backend == 'torch' or not tiny
        spies.forward.clear()
        large_kernel_dwconv2d(x, weight, None, 1, 1)
        large_kernel_dwconv2d(x[0], weight, None, 1, 1)
        assert spies.forward == [choice.backend] * 2


def test_tiny_problems_of_a_backend_asked_for(spies):
    x, weight = torch.randn(1, 1, 5, 5), torch.randn(1, 1, 3, 3)
    assert explain(x, weight, None, 1, 1, backend='fft').backend == 'fft'
    large_kernel_dwconv2d(x, weight, None, 1, 1, backend='fft')
    assert spies.forward == ['fft']


def test_tiny_outputs_keep_the_memory_format():
    weight = torch.randn(4, 1, 3, 3)
    for w in (weight, weight.contiguous(memory_format=torch.channels_last)):
        for x in (torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 12)[..., ::2]):
            assert x.numel() * 9 < TINY
            assert large_kernel_dwconv2d(x, w, None, 1, 1).is_contiguous()
            x = x.contiguous(memory_format=torch.channels_last)
            out = large_kernel_dwconv2d(x, w, None, 1, 1)
            assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('backend', ['auto', 'fft', 'torch'])
def test_empty(backend):
    """Nothing in, nothing out, in the right shape and with gradients."""
    for shape, weights in (((0, 3, 40, 40), 3), ((0, 3, 5, 5), 6)):
        x = torch.randn(shape, requires_grad=True)
        weight = torch.randn(weights, 1, 3, 3, requires_grad=True)
        choice = explain(x, weight, None, 1, 1, backend=backend)
        assert choice.backend == 'torch'
        assert 'nothing to compute' in choice.reason
        out = large_kernel_dwconv2d(x, weight, None, 1, 1, backend=backend)
        assert out.shape == (0, weights, *shape[2:])
        out.sum().backward()
        assert x.grad.shape == shape
        assert not weight.grad.any()
    # No channels, no rows, an output of no size: PyTorch refuses them, and so does explain.
    for shape, weights, padding in (((1, 0, 5, 5), 0, 1), ((1, 3, 0, 5), 3, 0),
                                    ((1, 3, 2, 5), 3, 0)):
        x, weight = torch.randn(shape), torch.randn(weights, 1, 3, 3)
        for function in (large_kernel_dwconv2d, explain):
            with pytest.raises((RuntimeError, ValueError)) as ours:
                function(x, weight, None, 1, padding, backend=backend)
            with pytest.raises((RuntimeError, ValueError)) as theirs:
                F.conv2d(x, weight, None, 1, padding, 1, shape[1])
            assert str(ours.value) == str(theirs.value)


# -- other devices, as far as they can be looked at from here --------------------------------------

def problem_on(device, **changes):
    x, weight = torch.randn(1, 3, 40, 40), torch.randn(3, 1, 13, 13)
    return problem_of(x, weight, None, 1, 6, 1)._replace(device=device, **changes)


@pytest.mark.parametrize('task', [dispatch.choose, dispatch.choose_weight_grad])
def test_unknown_estimates(monkeypatch, fresh, task):
    """Where no model knows any time, or some, one of those that can serve is taken."""
    able = dict(triton=None, cuda='not here', fft=None, direct='on a CPU', torch=None)
    for known in ({}, dict(torch=1e-3), dict(triton=1e-3), dict(triton=1e-3, torch=2e-3)):
        fresh()
        for name, value in {**able, **known}.items():
            ok = not isinstance(value, str)
            monkeypatch.setitem(dispatch.BACKENDS, name, dispatch.BACKENDS[name]._replace(
                supports=lambda *_, ok=ok, value=value: (ok, value),
                estimate=lambda *_, value=value: value))
        choice = task(problem_on('cuda'))
        assert choice.backend in ('triton', 'torch')
        assert choice.candidates == {**able, **known}
        assert str(choice)
        assert task(problem_on('cuda'), 'fft').backend == 'fft'
        with pytest.raises(RuntimeError, match="backend='direct' cannot serve.*: on a CPU"):
            task(problem_on('cuda'), 'direct')
        assert task(problem_on('cuda'), 'direct', False).backend == choice.backend


def test_devices_without_kernels(fresh):
    choice = dispatch.choose(problem_on('xpu'))
    assert choice.backend == 'torch'
    assert all("'xpu'" in choice.candidates[name] for name in NAMES - {'torch'})


def test_compiled_kernels_never_get_memory_of_another_device(compare, monkeypatch):
    """The FFT convolution on a GPU is PyTorch's; here its tensors are the CPU's."""
    def forbidden(*args, **keywords):
        raise AssertionError('a kernel of the CPU was called for a tensor on a GPU')

    for name in ('fft_spectrum', 'fft_forward', 'fft_weight_grad', 'direct_forward',
                 'direct_weight_grad'):
        monkeypatch.setattr(native, name, forbidden)
    x, grad, weight = *torch.randn(2, 1, 3, 40, 40), torch.randn(3, 1, 13, 13)
    wide = weight.double().requires_grad_()
    expected = F.conv2d(x.double(), wide, None, 1, 6, 1, 3)
    expected.backward(grad.double())
    problem = problem_on('cuda')
    out = dispatch.forward(x, weight, None, problem, 'fft', False)
    compare(out, expected.detach(), torch.float32)
    compare(dispatch.weight_grad(x, grad, problem, 'fft'), wide.grad, torch.float32)


@pytest.mark.skipif(not native.available()[0], reason='needs the compiled kernels')
def test_gradients_are_chosen_apart_from_the_forward_pass():
    """oneDNN's forward pass on channels-last maps is fast here, its weight gradient is not."""
    x = torch.randn(4, 1024, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(1024, 1, 5, 5)
    problem = problem_of(x, weight, None, 1, 2, 1)
    assert dispatch.choose(problem).backend == 'torch'
    assert dispatch.choose_weight_grad(problem).backend == 'direct'

    def gradient(conv, **keywords):
        w = weight.clone().requires_grad_()
        out = conv(x, w, padding=2, **keywords)
        out.backward(x)
        return out.detach(), w.grad

    with Spies() as spies:
        ours = gradient(large_kernel_dwconv2d)
        assert spies.forward == ['torch']
        assert spies.weight_grad == ['direct']
        large_kernel_dwconv2d(x, weight.clone().requires_grad_(), padding=2, backend='torch').sum()
        assert spies.weight_grad == ['direct']
    for a, b in zip(ours, gradient(F.conv2d, groups=1024), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('padding', [(7, 7), (14, 0)])
def test_pytorch_in_16_bits(compare, dtype, last, padding):
    """Wide kernels of few channels, which PyTorch alone never ends on CPUs with AVX512-FP16."""
    x, weight = torch.randn(2, 4, 32, 32).to(dtype), torch.randn(4, 1, 15, 15).to(dtype)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    bias = torch.randn(4).to(dtype)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), 1, padding, 1, 4)
    out = large_kernel_dwconv2d(x, weight, bias, 1, padding, backend='torch')
    assert out.dtype == dtype
    compare(out, wanted, dtype)
    with pytest.raises(RuntimeError, match='bias type'):
        large_kernel_dwconv2d(x, weight, bias.float(), 1, padding, backend='torch')
    with torch.autocast('cpu', dtype=dtype):
        found = large_kernel_dwconv2d(x.float(), weight, bias, 1, padding, backend='torch')
    assert torch.equal(found, out)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_pytorch_in_16_bits_by_autocast(compare, dtype):
    """So small that it would go to PyTorch at once, in float32."""
    x = torch.randn(1, 2, 4, 33).to(memory_format=torch.channels_last)
    weight = torch.randn(2, 1, 1, 15)
    with torch.autocast('cpu', dtype=dtype):
        out = large_kernel_dwconv2d(x, weight, None, 1, (0, 7))
    assert out.dtype == dtype
    compare(out, F.conv2d(x.to(dtype).double(), weight.to(dtype).double(), None, 1, (0, 7), 1, 2),
            dtype)
