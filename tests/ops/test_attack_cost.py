"""What a call costs where it is made to cost much: counted, not timed."""

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import custom_ops as operators
from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.cpu import contrast as native_guard
from mmreplk.ops.cpu import kernels as native
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


@needs_kernels
@pytest.mark.parametrize(('size', 'counts'), [(5, (0, 1, 1)), (21, (0, 0, 1))])
def test_steps_without_end_are_for_the_direct_sum(monkeypatch, size, counts):
    """Few passes, none of small kernels, then the plane once directly; ordinary maps never."""
    summed, run = [], native.direct_forward
    monkeypatch.setattr(native, 'direct_forward',
                        lambda *of: summed.append(of[-2].out_channels) or run(*of))
    weight, half = torch.randn(20, 1, size, size), size // 2
    for levels, count in zip((1, 2, 7), counts, strict=True):
        summed.clear()
        x = stairs(levels)
        out = large_kernel_dwconv2d(x, weight, padding=half, backend='fft')
        assert summed == [1] * count
        right = F.conv2d(x.double(), weight.double(), None, 1, half, 1, 20)
        seen = F.max_pool2d(F.pad(x.double().abs(), (half, ) * 4), size, 1)
        taps = weight.double().square().sum((1, 2, 3)).sqrt()[:, None, None]
        assert bool(((out - right).abs() <= 2.0**-11 * seen * taps).all())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_input_gradients_with_a_multiplier_go_in_pieces(dtype):
    """No call takes or gives more than a part, of which each image and channel is in one."""
    took = []

    def convolve(grad, weight, *of):
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
