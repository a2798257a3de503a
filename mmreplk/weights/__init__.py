from ..packages import need_mm

need_mm('mmreplk.weights')

from .pretrained import Pretrained

__all__ = ['Pretrained']
