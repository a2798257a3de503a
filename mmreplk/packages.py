"""Which distributions provide the mm modules, and whether they belong together.

OpenMMLab's original packages and their maintained continuation (``onedl-*``) install the same
modules; where both are installed, files of one overwrite files of the other.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Module name to the distributions that provide it: the maintained set first, then the original.
DISTRIBUTIONS = {
    'mmengine': (('onedl-mmengine', ), ('mmengine', 'mmengine-lite')),
    'mmcv': (('onedl-mmcv', ), ('mmcv', 'mmcv-lite')),
    'mmseg': (('onedl-mmsegmentation', ), ('mmsegmentation', )),
    'mmdet': (('onedl-mmdetection', ), ('mmdet', )),
    'mmpretrain': (('onedl-mmpretrain', ), ('mmpretrain', )),
}


def _installed(names) -> list[str]:
    versions = ((name, _version(name)) for name in names)
    return [f'{name} {found}' for name, found in versions if found]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Whether a module can be found, without importing more than the packages that it is in.

    Args:
        module (str): Its dotted name.
    """
    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing or broken
        return False


def has_mm() -> bool:
    """Whether MMEngine and MMCV are there, without which nothing can be registered with them."""
    return importable('mmengine') and importable('mmcv')


def providers() -> dict[str, str | None]:
    """Say which distribution provides each mm module.

    Returns:
        dict[str, str | None]: ``{'mmcv': 'onedl-mmcv 2.3.6', 'mmdet': None, ...}``.
    """
    return {
        module: next(iter(_installed(maintained + original)), None)
        for module, (maintained, original) in DISTRIBUTIONS.items()
    }


def check_package_sets() -> None:
    """Refuse an environment in which the two package sets are mixed.

    Raises:
        RuntimeError: If distributions of both sets are installed. Names them and the remedy.
    """
    maintained = _installed(name for sets in DISTRIBUTIONS.values() for name in sets[0])
    original = _installed(name for sets in DISTRIBUTIONS.values() for name in sets[1])
    if maintained and original:
        raise RuntimeError(
            'two package sets that overwrite each other are installed together: '
            f'{", ".join(maintained)} and {", ".join(original)}. Make a new environment with one '
            'of them; from a clone, `bash tools/install.sh` makes .venv with the tested set.')


def need_mm(user: str) -> None:
    """Say what to install, where a part of mmreplk needs more than torch.

    Args:
        user (str): The part.

    Raises:
        ImportError: If MMEngine or MMCV is missing. Names it and the command.
    """
    missing = [name for name in ('mmengine', 'mmcv') if find_spec(name) is None]
    if missing:
        names = ' '.join(DISTRIBUTIONS[name][0][0] for name in missing)
        raise ImportError(
            f'{user} needs mmengine and mmcv; not installed: {", ".join(missing)}. '
            f'`pip install {names}` (or OpenMMLab\'s {" ".join(missing)}); from a clone, `bash '
            'tools/install.sh` installs the tested versions.')
