"""The registries of mmreplk: children of MMEngine's own, with the scope ``mmreplk``.

``type='mmreplk.RepLKNet'`` or ``type='mmreplk.SafeCheckpointHook'`` is found through them from
every default scope. MMEngine imports this module by itself when it meets that scope.
"""

from collections.abc import Callable

from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import (
    MODELS as MMENGINE_MODELS,  # noqa: F401  # for the models
    Registry,
)

from .packages import check_package_sets

check_package_sets()

# MMEngine's table of packages, in which mmengine.hub looks up mmreplk::configs/NAME.py.
MODULE2PACKAGE.setdefault('mmreplk', 'mmreplk')


def _child(name: str, *modules: str) -> Registry:
    """A child of one of MMEngine's root registries."""
    parent = getattr(mmengine_registry, name)
    return Registry(parent.name, parent=parent, scope='mmreplk',
                    locations=[f'mmreplk.{module}' for module in modules])


MODELS = _child('MODELS', 'models')
HOOKS = _child(
    'HOOKS', 'acceleration.hook', 'training.checkpoint_hook', 'training.cpu_fallbacks',
    'training.data_hook', 'training.drawing_hook', 'training.finite_loss', 'training.metrics_file',
    'training.recipe_samples', 'training.resumable_rng', 'training.work_dir_lock')
DATASETS = _child('DATASETS', 'training.guarded_dataset')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'training.resumable_rng')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'training.cpu_fallbacks')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'training.layer_decay')
STRATEGIES = _child('STRATEGIES', 'training.fsdp')
FUNCTIONS = _child('FUNCTIONS', 'training.fsdp')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'weights.pretrained')


def register(registry: Registry) -> Callable:
    """Register a class or function under ``mmreplk.NAME`` and, for bare names, at the root.

    Args:
        registry (Registry): One of this module's.

    Returns:
        Callable: A decorator.
    """

    def decorator(item):
        registry.register_module(module=item)
        registry.parent.register_module(module=item)
        return item

    return decorator
