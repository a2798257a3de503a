"""Config paths of the form ``mmreplk::NAME.py``, for the configs packaged with mmreplk.

MMEngine resolves ``scope::folder/file`` for a fixed list of packages, in ``_base_`` only, and
through the distribution's name. Our configs are flat files, and users ask for them with
``Config.fromfile`` too, so both places are taught the one scope ``mmreplk``; every other path goes
to MMEngine unchanged.
"""

import functools
from pathlib import Path

from mmengine.config import Config

PREFIX = 'mmreplk::'


def config_root() -> Path:
    """The folder of the packaged configs.

    Returns:
        Path: ``mmreplk/.mim/configs`` of an installed wheel, or ``configs`` of a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / '.mim' / 'configs'
    return packaged if packaged.is_dir() else package.parent / 'configs'


def resolve(path: str) -> str:
    """Turn ``mmreplk::NAME.py`` into the path of the packaged file; other paths are returned as is.

    Args:
        path (str): A config path; the suffix ``.py`` may be left out.

    Returns:
        str: The path of the file.

    Raises:
        FileNotFoundError: If mmreplk has no such config, a path that leads elsewhere among them.
            The message lists those it has.
    """
    if not path.startswith(PREFIX):
        return path
    root = config_root()
    name = path[len(PREFIX):]
    file = name if name.endswith('.py') else f'{name}.py'
    # Looked up among the names, so that no '..', root, drive or NUL of it ever becomes a path.
    if file not in {entry.relative_to(root).as_posix() for entry in root.rglob('*.py')}:
        known = ', '.join(sorted(entry.name for entry in root.glob('*.py')))
        raise FileNotFoundError(f'mmreplk has no config {name!r}; it has: {known}')
    return str(root / file)


def register_config_scope() -> None:
    """Teach ``Config.fromfile`` and ``_base_`` the scope ``mmreplk``, once."""
    if getattr(Config.fromfile, 'resolves_mmreplk', False):
        return
    fromfile, get_cfg_path = Config.fromfile, Config._get_cfg_path

    @functools.wraps(fromfile)
    def fromfile_with_scope(filename, *args, **kwargs):
        if isinstance(filename, str):
            filename = resolve(filename)
        return fromfile(filename, *args, **kwargs)

    @functools.wraps(get_cfg_path)
    def get_cfg_path_with_scope(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return resolve(cfg_path), None
        return get_cfg_path(cfg_path, filename)

    fromfile_with_scope.resolves_mmreplk = True
    Config.fromfile = staticmethod(fromfile_with_scope)
    Config._get_cfg_path = staticmethod(get_cfg_path_with_scope)
