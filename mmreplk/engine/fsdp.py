"""How FSDP cuts a model that has RepLKNet in it (MMEngine's ``FSDPStrategy``)."""

from mmengine.registry import FUNCTIONS
from torch import nn

from ..models.blocks import ConvFFN, RepLKBlock


@FUNCTIONS.register_module()
def wrap_replknet_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy``: every RepLKBlock and ConvFFN becomes a unit of its own.

    A unit gathers its parameters when its ``forward`` is called. Blocks are always called whole; a
    stage is not, its ``norm`` is called by the backbone, so a policy by size, which wraps stages,
    fails there.

    Args:
        module (nn.Module): The module to decide on.
        recurse (bool): True when FSDP asks whether to look inside it.
        nonwrapped_numel (int): Parameters in it that no inner unit holds; makes no difference.

    Returns:
        bool: Whether to look inside, or to wrap.
    """
    return recurse or isinstance(module, (RepLKBlock, ConvFFN))
