"""Key names of RepLKNet weights: the authors', MMPretrain's and this project's.

The training-time backbone has the authors' names, so only their surroundings differ:

==================  =====================  ================================  =====================
part                authors                MMPretrain                        this project
==================  =====================  ================================  =====================
classifier          no prefix              ``backbone.``                     ``backbone.``
norm before pool    ``norm``               ``backbone.stages.<last>.norm``   ``backbone.norm``
linear classifier   ``head``               ``head.fc``                       ``head.fc``
segmentor,          ``backbone.``; heads   the same                          the same
detector            as in the mm packages
==================  =====================  ================================  =====================
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import torch

from ..models.arch import ARCHS, Arch
from ..models.keys import BLOCK, is_merged
from ..models.network import RepLKNetBackbone

PREFIX = 'backbone.'
# Where training scripts put the weights: MMEngine and MMCV, the authors, DeepSpeed.
WRAPPERS = ('state_dict', 'model', 'module')
# Where the authors' training script and timm put the moving average of the weights.
EMA_WRAPPERS = ('model_ema', 'state_dict_ema')
_PARTS = ('stem.', 'stages.', 'transitions.', 'norm.')
# What a checkpoint says of its data set, in ``meta``; files of MMCV have the last two alone.
DATASET_META = ('dataset_meta', 'CLASSES', 'PALETTE')
# The last layer of each head, and how many of its outputs are no class.
_CLASS_LAYERS = {
    'head.fc': 0,
    'head': 0,
    'decode_head.conv_seg': 0,
    'bbox_head.conv_cls': 0,
    'roi_head.bbox_head.fc_cls': 1,
    'roi_head.bbox_head.0.fc_cls': 1,
}


def unwrap(checkpoint, ema: bool = False) -> dict[str, torch.Tensor]:
    """Take the weights out of whatever was saved around them.

    Args:
        checkpoint (dict): A state dict, or a dict that holds one under ``state_dict``, ``model`` or
            ``module``. A ``module.`` in front of every name, from a parallel wrapper, is removed.
        ema (bool): Whether to take the moving average that was saved beside the weights
            (``model_ema`` or ``state_dict_ema``). Defaults to False.

    Returns:
        dict[str, Tensor]: Name to tensor; nothing is copied.

    Raises:
        ValueError: If there are no weights, or no average was saved, or an entry is no tensor.
    """
    state = checkpoint
    if ema:
        names = [name for name in EMA_WRAPPERS if isinstance(_get(checkpoint, name), Mapping)]
        if not names:
            raise ValueError(f'has no moving average (under {" or ".join(EMA_WRAPPERS)}), only '
                             f'{_some(checkpoint)}')
        state = checkpoint[names[0]]
    for _ in range(len(WRAPPERS)):  # they are nested in some files
        inner = [name for name in WRAPPERS if isinstance(_get(state, name), Mapping)]
        if not inner:
            break
        state = state[inner[0]]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f'holds no weights but {_kind(state)}')
    strange = [name for name, value in state.items()
               if not isinstance(name, str) or not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(
            f'holds entries that are no tensors: '
            f'{", ".join(f"{name} ({_kind(state[name])})" for name in strange[:3])}'
            f'{", ..." if len(strange) > 3 else ""}')
    check_values(state)
    if all(name.startswith('module.') for name in state):
        return {name[len('module.'):]: value for name, value in state.items()}
    return dict(state)


def split(state: Mapping[str, torch.Tensor]) -> tuple[str, dict, dict]:
    """Part the backbone from what surrounds it.

    Args:
        state (Mapping[str, Tensor]): The weights of a whole model.

    Returns:
        tuple[str, dict, dict]: The prefix of the backbone (``'backbone.'`` or none), its weights
        without it, and the others.

    Raises:
        ValueError: If there is no RepLKNet in it.
    """
    for prefix in (PREFIX, ''):
        if f'{prefix}stem.0.conv.weight' not in state:
            continue
        starts = (prefix, ) if prefix else _PARTS
        body = {name[len(prefix):]: value for name, value in state.items()
                if name.startswith(starts)}
        if any(map(BLOCK.match, body)):
            return prefix, body, {name: value for name, value in state.items()
                                  if not name.startswith(starts)}
    raise ValueError('holds no RepLKNet: no stem.0.conv.weight with stages.0.blocks behind it, '
                     f'neither by itself nor under {PREFIX}, but {_some(state)}')


def arch_of(body: Mapping[str, torch.Tensor]) -> Arch:
    """Read the architecture from the shapes of a backbone's weights.

    Args:
        body (Mapping[str, Tensor]): The weights, without prefix. Tensors may be on 'meta'.

    Returns:
        Arch: The architecture; ``small_kernel`` is None where the kernels are merged.

    Raises:
        ValueError: If a weight that tells it is missing or has an impossible shape.
    """
    depths = {}
    for found in filter(None, map(BLOCK.match, body)):
        stage, block = int(found[1]), int(found[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    if sorted(depths) != list(range(len(depths))):
        raise ValueError(f'has the stages {sorted(depths)} alone')

    def shape(name):
        if name not in body:
            raise ValueError(f'lacks {name}')
        if body[name].dim() != 4:
            raise ValueError(f'has {name} of shape {tuple(body[name].shape)}, no kernel')
        return body[name].shape

    branch = 'lkb_reparam' if is_merged(body) else 'lkb_origin.conv'
    stages = range(len(depths))
    pw1 = [shape(f'stages.{i}.blocks.0.pw1.conv.weight') for i in stages]
    ffn = [shape(f'stages.{i}.blocks.1.pw1.conv.weight') for i in stages]
    small = 'stages.0.blocks.0.large_kernel.small_conv.conv.weight'
    widest = max(stages, key=lambda i: pw1[i][1])
    return Arch(
        large_kernel_sizes=tuple(
            shape(f'stages.{i}.blocks.0.large_kernel.{branch}.weight')[-1] for i in stages),
        layers=tuple((depths[i] + 1) // 2 for i in stages),
        channels=tuple(weight[1] for weight in pw1),
        small_kernel=shape(small)[-1] if small in body else None,
        dw_ratio=_ratio(pw1[widest][0], pw1[widest][1]),
        ffn_ratio=_ratio(ffn[widest][0], ffn[widest][1]))


def name_of(arch: Arch, merged: bool = False) -> str | None:
    """The published name of an architecture.

    Args:
        arch (Arch): As from :func:`arch_of`.
        merged (bool): Whether its small kernels are merged, and so unknown. Defaults to False.

    Returns:
        str | None: ``'31B'``, ``'31L'`` or ``'XL'``; None for any other.
    """
    for name, known in ARCHS.items():
        if arch == (replace(known, small_kernel=None) if merged else known):
            return name
    return None


def describe_arch(arch: Arch, merged: bool = False) -> str:
    """An architecture in words: its published name, else what distinguishes it."""
    name = name_of(arch, merged)
    if name:
        return name
    sizes = {key: '-'.join(map(str, value)) if isinstance(value, tuple) else f'{value:g}'
             for key, value in asdict(arch).items() if key != 'small_kernel'}
    text = ', '.join(f'{key} {value}' for key, value in sizes.items())
    return text if merged else f'{text}, small_kernel {arch.small_kernel}'


def other_arch(backbone: RepLKNetBackbone, body: Mapping[str, torch.Tensor]) -> str | None:
    """Say so if weights are of another architecture than a backbone.

    Args:
        backbone (RepLKNetBackbone): The backbone; it may be on 'meta'.
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


def num_classes(state: Mapping[str, torch.Tensor]) -> int | None:
    """The number of classes that the weights of a whole model tell apart.

    Args:
        state (Mapping[str, Tensor]): Weights, in any of the layouts above.

    Returns:
        int | None: Without the background of two-stage detectors; None where no head is known.
    """
    for layer, background in _CLASS_LAYERS.items():
        weight = state.get(f'{layer}.weight')
        if weight is not None:
            return weight.shape[0] - background
    return None


def check_values(state: Mapping, own: Mapping[str, torch.Tensor] | None = None) -> None:
    """Refuse weights without values of their own, or of a kind that a copy would change silently.

    Args:
        state (Mapping[str, Tensor]): Name to tensor; other entries are passed over.
        own (Mapping[str, Tensor], optional): The state dict that they are meant for. Defaults to
            None, to look at the tensors alone.

    Raises:
        ValueError: If a tensor is on 'meta', sparse or otherwise not strided, quantized or complex,
            or is not of floating point where ``own`` is. Names it.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue
        wanted = None if own is None else own.get(name)
        kind = None
        if value.is_meta:
            kind = "on the device 'meta', which keeps no values"
        elif value.is_nested or value.layout != torch.strided:
            kind = f'of the layout {"nested" if value.is_nested else value.layout}'
        elif value.is_quantized:
            kind = 'quantized'
        elif value.is_complex() and not (wanted is not None and wanted.is_complex()):
            kind = 'complex'
        elif wanted is not None and wanted.is_floating_point() and not value.is_floating_point():
            kind = f'of {value.dtype}'
        if kind:
            raise ValueError(f'holds {name} {kind}: save it as an ordinary tensor of floating '
                             'point numbers')


def _first_stages(arch: Arch, count: int) -> Arch:
    return replace(arch, large_kernel_sizes=arch.large_kernel_sizes[:count],
                   layers=arch.layers[:count], channels=arch.channels[:count])


def _ratio(part: int, whole: int) -> float:
    """The ratio r for which ``int(whole * r) == part``."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole


def _get(mapping, name: str):
    return mapping.get(name) if isinstance(mapping, Mapping) else None


def _kind(value) -> str:
    return f'{type(value).__name__} of length {len(value)}' if isinstance(
        value, (Mapping, list, tuple)) else type(value).__name__


def _some(names: Iterable) -> str:
    names = [str(name) for name in names]
    return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
