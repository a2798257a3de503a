"""Randomness by counters: the same numbers wherever a run was interrupted."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmreplk.training.guarded_dataset import GuardedDataset
from mmreplk.training.resumable_rng import (
    NumberedIndex,
    NumberingSampler,
    seed_for_iteration,
    seed_for_sample,
)


class Noise(Dataset):
    """Ten samples: their index, and a number from each of the generators that transforms use."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        assert type(index) is int
        return index, random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def loader(sampler, workers=0, seed=3, **options):
    dataset = GuardedDataset(dict(type=Noise), seed=seed)
    sampler = NumberingSampler(dict(type=sampler, shuffle=True), dataset=dataset, seed=5)
    return DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=workers,
                      collate_fn=list, **options)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_seeds():
    """Each part of the key matters, and the network has other numbers than the samples."""
    draws = {}
    for seed in (seed_for_iteration, seed_for_sample):
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**32)):
            seed(*key)
            draws[seed, key] = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
            seed(*key)
            assert draws[seed, key] == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    for column in zip(*draws.values(), strict=True):
        assert len(set(column)) == len(draws)


def test_an_index_with_a_number():
    index = pickle.loads(pickle.dumps(NumberedIndex(3, 8)))
    assert index == 3
    assert list(range(5))[index] == 3
    assert index.number == 8


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_infinite_sampler(workers):
    """From batch 5 on, with any number of workers: as in the run that began at 0 with one."""
    whole = take(iter(loader(InfiniteSampler, 1)), 9)
    assert len({sample[1] for batch in whole for sample in batch}) == 27  # no epoch repeats another
    resumed = loader(InfiniteSampler, workers)
    if not hasattr(resumed.sampler, 'skip'):  # original OpenMMLab packages: step by step
        begin = iter(resumed)
        take(begin, 5)
    else:
        resumed.sampler.set_epoch(0)
        resumed.sampler.skip(15)
        begin = iter(resumed)
    assert take(begin, 4) == whole[5:]
    assert take(iter(loader(InfiniteSampler, workers, seed=4)), 1) != whole[:1]


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs(workers):
    """An epoch is the same whether or not the ones before have been gone through."""
    whole, epochs = loader(DefaultSampler, 1), []
    for epoch in range(3):
        whole.sampler.set_epoch(epoch)
        epochs.append(list(whole))
    assert len({sample[1] for epoch in epochs for batch in epoch for sample in batch}) == 30
    resumed = loader(DefaultSampler, workers)
    resumed.sampler.set_epoch(2)
    assert list(resumed) == epochs[2]


def test_what_is_around_does_not_notice(tmp_path):
    """Attributes of data set and sampler are to be found, and set, as if they were bare."""
    plain = loader(DefaultSampler)
    assert plain.sampler.world_size == 1
    plain.sampler.dataset.pipeline = 'new'
    assert plain.dataset.inner.pipeline == 'new'
    assert plain.dataset.pipeline == 'new'
    assert not hasattr(plain.dataset, 'nothing')
    assert not hasattr(plain.sampler, 'skip')
    assert len(plain) == 4
    grouped = BatchSampler(plain.sampler, 4, drop_last=False)
    assert all(type(index) is NumberedIndex for batch in grouped for index in batch)
    copy = pickle.loads(pickle.dumps(plain.dataset))
    assert copy.inner.pipeline == 'new'
