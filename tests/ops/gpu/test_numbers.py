"""The Triton kernels in the interpreter where numbers are extreme: precision, Inf, 64-bit offsets.

Runs like ``test_kernels.py``: in a process of its own, started by ``test_in_the_interpreter``.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('triton', minversion='3.4')  # the interpreter of 3.3 fails
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
HALF, FULL = torch.float16, torch.float32


def here(test):
    """Only collected in the process of test_in_the_interpreter."""
    return test if INTERPRETED else None


if INTERPRETED:
    from triton._C.libtriton.ir import INPUT_PRECISION
    from triton.runtime import interpreter

    from mmreplk.ops.gpu import kernels, launch, tiles
    from mmreplk.ops.problem import Problem


@pytest.mark.skipif(INTERPRETED, reason='is that process')
def test_in_the_interpreter():
    code = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__],
        env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True, check=False)
    assert code.returncode == 0, code.stdout[-6000:] + code.stderr[-2000:]
    assert 'passed' in code.stdout


def make(dtype, shape, kernel, bias=False):
    padding = (kernel[0] // 2, ) * 2 + (kernel[1] // 2, ) * 2
    return Problem(dtype, 'cpu', False, *shape, 1, kernel, (1, 1), padding, (1, 1), bias)


def exact(x, weight, grad, p):
    """Forward pass and weight gradient in float64."""
    pads = p.padding[::2]
    return (F.conv2d(x.double(), weight.double(), padding=pads, groups=p.channels),
            torch.nn.grad.conv2d_weight(x.double(), weight.shape, grad.double(), padding=pads,
                                        groups=p.channels))


# -- float32 on tensor cores -----------------------------------------------------------------------

def as_tf32(values):
    """What tensor cores read of float32: the low 13 bits are cut off."""
    return (values.view(np.int32) & np.int32(-0x2000)).view(np.float32)


def cut(values):
    """float64 cut off, not rounded, to the 24 bits of float32."""
    return (values.view(np.int64) & np.int64(-(1 << 29))).view(np.float64)


def tensor_core(a, b, acc):
    """Products of TF32 added up eight at a time, each sum cut off."""
    a, b, acc = as_tf32(a).astype(np.float64), as_tf32(b).astype(np.float64), acc.astype(np.float64)
    for k in range(0, a.shape[1], 8):
        acc = cut(acc + a[:, k:k + 8] @ b[k:k + 8])
    return acc.astype(np.float32)


@pytest.fixture(name='hardware')
def _hardware(monkeypatch):
    """The interpreter's products of matrices as pessimistic as tensor cores may be."""
    def create_dot(self, a, b, d, precision, *_):
        if precision == INPUT_PRECISION.TF32x3:  # as Triton's compiler writes it out
            parts = [(as_tf32(m.data), m.data - as_tf32(m.data)) for m in (a, b)]
            (big_a, small_a), (big_b, small_b) = parts
            out = tensor_core(small_a, big_b, np.zeros_like(d.data))
            out = tensor_core(big_a, big_b, tensor_core(big_a, small_b, out)) + d.data
        else:
            assert precision == INPUT_PRECISION.TF32
            out = tensor_core(a.data, b.data, d.data)
        return interpreter.TensorHandle(out, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', create_dot)


@here
@pytest.mark.sample
@pytest.mark.parametrize(('allow_tf32', 'bound'), [(True, 1.5e-3), (False, 1e-6)])
@pytest.mark.parametrize('sign', ['mixed', 'positive'])
@pytest.mark.parametrize(('shape', 'kernel'), [((1, 1, 32, 32), (31, 31)), ((4, 2, 9, 24), (5, 7))])
def test_error_of_float32(hardware, shape, kernel, sign, allow_tf32, bound):
    """Of the norm: TF32 keeps three digits, three TF32 products are as good as plain float32."""
    p = make(FULL, shape, kernel)
    of = torch.randn if sign == 'mixed' else torch.rand  # sums that cut errors do not cancel in
    x, weight, grad = of(shape), of(p.channels, 1, *kernel), of(p.out_shape)
    out = launch.forward(x, weight, None, p, allow_tf32), launch.weight_grad(x, grad, p, allow_tf32)
    for ours, reference in zip(out, exact(x, weight, grad, p), strict=True):
        error = float((ours.double() - reference).norm() / reference.norm())
        assert error < bound
        assert not allow_tf32 or error > 1e-5  # the emulation acts


@here
def test_float32_of_all_sizes(hardware):
    """Neither the largest nor the smallest numbers break the split into TF32 parts."""
    p = make(FULL, (1, 1, 6, 8), (3, 3))
    x, weight, grad = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 3, 3), torch.randn(p.out_shape)
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        out = (launch.forward(x * scale, weight / scale, None, p, False),
               launch.weight_grad(x * scale, grad / scale, p, False))
        for ours, reference in zip(out, exact(x, weight, grad, p), strict=True):
            assert float((ours.double() - reference).norm() / reference.norm()) < 2e-6
    largest = torch.finfo(FULL).max
    ours = launch.forward(torch.full_like(x, largest), weight * 1e-3, None, p, False)
    reference = exact(torch.full_like(x, largest), weight * 1e-3, grad, p)[0]
    assert float((ours.double() - reference).norm() / reference.norm()) < 1e-6


# -- Inf and NaN -----------------------------------------------------------------------------------

def summed_over_taps_inside(x, weight, bias, p):
    top, bottom, left, right = p.padding
    pads, taps = (left, right, top, bottom), p.kernel[0] * p.kernel[1]
    inside = F.unfold(F.pad(torch.ones(1, 1, p.height, p.width), pads), p.kernel).bool()
    columns = F.unfold(F.pad(x.double(), pads), p.kernel).view(p.batch, p.channels, taps, -1)
    products = columns * weight.double().view(1, p.channels, taps, 1)
    out = torch.where(inside, products, 0.0).sum(2).view(p.out_shape)
    return out + bias.double().view(1, -1, 1, 1)


@here
@pytest.mark.filterwarnings('ignore::RuntimeWarning')
@pytest.mark.sample
@pytest.mark.parametrize('value', ['inf', '-inf', 'nan'])
@pytest.mark.parametrize('where', ['x', 'weight', 'bias', 'everywhere'])
@pytest.mark.parametrize(('dtype', 'tf32'), [(HALF, True), (FULL, True), (FULL, False)])
def test_infinite_values_reach_the_taps_that_see_them(dtype, tf32, where, value):
    p = make(dtype, (2, 2, 11, 18), (5, 7), bias=True)
    x, weight, bias = torch.randn(2, 2, 11, 18), torch.randn(2, 1, 5, 7), torch.randn(2)
    if where == 'x':
        x[1, 0, 0, 17] = float(value)
        weight[0, 0, 2] = 0.0  # Inf times a zero that is a weight is NaN
    elif where == 'weight':
        weight[1, 0, 0, 6] = float(value)
        x[0, 1, 3] = 0.0
    elif where == 'bias':
        bias[1] = float(value)
    else:
        x.fill_(float(value))
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    ours = launch.forward(x, weight, bias, p, tf32)
    reference = summed_over_taps_inside(x, weight, bias, p)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(ours), kind(reference))


# -- more than 2^31 elements -----------------------------------------------------------------------

CHANNELS = 1 << 21


def untouched(*shape):
    """Zeros whose memory is taken only where it is written to."""
    return torch.from_numpy(np.zeros(shape, np.float16))


@here
def test_offsets_beyond_32_bits(compare, monkeypatch):
    """The last channel of maps of 3.6e9 elements; memory for the others is never touched."""
    # Tensors on the CPU are worked on in place: there is nothing to copy back.
    monkeypatch.setattr(interpreter.GridExecutor, '_restore_args_dev', lambda *args: None)
    p = make(HALF, (3, CHANNELS, 24, 24), (3, 5))
    assert p.batch * CHANNELS * 24 * 24 > 1 << 31
    one = p._replace(channels=1)
    last = CHANNELS - 1
    x, y, grad = untouched(3, CHANNELS, 24, 24), untouched(*p.out_shape), untouched(*p.out_shape)
    weight, out = untouched(CHANNELS, 1, 3, 5), untouched(CHANNELS, 1, 3, 5)
    for tensor in (x, grad):
        tensor[:, last] = torch.randn(3, 24, 24).half()
    weight[last] = torch.randn(1, 3, 5).half()

    plan = launch.plan_forward(p, 'half', tiles.choose(one, 'forward', 'half', tiles.arch()))
    assert plan.main.constants['WIDE']
    size = plan.part // plan.channels
    table = torch.full((size, ), float('nan'), dtype=HALF)
    kernels.toeplitz_kernel[(launch.ceil_div(size, 1024), )](
        weight, table, size=size, channel0=last, **plan.table.integers, **plan.table.constants)
    kernels.forward_kernel[(plan.main.programs, )](
        x, table, w_ptr=weight, bias_ptr=weight, y_ptr=y, channel0=last, **plan.main.integers,
        **plan.main.constants)

    device = tiles.arch()
    plan = launch.plan_weight_grad(
        p, 'half', tiles.choose(one, 'weight_grad', 'half', device), device)
    sums = torch.full((plan.sums, ), float('nan'))
    kernels.weight_grad_kernel[(plan.main.programs, )](
        x, grad, sums, channel0=last, **plan.main.integers, **plan.main.constants)
    kernels.weight_grad_sum_kernel[(plan.reduce.programs, )](
        x, grad, sums, out, channel0=last, **plan.reduce.integers, **plan.reduce.constants)

    some = x[:, last:], weight[last:], grad[:, last:]
    for ours, reference in zip((y[:, last:], out[last:]), exact(*some, one), strict=True):
        assert reference.any()
        compare(ours, reference, HALF)


@here
@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_infinite_values_beyond_32_bits(monkeypatch):
    """The sums over taps have offsets of their own."""
    monkeypatch.setattr(interpreter.GridExecutor, '_restore_args_dev', lambda *args: None)
    p = make(HALF, (3, CHANNELS, 24, 24), (3, 3))
    last = CHANNELS - 1
    x, y, grad = untouched(3, CHANNELS, 24, 24), untouched(*p.out_shape), untouched(*p.out_shape)
    out = untouched(CHANNELS, 1, 3, 3)
    x[2, last, 9, 9] = float('inf')
    grad[2, last, 9, 10] = 1.0
    weight = torch.ones(1, 1, 3, 3).half()
    # _tap_by_tap through a kernel whose table has an infinite weight everywhere.
    tile = tiles.choose(p._replace(channels=1), 'forward', 'half', tiles.arch())
    plan = launch.plan_forward(p, 'half', tile)
    table = torch.full((plan.part // plan.channels, ), float('inf'), dtype=HALF)
    wide = untouched(CHANNELS, 1, 3, 3)
    wide[last] = weight[0]
    kernels.forward_kernel[(plan.main.programs, )](
        x, table, w_ptr=wide, bias_ptr=wide, y_ptr=y, channel0=last, **plan.main.integers,
        **plan.main.constants)
    seen = y[2, last].isinf()
    assert seen[8:11, 8:11].all()
    assert seen.sum() == 9
    assert not y[:2, last].any()

    device = tiles.arch()
    plan = launch.plan_weight_grad(p, 'half', tiles.choose(p._replace(channels=1), 'weight_grad',
                                                           'half', device), device)
    sums = torch.full((plan.sums, ), float('inf'))
    kernels.weight_grad_sum_kernel[(plan.reduce.programs, )](
        x, grad, sums, out, channel0=last, **plan.reduce.integers, **plan.reduce.constants)
    # The tap to the left of its output meets the 1, the others zeros, which make NaN.
    expected = torch.full((3, 3), float('nan'))
    expected[1, 0] = float('inf')
    assert torch.equal(out[last, 0].isnan(), expected.isnan())
    assert out[last, 0, 1, 0] == float('inf')


# -- grids -----------------------------------------------------------------------------------------

@here
def test_more_than_65535_images_and_channels(compare):
    """One axis of the grid counts all programs."""
    p = make(HALF, (70001, 1, 2, 2), (3, 3))
    x, weight = torch.randn(70001, 1, 2, 2).half(), torch.randn(1, 1, 3, 3).half()
    grad = torch.randn(p.out_shape).half()
    expected = exact(x, weight, grad, p)
    tile = max(tiles.candidates('half', (9, 0)))  # the one with the most images a program
    compare(launch.forward(x, weight, None, p, True, tile), expected[0], HALF)
    compare(launch.weight_grad(x, grad, p), expected[1], HALF)
    assert launch.supports(make(HALF, (1, 70000, 7, 7), (3, 3))) == (True, '')
    for batch, channels, size in ((1 << 30, 1, 1), (1, 1 << 31, 1), (1 << 20, 1 << 14, 8)):
        ok, why = launch.supports(make(HALF, (batch, channels, size, size), (3, 3)))
        assert not ok
        assert '32 bits' in why


@here
def test_every_kernel_size_has_a_tile():
    """With and without TF32, on every architecture, up to the largest kernel that is supported."""
    for k in range(1, launch.LARGEST_KERNEL + 1):
        for size in (3, 14, 64):
            p = make(FULL, (2, 3, size, size), (k, k))
            for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
                for mode in ('tf32', 'exact'):
                    for task in ('forward', 'weight_grad'):
                        options = tiles.usable(p, task, mode, capability)
                        assert options, (k, size, capability, mode, task)
