"""RepLKNet in timm, without any mm package.

``import mmreplk.timm`` registers ``replknet_31b``, ``replknet_31l``, ``replknet_xl`` and narrow
variants of them with timm; :mod:`.replknet` has their published weights.
"""

from ..packages import importable

if not importable('timm'):
    raise ModuleNotFoundError('mmreplk.timm needs timm, which is not installed here; '
                              '`pip install timm` adds it.')

from .classifier import RepLKNetClassifier  # noqa: E402
from .replknet import (  # noqa: E402
    checkpoint_filter_fn,
    replknet_31b,
    replknet_31b_narrow,
    replknet_31l,
    replknet_31l_narrow,
    replknet_xl,
    replknet_xl_narrow,
)

__all__ = [
    'RepLKNetClassifier', 'checkpoint_filter_fn', 'replknet_31b', 'replknet_31b_narrow',
    'replknet_31l', 'replknet_31l_narrow', 'replknet_xl', 'replknet_xl_narrow'
]
