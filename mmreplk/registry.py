"""The registry node of mmreplk.

``MODELS`` is a child of MMEngine's root registry with the scope ``mmreplk``, so that
``type='mmreplk.RepLKNet'`` is found from every default scope. MMEngine imports this module by
itself when it meets that scope.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from .packages import check_package_sets

check_package_sets()

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmreplk', locations=['mmreplk.models'])
