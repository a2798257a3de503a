"""What MMEngine's Runner takes from a checkpoint to go on, checked before it does."""

from collections.abc import Mapping
from numbers import Integral

# The parts of a message hub, see mmengine.logging.MessageHub.state_dict.
_HUB = ('log_scalars', 'runtime_info', 'resumed_keys')


def not_resumable(checkpoint: Mapping) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can.

    Args:
        checkpoint (Mapping): What was read from the file.

    Returns:
        str | None: What is missing or impossible, as the end of a sentence about the file.
    """
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    if not isinstance(meta, Mapping) or not isinstance(checkpoint.get('state_dict'), Mapping):
        return 'holds weights alone, and no state of a run to go on from'
    for key in ('epoch', 'iter'):
        value = meta.get(key)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            return f'has the {key} {value!r}, which is no number of a run to go on from'
    seed = meta.get('seed')
    if seed is not None and (not isinstance(seed, Integral) or not 0 <= seed < 2**64):
        return f'has the seed {seed!r}, which is none'
    if not isinstance(hub, Mapping) or not all(isinstance(hub.get(key), Mapping) for key in _HUB):
        return 'has no records of a run (message_hub) to go on with'
    optimizer = checkpoint.get('optimizer')
    if not isinstance(optimizer, Mapping) or not optimizer:
        return ('has no state of the optimizer, as best checkpoints have none: to start from its '
                'weights, use load_from')
    schedulers = checkpoint.get('param_schedulers', [])
    if not isinstance(schedulers, (list, Mapping)):
        return 'has schedules (param_schedulers) that are none'
    return None


def own_files_alone(runtime_info: dict, is_own) -> None:
    """Forget the files of others that a checkpoint names: MMEngine would remove them in time.

    A run that goes on in another work dir than the one it was saved in has no part in the best
    checkpoint there; and a file may name any path of the machine.

    Args:
        runtime_info (dict): Of the message hub, changed in place.
        is_own (Callable[[str], bool]): Whether a path is one that this run may remove.
    """
    for key in [key for key in runtime_info if key.partition('best_ckpt')[0] == '']:
        path = runtime_info[key]
        if not isinstance(path, str) or not is_own(path):
            del runtime_info[key]
    steps = runtime_info.get('keep_ckpt_ids', [])
    # They become parts of names: a text such as '../x' would leave the folder.
    if not isinstance(steps, (list, tuple)) or not all(
            isinstance(step, Integral) and step >= 0 for step in steps):
        del runtime_info['keep_ckpt_ids']
