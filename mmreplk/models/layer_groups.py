"""Groups of layers that share a learning rate in the authors' fine-tuning."""

import re
from collections.abc import Sequence

PAIRS_PER_GROUP = 2  # pairs of RepLKBlock and ConvFFN that share a learning rate
_PLACE = re.compile(r'stages\.(\d+)\.blocks\.(\d+)(?:\.|$)')
_TRANSITION = re.compile(r'transitions\.(\d+)(?:\.|$)')


def layer_group(name: str, layers: Sequence[int]) -> int:
    """Number the group of parameters that a name belongs to, from the input upwards.

    Two pairs of RepLKBlock and ConvFFN make a group; one that is left over at the end of a stage
    makes a group of its own. A transition belongs to the group of the blocks before it, as in the
    authors' runs. For the published depths 2-2-18-2:

    ===== ======================================================
    group parameters
    ===== ======================================================
    0     ``stem``
    1     ``stages.0.blocks.0`` to ``3``, ``transitions.0``
    2     ``stages.1.blocks.0`` to ``3``, ``transitions.1``
    3     ``stages.2.blocks.0`` to ``3``
    ...   four more blocks of stage 2 each
    11    ``stages.2.blocks.32`` to ``35``, ``transitions.2``
    12    ``stages.3.blocks.0`` to ``3``
    13    all else: ``norm``, ``stages.S.norm``, necks and heads
    ===== ======================================================

    Args:
        name (str): Of a parameter or module of the backbone, without prefix.
        layers (Sequence[int]): Pairs of blocks in each stage that is built.

    Returns:
        int: The group.
    """
    groups = [-(-pairs // PAIRS_PER_GROUP) for pairs in layers]
    if name.partition('.')[0] == 'stem':
        return 0
    place, transition = _PLACE.match(name), _TRANSITION.match(name)
    if place:
        stage, block = map(int, place.groups())
        return sum(groups[:stage]) + 1 + block // (2 * PAIRS_PER_GROUP)
    if transition:
        return sum(groups[:int(transition[1]) + 1])
    return sum(groups) + 1
