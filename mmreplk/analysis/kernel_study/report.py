"""Results of a kernel study: scores by distance, receptive fields, CSV and table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..erf.field import THRESHOLDS
from ..erf.images import FolderImages
from ..erf.report import ErfResult
from .far_context import CLASS_IDS, DISTANCES, LANDS, NO_DISTANCE, SIZE, SPLITS
from .fields import align_spread, field_of, seconds_per_iteration
from .settings import KernelStudy
from .study import Run

ERF_IMAGES = 50
BIN = 10  # pixels of distance
EDGES = tuple(range(0, 90, BIN))  # the last bin is open
FAR = 40  # pixels


@dataclass(frozen=True)
class RunResult:
    """What came out for one network.

    Attributes:
        run (Run): Which.
        miou (float): Over the four classes, in per cent, as ``tools/test.py`` reports it.
        accuracy (np.ndarray): Share of the land's pixels that are named rightly, by distance from
            the landmark: one number for each of :data:`EDGES`.
        pixels (np.ndarray): How many pixels each is of.
        erf (ErfResult): The effective receptive field of the trained backbone.
        seconds (float): Of one iteration of training, median.
    """
    run: Run
    miou: float
    accuracy: np.ndarray
    pixels: np.ndarray
    erf: ErfResult
    seconds: float

    def land_accuracy(self, farther_than: int = 0) -> float:
        """Share of rightly named pixels of the land, at least so many pixels away from a landmark.

        Args:
            farther_than (int): One of :data:`EDGES`. Defaults to 0, all.
        """
        rows = np.asarray(EDGES) >= farther_than
        return float((self.accuracy * self.pixels)[rows].sum() / self.pixels[rows].sum())

    def row(self) -> dict:
        """The result as a row of the CSV."""
        row = dict(kernel=self.run.kernel, seed=self.run.seed, mIoU=f'{self.miou:.2f}',
                   land_accuracy=f'{self.land_accuracy():.4f}')
        for edge, value in zip(EDGES, self.accuracy, strict=True):
            row[f'accuracy_from_{edge}px'] = f'{value:.4f}'
        for prefix, squares in (('', self.erf.of_scores()), ('sum_', self.erf.of_sum())):
            for threshold, square in zip(THRESHOLDS, squares, strict=True):
                row[f'{prefix}r{round(100 * threshold)}'] = f'{square.ratio:.4f}'
        return row | dict(seconds_per_iter=f'{self.seconds:.4f}')


def collect(study: KernelStudy, report: Callable[[str], None] = lambda line: None
            ) -> list[RunResult]:
    """Score every network of a finished study, and measure its receptive field.

    The field is measured on the first images of the validation split.

    Args:
        study (KernelStudy): All of its networks are trained and evaluated.
        report (Callable): Called with a line on the progress. Defaults to nothing.

    Returns:
        list[RunResult]: In the order of the study's runs.
    """
    results = []
    pictures = FolderImages(str(study.data / 'images' / SPLITS[1]),
                            min(ERF_IMAGES, study.settings.num_val), SIZE)
    report(f'receptive fields on {len(pictures)} pictures of the validation split')
    for run in study.runs:
        miou = read_metrics(study.run_folder(run) / 'test', ['mIoU'])['mIoU']
        hits, pixels = accuracy_by_distance(study.data, study.predictions(run))
        accuracy = hits / np.maximum(pixels, 1)
        results.append(RunResult(run, miou, accuracy, pixels, field_of(study, run, pictures, SIZE),
                                 seconds_per_iteration(study.run_folder(run))))
    return results


def read_metrics(work_dir: Path, wanted: Sequence[str]) -> dict[str, float]:
    """The metrics that MMEngine's Runner wrote as ``work_dir/TIME/TIME.json``.

    Args:
        work_dir (Path): Of ``tools/test.py``.
        wanted (Sequence[str]): Their names.

    Returns:
        dict[str, float]: By name.

    Raises:
        FileNotFoundError: If no file has them.
    """
    for path in sorted(work_dir.glob('*/*.json'), reverse=True):
        # One JSON object a line where the logger wrote more than once.
        for line in reversed(path.read_text(encoding='utf-8').splitlines()):
            metrics = json.loads(line)
            if all(name in metrics for name in wanted):
                return {name: metrics[name] for name in wanted}
    raise FileNotFoundError(f'no {", ".join(wanted)} under {str(work_dir)!r}: was it emptied?')


def accuracy_by_distance(data: Path, predictions: Path) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of the land by their distance from the landmark.

    Args:
        data (Path): Folder of the images.
        predictions (Path): Folder of label maps, as ``tools/test.py --out`` writes them: numbers of
            classes in the order of the config, counted from 1.

    Returns:
        tuple[np.ndarray, np.ndarray]: Pixels named rightly, and all, for each of :data:`EDGES`.
    """
    numbers = np.array([0, *CLASS_IDS.values()])
    hits, pixels = np.zeros(len(EDGES), np.int64), np.zeros(len(EDGES), np.int64)
    for path in sorted((data / 'annotations' / SPLITS[1]).glob('*.png')):
        labels, guess, distances = (
            cv2.imread(str(folder / path.name), cv2.IMREAD_UNCHANGED)
            for folder in (path.parent, predictions, data / DISTANCES / SPLITS[1]))
        land = distances != NO_DISTANCE
        bins = np.minimum(distances[land] // BIN, len(EDGES) - 1)
        right = numbers[guess[land]] == labels[land]
        pixels += np.bincount(bins, minlength=len(EDGES))
        hits += np.bincount(bins[right], minlength=len(EDGES))
    return hits, pixels


def blind_miou(data: Path) -> float:
    """The mIoU of whoever finds water and land exactly, but names the land by chance.

    A third of a class's pixels is hit, and a third of the other land is taken for it. With shares
    ``p`` of the class and ``land`` of all land, ``IoU = (p/3) / (p + (land - p)/3)``.

    Args:
        data (Path): Folder of the images.

    Returns:
        float: In per cent.
    """
    counts = np.zeros(256, np.int64)
    for path in (data / 'annotations' / SPLITS[1]).glob('*.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        counts += np.bincount(labels.ravel(), minlength=256)
    shares = np.array([counts[CLASS_IDS[land]] for land in LANDS], float)
    count = len(LANDS)
    ious = (shares / count) / (shares + (shares.sum() - shares) / count)
    return 100 * (1 + ious.sum()) / (1 + count)


def by_kernel(results: list[RunResult]) -> dict[int, list[RunResult]]:
    """Group results by kernel size, the smallest first."""
    kernels = sorted({result.run.kernel for result in results})
    return {kernel: [r for r in results if r.run.kernel == kernel] for kernel in kernels}


def middle_run(results: list[RunResult]) -> RunResult:
    """Of networks of one kernel size, that with the median mIoU (the lower one of two)."""
    return sorted(results, key=lambda result: result.miou)[(len(results) - 1) // 2]


def format_table(study: KernelStudy, results: list[RunResult]) -> str:
    """Mean and standard deviation over the seeds, one line for each kernel size.

    Args:
        study (KernelStudy): The study.
        results (list[RunResult]): All of its results.

    Returns:
        str: Several lines.
    """
    columns = [
        ('mIoU', 1, lambda r: r.miou),
        ('land, %', 1, lambda r: 100 * r.land_accuracy()),
        (f'from {FAR} px, %', 1, lambda r: 100 * r.land_accuracy(FAR)),
        ('r(50%), %', 1, lambda r: 100 * r.erf.of_scores()[2].ratio),
        ('r(99%), %', 1, lambda r: 100 * r.erf.of_scores()[3].ratio),
        ('s/iteration', 3, lambda r: r.seconds),
    ]
    groups = {f'{kernel} x {kernel}': group for kernel, group in by_kernel(results).items()}
    seeds = len(study.settings.seeds)
    return '\n'.join([
        f'{seeds} seed{"s" * (seeds > 1)}, {study.settings.iters} iterations of 8 pictures, '
        f'{study.settings.num_val} pictures of {SIZE} x {SIZE} to score; mean +- standard '
        'deviation',
        '', *align_spread('kernel', columns, groups), '',
        f'With the shores exact and the land named by chance: mIoU {blind_miou(study.data):.1f}.',
        f'land: share of its pixels that are named rightly; from {FAR} px: of those at least {FAR} '
        'pixels away from the landmark.',
        'r(t): high-contribution area of the trained backbone, scores A, of '
        f'{results[0].erf.pictures.split(" in ")[0]}.'])
