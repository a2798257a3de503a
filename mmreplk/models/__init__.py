from ..packages import need_mm

need_mm('mmreplk.models')

from ..ops import LargeKernelDWConv2d
from ..registry import MODELS
from .enlarge.backbone import EnlargedBackbone
from .replknet import RepLKNet

# For conv_cfg=dict(type='mmreplk.LargeKernelDWConv2d'). mmreplk.ops itself needs nothing but torch.
MODELS.register_module(module=LargeKernelDWConv2d)


@MODELS.register_module(name='UPerHead')
def _uper_head(*args, **kwargs):
    """Build the head of that name; nothing else of mmreplk needs MMSegmentation."""
    from .cpu_inference.uper_head import UPerHead
    return UPerHead(*args, **kwargs)


__all__ = ['EnlargedBackbone', 'LargeKernelDWConv2d', 'RepLKNet']
