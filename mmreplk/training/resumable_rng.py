"""Random numbers that depend on what is computed, not on how often a run was interrupted.

MMEngine saves no state of a random generator: a resumed run draws other dropped paths and other
augmentations than one that was never stopped, and its data workers begin anew. Instead of saving
states, of every process and every worker, every generator is seeded from counters that a resumed
run has anyway: for the network from the seed and the iteration, for a training sample from the
seed, the process and the sample's place in the order of the sampler.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS as ROOT_SAMPLERS
from torch.utils.data import Sampler

from ..registry import DATA_SAMPLERS, HOOKS, register
from .internals import accumulative_counts, is_resuming

GRADIENTS = 'accumulated_gradients'  # a key in checkpoints
_NETWORK, _SAMPLE = 0, 1


def is_repeatable(cfg) -> bool:
    """Whether a config leaves ``repeatable`` on, as it is by default.

    Args:
        cfg (Config): The full config.
    """
    return bool(cfg.get('repeatable', True))


def seed_for_iteration(seed: int, rank: int, iteration: int) -> None:
    """Seed all generators of this process, those of GPUs too, for one iteration of the network.

    Args:
        seed (int): The run's.
        rank (int): 0 if all processes are to draw the same.
        iteration (int): From 0.
    """
    torch.manual_seed(_seed_python(seed, rank, iteration, _NETWORK))


def seed_for_sample(seed: int, rank: int, number: int) -> None:
    """Seed the CPU generators of this process or worker for one training sample.

    Args:
        seed (int): The run's.
        rank (int): Of the process that trains with the sample.
        number (int): The sample's place in the order of this process, from 0.
    """
    # Not torch.manual_seed: a worker has no business with GPUs.
    torch.default_generator.manual_seed(_seed_python(seed, rank, number, _SAMPLE))


def _seed_python(*key: int) -> int:
    """Seed ``random`` and ``numpy.random``; returns a seed for torch."""
    words = np.random.SeedSequence([abs(part) for part in key]).generate_state(8)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:6])  # noqa: NPY002  # the generator that the codebases draw from
    return int(words[6]) << 32 | int(words[7])


class NumberedIndex(int):
    """The index of a sample in its dataset, with its place in the order of the sampler.

    Attributes:
        number (int): The place, from 0, counted over all epochs.
    """

    def __new__(cls, index: int, number: int):
        self = super().__new__(cls, index)
        self.number = number
        return self

    def __reduce__(self):
        return NumberedIndex, (int(self), self.number)


@register(DATA_SAMPLERS)
class NumberingSampler(Sampler):
    """A sampler around another one, which numbers what that yields.

    The number survives a batch sampler and the way into a worker, because it is part of the index.

    Args:
        sampler (dict): Config of the other sampler.
        dataset (Dataset): The dataset, as of every sampler of MMEngine.
        seed (int, optional): As of every sampler of MMEngine. Defaults to None.
    """

    def __init__(self, sampler: dict, dataset, seed: int | None = None):
        self.inner = ROOT_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.number = 0
        if hasattr(self.inner, 'skip'):  # a loop asks for it by name
            self.skip = self._skip

    def __iter__(self) -> Iterator[NumberedIndex]:
        for index in self.inner:
            number = self.number
            self.number += 1
            yield NumberedIndex(index, number)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str):
        if name == 'inner':
            raise AttributeError(name)
        return getattr(self.inner, name)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; what has no epochs is told 0 alone.

        Args:
            epoch (int): From 0.
        """
        self.number = epoch * len(self.inner)
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self.inner.skip(num_samples)
        self.number = num_samples


@register(HOOKS)
class RepeatableRandomHook(Hook):
    """Seed every iteration by itself, and keep what an accumulated step has gathered so far.

    Also compares where the processes resume: one that does not see the checkpoint of the first
    would begin at iteration 0, and they would wait for each other at the end.

    The samples are seeded through :class:`.data_hook.GuardedDataHook`. ``repeatable = False`` in a
    config turns both off.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        """Check that all processes begin at the same iteration.

        Args:
            runner (Runner): The runner, with its checkpoint loaded.

        Raises:
            RuntimeError: If they do not.
        """
        if not is_repeatable(runner.cfg):
            return
        begins = all_gather_object(runner.iter)
        if len(set(begins)) > 1:
            raise RuntimeError(
                'resume: the processes begin at different iterations, by rank: '
                f'{begins}. Every machine must see the same checkpoint in the work dir: use a '
                'shared folder, or copy the checkpoint to each machine and name it by '
                'load_from=FILE.')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Seed the generators of this process."""
        if not is_repeatable(runner.cfg):
            return
        apart = (runner.cfg.get('randomness') or {}).get('diff_rank_seed', False)
        seed_for_iteration(runner.seed, get_rank() if apart else 0, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the gradients of an accumulated step that is not finished.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What will be saved.
        """
        if not is_repeatable(runner.cfg):
            return
        counts = accumulative_counts(runner.optim_wrapper)
        if counts == 1 or 'optimizer' not in checkpoint:
            return
        gathered = checkpoint['meta']['iter'] % counts
        if gathered == 0 or checkpoint['meta']['iter'] >= runner.max_iters:
            return
        if get_world_size() > 1:  # each process has its own, and the first one alone writes
            runner.logger.warning(
                f'The checkpoint lies within an accumulated step, after {gathered} of {counts} '
                'iterations: a run resumed from it leaves their gradients out. Save at multiples '
                'of optim_wrapper.accumulative_counts.')
            return
        checkpoint[GRADIENTS] = {
            name: parameter.grad.cpu() for name, parameter in _bare(runner.model).named_parameters()
            if parameter.grad is not None}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take them back when a run is resumed.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What was loaded.
        """
        gradients = checkpoint.pop(GRADIENTS, None)
        if gradients and is_resuming(runner):
            for name, parameter in _bare(runner.model).named_parameters():
                if name in gradients:
                    parameter.grad = gradients[name].to(parameter)


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model
