"""MMSegmentation's ``UPerHead``, faster in inference on a CPU."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from torch import Tensor, nn

from ...ops.torch_internals import has_forward_hooks
from .resized_conv import conv2d_of_resized, serves


class UPerHead(MMSegUPerHead):
    """UperNet's head (arXiv 1807.10221) as MMSegmentation has it: arguments, weights and results.

    Most of its multiply-adds are those of the 3x3 convolution of all levels, three of which have
    been enlarged to the size of the finest. In inference on a CPU in float32 they are enlarged
    behind the convolution instead (:func:`conv2d_of_resized`), and so are the pooled feature maps.
    This halves the head's multiply-adds; results differ by rounding only. In training, on other
    devices or dtypes, and under tracing or export, MMSegmentation's own code runs.

    Args:
        *args: Those of MMSegmentation's.
        resize_last (bool): Whether to enlarge behind convolutions where that serves. Defaults to
            True.
        **kwargs: Those of MMSegmentation's.
    """

    def __init__(self, *args, resize_last: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.resize_last = resize_last

    def psp_forward(self, inputs: list[Tensor]) -> Tensor:
        """Pool the coarsest feature map to several sizes, and convolve it with them.

        Args:
            inputs (list[Tensor]): Feature maps ``(N, C_i, H_i, W_i)``, the coarsest last.

        Returns:
            Tensor: ``(N, channels, H, W)`` in the size of the coarsest.
        """
        coarsest = inputs[-1]
        if not self._serves([coarsest], self.bottleneck):
            return super().psp_forward(inputs)
        pooled = [pool(coarsest) for pool in self.psp_modules]
        return self._convolve([coarsest, *pooled], self.bottleneck, coarsest.shape[2:])

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        # Of MMSegmentation's heads, for classes derived from them. Tried with mmsegmentation 1.2.2
        # and onedl-mmsegmentation 1.4.2.
        chosen = self._transform_inputs(inputs)
        if not self._serves(chosen[:1], self.fpn_bottleneck):
            return super()._forward_feature(inputs)
        # The layout of the products, in which oneDNN's convolutions are faster, too.
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in chosen]
        levels = [conv(x) for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)]
        levels.append(self.psp_forward(inputs))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(
                levels[i], levels[i - 1].shape[2:], mode='bilinear',
                align_corners=self.align_corners)
        outs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        return self._convolve([*outs, levels[-1]], self.fpn_bottleneck, outs[0].shape[2:])

    def _serves(self, maps: list[Tensor], module: ConvModule) -> bool:
        """Whether a module may be computed in parts, on feature maps of this kind."""
        conv = module.conv
        return (self.resize_last and serves(maps, conv.weight)
                and type(conv) is nn.Conv2d and conv.groups == 1 and conv.padding_mode == 'zeros'
                and conv.stride == conv.dilation == (1, 1)
                and all(k % 2 for k in conv.kernel_size)
                and conv.padding == tuple(k // 2 for k in conv.kernel_size)
                and module.order[0] == 'conv'
                # Hooks of a bypassed module would not fire.
                and not any(map(has_forward_hooks, (module, conv, self.psp_modules))))

    def _convolve(self, maps: list[Tensor], module: ConvModule, size) -> Tensor:
        conv = module.conv
        out = conv2d_of_resized(maps, conv.weight, size, bool(self.align_corners))
        if conv.bias is not None:
            out += conv.bias[:, None, None]
        for layer in module.order[1:]:
            if layer == 'norm' and module.with_norm:
                out = module.norm(out)
            elif layer == 'act' and module.with_activation:
                out = module.activate(out)
        return out
