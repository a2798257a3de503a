"""The options of train.py, as changes to the config."""

from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..config.types import resolve_type


def use_amp(cfg: Config) -> None:
    """``--amp``: train in mixed precision, with a dynamic loss scale.

    Args:
        cfg (Config): The full config, changed in place.

    Raises:
        ValueError: If the config's optimizer wrapper has no mixed-precision counterpart.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        raise ValueError(f'--amp: CONFIG {cfg.filename} has no optim_wrapper.')
    kind = wrapper.get('type', OptimWrapper)
    found = resolve_type(kind, 'OPTIM_WRAPPERS', cfg.get('default_scope'))
    if found not in (OptimWrapper, AmpOptimWrapper):
        raise ValueError(f'--amp replaces OptimWrapper, but optim_wrapper.type is {kind!r}. Leave '
                         '--amp out, or write mixed precision into the config.')
    wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """``--auto-scale-lr``: scale the learning rate with the total batch, accumulation included.

    Args:
        cfg (Config): The full config, changed in place.

    Raises:
        ValueError: If the config does not say for which batch its learning rate is meant.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ValueError(
            f'--auto-scale-lr: CONFIG {cfg.filename} has no auto_scale_lr.base_batch_size, the '
            'total batch that its learning rate is meant for. Give it with --cfg-options '
            'auto_scale_lr.base_batch_size=N.')
    if cfg.auto_scale_lr.get('enable'):
        return
    cfg.auto_scale_lr.enable = True
    # MMEngine compares the base with GPUs x images, the batch of one accumulated step.
    steps = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if steps > 1:
        cfg.auto_scale_lr.base_batch_size /= steps


def use_resume(cfg: Config, resume: str) -> None:
    """``--resume [FILE]``: go on with a run.

    Args:
        cfg (Config): The full config, changed in place.
        resume (str): A checkpoint, or ``auto`` for the last one of the work dir.
    """
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume
