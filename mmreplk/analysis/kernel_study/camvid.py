"""The kernel study on real pictures: a narrow UperNet on CamVid, of which only the kernels change.

Kernels of 3, 7 and 13 in every stage, and 31 for the paper's 31-29-27-13; the large ones with and
without the small kernel beside them, which is the paper's guideline 3. The config is
``configs/upernet_replknet_narrow_camvid.py``.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .settings import check_kernels, small_kernel
from .study import Run, Study, check_numbers, check_positive, config_digest

CONFIG = 'upernet_replknet_narrow_camvid.py'
DATA = Path('data', 'camvid')  # where the config expects it
SPLITS = ('train', 'val', 'test')
STAGES = 4
PAPER = {31: (31, 29, 27, 13)}  # the maps of the last stages are smaller than such a kernel


@dataclass(frozen=True)
class CamVidSettings:
    """What is trained, and how.

    Attributes:
        kernels (tuple[int, ...]): Kernel sizes, odd, from 3; with a small kernel where it has room.
        plain (tuple[int, ...]): Kernel sizes that are trained without the small kernel too.
        seeds (tuple[int, ...]): A network is trained for each of these and each seed.
        iters (int): Iterations of training, with eight crops each.
        root (Path): CamVid, in the layout of ``configs/_base_/datasets/camvid_480_360.py``.

    Raises:
        FileNotFoundError: If there is no CamVid.
        ValueError: If a value is impossible; the message names the option.
    """
    kernels: tuple[int, ...] = (3, 7, 13, 31)
    plain: tuple[int, ...] = (13, 31)
    seeds: tuple[int, ...] = (0, 1)
    iters: int = 2000
    root: Path = DATA

    def __post_init__(self):
        check_numbers(kernels=self.kernels, seeds=self.seeds)
        if self.plain:
            check_numbers(plain=self.plain)
        check_kernels(self.kernels + self.plain)
        check_positive(iters=self.iters)
        none = [size for size in self.plain if small_kernel(size) is None]
        if none:
            raise ValueError(f'plain {none[0]}: it has no small kernel anyway. Name sizes above '
                             f'{max(none)}.')
        for split in SPLITS:
            for kind in ('images', 'annotations'):
                folder = Path(self.root) / kind / split
                if not any(folder.glob('*')):
                    raise FileNotFoundError(
                        f'data-root: {str(folder)!r} is missing or empty. Put CamVid there, or '
                        'name the folder that has its images/ and annotations/.')

    def stamp(self) -> dict:
        """What all networks of a folder have in common: length, images and config."""
        names = [path.relative_to(self.root).as_posix()
                 for path in sorted(Path(self.root).glob('*/*/*'))]
        return dict(data='camvid', iters=self.iters, files=len(names),
                    names=sha256('\n'.join(names).encode()).hexdigest()[:16],
                    config=config_digest(CONFIG))


@dataclass(frozen=True)
class CamVidRun(Run):
    """One network.

    Attributes:
        small (bool): Whether a small kernel stands beside every large one.
    """
    small: bool = True

    @property
    def kind(self) -> str:
        """What it has in common with the networks of other seeds."""
        if small_kernel(self.kernel) is None:
            return f'k{self.kernel:02d}'
        return f'k{self.kernel:02d}_{"with" if self.small else "without"}_small'

    @property
    def name(self) -> str:
        """Its folder in the study's ``runs``."""
        return f'{self.kind}_seed{self.seed}'


class CamVidStudy(Study):
    """The study on CamVid, which is linked into the folder."""

    config, warm_up, place = CONFIG, 200, DATA

    @property
    def runs(self) -> list[CamVidRun]:
        """All networks, seed after seed, so that an early end leaves whole comparisons."""
        return [run for seed in self.settings.seeds for run in (
            *(CamVidRun(kernel, seed) for kernel in self.settings.kernels),
            *(CamVidRun(kernel, seed, small=False) for kernel in self.settings.plain))]

    def network_options(self, run: CamVidRun) -> dict[str, str]:
        """Kernel sizes and small kernel, for ``--cfg-options``."""
        sizes = PAPER.get(run.kernel, (run.kernel, ) * STAGES)
        small = small_kernel(run.kernel) if run.small else None
        arch = 'model.backbone.arch'
        return {f'{arch}.large_kernel_sizes': f'[{",".join(map(str, sizes))}]',
                f'{arch}.small_kernel': str(small)}

    def provide_data(self) -> None:
        """Link the data set to where the config expects it."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        # The study, or the data set, may have been moved.
        if self.data.is_symlink():
            self.data.unlink()
        self.data.symlink_to(Path(self.settings.root).resolve())
