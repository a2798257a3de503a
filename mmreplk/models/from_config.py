"""The backbone that a config asks for, if it is one of ours."""

import torch
from mmengine.config import Config

from ..config.model import build_model
from ..config.types import class_of
from .enlarge.backbone import EnlargedBackbone
from .replknet import RepLKNet
from .surroundings import check_surroundings, check_weight_settings


def has_replknet(cfg: Config) -> bool:
    """Say whether the backbone of a config is RepLKNet, by whatever name it is asked for.

    Args:
        cfg (Config): The full config.
    """
    return backbone_class(cfg) is RepLKNet


def backbone_class(cfg: Config) -> type | None:
    """The class of a config's backbone; None if it is unknown.

    Args:
        cfg (Config): The full config.
    """
    return class_of(cfg.model.get('backbone'), 'MODELS', cfg.default_scope)


def check_backbone(cfg: Config) -> RepLKNet | EnlargedBackbone | None:
    """Check the arguments of our backbones by building them without memory.

    Of RepLKNet also what stands around it in the config: see :mod:`.surroundings`.

    Args:
        cfg (Config): The full config.

    Returns:
        RepLKNet | EnlargedBackbone | None: The backbone on 'meta'; None if the config's is another
        network.

    Raises:
        ValueError: If an argument is unknown or impossible, or does not go with the rest.
    """
    if not has_replknet(cfg):
        return build_model(cfg).backbone if backbone_class(cfg) is EnlargedBackbone else None
    check_weight_settings(cfg)
    arguments = {key: value for key, value in cfg.model.backbone.items() if key != 'type'}
    try:
        with torch.device('meta'):
            backbone = RepLKNet(**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'CONFIG {cfg.filename}: model.backbone: {error}') from error
    check_surroundings(cfg, backbone)
    return backbone
