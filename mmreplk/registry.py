"""The registry nodes of mmreplk.

Each is a child of MMEngine's root registry of its kind, with the scope ``mmreplk``, so that names
such as ``type='mmreplk.RepLKNet'`` are found from every default scope. MMEngine imports this module
by itself when it meets that scope, and the modules in ``locations`` when it looks something up.
"""

from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

from .packages import check_package_sets

check_package_sets()

# MMEngine's table of packages, in which mmengine.hub looks up mmreplk::configs/NAME.py.
MODULE2PACKAGE.setdefault('mmreplk', 'mmreplk')

MMENGINE_MODELS = mmengine_registry.MODELS
MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmreplk', locations=['mmreplk.models'])


def _child(kind: str, location: str = 'mmreplk.training') -> Registry:
    parent = getattr(mmengine_registry, kind)
    return Registry(parent.name, parent=parent, scope='mmreplk', locations=[location])


HOOKS = _child('HOOKS')
RUNNERS = _child('RUNNERS')
DATASETS = _child('DATASETS')
DATA_SAMPLERS = _child('DATA_SAMPLERS')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS')
FUNCTIONS = _child('FUNCTIONS')
STRATEGIES = _child('STRATEGIES')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'mmreplk.weights')


def register(registry: Registry):
    """Register a class or function as ``mmreplk.NAME``, and as ``NAME`` for existing configs.

    Args:
        registry (Registry): One of this module.

    Returns:
        Callable: The decorator.
    """
    def decorate(thing):
        registry.register_module(module=thing)
        registry.parent.register_module(module=thing)
        return thing
    return decorate
