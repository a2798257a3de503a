"""The same narrow RepLKNet trained with several kernel sizes on labels that need far context.

The paper compares kernels of 3 to 31 on ImageNet and ADE20K (``configs/replknet_kernels_*.py`` and
``upernet_kernels_*.py``). This study asks the same question of a task small enough for two CPU
cores: the images of :mod:`.far_context`, and ``configs/kernel_study_far_context.py``, of which
only the kernel size changes. Every run goes through ``tools/train.py`` and ``tools/test.py``.
"""

from dataclasses import dataclass
from pathlib import Path

from ...models.arch import parse_arch
from . import far_context
from .study import Run, Study, check_numbers, check_positive, config_digest

CONFIG = 'kernel_study_far_context.py'
DATA = Path('data', 'far_context')  # where the config expects it
SMALL_KERNEL = 5  # of the paper; a large kernel has to be larger


@dataclass(frozen=True)
class StudySettings:
    """What is trained, and how.

    Attributes:
        kernels (tuple[int, ...]): Kernel sizes, odd, from 3.
        seeds (tuple[int, ...]): A network is trained for each kernel and seed.
        iters (int): Iterations of training, with eight images each.
        num_train (int): Images to train on.
        num_val (int): Images to score on.

    Raises:
        ValueError: If a value is impossible; the message names the option.
    """
    kernels: tuple[int, ...] = (3, 7, 13, 31)
    seeds: tuple[int, ...] = (0, 1, 2)
    iters: int = 700
    num_train: int = 800
    num_val: int = 200

    def __post_init__(self):
        check_numbers(kernels=self.kernels, seeds=self.seeds)
        check_kernels(self.kernels)
        check_positive(iters=self.iters, num_train=self.num_train, num_val=self.num_val)

    def stamp(self) -> dict:
        """What all networks of a folder have in common: length, images and config."""
        return dict(iters=self.iters, num_train=self.num_train, num_val=self.num_val,
                    pictures=far_context.VERSION, config=config_digest(CONFIG))


def check_kernels(kernels: tuple[int, ...]) -> None:
    """Check kernel sizes.

    Args:
        kernels (tuple[int, ...]): The sizes.

    Raises:
        ValueError: If a network cannot have one of them.
    """
    for size in kernels:
        if size < 3 or size % 2 == 0:
            raise ValueError(f'kernels {size}: give odd sizes from 3.')
        parse_arch(dict(large_kernel_sizes=[size], layers=[1], channels=[1],
                        small_kernel=small_kernel(size)))


def small_kernel(kernel: int) -> int | None:
    """The size of the small kernel beside a large one, None where it has no room."""
    return SMALL_KERNEL if kernel > SMALL_KERNEL else None


def backbone_options(kernel: int) -> dict[str, str]:
    """The options of the config that set the kernel size, as ``--cfg-options`` takes them."""
    arch = 'model.backbone.arch'
    return {f'{arch}.large_kernel_sizes': f'[{kernel},{kernel}]',
            f'{arch}.small_kernel': str(small_kernel(kernel))}


class KernelStudy(Study):
    """The study of far context: its images are drawn into the folder."""

    config, warm_up, place = CONFIG, 40, DATA

    @property
    def runs(self) -> list[Run]:
        """All networks, seed after seed, so that an early end leaves whole comparisons."""
        return [Run(kernel, seed) for seed in self.settings.seeds
                for kernel in self.settings.kernels]

    def network_options(self, run: Run) -> dict[str, str]:
        """The kernel size, for ``--cfg-options``."""
        return backbone_options(run.kernel)

    def provide_data(self) -> None:
        """Draw the images where they are missing."""
        far_context.write_dataset(self.data, self.settings.num_train, self.settings.num_val)
