"""What goes wrong in GPU kernels costs a warning, never a run: a stand-in fails, or lies."""

import re
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import (
    LargeKernelDWConv2d,
    dispatch,
    explain,
    large_kernel_dwconv2d,
    large_kernel_dwconv2d_pair,
)
from mmreplk.ops.gpu import health, selfcheck

FAILURES = {
    'compile': RuntimeError("PTXAS error: Internal Triton PTX codegen error"),
    'load': RuntimeError('Triton Error [CUDA]: device kernel image is invalid'),
    'launch': RuntimeError('Triton Error [CUDA]: unspecified launch failure'),
    'resources': ValueError('out of resource: shared memory, Required: 245760, limit: 101376'),
    'driver': OSError('libcuda.so.1: the driver is too old'),
}


@contextmanager
def one_warning(match=''):
    """Exactly one of ours is given, and says this."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        yield
    texts = [str(each.message) for each in seen if each.category is RuntimeWarning]
    assert len(texts) == 1, texts
    assert re.search(match, texts[0]), texts[0]


@pytest.fixture
def quiet():
    """Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def test_it_serves_where_nothing_is_wrong(stand_in, data, right, quiet):
    x, weight, bias, padding = data
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    first, *others = stand_in.calls
    assert first.problem.channels == 2  # the check
    assert [call.problem.channels for call in others] == [3]
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert len(stand_in.calls) == 3
    assert explain(x, weight, bias, padding=padding).backend == stand_in.name


@pytest.mark.parametrize('failure', FAILURES)
@pytest.mark.parametrize('in_the_check', [True, False])
def test_a_failure_is_one_warning(stand_in, data, right, failure, in_the_check):
    x, weight, bias, padding = data
    stand_in.raises = lambda task, problem, variant: (
        FAILURES[failure] if in_the_check or problem.channels == 3 else None)
    with pytest.warns(RuntimeWarning) as seen:
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    text = str(seen[0].message)
    assert len(seen) == 1
    for part in (str(FAILURES[failure]), 'on cpu', torch.__version__, '580.1', "backend='torch'",
                 f'backend={stand_in.name!r} raises'):
        assert part in text
    count = len(stand_in.calls)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(2):
            right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
        large_kernel_dwconv2d(x[:1], weight, bias, padding=padding)
    assert len(stand_in.calls) == count, 'what has failed is not tried again'
    choice = explain(x, weight, bias, padding=padding)
    assert choice.backend != stand_in.name
    assert 'failed on cpu' in choice.candidates[stand_in.name]


def test_asked_for_by_name_it_raises(stand_in, data, right):
    x, weight, bias, padding = data
    stand_in.raises = lambda *_: FAILURES['load']
    with pytest.warns(RuntimeWarning, match='image is invalid'), pytest.raises(
            RuntimeError, match="backend='stand-in' failed on cpu: RuntimeError: Triton") as error:
        large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=stand_in.name)
    assert error.value.__cause__.__cause__ is FAILURES['load']
    with pytest.raises(RuntimeError, match='cannot serve this convolution: failed on cpu'):
        large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=stand_in.name)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))


@pytest.mark.parametrize('task', ['forward', 'weight_grad', 'input gradient'])
@pytest.mark.parametrize('backend', ['auto', 'stand-in'])
def test_every_pass(stand_in, data, right, task, backend):
    """A gradient of a backend asked for by name takes what can serve, as anywhere."""
    x, weight, bias, padding = (t.requires_grad_() if isinstance(t, torch.Tensor) else t
                                for t in data)
    # The input gradient is a forward pass, of flipped weights and without a bias.
    stand_in.raises = lambda name, problem, variant: FAILURES['launch'] if (
        name == 'weight_grad' if task == 'weight_grad' else
        name == 'forward' and problem.has_bias == (task == 'forward')) else None
    if task == 'forward' and backend != 'auto':
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match='failed on cpu'):
            large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=backend)
        return
    with one_warning('unspecified launch failure'):
        out = large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=backend)
        grads = torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))
    right(out.detach())
    expected = torch.autograd.grad(
        F.conv2d(x, weight, bias, padding=padding, groups=3), (x, weight, bias),
        torch.ones_like(out))
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_second_derivatives_and_pairs(stand_in, data):
    x, weight, _, padding = data
    x, weight = x.requires_grad_(), weight.requires_grad_()
    small = torch.randn(3, 1, 3, 3, requires_grad=True)
    stand_in.raises = lambda *_: FAILURES['compile']
    with one_warning():
        out = large_kernel_dwconv2d(x, weight, padding=padding)
        grad, = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        grad.sum().backward()
        pair = large_kernel_dwconv2d_pair(x, weight, small)
        sum(each.sum() for each in pair).backward()
    assert small.grad.isfinite().all()


def test_memory_that_is_too_small_is_no_failure(stand_in, data, right):
    x, weight, bias, padding = data
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    for error in (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'),
                  RuntimeError('Triton Error [CUDA]: out of memory')):
        stand_in.raises = lambda *_, error=error: error
        with pytest.raises(type(error), match='out of memory'):
            large_kernel_dwconv2d(x, weight, bias, padding=padding)
    stand_in.raises = None
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert explain(x, weight, bias, padding=padding).backend == stand_in.name


def test_interrupted_is_no_failure(stand_in, data):
    x, weight, bias, padding = data
    stand_in.raises = lambda *_: KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        large_kernel_dwconv2d(x, weight, bias, padding=padding)
    assert not health.why(x.device, stand_in.name)


def test_a_device_that_has_failed_says_so(stand_in, data, monkeypatch):
    """After an illegal address nothing can run: no warning that PyTorch serves."""
    x, weight, bias, padding = data

    def broken(device):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(health, 'raise_if_broken', broken)
    stand_in.raises = lambda *_: FAILURES['launch']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(RuntimeError, match='illegal memory access'):
            large_kernel_dwconv2d(x, weight, bias, padding=padding)


def test_each_device_for_itself(stand_in):
    device, other = torch.device('cuda', 0), torch.device('cuda', 1)
    with pytest.warns(RuntimeWarning, match='on cuda:1'):
        health.mark(other, stand_in.family, RuntimeError('no'))
    assert health.why(other, stand_in.name)
    assert not health.why(device, stand_in.name)
    problem = dispatch.Problem(torch.float16, 'cuda', False, 8, 64, 32, 32, 1, (31, 31), (1, 1),
                               (15, ) * 4, (1, 1), False)
    assert dispatch.choose(problem, device=device).backend == stand_in.name
    for choose in (dispatch.choose, dispatch.choose_weight_grad):
        assert 'failed on cuda:1' in choose(problem, device=other).candidates[stand_in.name]
        assert choose(problem, device=other).backend != stand_in.name


# -- the check before the first use ----------------------------------------------------------------

LIES = {
    'wrong': lambda out, problem: out * 1.5,
    'one value': lambda out, problem: out.index_put(
        tuple(torch.tensor([0]) for _ in out.shape), torch.tensor(9.0)),
    'not written': lambda out, problem: torch.full_like(out, float('nan')),
    'another shape': lambda out, problem: out[:1],
}


@pytest.mark.parametrize('lie', LIES)
@pytest.mark.parametrize('task', ['forward', 'weight_grad'])
def test_wrong_results_are_never_returned(stand_in, data, right, lie, task, own_cache, restart):
    x, weight, bias, padding = data
    weight.requires_grad_()
    stand_in.lies = lambda out, problem: (
        LIES[lie](out, problem) if stand_in.calls[-1].task == task else out)

    def run():
        out = large_kernel_dwconv2d(x, weight, bias, padding=padding)
        right(out.detach())
        grad, = torch.autograd.grad(out.sum(), weight)
        expected, = torch.autograd.grad(
            F.conv2d(x, weight, bias, padding=padding, groups=3).sum(), weight)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)

    with one_warning(f'{task} of .* is wrong: off by'):
        run()
    # Another process knows, and says where from; of another version it checks again.
    restart()
    stand_in.calls.clear()
    with pytest.warns(RuntimeWarning, match='found earlier; delete .*checks-.*json'):
        run()
    assert not [call for call in stand_in.calls if call.task == task]
    restart()
    stand_in.lies, stand_in.source = None, '2'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run()
    assert [call for call in stand_in.calls if call.task == task]
    assert len(list(own_cache.glob('checks-*.json'))) == 2


def test_writing_beside_the_results(stand_in, data, right):
    from mmreplk.ops.gpu import memory
    x, weight, bias, padding = data

    def beside(out, problem):
        mine = memory.empty(out, tuple(out.shape))
        if problem.channels == 2:
            mine.as_strided((1, ), (1, ), mine.storage_offset() + mine.numel()).zero_()
        return mine.copy_(out)

    stand_in.lies = beside
    with pytest.warns(RuntimeWarning, match='writes beside its results'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))


def test_once_for_each_kernel(stand_in, data, right, restart, quiet):
    """By device, family, task, mode and variant, whatever the sizes; kept for other processes."""
    x, weight, bias, padding = data

    def checks():
        return sum(call.problem.channels == 2 for call in stand_in.calls)

    for size in (12, 13, 20):
        large_kernel_dwconv2d(torch.randn(1, 3, size, size), weight, bias, padding=padding)
    assert checks() == 1
    large_kernel_dwconv2d(x.half(), weight.half(), bias.half(), padding=padding)
    assert checks() == 2
    large_kernel_dwconv2d(x, weight.requires_grad_(), bias, padding=padding).sum().backward()
    assert checks() == 3
    restart()
    right(large_kernel_dwconv2d(x, weight.detach(), bias, padding=padding))
    assert checks() == 3


def test_a_check_draws_no_random_numbers(stand_in, data):
    x, weight, bias, padding = data
    before = torch.random.get_rng_state()
    large_kernel_dwconv2d(x, weight, bias, padding=padding)
    assert torch.equal(before, torch.random.get_rng_state())


# -- CUDA graphs, the compiler, export -------------------------------------------------------------

def test_nothing_is_checked_while_a_graph_is_recorded(stand_in, data, right, capturing):
    x, weight, bias, padding = data
    capturing(True)
    with one_warning('call it once before'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert not stand_in.calls
    with pytest.raises(RuntimeError, match='call it once before'):
        large_kernel_dwconv2d(x, weight, bias, padding=padding, backend=stand_in.name)
    capturing(False)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    count = len(stand_in.calls)
    capturing(True)
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))  # what a graph records
    large_kernel_dwconv2d(x[:1].contiguous(), weight, bias, padding=padding)  # loaded as well
    assert len(stand_in.calls) == count + 2
    stand_in.raises = lambda *_: RuntimeError('operation failed due to a previous error')
    with pytest.raises(RuntimeError, match='previous error'):
        large_kernel_dwconv2d(x, weight, bias, padding=padding)
    assert not health.why(x.device, stand_in.name), 'the capture has failed, not the kernels'


def test_what_another_process_has_checked_is_not_loaded_in_a_graph(stand_in, data, right,
                                                                   capturing, restart):
    x, weight, bias, padding = data
    right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    restart()
    stand_in.calls.clear()
    capturing(True)
    with pytest.warns(RuntimeWarning, match='call it once before'):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert not stand_in.calls


def test_compiled(stand_in, data, right):
    """The choice falls when the graph runs, so a failure there is one warning, too."""
    x, weight, bias, padding = data
    torch.compiler.reset()
    compiled = torch.compile(lambda x: large_kernel_dwconv2d(x, weight, bias, padding=padding),
                             backend='aot_eager', fullgraph=True)
    right(compiled(x))
    assert stand_in.calls[-1].problem.channels == 3
    stand_in.raises = lambda *_: FAILURES['launch']
    with one_warning('unspecified launch failure'):
        right(compiled(x))
        right(compiled(x))


def test_exported(stand_in, data, right):
    x, weight, bias, padding = data

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = LargeKernelDWConv2d(3, 3, (5, 7), padding=padding, groups=3)
            self.conv.weight.data, self.conv.bias.data = weight, bias

        def forward(self, x):
            return self.conv(x)

    graph = torch.export.export(Net().eval(), (x, ))
    assert not stand_in.calls, 'nothing runs while a graph is made'
    stand_in.raises = lambda *_: FAILURES['compile']
    with pytest.warns(RuntimeWarning, match='PTXAS'):
        right(graph.module()(x).detach())


def test_two_threads_check_once(stand_in, data, right):
    from concurrent.futures import ThreadPoolExecutor
    x, weight, bias, padding = data
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: large_kernel_dwconv2d(x, weight, bias, padding=padding),
                            range(8)):
            right(out)
    assert sum(call.problem.channels == 2 for call in stand_in.calls) == 1


def test_a_second_family_takes_over(stand_in, another, data, right):
    """Each loses its place by itself."""
    other = another('other')
    x, weight, bias, padding = data
    other.raises = lambda *_: FAILURES['load']
    with one_warning("the 'other' kernels failed"):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert stand_in.calls[-1].problem.channels == 3


def test_the_tolerances_are_those_of_the_dtypes():
    assert set(selfcheck.TOLERANCE) == {torch.float16, torch.bfloat16, 'tf32', 'exact'}
    exact = torch.randn(50, 50, dtype=torch.float64)
    assert selfcheck.relative_error(exact, exact) == 0
    assert selfcheck.relative_error(exact.half(), exact) < selfcheck.TOLERANCE[torch.float16]
    assert selfcheck.relative_error(exact * 1.01, exact) > selfcheck.TOLERANCE[torch.float16]
    assert selfcheck.relative_error(exact * float('nan'), exact) == float('inf')
