"""A folder with the networks of a study: what is finished in it stays.

Started again, a study goes on where it was. Every network goes through ``tools/train.py`` and
``tools/test.py``; here stands which steps are left, :mod:`.train` takes them.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mmengine.config import Config

from ...config.files import config_root

STAMP, LOCK = 'study.json', '.lock'


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


def check_numbers(**options: tuple[int, ...]) -> None:
    """Check lists of numbers that a study is given.

    Args:
        **options (tuple[int, ...]): By the name of their option.

    Raises:
        ValueError: If one is empty, has a number twice, or one below 0.
    """
    for option, values in options.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f'{option} {" ".join(map(str, values))}: give numbers that '
                             'differ, at least one.')
        for value in values:
            if value < 0:
                raise ValueError(f'{option} {value}: give numbers from 0.')


def check_positive(**options: int) -> None:
    """Check counts that a study is given.

    Args:
        **options (int): By the name of their option.

    Raises:
        ValueError: If one is not positive.
    """
    for option, value in options.items():
        if value < 1:
            raise ValueError(f'--{option.replace("_", "-")} {value}: give a positive number.')


def config_digest(name: str) -> str:
    """What tells a config from an older one of the same name: a short hash of all of it."""
    text = Config.fromfile(config_root() / name).pretty_text
    return sha256(text.encode()).hexdigest()[:16]


class Study:
    """A folder with the runs of a study; a subclass says which runs, on which data.

    Args:
        out (str | PathLike): The folder: new, empty, or begun with the same settings. Kernel sizes
            and seeds may be others.
        settings: What to train; has ``iters`` and a method ``stamp``.

    Attributes:
        config (str): The config of all networks, a name in ``configs/``.
        warm_up (int): Iterations in which its rate rises.
        place (Path): Where it expects the data.

    Raises:
        FileExistsError: If the folder holds anything else. Nothing is written before :meth:`begin`.
    """
    config: str
    warm_up: int
    place: Path

    def __init__(self, out: str | os.PathLike, settings):
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
        raise NotImplementedError

    def network_options(self, run: Run) -> dict[str, str]:
        """The options of the config that make a network, as ``--cfg-options`` takes them."""
        raise NotImplementedError

    def provide_data(self) -> None:
        """See that the data are where the config expects them, in the study's folder."""
        raise NotImplementedError

    @property
    def data(self) -> Path:
        """The folder of the images."""
        return self.folder / self.place

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
        """Claim the folder, and provide the data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = self.folder / STAMP
        if not stamp.is_file():
            stamp.write_text(json.dumps(self.settings.stamp(), indent=2) + '\n', encoding='utf-8')
        self.provide_data()

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
        config, options = config_root() / self.config, ['--cfg-options', *self._options(run)]
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
        warm_up = max(1, min(self.warm_up, iters // 10))
        options = self.network_options(run) | {
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
