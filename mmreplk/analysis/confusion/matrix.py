"""The confusion matrix of a segmentor, from the predictions that ``tools/test.py --out`` writes.

MMSegmentation has a script for this, but it takes classes and ignored label from the class of the
data set: not for the ``metainfo`` of a config, as CamVid needs it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope


@dataclass(frozen=True)
class Confusion:
    """How often pixels of a class were taken for another.

    Attributes:
        classes (tuple[str, ...]): Names.
        counts (np.ndarray): Pixels, int64 (classes, classes): rows are the labels, columns what was
            predicted.
    """
    classes: tuple[str, ...]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Each row over its sum; NaN for a class without a pixel."""
        with np.errstate(invalid='ignore'):
            return self.counts / self.counts.sum(1, keepdims=True)

    @property
    def ious(self) -> np.ndarray:
        """IoU of each class, in per cent; NaN for one that is neither there nor predicted."""
        hits = np.diagonal(self.counts)
        with np.errstate(invalid='ignore'):
            return 100 * hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def miou(self) -> float:
        """Their mean, as ``IoUMetric`` has it."""
        return float(np.nanmean(self.ious))

    def worst(self, count: int = 5) -> list[tuple[str, str, float]]:
        """The most frequent confusions.

        Args:
            count (int): How many. Defaults to 5.

        Returns:
            list[tuple[str, str, float]]: Label, prediction and its share of the label's pixels.
        """
        shares = np.nan_to_num(self.shares)
        np.fill_diagonal(shares, 0)
        order = np.argsort(shares, axis=None)[::-1][:count]
        return [(self.classes[row], self.classes[column], float(shares[row, column]))
                for row, column in zip(*np.unravel_index(order, shares.shape), strict=True)
                if shares[row, column] > 0]


def confusion_of(cfg: Config, predictions: str | os.PathLike) -> Confusion:
    """Compare predictions with the labels of a config's test split.

    Labels that are no class (the ignored one, padding) are left out.

    Args:
        cfg (Config): The full config of a segmentor.
        predictions (str | PathLike): The folder that ``tools/test.py --out`` wrote with it.

    Returns:
        Confusion: Over all images.

    Raises:
        FileNotFoundError: If the prediction for an image is missing.
        ValueError: If the config is of another codebase, names no classes, or a prediction has
            another size or another class than the labels.
    """
    if cfg.get('default_scope') != 'mmseg':
        raise ValueError(f'CONFIG {cfg.filename}: default_scope is {cfg.get("default_scope")!r}, '
                         'not mmseg. MMDetection and MMPretrain have a confusion_matrix of their '
                         'own: mim run mmdet confusion_matrix, or mmpretrain.')
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = dataset.metainfo.get('classes')
    if not classes:
        raise ValueError(f'CONFIG {cfg.filename}: test_dataloader.dataset has no classes. Name '
                         'them in its metainfo.')
    folder, counts = Path(predictions), np.zeros((len(classes), ) * 2, np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        path = folder / f'{Path(sample.img_path).stem}.png'
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if found is None:
            raise FileNotFoundError(f'PREDICTIONS {str(folder)!r}: no image {path.name!r}. Write '
                                    'them with tools/test.py CONFIG CHECKPOINT --out PREDICTIONS.')
        # IoUMetric writes classes as the files of such data sets have them, from 1.
        found = found.astype(np.int64) - bool(sample.get('reduce_zero_label'))
        labels = sample.gt_sem_seg.data[0].numpy().astype(np.int64)
        counts += _count(labels, found, len(classes), path)
    return Confusion(tuple(classes), counts)


def _count(labels: np.ndarray, found: np.ndarray, classes: int, path: Path) -> np.ndarray:
    if labels.shape != found.shape:
        raise ValueError(f'{str(path)!r} has the size {found.shape}, its labels {labels.shape}. '
                         'Predict with the same config.')
    if found.max() >= classes or found.min() < 0:
        raise ValueError(f'{str(path)!r} has classes from {found.min()} to {found.max()}, the '
                         f'config {classes}. Predict with the same config.')
    known = (labels >= 0) & (labels < classes)
    pairs = labels[known] * classes + found[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
