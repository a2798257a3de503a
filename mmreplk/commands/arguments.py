"""What the tools share: their common arguments, and showing errors."""

import argparse
import os
import os.path as osp
import time
import warnings
from contextlib import contextmanager

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config.model import read_config
from ..training.console import LONG, keep_off_console
from .launch import PROCESS_ENV, has_gpu, is_first_process, local_rank

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
    """Build the Runner that a config asks for, whose console is short.

    Config, environment, order of the hooks and options of each parameter go to the log file alone,
    with a line that names it; ``log_level='DEBUG'`` shows them. Warnings are those of process 0.

    Args:
        cfg (Config): The full config.
        *notes (str | None): Lines for its log.

    Returns:
        Runner: MMEngine's, or the one that ``runner_type`` names.
    """
    if not is_first_process(cfg.launcher):
        warnings.simplefilter('ignore')  # process 0 says the same
    kind = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    if hasattr(kind, 'build_logger'):  # FlexibleRunner leaves that to its strategy
        kind = _with_short_console(kind)
    runner = kind.from_cfg(cfg)
    keep_off_console(runner.logger, LONG)
    for note in filter(None, notes):
        runner.logger.info(note)
    return runner


def _with_short_console(kind: type) -> type:
    """A Runner's class whose logger is short from its first line on."""

    def build_logger(self, *args, **kwargs):
        logger = kind.build_logger(self, *args, **kwargs)
        if keep_off_console(logger, LONG):
            logger.info(f'Config, environment and hooks are in {logger.log_file}.')
        return logger

    return type(kind.__name__, (kind, ), dict(build_logger=build_logger,
                                              __module__=kind.__module__))
