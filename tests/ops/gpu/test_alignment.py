"""Maps at odd addresses and of odd widths: copied where that is cheaper, with the same results.

The results are those of Triton's interpreter, in a process of its own, as in test_kernels.py.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip('triton', minversion='3.4')  # the interpreter of 3.3 fails
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

from mmreplk.ops.gpu import arch, backend, launch, selfcheck, tiles, variants  # noqa: E402
from mmreplk.ops.problem import Problem  # noqa: E402

HALF, FULL = torch.float16, torch.float32
TASKS = ('forward', 'weight_grad')


def here(test):
    """Only collected in the process of test_in_the_interpreter."""
    return test if INTERPRETED else None


@pytest.mark.skipif(INTERPRETED, reason='is that process')
def test_in_the_interpreter():
    code = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__, '-k',
         'interpreted'],
        env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True, check=False)
    assert code.returncode == 0, code.stdout[-6000:] + code.stderr[-2000:]
    assert 'passed' in code.stdout


def make(dtype, shape, kernel, padding=None, device='cuda', **changes):
    padding = padding or (kernel[0] // 2, ) * 2 + (kernel[1] // 2, ) * 2
    return Problem(dtype, device, False, *shape, 1, kernel, (1, 1), padding, (1, 1),
                   False)._replace(**changes)


def loaded(problem, task, variant):
    """Bytes of a row of x that are loaded at once."""
    wide = variants.widened(problem, task, variant.more)
    size = problem.dtype.itemsize
    return tiles.vector(size, wide.width, variant.tile.vector) * size


@pytest.mark.parametrize('capability', [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('dtype', [HALF, FULL])
@pytest.mark.parametrize(('shape', 'kernel'), [
    ((64, 1024, 7, 7), 13), ((64, 512, 14, 14), 27), ((1, 1024, 25, 25), 13),
    ((1, 512, 50, 50), 27)])
def test_odd_widths_are_loaded_by_words_or_copied(capability, task, dtype, shape, kernel):
    """Loads of less than 4 bytes have no asynchronous copy, and the network's maps have none."""
    problem = make(dtype, shape, (kernel, kernel))
    device = arch.arch(capability)
    first = variants.ranked(problem, task, tiles.mode_of(dtype, True), device)[0]
    assert loaded(problem, task, first) >= 4


def test_a_copy_is_weighed_against_narrow_loads():
    device = arch.arch((9, 0))
    large = make(HALF, (64, 1024, 7, 7), (13, 13))
    assert variants.ranked(large, 'forward', 'half', device)[0].more == 1
    # Without padding to spare there is no room for zeros at the right.
    tight = make(HALF, (64, 1024, 7, 7), (7, 7), (3, 3, 3, 0))
    assert all(v.more == 0 for v in variants.ranked(tight, 'forward', 'half', device))
    # A memory so slow that any copy costs more than it brings.
    slow = device._replace(memory=1e9)
    assert variants.ranked(large, 'forward', 'half', slow)[0].more == 0


@pytest.mark.parametrize('task', TASKS)
def test_widened_is_the_same_convolution(task, compare):
    problem = make(FULL, (2, 3, 9, 7), (5, 5), device='cpu')
    wide = variants.widened(problem, task, 1)
    x, other = torch.randn(2, 3, 9, 7), torch.randn(3, 1, 5, 5)
    if task == 'forward':
        assert wide.out_size == problem.out_size
        expected = selfcheck.exact_forward(x, other, None, problem)
        found = selfcheck.exact_forward(launch._copied(x, 1), other, None, wide)
    else:
        grad = torch.randn(problem.out_shape)
        expected = selfcheck.exact_weight_grad(x, grad, problem)
        found = selfcheck.exact_weight_grad(launch._copied(x, 1), launch._copied(grad, 1), wide)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize(('shape', 'kernel', 'padding'), [
    ((64, 384, 64, 64), (31, 31), None), ((64, 1024, 7, 7), (13, 13), None),
    ((1, 512, 50, 80), (27, 27), None), ((16, 8, 33, 500), (3, 51), (0, 0, 0, 0)),
    ((3, 70, 200, 201), (5, 5), None), ((2, 16, 128, 128), (51, 51), (0, 0, 0, 0))])
@pytest.mark.parametrize('dtype', [HALF, FULL])
def test_the_probe_compiles_to_the_same(task, shape, kernel, padding, dtype):
    """Else the check would be of another kernel than the one that is used."""
    problem = make(dtype, shape, kernel, padding, has_bias=True)
    mode, device = tiles.mode_of(dtype, True), arch.arch((9, 0))
    for variant in variants.ranked(problem, task, mode, device)[:6]:
        key, small = backend.FAMILY.probe(problem, task, mode, variant, device)
        assert small.channels == 2
        assert small.batch * small.height * small.width <= 256 * 40 * 60
        assert min(small.out_size) >= 1
        assert variants._constants(small, task, mode, variant, device) == (
            variants._constants(problem, task, mode, variant, device))
        assert key == backend.FAMILY.probe(small, task, mode, variant, device)[0]


def test_variants_are_read_from_json():
    import json
    device = arch.arch((9, 0))
    for task in TASKS:
        for variant in variants.ranked(make(HALF, (2, 8, 7, 7), (5, 5)), task, 'half', device):
            assert variants.read(task, json.loads(json.dumps(variant))) == variant
    for bad in (None, 3, [0], [0, [1, 2]], [0, ['a'] * 8], [-1, [1] * 8], [0, [1.0] * 8],
                [0, [True] * 8]):
        with pytest.raises((TypeError, ValueError)):
            variants.read('forward', bad)


@pytest.fixture
def own(monkeypatch):
    """What is copied."""
    seen = []
    copied = launch._copied
    monkeypatch.setattr(launch, '_copied', lambda t, more: seen.append(t.shape) or copied(t, more))
    return seen


def at_odd_address(tensor, elements=1):
    whole = torch.full((tensor.numel() + 16, ), float('nan'), dtype=tensor.dtype)
    start = (-whole.data_ptr() // tensor.element_size()) % 8 + elements
    view = whole[start:start + tensor.numel()].view(tensor.shape)
    assert view.data_ptr() % 16
    return view.copy_(tensor)


@here
@pytest.mark.parametrize('dtype', [HALF, FULL])
def test_interpreted_odd_addresses(compare, own, dtype):
    p = make(dtype, (2, 3, 9, 16), (5, 7), device='cpu')
    x, weight = torch.randn(2, 3, 9, 16).to(dtype), torch.randn(3, 1, 5, 7).to(dtype)
    grad = torch.randn(p.out_shape).to(dtype)
    compare(launch.forward(x, weight, None, p, False), selfcheck.exact_forward(
        x, weight, None, p), dtype)
    assert not own
    compare(launch.forward(at_odd_address(x), weight, None, p, False), selfcheck.exact_forward(
        x, weight, None, p), dtype)
    assert len(own) == 1
    for a, b in ((at_odd_address(x), grad), (x, at_odd_address(grad, 2))):
        own.clear()
        compare(launch.weight_grad(a, b, p, False), selfcheck.exact_weight_grad(x, grad, p), dtype)
        assert len(own) == 1, 'the other is read as it lies'


@here
@pytest.mark.parametrize('workspace', [64 << 20, 6 << 10])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('width', 'more'), [(7, 1), (14, 2), (25, 3), (25, 7), (50, 6)])
def test_interpreted_odd_widths(compare, monkeypatch, width, more, channels_last, workspace):
    monkeypatch.setattr(launch, 'WORKSPACE', workspace)
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()
    p = make(HALF, (2, 5, 6, width), (3, 15), device='cpu', has_bias=True, relu=True,
             channels_last=channels_last)
    layout = p.memory_format
    x = torch.randn(2, 5, 6, width).half().contiguous(memory_format=layout)
    weight, bias = torch.randn(5, 1, 3, 15).half(), torch.randn(5).half()
    grad = torch.randn(p.out_shape).half().contiguous(memory_format=layout)
    out = launch.forward(x, weight, bias, p, more=more)
    compare(out, selfcheck.exact_forward(x, weight, bias, p), HALF)
    assert out.is_contiguous(memory_format=layout)
    compare(launch.weight_grad(x, grad, p, more=more), selfcheck.exact_weight_grad(x, grad, p),
            HALF)
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()


@here
@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize(('dtype', 'mode'), [(HALF, 'half'), (torch.bfloat16, 'half'),
                                             (FULL, 'tf32'), (FULL, 'exact')])
def test_interpreted_kernels_pass_their_own_check(task, dtype, mode):
    """In poisoned memory, the model's best variants, as on a GPU at first use."""
    for shape, kernel in (((64, 1024, 7, 7), 5), ((2, 64, 50, 50), 13)):
        p = make(dtype, shape, (kernel, kernel), device='cpu', has_bias=task == 'forward')
        device = arch.arch((9, 0))
        for variant in variants.ranked(p, task, mode, device)[:2]:
            _, small = backend.FAMILY.probe(p, task, mode, variant, device)
            small = small._replace(batch=min(small.batch, 3))
            outcome = selfcheck.outcome_of(backend.FAMILY, torch.device('cpu'), small, task, mode,
                                         variant)
            assert outcome == selfcheck.RIGHT


@here
def test_interpreted_kernels_that_are_wrong_do_not_pass(monkeypatch):
    from mmreplk.ops.gpu import kernels
    p = make(HALF, (2, 2, 8, 8), (5, 5), device='cpu')
    variant = variants.ranked(p, 'forward', 'half', arch.arch((9, 0)))[0]

    class Lazy:
        """The main kernel is left out: its results are never written."""

        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    def outcome():
        return selfcheck.outcome_of(backend.FAMILY, torch.device('cpu'), p, 'forward', 'half',
                                  variant)

    assert outcome() == selfcheck.RIGHT
    right = kernels.forward_kernel
    monkeypatch.setattr(kernels, 'forward_kernel', Lazy())
    assert 'is wrong: off by' in outcome()
    monkeypatch.setattr(kernels, 'forward_kernel', right)
    monkeypatch.setattr(kernels, 'toeplitz_kernel', Lazy())
    assert 'is wrong' in outcome()
