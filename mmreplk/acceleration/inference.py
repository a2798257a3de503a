"""What deployed networks have for inference on a CPU, in networks of others."""

import sys

from torch import nn

# It needs the mm packages: imported where it is asked for alone.
from ..models.cpu_inference.pointwise import PointwiseConv2d
from .swap import is_plain_conv, swap, why_not
from .table import Row


def accelerate_inference(model: nn.Module) -> list[Row]:
    """1x1 convolutions and UperNet's head.

    The layers decide at each call whether products of matrices can serve: on a CPU, channels-last,
    without gradients; else they are what they were.

    Returns:
        list[Row]: One for each layer that was changed.
    """
    rows = []
    for name, module in model.named_modules():
        if why_not(module) is not None:
            continue
        if is_plain_conv(module) and _is_pointwise(module):
            swap(module, PointwiseConv2d, activation=None)
            rows.append(Row(name, '1x1', '', True, 'a matrix product where channels-last'))
    head = getattr(sys.modules.get('mmseg.models.decode_heads.uper_head'), 'UPerHead', None)
    for name, module in model.named_modules():
        if head is not None and type(module) is head and why_not(module) is None:
            from ..models.cpu_inference.uper_head import UPerHead
            swap(module, UPerHead, resize_last=True)
            rows.append(Row(name, 'UPerHead', '', True, 'resizes behind its convolutions'))
    return rows


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return (tuple(conv.kernel_size), tuple(conv.stride), conv.groups) == ((1, 1), (1, 1), 1) and (
        conv.padding in ((0, 0), 'same', 'valid')) and conv.padding_mode == 'zeros' and (
        conv.weight.dtype.is_floating_point)
