"""What a call costs where it is made to cost much: counted, not timed."""

import struct

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import custom_ops as operators, large_kernel_dwconv2d
from mmreplk.ops.cpu import contrast as native_guard, kernels as native
from mmreplk.ops.cpu.plan import Tiles, fft_tiles
from mmreplk.ops.problem import Problem

needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])


def problem_of(height, width, kernel, dilation=1, channels=1):
    pad = dilation * (kernel - 1) // 2
    return Problem(torch.float32, 'cpu', False, 1, channels, height, width, 1, (kernel, kernel),
                   (1, 1), (pad, ) * 4, (dilation, dilation), False)


@pytest.fixture(name='looks')
def _looks(monkeypatch):
    """Counts the windows that the search for cells looks at, and stops it when there are many."""
    count, met = [0, 0], native_guard._met

    def counted(*of):
        count[0] += 1
        assert count[0] <= count[1], f'looked at more than {count[1]} windows'
        return met(*of)

    for search in (native_guard.forward_cells, native_guard.backward_cells,
                   native_guard._forward_axis, native_guard._backward_axis):
        search.cache_clear()
    monkeypatch.setattr(native_guard, '_met', counted)
    return count


@pytest.mark.parametrize('size', [(1, 100_000), (300_000, 1), (16_000, 16_000)])
@pytest.mark.parametrize(('kernel', 'dilation'), [(31, 1), (5, 1), (13, 7)])
@pytest.mark.parametrize('tiled', [True, False])
def test_the_search_for_cells_is_linear(looks, size, kernel, dilation, tiled):
    """In tiles of the compiled kernels and in one, as torch.fft has it."""
    looks[1] = 2 * sum(size)
    problem = problem_of(*size, kernel, dilation)
    lengths = tuple(min(144, o) for o in problem.out_size) if tiled else problem.out_size
    for cells_of in (native_guard.forward_cells, native_guard.backward_cells):
        cells_of(problem, Tiles((0, 0), lengths, 1, 0.0))
    assert looks[0] > 0


@needs_kernels
def test_inference_plans_no_gradient(monkeypatch):
    def never(*of):
        raise AssertionError('cells of a gradient for a convolution')

    native._call.cache_clear()
    monkeypatch.setattr(native, 'backward_cells', never)
    problem = problem_of(150, 170, 9)
    assert fft_tiles(problem, native.lanes()) is not None
    x, weight = torch.randn(1, 1, 150, 170), torch.randn(1, 1, 9, 9)
    native.fft_forward(x, native.fft_spectrum(weight, problem), weight, None, problem)
    native._call.cache_clear()


@pytest.mark.parametrize('tiles', [1, 2, 3, 7])
@pytest.mark.parametrize(('size', 'kernel', 'before', 'dilation'), [
    (200, 9, 4, 1), (200, 9, 0, 1), (211, 5, 6, 3), (190, 12, 11, 1), (97, 31, 15, 1),
    (300, 3, 40, 2)])
def test_the_cells_are_those_of_all_windows(monkeypatch, size, kernel, before, dilation, tiles):
    """What is left out of the search changes nothing."""
    outs = size + 2 * before - dilation * (kernel - 1)
    axes = native_guard._forward_axis, native_guard._backward_axis
    args = size, outs, kernel, before, dilation, -(-outs // tiles)
    found = [axis.__wrapped__(*args) for axis in axes]
    monkeypatch.setattr(native_guard, '_distinct', lambda low, high, *of: range(low, high))
    assert [axis.__wrapped__(*args) for axis in axes] == found


def stairs(levels, size=96):
    """A map on which each pass of the guard mends one step of a stair, and leaves the next."""
    x = torch.randn(1, 20, size, size)
    x[0, 7] *= 10.0 ** (-4 * (torch.arange(size) * levels // size))
    return x


@pytest.fixture(name='summed')
def _summed(monkeypatch):
    """Of each call of a direct sum in the place of the FFT: planes, and outputs of one of them."""
    calls, module = [], native._native

    class Counted:
        def __getattr__(self, name):
            return getattr(module, name)

        def run(self, kernel, isa, threads, geometry, *of):
            if kernel in (native._LANES_FORWARD, native._ROWS_FORWARD):
                sizes = struct.unpack('24q', geometry)
                calls.append((sizes[1] * sizes[2] * sizes[5], sizes[12] * sizes[13]))
            return module.run(kernel, isa, threads, geometry, *of)

    monkeypatch.setattr(native, '_native', Counted())
    return calls


def promised(out, x, weight):
    half = weight.shape[-1] // 2
    right = F.conv2d(x.double(), weight.double(), None, 1, half, 1, len(weight))
    seen = F.max_pool2d(F.pad(x.double().abs(), (half, ) * 4), weight.shape[-1], 1)
    taps = weight.double().square().sum((1, 2, 3)).sqrt()[:, None, None]
    return bool(((out - right).abs() <= 2.0**-11 * seen * taps).all())


@needs_kernels
@pytest.mark.parametrize(('size', 'counts'), [(5, (0, 20, 20)), (21, (0, 1, 1))])
def test_steps_without_end_are_for_the_direct_sum(summed, size, counts):
    """The plane that has them, alone if that saves more than a call takes; ordinary maps never."""
    weight, half = torch.randn(20, 1, size, size), size // 2
    for levels, count in zip((1, 2, 7), counts, strict=True):
        summed.clear()
        x = stairs(levels)
        out = large_kernel_dwconv2d(x, weight, padding=half, backend='fft')
        assert [planes for planes, _ in summed] == [count] * (count > 0)
        assert promised(out, x, weight)


def crafted(kind, size):
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    if kind == 'half':
        return torch.where(rows < size // 2, 1e8, 1.0)
    if kind == 'board':
        return torch.where((rows // 16 + columns // 16) % 2 == 0, 1e8, 1.0)
    if kind == 'slope':
        return 10.0 ** (16.0 * (rows + columns) / size - 16)
    out = torch.ones(size, size)
    out[size // 3, size // 5] = 1e8 if kind == 'pixel' else torch.nan
    return out


@needs_kernels
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('kernel', [5, 13, 31])
@pytest.mark.parametrize('kind', ['half', 'board', 'slope', 'pixel', 'nan'])
def test_no_output_is_summed_twice(summed, kind, kernel, last):
    """Whatever the map: at most one FFT convolution that is in vain, and the direct sum."""
    for channels, size in ((19, 64), (3, 250)):
        summed.clear()
        x = torch.randn(2, channels, size, size) * crafted(kind, size)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        weight = torch.randn(channels, 1, kernel, kernel)
        out = large_kernel_dwconv2d(x, weight, padding=kernel // 2, backend='fft')
        assert sum(planes * outputs for planes, outputs in summed) <= out.numel()
        if kind == 'nan':
            right = large_kernel_dwconv2d(x, weight, padding=kernel // 2, backend='direct')
            assert torch.equal(out.isnan(), right.isnan())
            assert torch.allclose(out, right, rtol=0, atol=1e-4 * kernel, equal_nan=True)
        else:
            assert promised(out, x, weight)


@needs_kernels
def test_planes_are_left_in_any_number(summed):
    """One of many, several of a few images: each with its own weights and bias."""
    x, weight, bias = torch.randn(3, 40, 60, 60), torch.randn(20, 1, 13, 13), torch.randn(20)
    x = x[:, ::2]  # not dense, too
    where = [(0, 3), (0, 4), (2, 19)]
    for n, c in where:
        x[n, c] *= crafted('half', 60)
    out = large_kernel_dwconv2d(x, weight, bias, padding=6, backend='fft')
    assert sum(planes for planes, _ in summed) == len(where)
    assert promised(out - bias[:, None, None], x, weight)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_input_gradients_with_a_multiplier_go_in_pieces(dtype):
    """No call takes or gives more than a part, of which each image and channel is in one."""
    took = []

    def convolve(grad, weight, *of, strict):
        took.append(grad.nbytes)
        assert 2 * grad.nbytes <= operators.PART
        return torch.full_like(grad, len(took))

    grad, weight = torch.zeros(3, 24, 128, 160, dtype=dtype), torch.zeros(24, 1, 5, 5, dtype=dtype)
    with torch.no_grad():
        out = operators.input_grad(grad, weight, 8, [2] * 4, [1, 1], 'auto', convolve)
    assert out.shape == (3, 8, 128, 160)
    assert out.dtype == dtype
    assert sum(took) == grad.numel() * 4
    assert out.amin() >= 3  # three maps of at least 1 each: nothing is left unwritten
