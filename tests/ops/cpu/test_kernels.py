"""The compiled kernels behind ``kernels.py``: results, threads, memory and the build."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import conv2d, pad

from mmreplk.ops.cpu import kernels as native, plan as native_plan
from mmreplk.ops.problem import Problem

built, why = native.available()
needs_kernels = pytest.mark.skipif(not built, reason=why)
ISAS = native.isas() if built else []
TOLERANCE = 1e-5  # of the root mean square of the reference


def test_built_where_it_can_be():
    header = Path(sysconfig.get_paths()['include'], 'Python.h')
    if sys.platform != 'linux' or not shutil.which('cc') or not header.exists():
        pytest.skip('no Linux, C compiler or Python.h')
    assert built, why


def make(batch=1, channels=3, size=(9, 8), kernel=(3, 3), padding=(1, 1, 1, 1), dilation=(1, 1),
         multiplier=1, bias=False, channels_last=False, relu=False):
    return Problem(torch.float32, 'cpu', channels_last, batch, channels, *size, multiplier, kernel,
                   (1, 1), padding, dilation, bias, relu)


def same(channels, size, kernel, **more):
    return make(channels=channels, size=(size, size), kernel=(kernel, kernel),
                padding=(kernel // 2, ) * 4, **more)


def tensors(problem, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def as_map(tensor):
        return tensor.contiguous(memory_format=problem.memory_format)

    x = as_map(normal(problem.batch, problem.channels, problem.height, problem.width))
    weight = normal(problem.out_channels, 1, *problem.kernel)
    bias = normal(problem.out_channels) if problem.has_bias else None
    return x, weight, bias, as_map(normal(*problem.out_shape))


def reference(x, weight, bias, problem):
    top, bottom, left, right = problem.padding
    return conv2d(pad(x, (left, right, top, bottom)), weight, bias, dilation=problem.dilation,
                  groups=problem.channels)


# The FFT convolution, and the direct sum with channels or with pixels of a row in the lanes.
KINDS = ['fft', 'lanes', 'rows']
FORWARD = dict(fft=native._FFT_FORWARD, lanes=native._LANES_FORWARD, rows=native._ROWS_FORWARD)
WEIGHT_GRAD = dict(fft=native._FFT_WEIGHT_GRAD, lanes=native._LANES_WEIGHT_GRAD,
                   rows=native._ROWS_WEIGHT_GRAD)


def forward(problem, x, weight, bias, isa=-1, kind='fft'):
    if kind == 'fft':
        spectrum = native.fft_spectrum(weight, problem, isa)
        return native.fft_forward(x, spectrum, weight, bias, problem, isa)
    call = native._call(problem, isa)
    out = torch.full(problem.out_shape, float('nan')).contiguous(memory_format=call.out_format)
    native._native.run(FORWARD[kind], call.isa, torch.get_num_threads(), call.geometry,
                       native.memory(x), native.memory(weight), 0,
                       native.memory(bias), 0, native.memory(out))
    return out


def weight_grad(problem, x, grad, isa=-1, kind='fft'):
    call = native._call(problem, isa)
    out = torch.full((problem.out_channels, 1, *problem.kernel), float('nan'))
    native._native.run(WEIGHT_GRAD[kind], call.isa, torch.get_num_threads(), call.geometry,
                       native.memory(x), 0, 0, 0, native.memory(grad), native.memory(out))
    return out


def close(actual, expected):
    scale = expected.square().mean().sqrt().clamp_min(1e-30)
    return bool((actual - expected).abs().max() <= TOLERANCE * scale)


def check(problem, isa):
    x, weight, bias, grad = tensors(problem)
    wide = weight.double().requires_grad_()
    expected = reference(x.double(), wide, None if bias is None else bias.double(), problem)
    expected.backward(grad.double())
    for kind in KINDS:
        out = forward(problem, x, weight, bias, isa, kind)
        assert out.shape == problem.out_shape
        assert out.is_contiguous(memory_format=problem.memory_format)
        assert close(out, expected.detach()), kind
        floored = forward(problem._replace(relu=True), x, weight, bias, isa, kind)
        assert torch.equal(floored, out.relu()), kind
        assert close(weight_grad(problem, x, grad, isa, kind), wide.grad), kind
    # The entries of kernels.py, which choose between the two direct sums.
    assert close(native.direct_forward(x, weight, bias, problem, isa), expected.detach())
    assert close(native.direct_weight_grad(x, grad, problem, isa), wide.grad)
    assert close(native.fft_weight_grad(x, grad, problem, isa), wide.grad)


@st.composite
def problems(draw):
    longest = draw(st.sampled_from([6, 20, 40]))
    integers = st.integers
    kernel = draw(integers(1, longest)), draw(integers(1, longest))
    dilation = draw(integers(1, 3)), draw(integers(1, 3))
    padding = tuple(draw(integers(0, k + 2)) for k in (kernel[0], kernel[0], kernel[1], kernel[1]))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, reach[i] - padding[2 * i] - padding[2 * i + 1]) for i in (0, 1)]
    size = tuple(draw(integers(low, low + longest)) for low in least)
    return make(draw(integers(1, 3)), draw(st.sampled_from([1, 2, 5, 16, 17, 19])), size, kernel,
                padding, dilation, draw(integers(1, 3)), draw(st.booleans()), draw(st.booleans()))


@needs_kernels
@settings(max_examples=120, derandomize=True, deadline=None)
@given(problem=problems(), isa=st.integers(0, max(0, len(ISAS) - 1)))
def test_any_geometry(problem, isa):
    check(problem, isa)


@needs_kernels
@pytest.mark.parametrize('isa', range(len(ISAS)), ids=ISAS)
@pytest.mark.parametrize('rows', range(1, native_plan.STREAM_ROWS + 2))
def test_few_rows_of_taps(isa, rows):
    """Streams of every height and of 1 to 8 vectors and more, on maps of few and of many rows."""
    for width, columns, right, dilation, height in (
            (16, 3, 1, 1, 1), (31, 31, 15, 1, 2), (47, 3, 4, 2, 9), (80, 5, 2, 1, 40),
            (100, 1, 0, 1, 3), (128, 7, 3, 1, 7), (257, 3, 0, 3, 21)):
        for above, below in ((rows // 2, rows // 2), (rows + 3, rows + 9)):
            problem = make(2, 2, (height + rows, width), (rows, columns),
                           (above, below, right, right), (1, dilation), bias=True)
            x, weight, bias, _ = tensors(problem, seed=rows)
            x[0, 0, height // 2, width // 2] = float('nan')
            out = forward(problem, x, weight, bias, isa, 'rows')
            expected = reference(x.double(), weight.double(), bias.double(), problem)
            assert torch.equal(out.isnan(), expected.isnan())
            assert close(out.nan_to_num(0.0), expected.nan_to_num(0.0))


@needs_kernels
@pytest.mark.parametrize('isa', range(len(ISAS)), ids=ISAS)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('size', 'kernel'), [(7, 7), (14, 27), (31, 51), (64, 31)])
def test_shapes_of_networks(size, kernel, channels_last, isa):
    check(same(18, size, kernel, batch=2, bias=True, channels_last=channels_last), isa)


@needs_kernels
@pytest.mark.parametrize('points', [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 21, 24, 25, 27,
                                    35, 49, 64, 75, 81, 125, 144, 150, 240, 343, 360])
def test_every_radix(points):
    """A kernel of one point transforms a map at the length of its size, or the next faster one."""
    for isa in range(len(ISAS)):
        check(make(channels=2, size=(points, 3), kernel=(1, 1), padding=(0, ) * 4), isa)
        check(make(channels=2, size=(3, points), kernel=(1, 1), padding=(0, ) * 4), isa)


@pytest.fixture
def small_tiles(monkeypatch):
    def forget():
        native._call.cache_clear()
        native_plan.fft_tiles.cache_clear()

    forget()
    monkeypatch.setattr(native_plan, 'FFT_SCRATCH', 150_000)
    yield
    monkeypatch.undo()
    forget()


@needs_kernels
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('size', 'kernel', 'padding', 'dilation'), [
    ((70, 83), (7, 9), (3, 3, 4, 4), (1, 1)),
    ((90, 61), (5, 13), (0, 9, 7, 0), (2, 1)),
    ((57, 97), (10, 4), (12, 11, 3, 9), (1, 3)),
])
def test_tiles(small_tiles, size, kernel, padding, dilation, channels_last):
    problem = make(2, 3, size, kernel, padding, dilation, 2, True, channels_last)
    assert native_plan.fft_tiles(problem, 16).count > 1
    for isa in range(len(ISAS)):
        check(problem, isa)


@needs_kernels
def test_a_map_too_large_for_one_tile():
    problem = same(2, 200, 9)
    assert native_plan.fft_tiles(problem, 16).count > 1
    check(problem, -1)


@needs_kernels
def test_what_does_not_fit_says_so(small_tiles):
    problem = same(1, 300, 201)
    ok, reason = native.fft_supports(problem)
    assert not ok
    assert 'memory' in reason
    x, weight, *_ = tensors(problem)
    with pytest.raises(MemoryError):
        native.fft_spectrum(weight, problem)


@needs_kernels
def test_spectrum_serves_any_batch_and_format():
    one = same(20, 13, 9)
    many = one._replace(batch=3, channels_last=True, has_bias=True)
    x, weight, bias, _ = tensors(many)
    spectrum = native.fft_spectrum(weight, one)
    assert torch.equal(native.fft_forward(x, spectrum, weight, bias, many),
                       forward(many, x, weight, bias))


# -- NaN, Inf and overflow ------------------------------------------------------------------------

BAD = [float('nan'), float('inf'), -float('inf'), 3e38]


@needs_kernels
@pytest.mark.parametrize('isa', range(len(ISAS)), ids=ISAS)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bad', BAD)
def test_bad_values_spread_as_in_pytorch(bad, kind, channels_last, isa):
    # PyTorch's own padding is left out of its float32 sums: an infinite weight meets no 0 there.
    problem = same(18, 20, 9, batch=2, channels_last=channels_last)
    x, weight, bias, _ = tensors(problem)
    for where in ('input', 'weight'):
        values, taps = x.clone(), weight.clone()
        if where == 'input':
            values[1, 17, 5, 19] = values[0, 2, 0, 0] = bad
        else:
            taps[17, 0, 0, 3] = taps[4, 0, 8, 8] = bad
        out = forward(problem, values, taps, None, isa, kind)
        expected = conv2d(values, taps, padding=4, groups=18)
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(out), test(expected))
        good = torch.isfinite(expected)
        worst = (out - expected)[good].abs() / expected[good].abs().clamp_min(1)
        assert worst.max() < 1e-4


@needs_kernels
def test_overflow_in_the_transform_alone():
    """The sum of all points overflows, no sum under the kernel does."""
    problem = same(1, 24, 3)
    x = torch.full((1, 1, 24, 24), 2e36)
    weight = torch.full((1, 1, 3, 3), 0.5)
    assert close(forward(problem, x, weight, None) / 1e36,
                 reference(x, weight, None, problem) / 1e36)


@needs_kernels
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bad', BAD[:3])
def test_bad_values_in_a_weight_gradient(bad, kind):
    problem = same(18, 12, 5, batch=2)
    x, _, _, grad = tensors(problem)
    grad[1, 3, 0, 11] = x[0, 17, 11, 4] = bad
    out = weight_grad(problem, x, grad, kind=kind)
    hit = torch.zeros(18, dtype=torch.bool)
    hit[[3, 17]] = True
    assert out[~hit].isfinite().all()
    assert (~out[hit].isfinite()).any(dim=(1, 2, 3)).all()
    # Row 0 of the gradient meets input rows 0 .. 2: taps above it see padding only.
    assert out[3, 0, :2].isfinite().all()
    assert not out[3, 0, 2:, :3].isfinite().any()


# -- threads --------------------------------------------------------------------------------------

@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize('channels_last', [False, True])
def test_same_bits_for_any_number_of_threads(threads, channels_last):
    problem = same(50, 33, 13, batch=3, channels_last=channels_last, bias=True)
    x, weight, bias, grad = tensors(problem)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(torch.cat([
            out.flatten() for kind in KINDS
            for out in (forward(problem, x, weight, bias, kind=kind),
                        weight_grad(problem, x, grad, kind=kind))]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_kernels
def test_uses_the_openmp_runtime_of_pytorch():
    if not native._openmp_address():
        pytest.skip('this PyTorch has no GNU OpenMP')
    lines = Path('/proc/self/maps').read_text().splitlines()
    address = native._openmp_address()
    assert any(int(line.split('-')[0], 16) <= address < int(line.split('-')[1].split()[0], 16)
               and 'omp' in line.rsplit('/', 1)[-1] for line in lines)


@needs_kernels
def test_calls_from_several_python_threads():
    cases = []
    shapes = [same(40, 14, 13), same(17, 56, 31), same(64, 7, 7, batch=4)] * 2
    for seed, problem in enumerate(shapes):
        x, weight, bias, _ = tensors(problem, seed)
        cases.append((problem, x, weight, bias, forward(problem, x, weight, bias)))
    wrong = []

    def work(problem, x, weight, bias, expected):
        if not all(torch.equal(forward(problem, x, weight, bias), expected) for _ in range(15)):
            wrong.append(problem)

    workers = [threading.Thread(target=work, args=case) for case in cases]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_kernels
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_after_fork(threads):
    threads(2)
    problem = same(40, 20, 9)
    x, weight, bias, _ = tensors(problem)
    expected = forward(problem, x, weight, bias)  # the pool of threads exists by now
    spectrum = native.fft_spectrum(weight, problem)
    child = os.fork()
    if child == 0:
        same_bits = torch.equal(native.fft_forward(x, spectrum, weight, bias, problem), expected)
        os._exit(0 if same_bits else 3)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(forward(problem, x, weight, bias), expected)


# -- memory ---------------------------------------------------------------------------------------

@needs_kernels
def test_out_of_memory_is_an_error_before_anything_is_written():
    problem = make()
    x, _, _, grad = tensors(problem)
    call = native._call(problem, -1)
    huge = bytearray(call.geometry)
    for field in (14, 15):  # points_h, points_w: scratch of some 50 GB
        huge[8 * field:8 * field + 8] = (16384).to_bytes(8, 'little')
    out = torch.full((3, 1, 3, 3), 7.0)
    with pytest.raises(MemoryError):
        native._native.run(native._FFT_WEIGHT_GRAD, call.isa, 1, bytes(huge), native.memory(x), 0,
                           0, 0, native.memory(grad), native.memory(out))
    assert (out == 7).all()


@needs_kernels
@pytest.mark.parametrize('bad', [(), (0, ) * 9, (9, 0, 1, b'', 0, 0, 0, 0, 0, 0)])
def test_bad_calls(bad):
    with pytest.raises((TypeError, ValueError)):
        native._native.run(*bad)


def guarded(tensor):
    """A copy of a tensor that ends where a forbidden page begins: one element more is fatal."""
    page = mmap.PAGESIZE
    size = -(-tensor.numel() * 4 // page) * page
    region = mmap.mmap(-1, size + page)
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
    flat = torch.frombuffer(region, dtype=torch.float32, count=tensor.numel(),
                            offset=size - 4 * tensor.numel())
    copy = flat.as_strided(tensor.shape, tensor.stride())
    return copy.copy_(tensor)


def touch_nothing_else():
    """Run in a process of its own: inputs that end at forbidden pages, canaries around outputs."""
    for isa in range(len(ISAS)):
        for channels_last in (False, True):
            for size, kernel, channels in ((5, 3, 3), (16, 5, 16), (17, 7, 19), (70, 31, 5)):
                problem = same(channels, size, kernel, channels_last=channels_last, bias=True)
                x, weight, bias, grad = tensors(problem)
                expected = {kind: (forward(problem, x, weight, bias, isa, kind),
                                   weight_grad(problem, x, grad, isa, kind)) for kind in KINDS}
                spectrum = guarded(native.fft_spectrum(guarded(weight), problem, isa))
                x, weight, bias, grad = map(guarded, (x, weight, bias, grad))
                call = native._call(problem, isa)
                to_y = (*map(native.memory, (x, weight, spectrum, bias)), 0)
                to_dw = (native.memory(x), 0, 0, 0, native.memory(grad))
                cases = [(expected[kind][0], FORWARD[kind], to_y) for kind in KINDS]
                cases += [(expected[kind][1], WEIGHT_GRAD[kind], to_dw) for kind in KINDS]
                for out, kernel_id, addresses in cases:
                    room = torch.full((out.numel() + 64, ), 7.0)
                    room[32:-32] = float('nan')
                    native._native.run(kernel_id, call.isa, 2, call.geometry, *addresses,
                                       native.memory(room[32:-32]))
                    assert (room[:32] == 7).all()
                    assert (room[-32:] == 7).all()
                    assert torch.equal(room[32:-32].as_strided(out.shape, out.stride()), out)
                    last = guarded(torch.full_like(out, float('nan')))
                    native._native.run(kernel_id, call.isa, 2, call.geometry, *addresses,
                                       native.memory(last))
                    assert torch.equal(last, out)


@needs_kernels
@pytest.mark.skipif(sys.platform != 'linux', reason='needs mprotect')
def test_touches_nothing_but_its_arguments():
    code = (
        f'import importlib.util as u; s = u.spec_from_file_location("test_native", {__file__!r}); '
        'm = u.module_from_spec(s); s.loader.exec_module(m); m.touch_nothing_else()')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
