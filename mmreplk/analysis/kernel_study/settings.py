"""The same narrow RepLKNet trained with several kernel sizes on labels that need far context.

The paper compares kernels of 3 to 31 on ImageNet and ADE20K (``configs/replknet_kernels_*.py`` and
``upernet_kernels_*.py``). This study asks the same question of a task small enough for two CPU
cores: the images of :mod:`.far_context`, and ``configs/kernel_study_far_context.py``, of which
only the kernel size changes. Every run goes through ``tools/train.py`` and ``tools/test.py``.

A study is a folder. What is finished in it stays: started again, it goes on where it was, also with
more kernel sizes or seeds.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mmengine.config import Config

from ...config.files import config_root
from ...models.arch import parse_arch
from . import far_context

CONFIG = 'kernel_study_far_context.py'
DATA = Path('data', 'far_context')  # where the config expects it
STAMP, LOCK = 'study.json', '.lock'
SMALL_KERNEL = 5  # of the paper; a large kernel has to be larger
WARM_UP = 40  # iterations, as in the config


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
        for option, values in (('kernels', self.kernels), ('seeds', self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f'{option} {" ".join(map(str, values))}: give numbers that '
                                 'differ, at least one.')
        for size in self.kernels:
            if size < 3 or size % 2 == 0:
                raise ValueError(f'kernels {size}: give odd sizes from 3.')
            parse_arch(dict(large_kernel_sizes=[size], layers=[1], channels=[1],
                            small_kernel=small_kernel(size)))
        for seed in self.seeds:
            if seed < 0:
                raise ValueError(f'seeds {seed}: give numbers from 0.')
        for option in ('iters', 'num_train', 'num_val'):
            if getattr(self, option) < 1:
                raise ValueError(f'--{option.replace("_", "-")} {getattr(self, option)}: give a '
                                 'positive number.')

    def stamp(self) -> dict:
        """What all networks of a folder have in common: length, images and config."""
        text = Config.fromfile(config_root() / CONFIG).pretty_text
        return dict(iters=self.iters, num_train=self.num_train, num_val=self.num_val,
                    pictures=far_context.VERSION, config=sha256(text.encode()).hexdigest()[:16])


@dataclass(frozen=True)
class Run:
    """One network of a study.

    Attributes:
        kernel (int): Its kernel size.
        seed (int): Of its weights and of the order of the images.
    """
    kernel: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder in the study's ``runs``."""
        return f'k{self.kernel:02d}_seed{self.seed}'


def small_kernel(kernel: int) -> int | None:
    """The size of the small kernel beside a large one, None where it has no room."""
    return SMALL_KERNEL if kernel > SMALL_KERNEL else None


def backbone_options(kernel: int) -> dict[str, str]:
    """The options of the config that set the kernel size, as ``--cfg-options`` takes them."""
    arch = 'model.backbone.arch'
    return {f'{arch}.large_kernel_sizes': f'[{kernel},{kernel}]',
            f'{arch}.small_kernel': str(small_kernel(kernel))}


class KernelStudy:
    """A folder with the runs of a study.

    Args:
        out (str | PathLike): The folder: new, empty, or begun with the same settings. Kernel sizes
            and seeds may be others.
        settings (StudySettings): What to train.

    Raises:
        FileExistsError: If the folder holds anything else. Nothing is written before :meth:`begin`.
    """

    def __init__(self, out: str | os.PathLike, settings: StudySettings):
        self.folder, self.settings = Path(out), settings
        self._check_folder()

    def _check_folder(self) -> None:
        stamp, wanted = self.folder / STAMP, self.settings.stamp()
        if stamp.is_file():
            found = json.loads(stamp.read_text(encoding='utf-8'))
            if found != wanted:
                other = ', '.join(f'{key} is {found.get(key)} there, {wanted.get(key)} here'
                                  for key in {**found, **wanted}
                                  if found.get(key) != wanted.get(key))
                raise FileExistsError(
                    f'out: {str(self.folder)!r} holds a study with other settings ({other}). '
                    'Name another out, or the settings of that study to go on with it.')
        elif self.folder.exists() and (not self.folder.is_dir() or any(
                path.name != LOCK for path in self.folder.iterdir())):
            raise FileExistsError(f'out: {str(self.folder)!r} exists and is no study of kernels. '
                                  'Name a new or an empty folder.')

    @property
    def runs(self) -> list[Run]:
        """All networks, seed after seed, so that an early end leaves whole comparisons."""
        return [Run(kernel, seed) for seed in self.settings.seeds
                for kernel in self.settings.kernels]

    @property
    def data(self) -> Path:
        """The folder of the images."""
        return self.folder / DATA

    def run_folder(self, run: Run) -> Path:
        """The folder of a network."""
        return self.folder / 'runs' / run.name

    def predictions(self, run: Run) -> Path:
        """The folder of a finished network's predictions."""
        return self.run_folder(run) / 'predictions'

    def checkpoint(self, run: Run) -> Path:
        """The weights of a trained network."""
        return self.run_folder(run) / f'iter_{self.settings.iters}.pth'

    def begin(self) -> None:
        """Claim the folder, and draw the images where they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = self.folder / STAMP
        if not stamp.is_file():
            stamp.write_text(json.dumps(self.settings.stamp(), indent=2) + '\n', encoding='utf-8')
        far_context.write_dataset(self.data, self.settings.num_train, self.settings.num_val)

    @contextmanager
    def locked(self):
        """Hold the folder, together with the processes that are started meanwhile.

        Yields:
            int: The file descriptor for those processes to inherit.

        Raises:
            BlockingIOError: If another process, or what a killed study left running, holds it.
        """
        import fcntl
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f'out: a study still runs in {str(self.folder)!r}, or one that was killed '
                    'has left a process behind, which ends with its run. Wait, or name another '
                    'out.') from None
            yield file.fileno()

    def steps(self, run: Run) -> list[tuple[str, list]]:
        """What is still to be done for a network: names of tools and their arguments.

        Paths are relative to the study's folder, in which the tools run: MMEngine takes an option
        with a comma for a list.
        """
        if self.is_finished(run):
            return []
        inside = self.run_folder(run).relative_to(self.folder)
        config, options = config_root() / CONFIG, ['--cfg-options', *self._options(run)]
        steps = []
        last = self.last_checkpoint(run)
        if last != self.checkpoint(run):
            resume = ['--resume', inside / last.name] if last else []
            steps.append(('train', [config, '--work-dir', inside, *resume, *options]))
        return [*steps, ('test', [
            config, inside / self.checkpoint(run).name, '--work-dir', inside / 'test', '--out',
            inside / 'predictions', *options])]

    def _options(self, run: Run) -> list[str]:
        iters = self.settings.iters
        warm_up = max(1, min(WARM_UP, iters // 10))
        options = backbone_options(run.kernel) | {
            'randomness.seed': run.seed,
            'train_cfg.max_iters': iters,
            # tools/test.py scores the networks, with their predictions.
            'val_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
            'default_hooks.checkpoint.interval': max(1, iters // 12),
            # LinearLR and PolyLR both need at least one iteration.
            'param_scheduler.0.end': warm_up,
            'param_scheduler.1.begin': warm_up,
            'param_scheduler.1.end': max(iters, warm_up + 1),
        }
        return [f'{key}={value}' for key, value in options.items()]

    def last_checkpoint(self, run: Run) -> Path | None:
        """The file from which the training of a network goes on; None where it has to start."""
        folder = self.run_folder(run)
        pointer = folder / 'last_checkpoint'
        if not pointer.is_file():
            return None
        # Its name alone: MMEngine writes whole paths, and a study may have been moved.
        last = folder / os.path.basename(pointer.read_text(encoding='utf-8').strip())
        return last if last.is_file() else None

    def is_finished(self, run: Run) -> bool:
        """Whether a network is trained and evaluated."""
        return (self.run_folder(run) / 'done').is_file()
