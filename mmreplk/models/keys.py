"""Names in the state dict of a RepLKNet, which are those of the authors' checkpoints."""

import re
from collections.abc import Iterable

BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.')
STAGE_NORM = re.compile(r'stages\.(\d+)\.norm\.')


def is_merged(names: Iterable[str]) -> bool:
    """Say whether the small kernels are merged into the large ones."""
    return any('.lkb_reparam.' in name for name in names)


def is_folded(names: Iterable[str]) -> bool:
    """Say whether the norms are folded into the convolutions, as in a deployed backbone."""
    return is_merged(names) and not any(name.endswith('.running_var') for name in names)


def stage_norms(names: Iterable[str]) -> list[int]:
    """The stages whose outputs have a norm of their own.

    Args:
        names (Iterable[str]): Names of a backbone's weights, without prefix.

    Returns:
        list[int]: Their numbers, ascending.
    """
    return sorted({int(found[1]) for found in map(STAGE_NORM.match, names) if found})


def adopt_final_norm(state: dict, prefix: str, own: Iterable[str]) -> None:
    """Undo MMPretrain's renaming of the norm before the pooling, which it keeps as a stage norm.

    A single norm behind the last stage is taken for that norm unless the backbone has exactly the
    same. So MMPretrain's classification weights neither miss the norm of a classifier nor slip
    into the norms that XL has for dense prediction.

    Args:
        state (dict[str, Tensor]): Weights, changed in place.
        prefix (str): What stands before the backbone's names in ``state``.
        own (Iterable[str]): The names of the backbone that they are meant for, without prefix.
    """
    body = [name[len(prefix):] for name in state if name.startswith(prefix)]
    found = stage_norms(body)
    stages = {int(match[1]) for match in map(BLOCK.match, body) if match}
    if not stages or found != [max(stages)] or f'{prefix}norm.weight' in state:
        return
    if stage_norms(own) == found:
        return
    last = f'stages.{found[0]}.norm.'
    for name in [name for name in body if name.startswith(last)]:
        state[f'{prefix}norm.{name[len(last):]}'] = state.pop(prefix + name)
