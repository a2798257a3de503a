"""The configs packaged with mmreplk, by their names.

* :func:`config_path`, in a shell ``python -m mmreplk config NAME``, gives the path of one: for
  ``Config.fromfile``, and in a config of your own,
  ``_base_ = __import__('mmreplk').config_path('NAME')``, whatever program reads that.
* :func:`read` is for our tools. They take ``mmreplk::NAME.py`` for a config, and in ``_base_``.
* ``mmengine.hub.get_config('mmreplk::configs/NAME.py')`` goes by MMEngine's table of packages, in
  which :mod:`mmreplk.registry` enters ours, and by the files in ``mmreplk/.mim``.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config

PREFIX = 'mmreplk::'


def config_root() -> Path:
    """The folder of the packaged configs.

    Returns:
        Path: ``mmreplk/.mim/configs`` of an installed wheel, or ``configs`` of a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / '.mim' / 'configs'  # in a checkout a link
    return packaged.resolve() if packaged.is_dir() else package.parent / 'configs'


def config_names() -> list[str]:
    """The names of the packaged configs, without ``.py``; parts of them (``_base_``) left out.

    Returns:
        list[str]: In the order of the alphabet.
    """
    return sorted(entry.stem for entry in config_root().glob('*.py'))


def config_path(name: str) -> str:
    """The path of a packaged config.

    Args:
        name (str): Such as ``'upernet_replknet31b_ade20k'``; the suffix ``.py`` may be there.

    Returns:
        str: The path of the file.

    Raises:
        FileNotFoundError: If mmreplk has no such config, a path that leads elsewhere among them.
            The message lists those it has.
    """
    root = config_root()
    file = name if name.endswith('.py') else f'{name}.py'
    # Looked up among the names, so that no '..', root, drive or NUL of it ever becomes a path.
    if file not in {entry.relative_to(root).as_posix() for entry in root.rglob('*.py')}:
        known = ', '.join(f'{name}.py' for name in config_names())
        raise FileNotFoundError(f'mmreplk has no config {name!r}; it has: {known}')
    return str(root / file)


def resolve(path: str) -> str:
    """Turn ``mmreplk::NAME.py`` into the path of the packaged file; other paths are returned as is.

    Args:
        path (str): A config path; the suffix ``.py`` may be left out.

    Returns:
        str: The path of the file.

    Raises:
        FileNotFoundError: As of :func:`config_path`.
    """
    return config_path(path[len(PREFIX):]) if path.startswith(PREFIX) else path


def read(path: str | Path) -> 'Config':
    """Read a config as our tools do.

    Args:
        path (str | Path): A file, or ``mmreplk::NAME.py``.

    Returns:
        Config: The full config.

    Raises:
        FileNotFoundError: If there is no such file, or a base of it is no packaged config.
    """
    from mmengine.config import Config
    with _names_in_bases(Config):
        return Config.fromfile(resolve(str(path)))


@contextmanager
def _names_in_bases(config: type):
    """Let ``_base_ = 'mmreplk::NAME.py'`` be understood for a moment.

    MMEngine's table of packages does not serve here. It demands a folder in the name; and it marks
    the whole base with the scope ``mmreplk``, in which no class of a codebase is found, because it
    expects a package to be one codebase. So ``Config._get_cfg_path``, a private name, is replaced
    while a file is read. Tried with mmengine 0.10.7 and onedl-mmengine 0.10.12.
    """
    theirs = config._get_cfg_path

    def ours(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return resolve(cfg_path), None
        return theirs(cfg_path, filename)

    config._get_cfg_path = staticmethod(ours)
    try:
        yield
    finally:
        config._get_cfg_path = staticmethod(theirs)
