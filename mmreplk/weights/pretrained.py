"""Starting a backbone from weights, of whichever layout: MMEngine's ``Pretrained``, but strict.

MMEngine loads what fits and only warns of the rest, also where nothing fits.
"""

from dataclasses import replace

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import nn

from ..models.arch import Arch
from ..models.first_conv import adapted, channels_hint
from ..models.fold import fold_norms
from .layouts import (
    STAGE_NORM,
    adopt_final_norm,
    arch_of,
    check_values,
    describe_arch,
    describe_differences,
    differences,
    is_merged,
    split,
    stage_norms,
    unwrap,
)
from .safe_load import read_any

MERGED = ('is merged already (small kernels inside the large ones): build the merged network for '
          'it, with model.backbone.deploy=True, or take the weights from before the merge')
NOT_MERGED = ('is not merged, but model.backbone.deploy is True: merge it with '
              'tools/reparameterize.py, or leave deploy out')


def check_backbone_weights(backbone: nn.Module, body: dict[str, torch.Tensor]) -> dict:
    """Check that weights fit a backbone that is to start from them.

    A classifier's head and final norm, and stages above those that the backbone has, may be too
    many; norms of stage outputs may be missing if the weights have none at all.

    Args:
        backbone (RepLKNet): The backbone; it may be on 'meta'.
        body (dict[str, Tensor]): The weights without prefix.

    Returns:
        dict[str, Tensor]: Those of them that the backbone has a place for.

    Raises:
        ValueError: If the weights are of another architecture, merged unlike the backbone, or do
            not match it in any other way.
    """
    own = backbone.state_dict()
    body = dict(body)
    adopt_final_norm(body, '', own)
    check_values(body, own)
    merged = is_merged(body)
    if merged != backbone.deploy:
        raise ValueError(MERGED if merged else NOT_MERGED)
    if merged:
        fold_norms(body, backbone.norm_eps)
    missing, extra, other = differences(own, body)
    if not stage_norms(body):
        missing = [name for name in missing if not STAGE_NORM.match(name)]
    built, total = backbone.num_stages, len(arch_of(body).layers)
    ignored = ('norm.', 'head.', *(f'stages.{i}.' for i in range(built, total)),
               *(f'transitions.{i}.' for i in range(built - 1, total)))
    extra = [name for name in extra if not name.startswith(ignored)]
    if missing or extra or other:
        raise ValueError(other_arch(backbone, body) or 'does not match the backbone: '
                         f'{describe_differences(missing, extra, other)}'
                         f'{channels_hint(backbone, body)}')
    return {name: value for name, value in body.items() if name in own}


def other_arch(backbone: nn.Module, body: dict[str, torch.Tensor]) -> str | None:
    """Say so if weights are of another architecture than a backbone.

    Args:
        backbone (RepLKNet): The backbone; it may be on 'meta'.
        body (dict[str, Tensor]): The weights without prefix.

    Returns:
        str | None: The end of a sentence that begins with the file, or None.
    """
    merged = is_merged(body)
    arch = arch_of(body)
    wanted = replace(backbone.arch, small_kernel=None) if merged else backbone.arch
    if _first_stages(arch, backbone.num_stages) == _first_stages(wanted, backbone.num_stages):
        return None
    return (f'is of arch {describe_arch(arch, merged)}, but the backbone of '
            f'{describe_arch(wanted, merged)}')


def pretrained_body(checkpoint, prefix: str | None = None) -> dict[str, torch.Tensor]:
    """The backbone's weights in a checkpoint that a backbone is to start from.

    Args:
        checkpoint (dict): As read from a file, of any layout that :func:`split` understands.
        prefix (str, optional): What MMEngine's ``Pretrained`` calls ``prefix``: where the backbone
            is to be found. Not needed where it stands in one of the known places. Defaults to None.

    Returns:
        dict[str, Tensor]: The weights without prefix.

    Raises:
        ValueError: If there is no RepLKNet.
    """
    state = unwrap(checkpoint)
    if prefix:
        dotted = prefix if prefix.endswith('.') else f'{prefix}.'
        inner = {name[len(dotted):]: value for name, value in state.items()
                 if name.startswith(dotted)}
        state = inner or state  # the authors' files have no prefix
    return split(state)[1]


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None,
                    map_location: str = 'cpu', in_channels: str | None = None) -> None:
    """Start a backbone from a file or address, as MMEngine's ``Pretrained`` does, but strictly.

    Args:
        backbone (RepLKNet): The backbone.
        checkpoint (str): Whatever MMEngine can read; layouts as of :func:`pretrained_body`.
        prefix (str, optional): As of :func:`pretrained_body`. Defaults to None.
        map_location (str): Where to read to. Defaults to 'cpu'.
        in_channels (str, optional): 'adapt' to fit weights of colour images to the channels of the
            backbone, see :func:`mmreplk.models.first_conv.adapted`. Defaults to None.

    Raises:
        ValueError: If the weights do not fit. Nothing is loaded then.
    """
    try:
        loaded = read_any(checkpoint, map_location)
        body = adapted(backbone, pretrained_body(loaded, prefix), in_channels, log_start)
        body = check_backbone_weights(backbone, body)
    except ValueError as error:
        raise ValueError(f'init_cfg: the checkpoint {checkpoint!r} {error}.') from error
    backbone.load_state_dict(body, strict=False)
    if hasattr(backbone, '_params_init_info'):
        update_init_info(backbone, init_info=f'Pretrained: load from {checkpoint}')


def log_start(line: str) -> None:
    """Log a line about the weights that a network starts from."""
    print_log(f'init_cfg: {line}.', logger='current')


def _first_stages(arch: Arch, count: int) -> Arch:
    return replace(arch, large_kernel_sizes=arch.large_kernel_sizes[:count],
                   layers=arch.layers[:count], channels=arch.channels[:count])
