"""mmreplk: RepLKNet (CVPR 2022, arXiv 2203.06717) for MMSegmentation, MMDetection and MMPretrain.

Importing the package registers ``RepLKNet`` and what its configs name (hooks, an optimizer
constructor, an FSDP policy), and enters mmreplk in MMEngine's table of packages; see
:mod:`mmreplk.registry`. Nothing else happens at import, and nothing of MMEngine is replaced.

Without MMEngine and MMCV nothing is registered: ``RepLKNet`` is the network in plain PyTorch then,
:class:`mmreplk.models.network.RepLKNetBackbone`. ``import mmreplk.timm`` registers it with timm.
"""

from .acceleration import accelerate, restore
from .config.files import config_path
from .packages import has_mm
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


def __dir__() -> list[str]:
    return list(__all__)


if has_mm():
    from .acceleration import hook  # noqa: F401  # registers it
    from .models import RepLKNet
    from .training import (  # noqa: F401  # registers them
        checkpoint_hook,
        data_hook,
        drawing_hook,
        finite_loss,
        fsdp,
        layer_decay,
        metrics_file,
        recipe_samples,
        resumable_rng,
        work_dir_lock,
    )
else:

    def __getattr__(name):
        if name == 'RepLKNet':
            # Not at import: mmreplk.ops does not need the network.
            from .models import RepLKNet
            return RepLKNet
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
