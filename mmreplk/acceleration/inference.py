"""What deployed networks have for inference on a CPU, in networks of others."""

import sys
from collections.abc import Mapping

import torch
from torch import nn

# It needs the mm packages: imported where it is asked for alone.
from ..models.cpu_inference.pointwise import PointwiseConv2d, are_rows
from .choice import Seen, clocked
from .swap import is_plain_conv, swap, why_not
from .table import Row

# Weights and pixels below which a product of matrices gains less than it costs to choose it:
# measured on two cores of AMD Zen 5.
_FEWEST_WEIGHTS = 150_000
_FEWEST_PIXELS = 16


def pointwise_convs(model: nn.Module) -> dict[nn.Module, str]:
    """The 1x1 convolutions that may be products of matrices, with their names."""
    return {module: name for name, module in model.named_modules()
            if is_plain_conv(module) and _is_pointwise(module) and why_not(module) is None}


def accelerate_inference(model: nn.Module, products: Mapping[nn.Module, str],
                         calls: Mapping[nn.Module, list[Seen]] | None, policy: str) -> list[Row]:
    """1x1 convolutions and UperNet's head.

    The layers decide at each call whether products of matrices can serve: on a CPU, channels-last,
    without gradients; else they are what they were.

    Args:
        model (nn.Module): The network.
        products (Mapping[nn.Module, str]): Its `pointwise_convs`.
        calls (Mapping[nn.Module, list[Seen]], optional): Their inputs, where they are known.
        policy (str): As of `accelerate`.

    Returns:
        list[Row]: One for each of these layers.
    """
    rows = []
    for conv, name in products.items():
        seen = None if calls is None or policy == 'all' else calls.get(conv, [])
        size = ', '.join(map(str, seen or ()))
        reason = None if seen is None else _why_no_product(conv, seen, policy)
        rows.append(Row(name, '1x1', size, reason is None,
                        reason or 'a matrix product where channels-last'))
        if reason is None:
            swap(conv, PointwiseConv2d, activation=None)
    head = getattr(sys.modules.get('mmseg.models.decode_heads.uper_head'), 'UPerHead', None)
    for name, module in model.named_modules():
        if head is not None and type(module) is head and why_not(module) is None:
            from ..models.cpu_inference.uper_head import UPerHead
            swap(module, UPerHead, resize_last=True)
            rows.append(Row(name, 'UPerHead', '', True, 'resizes behind its convolutions'))
    return rows


def _why_no_product(conv: nn.Conv2d, seen: list[Seen], policy: str) -> str | None:
    """Why a 1x1 convolution stays one, for inputs of these sizes; None if it does not."""
    if not seen:
        return 'not called by this input'
    if not all(are_rows(torch.empty_strided(each.shape, each.strides, device='meta'))
               for each in seen):
        return 'a convolution where not channels-last'
    if policy == 'measure':
        product = PointwiseConv2d(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        product = product.to(conv.weight).eval()
        times = [clocked((product, conv), each.make()) for each in seen]
        ours, stock = (sum(each) for each in zip(*times, strict=True))
        return None if ours <= stock else f"slower: measured {ours / stock:.2f} of PyTorch's time"
    # The convolution first sorts its weights, which a product does not. That shows where they are
    # many, and more than what is read and written.
    weights = conv.in_channels * conv.out_channels
    values = sum(each.shape.numel() // conv.in_channels for each in seen) / len(seen) * (
        conv.in_channels + conv.out_channels)
    pixels = min(each.shape[0] * each.shape[2] * each.shape[3] for each in seen)
    if weights >= max(_FEWEST_WEIGHTS, values) and pixels >= _FEWEST_PIXELS:
        return None
    return 'estimated to gain nothing: few weights beside the feature map'


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return (tuple(conv.kernel_size), tuple(conv.stride), conv.groups) == ((1, 1), (1, 1), 1) and (
        conv.padding in ((0, 0), 'same', 'valid')) and conv.padding_mode == 'zeros' and (
        conv.weight.dtype.is_floating_point)
