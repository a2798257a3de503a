"""Effective receptive field (ERF): which pixels the center of a feature map really depends on.

The method is that of the RepLKNet paper (arXiv 2203.06717, section on effective receptive fields).
For images ``I`` (N, 3, H, W) and their feature maps ``M`` (N, C, h, w), the contribution of a pixel
is the positive part of the gradient of the map's center, summed over images and channels::

    S[y, x] = sum over n, k of  max(0, d/dI[n, k, y, x] sum over c of ReLU(M[n, c, h//2, w//2]))
    A = log10(S + 1), divided by its maximum

``r(t)`` is the area of the smallest centered square that holds more than a share ``t`` of the
total, over the area of the image. The paper and its published figures take the total of the scores
``A``; of ``S`` itself it depends less on the scale of the gradients. Every function here takes
either.

With random weights all this measures the initialization, not what a network has learnt.

Needs torch and NumPy alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)  # of the paper's table
Forward = Callable[[torch.Tensor], torch.Tensor]


class CenteredSquare(NamedTuple):
    """The smallest centered square with a given share of the contributions.

    Attributes:
        side (int): Its side in pixels.
        ratio (float): Its area over that of the image, in (0, 1].
    """
    side: int
    ratio: float


def center_point(height: int, width: int) -> tuple[int, int]:
    """The element that stands for the center of a map.

    It is ``(height // 2, width // 2)``: the middle of an odd map, and of an even one the first
    element behind the middle, as in the authors' evaluation. Images have their center in the same
    place. Behind convolutions of odd kernels with padding K // 2, the element i of a map of stride
    s looks at the pixel s * i, so that the center of an even map looks at the image's center, and
    that of an odd one half a stride above and to the left of it. Patches without overlap look
    (s - 1) / 2 further down and right.

    Args:
        height (int): Rows.
        width (int): Columns.

    Returns:
        tuple[int, int]: Row and column, counted from 0.
    """
    return height // 2, width // 2


def input_contribution(forward: Forward, images: torch.Tensor) -> torch.Tensor:
    """What every pixel contributes to the center of the feature map, summed over the batch.

    Parameters get no gradient. The network should be in evaluation mode, so that the images of a
    batch do not depend on one another and nothing is dropped.

    Args:
        forward (Callable): Turns images into a feature map (N, C, h, w).
        images (Tensor): (N, K, H, W), as the network takes them.

    Returns:
        Tensor: (H, W), not negative, on the images' device.

    Raises:
        ValueError: If the output is no feature map, or does not depend on the images.
    """
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        features = forward(images)
        if not isinstance(features, torch.Tensor) or features.dim() != 4:
            what = tuple(features.shape) if isinstance(features, torch.Tensor) else (
                type(features).__name__)
            raise ValueError(f'gives {what}, not a feature map of shape (N, C, H, W)')
        row, column = center_point(*features.shape[-2:])
        point = features[:, :, row, column].relu().sum()
    gradient = None
    if point.requires_grad:
        gradient, = torch.autograd.grad(point, images, allow_unused=True)
    if gradient is None:
        raise ValueError('no gradient reaches the image: the feature map does not depend on it, or '
                         'the network runs under torch.no_grad()')
    return gradient.relu().sum((0, 1))


def effective_receptive_field(forward: Forward, images: Iterable[torch.Tensor]) -> np.ndarray:
    """Sum the contributions of a stream of images; one batch at a time is in memory.

    Args:
        forward (Callable): As of :func:`input_contribution`.
        images (Iterable[Tensor]): Batches (N, K, H, W), all of one height and width.

    Returns:
        np.ndarray: The matrix ``S`` (H, W), float64, neither in logarithms nor scaled.

    Raises:
        ValueError: If there are no images, sizes differ, or a gradient is not finite.
    """
    total = None
    for index, batch in enumerate(images):
        part = input_contribution(forward, batch).cpu().double().numpy()
        if not np.isfinite(part).all():
            raise ValueError(f'the gradient of batch {index} is not finite: the weights are broken '
                             'or too large')
        if total is not None and part.shape != total.shape:
            raise ValueError(f'batch {index} has {part.shape[0]} x {part.shape[1]} pixels, those '
                             f'before it {total.shape[0]} x {total.shape[1]}: resize them alike')
        total = part if total is None else total + part
    if total is None:
        raise ValueError('images: there are none')
    return total


def contribution_scores(matrix: np.ndarray) -> np.ndarray:
    """The scores ``A = log10(S + 1)``, divided by their maximum: what the paper shows and measures.

    Args:
        matrix (np.ndarray): ``S`` (H, W), not negative.

    Returns:
        np.ndarray: (H, W), from 0 to 1.

    Raises:
        ValueError: If the matrix is zero everywhere, or has negative or non-finite values.
    """
    # The base cancels. log1p keeps the digits of gradients far below 1.
    scores = np.log1p(_checked(matrix))
    return scores / scores.max()


def high_contribution_area(matrix: np.ndarray, threshold: float) -> CenteredSquare:
    """The high-contribution area ratio ``r(t)``.

    Squares have the sides 1, 3, 5, ... around the pixel that :func:`center_point` names, and are
    cut off where they leave the image.

    Args:
        matrix (np.ndarray): Contributions ``S`` or scores ``A`` (H, W), not negative.
        threshold (float): The share ``t`` that has to be exceeded, 0 < t < 1.

    Returns:
        CenteredSquare: Its side and the ratio.

    Raises:
        ValueError: If the threshold is out of range, or the matrix as of
            :func:`contribution_scores`.
    """
    if not 0 < threshold < 1:
        raise ValueError(f'threshold {threshold}: give a share of the total between 0 and 1')
    matrix = _checked(matrix)
    height, width = matrix.shape
    row, column = center_point(height, width)
    rings = np.maximum(abs(np.arange(height) - row)[:, None], abs(np.arange(width) - column))
    held = np.cumsum(np.bincount(rings.ravel(), weights=matrix.ravel()))
    radius = int(np.argmax(held > threshold * held[-1]))
    area = int((rings <= radius).sum())
    return CenteredSquare(min(2 * radius + 1, max(height, width)), area / matrix.size)


def spread(matrix: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the contributions about their mean position: the size of the ERF.

    It is the measure of Luo et al., Understanding the Effective Receptive Field in Deep
    Convolutional Neural Networks (2016), by which the ERF grows as O(K sqrt(L)).

    Args:
        matrix (np.ndarray): ``S`` (H, W), not negative.

    Returns:
        tuple[float, float]: Along the rows (vertical) and the columns (horizontal), in pixels.

    Raises:
        ValueError: As of :func:`contribution_scores`.
    """
    matrix = _checked(matrix)
    result = []
    for axis in (1, 0):
        profile = matrix.sum(axis) / matrix.sum()
        at = np.arange(len(profile))
        result.append(math.sqrt(max(0.0, profile @ (at - profile @ at)**2)))
    return result[0], result[1]


def uniform_spread(kernel_sizes: Sequence[int], strides: Sequence[int] | None = None) -> float:
    """The exact :func:`spread` of a stack of convolutions with constant kernels.

    Kernels convolve with one another, so that their variances add, each in units of the product of
    the strides before it: ``sqrt(sum over l of (s_1 ... s_{l-1})^2 (K_l^2 - 1) / 12)``. For L equal
    kernels of stride 1 that is ``sqrt(L (K^2 - 1) / 12)``, the O(K sqrt(L)) of Luo et al. (2016).

    Args:
        kernel_sizes (Sequence[int]): ``K_l``, from the image on.
        strides (Sequence[int], optional): ``s_l``. Defaults to None, 1 everywhere.

    Returns:
        float: In pixels of the image, on each axis.
    """
    variance, step = 0.0, 1
    strides = [1] * len(kernel_sizes) if strides is None else strides
    for size, stride in zip(kernel_sizes, strides, strict=True):
        variance += step**2 * (size**2 - 1) / 12
        step *= stride
    return math.sqrt(variance)


def _checked(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f'contributions of shape {matrix.shape}: give a matrix (H, W)')
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError('contributions must be finite and not negative')
    if not matrix.any():
        raise ValueError('no pixel contributes: the center of the feature map is never positive, '
                         'or does not grow with any pixel')
    return matrix
