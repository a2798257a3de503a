"""Does a checkpoint hold the state of a training run, such that a run can go on from it?

The Runner reads that state piece by piece, after the models and the data have been built; what is
missing it starts anew without a word, and what is broken ends in an error of its own making.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real

from ..config.text import plain_settings

_REMEDY = 'To start a new run from it, use load_from=FILE without resume'


def check_resumable(checkpoint: Mapping) -> None:
    """Check that a file holds the state of a training run.

    Args:
        checkpoint (Mapping): What was read from it.

    Raises:
        ValueError: If there are weights alone, or the state is incomplete or broken. The message
            ends a sentence that begins with the file.
    """
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping) or not {'epoch', 'iter'} <= set(meta):
        raise ValueError('holds weights but no state of a training run (meta.epoch, meta.iter). '
                         f'{_REMEDY}')
    for key in ('optimizer', 'message_hub'):
        if checkpoint.get(key) is None:
            raise ValueError(f'holds no state of a training run, its {key!r} is missing. {_REMEDY}')
    for name, good in _parts(checkpoint, meta):
        if not good:
            raise ValueError(f'is damaged: {name} cannot be that of a training run. {_REMEDY}')


def _parts(checkpoint: Mapping, meta: Mapping):
    """Yield (name, whether it is as the Runner needs it) of what it goes on from."""
    for key in ('epoch', 'iter'):
        yield f'meta.{key}={meta[key]!r}'[:80], _is_count(meta[key])
    seed = meta.get('seed')
    yield f'meta.seed={seed!r}'[:80], seed is None or (_is_count(seed) and seed < 2**32)
    gpus = plain_settings(meta.get('config')).get('gpu_ids')
    yield 'gpu_ids of meta.config', gpus is None or (
        isinstance(gpus, (list, tuple, range)) and all(_is_count(number) for number in gpus[:99]))
    yield 'optimizer', _is_optimizer(checkpoint['optimizer'])
    yield 'param_schedulers', _is_schedule(checkpoint.get('param_schedulers') or [])
    yield 'message_hub', _is_hub(checkpoint['message_hub'])
    info = checkpoint['message_hub']['runtime_info']
    for key, value in info.items():
        if str(key).startswith('best_score'):
            yield f'message_hub.runtime_info.{key}={value!r}'[:99], _is_score(value)
        if str(key).startswith('best_ckpt'):
            yield f'message_hub.runtime_info.{key}', value is None or isinstance(value, str)
    ids = info.get('keep_ckpt_ids', [])
    yield 'message_hub.runtime_info.keep_ckpt_ids', isinstance(
        ids, (list, tuple)) and all(_is_count(number) for number in ids)


def _is_count(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_step(value) -> bool:
    """A schedule that has not begun, as behind a warm-up, is at -1."""
    return _is_count(value) or (isinstance(value, Integral) and value == -1)


def _is_score(value) -> bool:
    if isinstance(value, (str, bytes)):
        return False
    try:
        value = float(value)  # also of numpy and torch
    except (TypeError, ValueError, RuntimeError):
        return False
    return isinstance(value, Real) and not math.isnan(value)


def _is_optimizer(state) -> bool:
    """The state of an optimizer wrapper, or of several by their names."""
    if not isinstance(state, Mapping):
        return False
    if 'param_groups' not in state and 'state' not in state:
        return bool(state) and all(
            isinstance(inner, Mapping) and 'param_groups' in inner and _is_optimizer(inner)
            for inner in state.values())
    groups, kept = state.get('param_groups'), state.get('state')
    if not isinstance(groups, (list, tuple)) or not isinstance(kept, Mapping) or not groups:
        return False
    names = set()
    for group in groups:
        params = group.get('params') if isinstance(group, Mapping) else None
        if not isinstance(params, (list, tuple)) or not all(
                isinstance(name, (int, str)) for name in params):
            return False
        if not all(_is_score(group[key]) for key in ('lr', 'weight_decay') if key in group):
            return False
        names.update(params)
    return all(isinstance(value, Mapping) for value in kept.values()) and set(kept) <= names


def _is_schedule(state) -> bool:
    """The states of schedulers, or of several lists of them by the names of the optimizers."""
    if isinstance(state, Mapping):
        return all(isinstance(inner, (list, tuple)) and _is_schedule(inner)
                   for inner in state.values())
    return isinstance(state, (list, tuple)) and all(
        isinstance(inner, Mapping) and _is_step(inner.get('last_step', 0)) for inner in state)


def _is_hub(state) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(state.get(key), Mapping)
        for key in ('log_scalars', 'runtime_info', 'resumed_keys'))
