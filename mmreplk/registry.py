"""The registry nodes of mmreplk.

They are children of MMEngine's root registries with the scope ``mmreplk``, so that
``type='mmreplk.RepLKNet'`` is found from every default scope. MMEngine imports this module by
itself when it meets that scope.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from .packages import check_package_sets

check_package_sets()

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmreplk', locations=['mmreplk.models'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, scope='mmreplk',
    locations=['mmreplk.weights'])
