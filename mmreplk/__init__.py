"""mmreplk: RepLKNet (CVPR 2022, arXiv 2203.06717) for MMSegmentation, MMDetection and MMPretrain.

Importing the package registers ``RepLKNet`` and what its configs name (a hook, an optimizer
constructor, an FSDP policy), and makes ``mmreplk::NAME.py`` a config path that MMEngine
understands; see :mod:`mmreplk.registry`, :mod:`mmreplk.config.files` and :mod:`mmreplk.hub`.
Nothing else happens at import, and without MMEngine and MMCV nothing is registered at all.
"""

from importlib.util import find_spec

from .version import __version__

__all__ = ['RepLKNet', '__version__', 'found_packages']


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
    from .config.files import register_config_scope
    from .hub import register_hub_scope
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

    register_config_scope()
    register_hub_scope()
else:

    def __getattr__(name):
        if name == 'RepLKNet':
            raise ImportError(
                'mmreplk.RepLKNet needs mmengine and mmcv, and at least one of them is not '
                'installed. From a clone, `bash tools/install.sh` installs the tested versions.')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
