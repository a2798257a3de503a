"""What the tools share: their common arguments, reading the config, and showing errors."""

import argparse
import os
import os.path as osp
import time
from contextlib import contextmanager

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config import files
from ..config.types import scope_of
from ..paths import check_file
from .launch import PROCESS_ENV, has_gpu, local_rank

OTHERS_WAIT = 20  # seconds
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that train.py and test.py share, after the positional ones.

    Args:
        parser (ArgumentParser): The tool's parser.
    """
    parser.add_argument('--work-dir', help='folder for logs and results, by default the config\'s '
                        'work_dir, else ./work_dirs/<name of the config>')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    add_cfg_options(parser)
    parser.add_argument('--trust-checkpoints', action='store_true', help='also read checkpoints '
                        'that hold more than weights, and could run any code')
    parser.add_argument('--launcher', choices=['none', *PROCESS_ENV], default='none',
                        help='what started the processes; the dist_*.sh and slurm_*.sh set it')
    # Old versions of torch.distributed.launch pass the rank as an argument.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``.

    Args:
        parser (ArgumentParser): The tool's parser.
    """
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='settings that replace those of the config; lists as key="[a,b]"')


@contextmanager
def clear_errors(parser: argparse.ArgumentParser, launcher: str = 'none'):
    """Show what goes wrong inside as one message of the tool, with exit code 2 and no traceback.

    Meant for the preparation alone: an error of the run itself keeps its traceback. Of the
    processes of one machine the first writes the message. A launcher ends the others as soon as
    one has ended, so they let the first go ahead.

    Args:
        parser (ArgumentParser): The tool's parser.
        launcher (str): The value of ``--launcher``.

    Yields:
        None
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if local_rank(launcher) != 0:
            time.sleep(OTHERS_WAIT)
        parser.exit(2, f'{parser.prog}: error: {error}\n')


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    Args:
        path (str): A file, or ``mmreplk::NAME.py``.
        options (dict, optional): Dotted names to values. Defaults to None.

    Returns:
        Config: The full config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the options cannot be understood.
    """
    if '::' not in path:
        check_file(path, 'CONFIG',
                   'Check the path, or name a packaged config as mmreplk::NAME.py.')
    try:
        cfg = files.read(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise ValueError(f'CONFIG {path}: {type(error).__name__}: {error}') from error
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:
        raise ValueError(f'--cfg-options: {type(error).__name__}: {error}. Compare the keys with '
                         f'those of {path}.') from error
    if cfg.get('model') is None:
        raise ValueError(f'CONFIG {path}: has no model.')
    if cfg.get('default_scope') is None and (scope := scope_of(cfg.model)):
        cfg.default_scope = scope
    return cfg


def prepare(args: argparse.Namespace) -> Config:
    """Read the config of a tool and apply the common arguments to it.

    Args:
        args (Namespace): Has ``config``, ``cfg_options``, ``work_dir``, ``launcher`` and
            ``local_rank``.

    Returns:
        Config: The full config, with ``work_dir`` and ``launcher`` decided.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config or the options cannot be understood.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    name = osp.splitext(osp.basename(args.config.rsplit('::', 1)[-1]))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    set_loader_defaults(cfg)
    return cfg


def set_loader_defaults(cfg: Config) -> None:
    """Complete the data loaders as the codebase's own tools do.

    MMPretrain's configs rely on its tools to choose the collate function, pinned memory and
    persistent workers. Workers that do not exist (``num_workers=0``) cannot persist in any config,
    so that ``--cfg-options train_dataloader.num_workers=0`` is enough to have none.

    Args:
        cfg (Config): The full config, changed in place.
    """
    for loader in (cfg.get(key) for key in LOADERS):
        if not isinstance(loader, dict):
            continue
        workers = loader.get('num_workers', 0)
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', has_gpu())
            loader.setdefault('persistent_workers', workers > 0)
        if workers == 0:
            loader['persistent_workers'] = False


def build_runner(cfg: Config, *notes: str | None) -> Runner:
    """Build the Runner that a config asks for.

    Args:
        cfg (Config): The full config.
        *notes (str | None): Lines for its log.

    Returns:
        Runner: MMEngine's, or the one that ``runner_type`` names.
    """
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for note in filter(None, notes):
        runner.logger.info(note)
    return runner
