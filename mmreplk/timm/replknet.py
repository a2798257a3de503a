"""The variants that timm knows, and their published weights.

The weights are the authors', as MMPretrain converted and hosts them. Input sizes, crops and
statistics are those of the authors' evaluation, as in ``configs/_base_/datasets/imagenet_*.py``.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from ..models.arch import ARCHS
from ..models.keys import adopt_final_norm, is_merged
from ..weights.layouts import other_arch, split, unwrap
from .classifier import RepLKNetClassifier
from .fetch import fetch

_HOST = 'https://download.openmmlab.com/mmclassification/v0/replknet/'
_HALF = (0.5, 0.5, 0.5)

__all__ = ['checkpoint_filter_fn']  # timm adds the variants


def _cfg(file: str = '', size: int = 224, **kwargs) -> dict:
    cfg = dict(
        url=_HOST + file if file else '', num_classes=1000, input_size=(3, size, size),
        min_input_size=(3, 32, 32), pool_size=(size // 32, size // 32), crop_pct=0.875,
        interpolation='bicubic', mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
        first_conv='stem.0.conv', classifier='head.fc', paper_ids='arXiv:2203.06717',
        paper_name='Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs',
        origin_url='https://github.com/DingXiaoH/RepLKNet-pytorch')
    return cfg | kwargs


def _cfg_384(file: str) -> dict:
    """At 384 images are warped to the square, not cropped."""
    return _cfg(file, 384, crop_pct=1.0, crop_mode='squash')


default_cfgs = generate_default_cfgs({
    'replknet_31b.in1k': _cfg('replknet-31B_3rdparty_in1k_20221118-fd08e268.pth'),
    'replknet_31b.in1k_384': _cfg_384('replknet-31B_3rdparty_in1k-384px_20221118-03a170ce.pth'),
    'replknet_31b.in22k_ft_in1k': _cfg(
        'replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46.pth'),
    'replknet_31b.in22k_ft_in1k_384': _cfg_384(
        'replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24.pth'),
    'replknet_31l.in22k_ft_in1k_384': _cfg_384(
        'replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c.pth'),
    'replknet_xl.meg73m_ft_in1k_320': _cfg(
        'replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d.pth', 320, mean=_HALF,
        std=_HALF),
    'replknet_31b_narrow.untrained': _cfg(),
    'replknet_31l_narrow.untrained': _cfg(),
    'replknet_xl_narrow.untrained': _cfg(),
})


def checkpoint_filter_fn(state_dict: Mapping, model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights in any layout under the names of a model of timm.

    Args:
        state_dict (Mapping): The authors', MMPretrain's, this project's or timm's, with or without
            what training scripts wrap around it; of segmentors and detectors the backbone.
        model (RepLKNetClassifier): The model that they are for.

    Returns:
        dict[str, Tensor]: Name to tensor; nothing is copied.

    Raises:
        ValueError: If they are of another network or architecture, or merged unlike the model.
    """
    try:
        _, body, heads = split(unwrap(state_dict))
        reason = other_arch(model, body)
    except ValueError as error:
        reason = error
    if reason:
        raise ValueError(f'the file of weights {reason}')
    if is_merged(body) != model.deploy:
        raise ValueError('the file of weights is merged, the model is not: create_model(..., '
                         'deploy=True) builds a merged one' if is_merged(body) else
                         'the file of weights is not merged, but the model is: leave deploy out, '
                         'and call switch_to_deploy() once they are loaded')
    adopt_final_norm(body, '', ('norm.weight', ))
    linear = {f'head.fc.{key}': heads[f'{name}.{key}'] for name in ('head', 'head.fc')
              for key in ('weight', 'bias') if f'{name}.{key}' in heads}
    return body | linear


def _create(variant: str, pretrained: bool = False, pretrained_cfg=None,
            pretrained_cfg_overlay: dict | None = None, weights_from: str | None = None,
            **kwargs) -> nn.Module:
    """Build a variant as timm does, with weights that :func:`.fetch` has checked.

    Args:
        variant (str): Its name.
        pretrained (bool): Whether to load weights. Defaults to False.
        pretrained_cfg (str | dict | PretrainedCfg, optional): As of ``timm.create_model``.
        pretrained_cfg_overlay (dict, optional): As of ``timm.create_model``.
        weights_from (str, optional): A folder or an address that holds the published files.
            Defaults to None, where they were published.
        **kwargs: As of ``timm.create_model`` and :class:`.RepLKNetClassifier`.

    Returns:
        nn.Module: The classifier, or with ``features_only=True`` what gives its feature maps.

    Raises:
        ValueError: If the weights do not fit, or ``feature_cls`` is of those that run the children
            of a network one after another.
    """
    if kwargs.get('feature_cls') in ('list', 'dict', 'hook'):
        raise ValueError(f'feature_cls={kwargs["feature_cls"]!r} runs the children of a network '
                         "one after another, as RepLKNet's do not go: use 'getter', the default, "
                         "or 'fx'")
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
        if cfg.url and not (cfg.source or cfg.file or cfg.state_dict or cfg.hf_hub_id):
            file = fetch(cfg.url, weights_from, kwargs.get('cache_dir'))
            pretrained_cfg_overlay = {**(pretrained_cfg_overlay or {}), 'file': file}
    return build_model_with_cfg(
        RepLKNetClassifier, variant, pretrained, pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **kwargs)


def _narrow(name: str) -> dict:
    """The kernels of an architecture at an eighth of its width, with five pairs of blocks."""
    arch = ARCHS[name]
    return asdict(replace(arch, layers=(1, 1, 2, 1), channels=tuple(
        width // 8 for width in arch.channels)))


@register_model
def replknet_31b(pretrained: bool = False, **kwargs) -> nn.Module:
    """RepLKNet-31B; arguments as of :func:`_create`."""
    return _create('replknet_31b', pretrained, arch='31B', **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs) -> nn.Module:
    """RepLKNet-31L; arguments as of :func:`_create`."""
    return _create('replknet_31l', pretrained, arch='31L', **kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs) -> nn.Module:
    """RepLKNet-XL; arguments as of :func:`_create`."""
    return _create('replknet_xl', pretrained, arch='XL', **kwargs)


@register_model
def replknet_31b_narrow(pretrained: bool = False, **kwargs) -> nn.Module:
    """A narrow, shallow RepLKNet-31B, to try things; arguments as of :func:`_create`."""
    return _create('replknet_31b_narrow', pretrained, arch=_narrow('31B'), **kwargs)


@register_model
def replknet_31l_narrow(pretrained: bool = False, **kwargs) -> nn.Module:
    """A narrow, shallow RepLKNet-31L, to try things; arguments as of :func:`_create`."""
    return _create('replknet_31l_narrow', pretrained, arch=_narrow('31L'), **kwargs)


@register_model
def replknet_xl_narrow(pretrained: bool = False, **kwargs) -> nn.Module:
    """A narrow, shallow RepLKNet-XL, to try things; arguments as of :func:`_create`."""
    return _create('replknet_xl_narrow', pretrained, arch=_narrow('XL'), **kwargs)
