from .pretrained import Pretrained

__all__ = ['Pretrained']
