from ..ops import LargeKernelDWConv2d
from ..registry import MODELS
from .enlarged_backbone import EnlargedBackbone
from .replknet import RepLKNet

# For conv_cfg=dict(type='mmreplk.LargeKernelDWConv2d'). mmreplk.ops itself needs nothing but torch.
MODELS.register_module(module=LargeKernelDWConv2d)

__all__ = ['EnlargedBackbone', 'LargeKernelDWConv2d', 'RepLKNet']
