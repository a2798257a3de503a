"""NaN and Inf anywhere, forward and backward: they spread where a direct sum spreads them."""

import pytest
import torch
from attack_cases import attack, bounds, cases, direct, parts, run
from hypothesis import strategies as st

from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.cpu import kernels as native

BAD = [torch.nan, torch.inf, -torch.inf]
KINDS = torch.isnan, torch.isposinf, torch.isneginf


def spread_alike(actual, right):
    for name, a, b in zip(actual._fields, actual, right, strict=True):
        for kind in KINDS:
            assert b is None or torch.equal(kind(a), kind(b)), f'{name}: {kind.__name__}'


@attack(400, case=cases(backends=('fft', 'fft', 'direct'), longest=24),
        places=st.lists(st.tuples(st.sampled_from(['x', 'weight', 'bias', 'grad']),
                                  st.sampled_from(BAD), st.integers(0, 2**31)),
                        min_size=1, max_size=4))
def test_nan_and_inf_spread_as_in_a_direct_sum(case, places):
    """The mask of NaN, Inf and -Inf is that of the sums over the map, and the rest is right."""
    def fill(normal, what, generator):
        for where, value, index in places:
            if where == what:
                normal.view(-1)[index % normal.numel()] = value
        return normal

    x, weight, bias, grad, _ = parts(case, fill)
    actual, right = run(case, x, weight, bias, grad), direct(case, x, weight, bias, grad)
    spread_alike(actual, right)
    limits = bounds(case, *(None if t is None else t.nan_to_num(1.0, 1.0, -1.0)
                            for t in (x, weight, bias, grad)))
    for a, b, allowed in zip(actual, right, limits, strict=True):
        if b is not None:
            fine = b.isfinite()
            assert bool(((a.double() - b).abs()[fine] <= allowed[fine]).all())


@attack(100, case=cases(backends=('fft', 'direct'), dtypes=(torch.float32, ), longest=24))
def test_sums_that_overflow(case):
    """Products near the largest number: Inf where a sum passes it, no NaN where none does."""
    def fill(normal, what, generator):
        return normal.abs() * 1e36 if what in ('x', 'grad', 'bias') else normal.abs()

    x, weight, bias, grad, _ = parts(case, fill)
    actual, right = run(case, x, weight, bias, grad), direct(case, x, weight, bias, grad)
    most = torch.finfo(torch.float32).max
    for name in ('out', 'x'):
        a, b = getattr(actual, name), getattr(right, name)
        assert not a.isnan().any()
        assert a[b > 1.001 * most].isposinf().all()
        assert a[b < 0.999 * most].isfinite().all()


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct'])
@pytest.mark.parametrize('value', BAD)
def test_relu_of_nan_and_inf(backend, value):
    """As F.relu: NaN stays, -Inf becomes 0."""
    x, weight = torch.randn(1, 3, 30, 30), torch.rand(3, 1, 9, 9)
    x[0, 1, 15, 15] = value
    with torch.no_grad():
        found = large_kernel_dwconv2d(x, weight, padding=4, activation='relu', backend=backend)
    plain = torch.nn.functional.conv2d(x.double(), weight.double(), padding=4, groups=3).relu()
    for kind in KINDS:
        assert torch.equal(kind(found), kind(plain))


@pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
def test_a_plane_of_nan_leaves_no_trace():
    """Scratch memory is kept between calls: what NaN leaves there is never read."""
    for size, kernel, last in ((30, 13, False), (33, 31, True), (9, 9, False), (64, 5, True)):
        x, weight = torch.randn(2, 18, size, size), torch.randn(18, 1, kernel, kernel)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        for backend in ('fft', 'direct'):
            results = []
            for values in (x, torch.full_like(x, torch.nan), x):
                leaves = values.clone().requires_grad_(), weight.clone().requires_grad_()
                out = large_kernel_dwconv2d(*leaves, padding=kernel // 2, backend=backend)
                results.append((out, *torch.autograd.grad(out, leaves, values)))
            assert all(map(torch.equal, results[0], results[2]))
