"""Results of the effective receptive field: measured, in a table, as CSV."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .field import (
    THRESHOLDS,
    CenteredSquare,
    contribution_scores,
    effective_receptive_field,
    high_contribution_area,
    spread,
)
from .models import ErfModel, ModelSpec
from .stages import stage_words

RANDOM_NOTE = ('random weights show the initialization, not what a network learns; no ranking '
               'of networks follows from them')


@dataclass(frozen=True)
class ErfResult:
    """The effective receptive field of one network.

    Attributes:
        spec (ModelSpec): Which network and stage.
        weights (str): ``random``, ``pretrained`` or the name of a file.
        matrix (np.ndarray): The contributions ``S`` (H, W), see :mod:`.field`.
        pictures (str): What it was measured on.
        count (int): On how many images.
    """
    spec: ModelSpec
    weights: str
    matrix: np.ndarray
    pictures: str
    count: int

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.weights == 'random'

    def of_scores(self) -> list[CenteredSquare]:
        """``r(t)`` of the scores ``A``, as in the paper, for each of :data:`.erf.THRESHOLDS`."""
        scores = contribution_scores(self.matrix)
        return [high_contribution_area(scores, threshold) for threshold in THRESHOLDS]

    def of_sum(self) -> list[CenteredSquare]:
        """``r(t)`` of the contributions ``S`` themselves, for each of :data:`.erf.THRESHOLDS`."""
        return [high_contribution_area(self.matrix, threshold) for threshold in THRESHOLDS]


def measure(spec: ModelSpec, model: ErfModel, pictures: Iterable[np.ndarray],
            device: str | torch.device = 'cpu') -> ErfResult:
    """Measure a network on a stream of images, with a progress bar on stderr.

    Args:
        spec (ModelSpec): Its name.
        model (ErfModel): The network; it is moved to the device.
        pictures (Iterable[np.ndarray]): (H, W, 3) RGB, uint8; has a length and a description.
        device (str | torch.device): Where to run. Defaults to the CPU.

    Returns:
        ErfResult: The matrix and where it is from.

    Raises:
        ValueError: If the stage is no feature map, no pixel contributes, or gradients are not
            finite.
    """
    model.network.to(device)
    stream = (model.prepare(picture, device)
              for picture in _with_progress(pictures, len(pictures), spec.name))
    try:
        matrix = effective_receptive_field(model.features, stream)
        contribution_scores(matrix)
    except ValueError as error:
        raise ValueError(f'MODEL {spec.source}: {error}.') from error
    return ErfResult(spec, model.weights, matrix, str(pictures), len(pictures))


def _with_progress(items: Iterable, total: int, label: str) -> Iterator:
    try:
        from tqdm import tqdm
    except ImportError:
        from mmengine.utils import track_iter_progress
        return track_iter_progress((items, total), file=sys.stderr)
    return tqdm(items, total=total, desc=label, unit='image')


def percent(ratio: float) -> str:
    """A ratio of areas in per cent, with one decimal, or two digits below one."""
    return f'{100 * ratio:.1f}' if ratio >= 0.01 else f'{100 * ratio:.2g}'


def table_rows(results: list[ErfResult]) -> list[list[str]]:
    """A row for each network: name, stage, weights, then ``r(t)`` of the scores and of the sum."""
    return [[result.spec.name, stage_words(result.spec.stage), result.weights.rsplit('/', 1)[-1],
             *(percent(square.ratio) for square in result.of_scores() + result.of_sum())]
            for result in results]


def table_head() -> list[str]:
    """The columns of :func:`table_rows`."""
    return ['model', 'stage', 'weights', *(f'{share:.0%}' for share in THRESHOLDS * 2)]


def caption(results: list[ErfResult]) -> str:
    """One line on what the numbers of a table are."""
    height, width = results[0].matrix.shape
    return (f'High-contribution area ratio r(t) in % of the {height} x {width} pixels, on '
            f'{results[0].pictures}')


def format_table(results: list[ErfResult]) -> str:
    """The table as text.

    Args:
        results (list[ErfResult]): Of one size and on the same images.

    Returns:
        str: Several lines.
    """
    head, rows = table_head(), table_rows(results)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells):
        left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        half = len(THRESHOLDS)
        return ' | '.join(['  '.join(left), '  '.join(right[:half]), '  '.join(right[half:])])

    numbers = sum(widths[3:3 + len(THRESHOLDS)]) + 2 * (len(THRESHOLDS) - 1)
    names = ' ' * (sum(widths[:3]) + 4)
    group = ' | '.join([names, 'of scores'.ljust(numbers), 'of sum'])
    return '\n'.join([
        caption(results), '', group, line(head), '-' * len(line(head)), *map(line, rows), '',
        'of scores: of A = log10(S + 1), as in the paper; of sum: of the contributions S.'])


def format_csv(results: list[ErfResult]) -> str:
    """All numbers as CSV, one row for each network.

    Args:
        results (list[ErfResult]): In any number.

    Returns:
        str: With a header. ``r<t>`` are ratios from 0 to 1 and ``side<t>`` pixels, of the scores;
        ``sum_r<t>`` and ``sum_side<t>`` of the contributions; ``std_y`` and ``std_x`` pixels.
    """
    lines = []
    for result in results:
        std_y, std_x = spread(result.matrix)
        row = dict(model=result.spec.name, source=result.spec.source, stage=result.spec.stage,
                   weights=result.weights, height=result.matrix.shape[0],
                   width=result.matrix.shape[1], count=result.count, pictures=result.pictures)
        for prefix, squares in (('', result.of_scores()), ('sum_', result.of_sum())):
            for threshold, square in zip(THRESHOLDS, squares, strict=True):
                row[f'{prefix}r{round(100 * threshold)}'] = f'{square.ratio:.6g}'
                row[f'{prefix}side{round(100 * threshold)}'] = square.side
        lines.append(row | dict(std_y=f'{std_y:.6g}', std_x=f'{std_x:.6g}',
                                largest=f'{result.matrix.max():.6g}'))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
