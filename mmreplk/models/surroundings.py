"""What stands around RepLKNet in a config: weights of another network, heads of other channels.

A stock config with its backbone exchanged keeps both; each would fail late and far from its cause.
"""

from mmengine.config import Config

from ..config.types import type_names
from .replknet import RepLKNet

WEIGHTS = "init_cfg=dict(type='Pretrained', checkpoint=FILE) in the backbone"


def check_surroundings(cfg: Config, backbone: RepLKNet) -> None:
    """Check the parts of a model's config that follow its backbone.

    Args:
        cfg (Config): The full config, with a RepLKNet backbone.
        backbone (RepLKNet): That backbone; it may be on 'meta'.

    Raises:
        ValueError: If a neck or head takes other channels or another number of feature maps. The
            message names the part, the value and the one to write.
    """
    channels = [backbone.arch.channels[index] for index in backbone.out_indices]
    for name, part in _behind_backbone(cfg):
        for key, given, wanted in _expectations(part, channels, cfg.default_scope):
            if given == wanted:
                continue
            text = (f'CONFIG {cfg.filename}: {name}.{key}={given}, but RepLKNet returns '
                    f'{len(channels)} feature maps of {channels} channels')
            if isinstance(wanted, str):
                raise ValueError(f'{text}, {wanted}')
            fewer = isinstance(given, list) and len(given) < len(channels)
            indices = tuple(backbone.out_indices[-len(given):]) if fewer else ()
            hint = (f', or {name}.{key}={channels[-len(given):]} with model.backbone.out_indices='
                    f'{indices}') if fewer else ''
            raise ValueError(f'{text}. Write {name}.{key}={wanted}{hint}.')


def check_weight_settings(cfg: Config) -> None:
    """Check how a model's config asks for weights to start from.

    Args:
        cfg (Config): The full config, with a RepLKNet backbone.

    Raises:
        ValueError: If a segmentor has ``pretrained``, which is of the backbone that it had before,
            or an ``init_cfg`` is no dict. The message says what to write.
    """
    pretrained = cfg.model.get('pretrained')
    if pretrained is not None and cfg.default_scope == 'mmseg':
        raise ValueError(
            f'CONFIG {cfg.filename}: model.pretrained={pretrained!r} is of the backbone that the '
            f'config had before. Write pretrained=None in model; weights of RepLKNet: {WEIGHTS}.')
    for name, init_cfg in _init_cfgs(cfg.model, 'model'):
        if isinstance(init_cfg, str):
            raise ValueError(
                f'CONFIG {cfg.filename}: {name}={init_cfg!r} is a str. Write {name}='
                f"dict(type='Pretrained', checkpoint={init_cfg!r}).")


def _init_cfgs(node, name: str):
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _init_cfgs(item, f'{name}.{index}')
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == 'init_cfg':
                items = value if isinstance(value, (list, tuple)) else [value]
                yield from ((f'{name}.{key}', item) for item in items)
            yield from _init_cfgs(value, f'{name}.{key}')


def _behind_backbone(cfg: Config) -> list[tuple[str, dict]]:
    """The parts that take the backbone's feature maps, by dotted name, as far as one can tell."""
    model = cfg.model
    neck = model.get('neck')
    if neck:
        first, name = (neck[0], 'model.neck.0') if isinstance(neck, (list, tuple)) else (
            neck, 'model.neck')
        if 'GlobalAveragePooling' not in type_names(first, 'MODELS', cfg.default_scope):
            return [(name, first)]
    heads = []
    for key in ('decode_head', 'auxiliary_head', 'panoptic_head', 'head', 'bbox_head'):
        part = model.get(key)
        parts = enumerate(part) if isinstance(part, (list, tuple)) else [(None, part)]
        heads += [(f'model.{key}' if index is None else f'model.{key}.{index}', item)
                  for index, item in parts if isinstance(item, dict)]
    return heads


def _expectations(part: dict, channels: list[int], scope: str):
    """Yield (key, value, what it has to be, or a str: why there is no such value)."""
    given = part.get('in_channels')
    bases = type_names(part, 'MODELS', scope)
    if 'BaseDecodeHead' in bases or 'in_index' in part:
        index = part.get('in_index', -1)  # BaseDecodeHead's default
        several = isinstance(index, (list, tuple))
        beyond = [i for i in (index if several else [index])
                  if not -len(channels) <= i < len(channels)]
        if beyond:
            yield 'in_index', index, (f'none of them with index {beyond[0]}. Write another '
                                      'in_index, or more model.backbone.out_indices.')
            return
        wanted = [channels[i] for i in index] if several else channels[index]
        yield 'in_channels', list(given) if isinstance(given, (list, tuple)) else given, wanted
        if part.get('c1_in_channels'):  # DeepLabV3+ and the like: the first feature map
            yield 'c1_in_channels', part['c1_in_channels'], channels[0]
    elif isinstance(given, (list, tuple)):
        yield 'in_channels', list(given), channels
    elif isinstance(given, int) and 'ClsHead' in bases:
        yield 'in_channels', given, channels[-1]
