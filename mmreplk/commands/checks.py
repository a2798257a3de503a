"""Checks of what a user may have got wrong, made before the Runner exists or a file is written.

Each raises an error that names the argument and the remedy; the tools show it as one message.
"""

import os.path as osp
from glob import escape as glob_escape, glob

import torch
from mmengine.config import Config

from ..config.model import build_model, check_scope
from ..config.types import type_names
from ..models import EnlargedBackbone, RepLKNet
from ..models.from_config import backbone_class, check_backbone
from ..paths import check_file, is_remote, kind_of, make_folder
from ..training.own_files import checkpoint_folder, lies_in
from ..training.resumable import POINTER, find_resumable, is_sharded_checkpoint, use_seed_of
from ..training.resume_state import check_resumable
from ..weights.checks import check_pretrained, check_weights
from .data_checks import check_data
from .launch import check_launcher, local_rank


def check_replknet(cfg: Config) -> RepLKNet:
    """Check that a config has a RepLKNet backbone, of a codebase that is installed.

    Args:
        cfg (Config): The full config.

    Returns:
        RepLKNet: The backbone on 'meta'.

    Raises:
        ModuleNotFoundError: If its codebase is not installed.
        ValueError: If the backbone is another network, or has an impossible argument.
    """
    check_scope(cfg)
    backbone = check_backbone(cfg)
    if not isinstance(backbone, RepLKNet):
        kind = (cfg.model.get('backbone') or {}).get('type')
        raise ValueError(f'CONFIG {cfg.filename}: model.backbone is {kind!r}, not '
                         'mmreplk.RepLKNet, for which this tool is made.')
    return backbone


def check_mergeable(cfg: Config) -> None:
    """Check that a config has a backbone of ours that can be merged, and a test pipeline.

    Args:
        cfg (Config): The full config.

    Raises:
        ModuleNotFoundError: If its codebase is not installed.
        ValueError: If the backbone is another network, or is merged already, or there is no
            ``test_dataloader``.
    """
    check_scope(cfg)
    enlarged = backbone_class(cfg) is EnlargedBackbone
    if (build_model(cfg).backbone if enlarged else check_replknet(cfg)).deploy:
        raise ValueError(f'CONFIG {cfg.filename}: model.backbone.deploy is True: this is the '
                         'config of a merged model. Name that of the trained one.')
    if cfg.get('test_dataloader') is None:
        raise ValueError(f'CONFIG {cfg.filename}: has no test_dataloader, whose pipeline prepares '
                         'the picture to compare on.')


def check_work_dir(cfg: Config) -> list[str]:
    """Refuse to train into a folder that holds another run, unless it is resumed; find where.

    Every process makes this check before the process group exists. Nobody writes a checkpoint
    before all have joined the group, so a late process never takes its own run for an older one.

    Args:
        cfg (Config): The full config, with ``work_dir`` and ``resume`` decided. Without a
            ``load_from``, that becomes the checkpoint to resume from.

    Returns:
        list[str]: Lines to log about checkpoints that cannot be used.

    Raises:
        FileExistsError: If the folder holds checkpoints and ``resume`` is not set.
        FileNotFoundError: If ``last_checkpoint`` is of no use, and there is no checkpoint.
        OSError: If ``last_checkpoint`` is nothing that a run can write.
        ValueError: If none of the checkpoints to resume from can be used.
    """
    if cfg.get('resume'):
        notes = []
        _check_pointer(osp.join(cfg.work_dir, POINTER))
        if not cfg.get('load_from'):
            cfg.load_from, notes = find_resumable(cfg)
            # Else the Runner would follow a pointer that was passed over.
            cfg.resume = cfg.load_from is not None
        return notes
    for folder in dict.fromkeys((cfg.work_dir, _checkpoint_folder(cfg))):
        found = sorted(osp.basename(path) for path in glob(osp.join(glob_escape(folder), '*.pth')))
        found += [POINTER] if osp.lexists(osp.join(folder, POINTER)) else []
        if found:
            names = ', '.join(found[:3]) + (', ...' if len(found) > 3 else '')
            raise FileExistsError(
                f'--work-dir: {folder!r} holds the results of another run ({names}). Go on with '
                'that run: --resume. Keep it: another --work-dir. Else remove the folder by hand.')
    return []


def _checkpoint_folder(cfg: Config) -> str:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return checkpoint_folder(cfg.work_dir, hook.get('out_dir'))


def _check_pointer(path: str) -> None:
    """MMEngine writes to it at every checkpoint: to a pipe for ever, through a link elsewhere."""
    kind = kind_of(path)
    if osp.islink(path) and not lies_in(osp.realpath(path), osp.dirname(path)):
        kind = 'link that leads elsewhere'
    if kind not in (None, 'file'):
        raise OSError(f'--resume: {path!r} is no file but a {kind}. Remove it by hand.')


def make_work_dir(cfg: Config) -> None:
    """Make the folders that a run writes to, once nothing else can be said against it.

    Args:
        cfg (Config): The full config, with ``work_dir``.

    Raises:
        OSError: If one cannot be written to.
    """
    make_folder(cfg.work_dir, '--work-dir')
    folder = _checkpoint_folder(cfg)
    if folder != cfg.work_dir:
        make_folder(folder, 'default_hooks.checkpoint.out_dir')


def check_output(path: str, argument: str) -> None:
    """Refuse an output that exists already: a file, or a folder with anything in it.

    Args:
        path (str): The output.
        argument (str): The option that names it.

    Raises:
        FileExistsError: If there is something that would be overwritten or mixed up.
    """
    if osp.isfile(path) or glob(osp.join(glob_escape(path), '*')):
        kind = 'the folder is not empty' if osp.isdir(path) else 'the file exists'
        raise FileExistsError(f'{argument}: {path!r}: {kind}. Name another {argument}, or remove '
                              'it by hand.')


def check_device(device: str | None) -> None:
    """Check ``--device``.

    Args:
        device (str, optional): What the user named, if anything.

    Raises:
        ValueError: If torch knows no such device, or this machine does not have it.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {device}: {reason} Name another one, or leave --device out to '
                         'use a GPU if there is one.') from error


def check_answers_file(cfg: Config) -> None:
    """Refuse to evaluate shape bias over the answers of another run.

    MMPretrain's metric removes the file of its name before anything is evaluated.

    Args:
        cfg (Config): The full config.

    Raises:
        FileExistsError: If the file exists.
        ValueError: If the metric is not told where to write.
    """
    evaluator = cfg.test_evaluator
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    for metric in metrics:
        if 'ShapeBiasMetric' not in type_names(metric, 'METRICS', cfg.get('default_scope')):
            continue
        for key in ('csv_dir', 'model_name'):
            if not metric.get(key):
                raise ValueError(f'test_evaluator: ShapeBiasMetric needs {key}. Set it with '
                                 f'--cfg-options test_evaluator.{key}=...')
        data = metric.get('dataset_name', 'cue_conflict')
        path = osp.join(metric['csv_dir'], f'{data}_{metric["model_name"]}_session-1.csv')
        if osp.exists(path):
            raise FileExistsError(
                f'test_evaluator: {path!r} holds the answers of another run. Give this one another '
                'name with --cfg-options test_evaluator.model_name=NAME, or remove the file by '
                'hand.')


def preflight_train(cfg: Config, launcher: str) -> str | None:
    """Make every check of a training run; see the single checks for what they raise.

    Args:
        cfg (Config): The full config, options merged.
        launcher (str): The value of ``--launcher``.

    Returns:
        str | None: A line to log.
    """
    check_scope(cfg)
    check_launcher(launcher)
    if cfg.get('train_dataloader') is None:
        raise ValueError(f'CONFIG {cfg.filename}: has no train_dataloader to train with.')
    notes = check_work_dir(cfg)
    start = cfg.get('load_from')
    sharded = bool(start) and is_sharded_checkpoint(cfg, start)
    if start and not sharded:
        option = '--resume' if cfg.get('resume') else 'load_from'
        check_file(start, option, 'Check the path.')
    backbone = check_backbone(cfg)
    check_data(cfg, ('train', 'val'))
    first = local_rank(launcher) == 0
    notes.append(check_pretrained(cfg, backbone, first))
    if start and not sharded:
        resume = bool(cfg.get('resume'))
        notes.append(check_weights(cfg, start, '--resume' if resume else 'load_from',
                                   check_resumable if resume else None,
                                   heads_may_differ=not resume, first=first))
        if resume and not is_remote(start):
            notes.append(use_seed_of(cfg, start))
    return '\n'.join(filter(None, notes)) or None


def preflight_test(cfg: Config, launcher: str) -> None:
    """Make every check of a test run; see the single checks for what they raise.

    Weights that training would start from are not looked at: the checkpoint replaces them.

    Args:
        cfg (Config): The full config, options merged.
        launcher (str): The value of ``--launcher``.
    """
    check_scope(cfg)
    check_launcher(launcher)
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise ValueError(f'CONFIG {cfg.filename}: has no test_dataloader or no test_evaluator, so '
                         'it cannot be tested.')
    check_backbone(cfg)
    check_file(cfg.load_from, 'CHECKPOINT', 'Check the path; train.py writes *.pth to --work-dir.')
    check_data(cfg, ('test', ))
    check_answers_file(cfg)
    check_weights(cfg, cfg.load_from, 'CHECKPOINT', first=local_rank(launcher) == 0)
