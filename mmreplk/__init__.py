"""mmreplk: RepLKNet (CVPR 2022, arXiv 2203.06717) for MMSegmentation, MMDetection and MMPretrain.

Importing the package registers ``RepLKNet`` and what its configs name (hooks, an optimizer
constructor, an FSDP policy), and enters mmreplk in MMEngine's table of packages; see
:mod:`mmreplk.registry`. Nothing else happens at import, nothing of MMEngine is replaced, and
without MMEngine and MMCV nothing is registered at all.
"""

from importlib.util import find_spec

from .acceleration import accelerate, restore
from .config.files import config_path
from .version import __version__

__all__ = ['RepLKNet', '__version__', 'accelerate', 'config_path', 'found_packages', 'restore']


def found_packages() -> dict[str, str | None]:
    """Say which mm modules can be imported here, without importing them.

    Returns:
        dict[str, str | None]: Module name (``mmengine``, ``mmcv``, ``mmseg``, ``mmdet``,
        ``mmpretrain``) to the distribution that provides it, such as
        ``'onedl-mmcv 2.3.6'``, or None if it is not installed.
    """
    from .packages import providers
    return providers()


if find_spec('mmengine') is not None and find_spec('mmcv') is not None:
    from .acceleration import hook  # noqa: F401  # registers it
    from .models import RepLKNet
    from .training import (  # noqa: F401  # registers them
        checkpoint_hook,
        data_hook,
        finite_loss,
        fsdp,
        layer_decay,
        metrics_file,
        recipe_samples,
        resumable_rng,
    )
else:

    def __getattr__(name):
        if name == 'RepLKNet':
            raise ImportError(
                'mmreplk.RepLKNet needs mmengine and mmcv, and at least one of them is not '
                'installed. From a clone, `bash tools/install.sh` installs the tested versions.')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
