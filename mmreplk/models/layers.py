"""Convolution, norm and activation as one ``nn.Sequential`` with the official sub-module names."""

from collections import OrderedDict

import torch
from torch import nn

from ..ops import LargeKernelDWConv2d
from ..packages import importable
from .cpu_inference.pointwise import PointwiseConv2d
from .plain import check_computes, value_of


def conv_bn(in_channels: int,
            out_channels: int,
            kernel_size: int,
            stride: int = 1,
            groups: int = 1,
            norm_cfg: dict | None = None,
            act_cfg: dict | type[nn.Module] | None = None,
            conv_layer: type[nn.Conv2d] | None = None) -> nn.Sequential:
    """A bias-free convolution with padding ``kernel_size // 2``, its norm, and an activation.

    The sub-modules are called ``conv``, ``bn`` and ``nonlinear``, as in the official checkpoints.

    Args:
        in_channels (int): Input channels.
        out_channels (int): Output channels.
        kernel_size (int): Odd kernel size.
        stride (int): Stride. Defaults to 1.
        groups (int): Groups. Defaults to 1.
        norm_cfg (dict, optional): As of :func:`norm_layer`. Defaults to None, BN.
        act_cfg (dict | type, optional): As of :func:`activation_layer`. Defaults to None, no
            activation.
        conv_layer (type, optional): ``nn.Conv2d`` or a subclass. Defaults to None:
            :class:`PointwiseConv2d` where it can serve, ``nn.Conv2d`` elsewhere.

    Returns:
        nn.Sequential: Maps ``(N, in_channels, H, W)`` to
        ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """
    if conv_layer is None:
        pointwise = (kernel_size, stride, groups) == (1, 1, 1)
        conv_layer = PointwiseConv2d if pointwise else nn.Conv2d
    layers = OrderedDict(
        conv=conv_layer(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False),
        bn=norm_layer(norm_cfg, out_channels))
    if act_cfg is not None:
        layers['nonlinear'] = activation_layer(act_cfg)
    return nn.Sequential(layers)


def norm_layer(norm_cfg: dict | None, num_features: int) -> nn.Module:
    """The norm layer that ``norm_cfg`` describes.

    Args:
        norm_cfg (dict | None): A config, which MMCV builds; None stands for ``nn.BatchNorm2d``.
        num_features (int): Channels C.

    Returns:
        nn.Module: The layer.

    Raises:
        ModuleNotFoundError: If a config is given and MMCV is not installed.
    """
    if norm_cfg is None:
        return nn.BatchNorm2d(num_features)
    return _mmcv(norm_cfg, 'norm_cfg').build_norm_layer(norm_cfg, num_features)[1]


def activation_layer(act_cfg: dict | type[nn.Module]) -> nn.Module:
    """The activation that ``act_cfg`` describes.

    Args:
        act_cfg (dict | type): A config, which MMCV builds; or a class such as ``nn.ReLU``.

    Returns:
        nn.Module: The layer.

    Raises:
        ModuleNotFoundError: If a config is given and MMCV is not installed.
    """
    if isinstance(act_cfg, type):
        return act_cfg()
    return _mmcv(act_cfg, 'act_cfg').build_activation_layer(act_cfg)


def _mmcv(cfg: dict, argument: str):
    if not importable('mmcv'):
        raise ModuleNotFoundError(f'{argument}={cfg!r}: layers are built from configs by MMCV, '
                                  f'which is not installed here. Install it, or leave {argument} '
                                  'out')
    import mmcv.cnn
    return mmcv.cnn


@torch.no_grad()
def fuse_conv_bn(conv: nn.Conv2d, bn: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the one convolution that equals ``bn(conv(x))`` in evaluation mode.

    ``w' = w * gamma / sqrt(var + eps)`` and ``b' = beta + (b - mean) * gamma / sqrt(var + eps)``
    (paper, section 3.1, re-parameterization), computed in float64.

    Args:
        conv (nn.Conv2d): The convolution, weight ``(O, I / groups, Kh, Kw)``.
        bn (nn.Module): A batch norm over its O output channels, with running statistics; or
            ``nn.Identity``, no norm.

    Returns:
        tuple[Tensor, Tensor]: Weight, shaped like ``conv.weight``, and bias ``(O, )``, in float64.

    Raises:
        TypeError: If ``bn`` keeps no running statistics (GN, LN, or a BN built without them): then
            its effect depends on the input and no convolution equals it.
    """
    weight, bias = value_of(conv, 'weight').double(), value_of(conv, 'bias')
    if isinstance(bn, nn.Identity):
        return weight, weight.new_zeros(conv.out_channels) if bias is None else bias.double()
    check_foldable(bn)
    scale, shift = norm_affine(
        *(value_of(bn, name) for name in ('running_mean', 'running_var', 'weight', 'bias')), bn.eps)
    bias = shift if bias is None else bias.double() * scale + shift
    return weight * scale.reshape(-1, 1, 1, 1), bias


def check_conv(conv: nn.Module, name: str) -> None:
    """Check that a layer is a convolution that computes by its weight, bias and attributes alone.

    Args:
        conv (nn.Module): The layer.
        name (str): What the message calls it.

    Raises:
        TypeError: If it is another layer, has a forward of its own, or forward hooks.
        ValueError: If it has an activation, behind which a norm does not fold.
    """
    check_computes(conv, (nn.Conv2d.forward, PointwiseConv2d.forward, LargeKernelDWConv2d.forward),
                   name)
    if type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise TypeError(f'cannot merge {name}: {type(conv).__name__} convolves in its own way')
    if getattr(conv, 'activation', None) is not None:
        raise ValueError(f'cannot merge {name}: it has activation={conv.activation!r}, behind '
                         'which a norm does not fold. Set its activation to None')


def check_norm(norm: nn.Module, name: str) -> None:
    """Check that a norm computes what its statistics, weight and bias say.

    Args:
        norm (nn.Module): A norm with running statistics.
        name (str): What the message calls it.

    Raises:
        TypeError: If it has a forward of its own, as those with an activation have; or forward
            hooks.
    """
    forward = type(norm).forward
    known = getattr(forward, '__module__', '').partition('.')[0] in (
        'torch', 'torchvision', 'mmcv', 'mmengine')
    check_computes(norm, (forward, ) if known else (), name)


def check_foldable(norm: nn.Module, name: str | None = None) -> None:
    """Check that a norm keeps running statistics, by which it is linear in evaluation mode.

    Args:
        norm (nn.Module): The norm.
        name (str, optional): What the message calls it besides its type. Defaults to None.

    Raises:
        TypeError: If it keeps none (GN, LN, or a BN built without them): then its effect depends on
            the input and no convolution equals it.
    """
    if getattr(norm, 'running_mean', None) is None or getattr(norm, 'running_var', None) is None:
        raise TypeError(
            f'cannot merge a convolution with {type(norm).__name__}{f" ({name})" if name else ""}: '
            'only a norm with running statistics folds into a convolution. Train with norm_cfg of '
            'type BN or SyncBN to deploy merged kernels.')


def norm_affine(mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor | None,
                bias: torch.Tensor | None, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a batch norm that uses its running statistics: ``scale * x + shift``.

    Args:
        mean (Tensor): Running mean ``(C, )``.
        variance (Tensor): Running variance ``(C, )``.
        weight (Tensor, optional): Gamma ``(C, )``; None for 1.
        bias (Tensor, optional): Beta ``(C, )``; None for 0.
        eps (float): Added to the variance.

    Returns:
        tuple[Tensor, Tensor]: Both ``(C, )``, in float64.
    """
    scale = (variance.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def rounded(value: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A merged weight in the dtype of the network, or a refusal.

    Args:
        value (Tensor): Weight or bias in float64; on 'meta' it is not looked at.
        dtype (torch.dtype): What to round to.
        name (str): What the message calls it.

    Returns:
        Tensor: The value in ``dtype``.

    Raises:
        ValueError: If a number is NaN or infinite already, as where a variance is negative, or
            beyond the range of ``dtype``.
    """
    result = value.to(dtype)
    if value.is_meta or result.isfinite().all():
        return result
    if not value.isfinite().all():
        raise ValueError(
            f'cannot merge: {name} is not finite. A weight or a running statistic is NaN or '
            'infinite, or a variance plus eps is not positive: the network is damaged')
    raise ValueError(f'cannot merge: {name} would not fit into {dtype}. Merge the network in '
                     'float32 first')
