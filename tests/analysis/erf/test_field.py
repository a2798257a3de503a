"""Effective receptive fields of networks for which they are known exactly."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmreplk.analysis import (
    center_point,
    contribution_scores,
    effective_receptive_field,
    high_contribution_area,
    input_contribution,
    spread,
    uniform_spread,
)


def constant(kernel_sizes, strides=None, channels=3, depthwise=True) -> nn.Sequential:
    """Convolutions with "same" padding whose kernels have the same value everywhere, and sum 1."""
    strides = strides or [1] * len(kernel_sizes)
    layers = []
    for size, stride in zip(kernel_sizes, strides, strict=True):
        conv = nn.Conv2d(channels, channels, size, stride, size // 2,
                         groups=channels if depthwise else 1, bias=False, dtype=torch.float64)
        nn.init.constant_(conv.weight, 1 / conv.weight[0].numel())
        layers.append(conv)
    return nn.Sequential(*layers)


def erf(network, size, count=1, channels=3) -> np.ndarray:
    """Of bright random images, so that every feature is positive."""
    images = (torch.rand(1, channels, size, size, dtype=torch.float64) + 0.1 for _ in range(count))
    return effective_receptive_field(network, images)


def profile(kernel_sizes, strides, size) -> np.ndarray:
    """What one axis of a stack contributes: boxes with holes of the strides before, convolved."""
    line, step = np.ones(1), 1
    for kernel, stride in zip(kernel_sizes, strides, strict=True):
        box = np.zeros(step * (kernel - 1) + 1)
        box[::step] = 1 / kernel
        line, step = np.convolve(line, box), step * stride
    out = np.zeros(size)
    # All strides divide the size, so that the map's center looks at the image's.
    start = size // 2 - len(line) // 2
    out[start:start + len(line)] = line
    return out


@pytest.mark.parametrize('depthwise', [True, False])
@pytest.mark.parametrize(('kernel', 'size'), [(1, 9), (3, 16), (7, 15), (31, 64)])
def test_one_kernel_is_a_square(kernel, size, depthwise):
    matrix = erf(constant([kernel], depthwise=depthwise), size, count=2)
    middle, reach = size // 2, kernel // 2
    expected = np.zeros((size, size))
    # Two images, three channels: each of the three outputs has the sum 1.
    expected[middle - reach:middle + reach + 1,
             middle - reach:middle + reach + 1] = 2 * 3 / kernel**2
    np.testing.assert_allclose(matrix, expected, rtol=1e-12, atol=1e-15)
    for threshold in (0.2, 0.3, 0.5, 0.99):
        side = next(side for side in range(1, kernel + 1, 2) if side**2 / kernel**2 > threshold)
        for values in (matrix, contribution_scores(matrix)):  # constant, so the logarithm is too
            assert high_contribution_area(values, threshold) == (side, side**2 / size**2)


@pytest.mark.parametrize(('kernels', 'strides'), [
    ([3, 3, 3, 3, 3], [1] * 5),
    ([13, 5, 7], [1, 1, 1]),
    ([3, 3, 3], [2, 2, 2]),
    ([5, 3, 7, 3], [2, 1, 2, 1]),
])
def test_stacks_are_convolved_boxes(kernels, strides):
    size = 64
    matrix = erf(constant(kernels, strides), size)
    line = profile(kernels, strides, size)
    np.testing.assert_allclose(matrix, 3 * np.outer(line, line), rtol=1e-10, atol=1e-15)
    # On one axis the sum of such a stack is the square of that of a line.
    for threshold in (0.2, 0.5, 0.99):
        radius = next(radius for radius in range(32)
                      if line[32 - radius:32 + radius + 1].sum()**2 > threshold)
        assert high_contribution_area(matrix, threshold).side == 2 * radius + 1
    assert spread(matrix) == pytest.approx([uniform_spread(kernels, strides)] * 2, rel=1e-9)


def test_grows_with_kernel_and_with_the_root_of_depth():
    sizes, depths = (3, 7, 13), (1, 4, 16)
    found = {(size, depth): spread(erf(constant([size] * depth, channels=1), 224, channels=1))[0]
             for size in sizes for depth in depths if size * depth < 224}
    for (size, depth), value in found.items():
        assert value == pytest.approx(math.sqrt(depth * (size**2 - 1) / 12), rel=1e-9)
    for size in sizes:
        assert found[size, 16] == pytest.approx(4 * found[size, 1], rel=1e-9)
        assert found[size, 4] == pytest.approx(2 * found[size, 1], rel=1e-9)
    # sqrt(K^2 - 1) is K up to 6% from K = 3 on.
    for depth in depths:
        assert found[13, depth] / found[3, depth] == pytest.approx(13 / 3, rel=0.07)
    # One kernel of 31 sees further than fifteen of 3, which cover the same 31 pixels.
    assert uniform_spread([31]) > 2 * uniform_spread([3] * 15)


def test_random_kernels_grow_as_the_root_of_depth_too():
    def network(depth):
        layers = [nn.Conv2d(16 if index else 3, 16, 5, padding=2, bias=False)
                  for index in range(depth)]
        return nn.Sequential(*layers).double()

    # Of random weights the variances convolve, so the squares of the gradients are spread as those
    # of constant ones, were it not for the few paths near the edge.
    for depth in (2, 8):
        squares = [erf(network(depth), 48)**2 for _ in range(16)]
        assert spread(sum(squares))[0] == pytest.approx(uniform_spread([5] * depth), rel=0.1)


def test_sums_positive_gradients_of_positive_features_only():
    conv = nn.Conv2d(2, 3, 1, bias=True)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([[2., -3.], [5., 7.], [1., 1.]])[..., None, None]
        conv.bias[:] = torch.tensor([0., -100., 0.])  # the second feature is off
    images = torch.ones(1, 2, 5, 7)
    images[:, 1] = 0.5  # features 0.5, -91.5 and 1.5
    matrix = effective_receptive_field(conv, [images, images])
    # Gradients 2 + 1 and -3 + 1: the second channel's is negative as a whole.
    expected = np.zeros((5, 7))
    expected[2, 3] = 2 * 3
    np.testing.assert_array_equal(matrix, expected)


def test_a_batch_counts_as_its_images():
    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.BatchNorm2d(4), nn.ReLU(),
                            nn.Conv2d(4, 4, 3, 2, 1)).double().eval()
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    np.testing.assert_allclose(
        effective_receptive_field(network, [images]),
        effective_receptive_field(network, images.split(1)), rtol=1e-12, atol=1e-15)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(('height', 'width', 'point'), [
    (1, 1, (0, 0)), (7, 7, (3, 3)), (8, 8, (4, 4)), (5, 8, (2, 4))])
def test_center_point(height, width, point):
    assert center_point(height, width) == point
    matrix = input_contribution(lambda images: images, torch.ones(1, 1, height, width))
    assert [int(value) for value in matrix.nonzero()[0]] == list(point)


@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (7, 7), (9, 4), (5, 12)])
def test_area_against_brute_force(shape):
    matrix = np.random.default_rng(3).exponential(size=shape)**3
    row, column = shape[0] // 2, shape[1] // 2
    for threshold in np.linspace(0.01, 0.999, 60):
        for radius in range(max(shape)):
            square = matrix[max(0, row - radius):row + radius + 1,
                            max(0, column - radius):column + radius + 1]
            if square.sum() > threshold * matrix.sum():
                break
        found = high_contribution_area(matrix, threshold)
        assert found == (min(2 * radius + 1, max(shape)), square.size / matrix.size)


def test_the_share_has_to_be_exceeded():
    matrix = np.ones((5, 5))
    assert high_contribution_area(matrix, 9 / 25).side == 5  # 3x3 holds exactly that
    assert high_contribution_area(matrix, 9 / 25 - 1e-9).side == 3


def test_scores():
    matrix = np.array([[0., 9.], [99., 999.]])
    np.testing.assert_allclose(contribution_scores(matrix), [[0, 1 / 3], [2 / 3, 1]])
    # Of gradients far below 1 the logarithm is linear.
    np.testing.assert_allclose(contribution_scores(matrix * 1e-30), matrix / 999)


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: effective_receptive_field(nn.Identity(), []), 'there are none'),
    (lambda: effective_receptive_field(
        nn.Identity(), [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 5)]), 'batch 1 has 4 x 5'),
    (lambda: input_contribution(nn.Flatten(), torch.ones(1, 1, 4, 4)), r'\(1, 16\), not a feature'),
    (lambda: input_contribution(lambda images: [images], torch.ones(1, 1, 4, 4)), 'list, not'),
    (lambda: input_contribution(torch.ones_like, torch.ones(1, 1, 4, 4)), 'no gradient reaches'),
    (lambda: input_contribution(torch.no_grad()(nn.Conv2d(1, 1, 1)), torch.ones(1, 1, 4, 4)),
     'no gradient reaches'),
    (lambda: effective_receptive_field(lambda images: images * float('inf'),
                                       [torch.ones(1, 1, 2, 2)]), 'batch 0 is not finite'),
    (lambda: high_contribution_area(np.ones((2, 2)), 1.0), 'threshold 1.0'),
    (lambda: high_contribution_area(np.ones(4), 0.5), 'give a matrix'),
    (lambda: spread(-np.ones((2, 2))), 'not negative'),
    (lambda: contribution_scores(np.zeros((2, 2))), 'no pixel contributes'),
])
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_needs_no_mm_package():
    code = ('import sys\n'
            'for name in ("mmengine", "mmcv", "mmseg", "mmdet", "mmpretrain", "matplotlib", "PIL"):'
            '\n    sys.modules[name] = None\n'
            'import torch, importlib.util\n'
            'found = importlib.util.find_spec\n'
            'importlib.util.find_spec = lambda name, *a: None if name in ("mmengine", "mmcv") '
            'else found(name, *a)\n'
            'from mmreplk.analysis import effective_receptive_field\n'
            'print(effective_receptive_field(torch.nn.Identity(), [torch.ones(1, 1, 3, 3)]).sum())')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == '1.0', done.stderr
