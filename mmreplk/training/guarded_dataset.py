"""A dataset whose samples are random by their number, and whose errors name their files."""

from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATASETS as ROOT_DATASETS
from torch.utils.data import Dataset

from ..registry import DATASETS, register
from .labels import LabelRule
from .resumable_rng import NumberedIndex, seed_for_sample

# Where the codebases keep the files that a sample is made of.
FILE_KEYS = ('img_path', 'seg_map_path')


class SampleError(RuntimeError):
    """A sample that cannot be used; the message names its files."""


@register(DATASETS)
class GuardedDataset(Dataset):
    """A dataset around another one; whatever is not defined here is that one's.

    Args:
        dataset (dict | Dataset): The other dataset, or its config.
        labels (tuple[LabelRule, ...]): The labels that the model can do with, from
            :func:`.labels.label_rules`; samples with others are refused. Defaults to none: any.
        seed (int, optional): The run's seed, for training. Defaults to None: the generators are
            left alone.
    """

    _own = frozenset(('inner', '_labels', '_seed', '_rank'))

    def __init__(self, dataset: dict | Dataset, labels: tuple[LabelRule, ...] = (),
                 seed: int | None = None):
        self.inner = ROOT_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self._labels, self._seed, self._rank = labels, seed, get_rank()

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str):
        if name == 'inner':
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value) -> None:
        # Hooks of the codebases exchange the pipeline in the middle of a run.
        super().__setattr__(name, value) if name in self._own else setattr(self.inner, name, value)

    def __getitem__(self, index: int):
        """Load a sample.

        Args:
            index (int): Which; a :class:`.resumable_rng.NumberedIndex` also says for which time.

        Returns:
            dict: As of the other dataset.

        Raises:
            SampleError: If its files cannot be read or do not suit the pipeline, image and label
                map differ in size, or it has a label that the model has no class for.
        """
        if self._seed is not None and isinstance(index, NumberedIndex):
            seed_for_sample(self._seed, self._rank, index.number)
        index = int(index)
        try:
            sample = self.inner[index]
        except Exception as error:  # of a reader or a transform, which the user may have written
            raise SampleError(
                f'{self._name(index)} cannot be loaded: {type(error).__name__}: '
                f'{" ".join(str(error).split())}. Repair or remove it, or change the pipeline '
                'that does not suit it.') from error
        sizes = _different_sizes(sample)
        if sizes:
            raise SampleError(f'{self._name(index)}: image and label differ in size: {sizes[0]} '
                              f'and {sizes[1]}. Repair or remove the pair.')
        for rule in self._labels:
            wrong = [label for labels in _labels(sample) for label in rule.wrong(labels).tolist()]
            if wrong:
                raise SampleError(
                    f'{self._name(index)} has the label {", ".join(map(str, wrong[:5]))}, but the '
                    f'model has classes {rule}. Correct the labels, or num_classes or ignore_index '
                    'of the heads; reduce_zero_label shifts labels by one.')
        return sample

    def _name(self, index: int) -> str:
        try:
            found = self.inner.get_data_info(index)
            files = [found[key] for key in FILE_KEYS if found.get(key)]
        except Exception:  # not every dataset can tell
            files = []
        kind = type(self.inner).__name__
        return f'{" with ".join(map(repr, files))} (sample {index} of {kind})' if files else (
            f'sample {index} of {kind}')


def _different_sizes(sample) -> tuple | None:
    """The sizes of image and label map, if they differ.

    Evaluation resizes images and not their labels, which have the size of the image in its file.
    """
    inputs = sample.get('inputs') if isinstance(sample, dict) else None
    label = getattr(sample.get('data_samples'), 'gt_sem_seg', None) if inputs is not None else None
    if not isinstance(inputs, torch.Tensor) or label is None:
        return None
    sizes = tuple(inputs.shape[-2:]), tuple(label.data.shape[-2:])
    original = tuple(sample['data_samples'].metainfo.get('ori_shape', ()))[:2]
    return sizes if sizes[1] not in (sizes[0], original) else None


def _labels(sample) -> Iterator[np.ndarray]:
    """Yield the class numbers of pixels, images or boxes."""
    data = sample.get('data_samples') if isinstance(sample, dict) else None
    for name in ('gt_sem_seg', 'gt_label', 'gt_instances'):
        value = getattr(data, name, None)
        if value is None:
            continue
        if name == 'gt_sem_seg':
            value = value.data
        elif name == 'gt_instances':
            value = getattr(value, 'labels', None)
        if value is None:
            continue
        labels = torch.as_tensor(np.asarray(value))
        if labels.is_floating_point():  # soft labels
            continue
        yield labels.numpy()
