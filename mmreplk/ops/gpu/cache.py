"""The user's cache of what was found out about a GPU: small JSON files that replace one another.

``MMREPLK_CACHE`` names the folder; by default it is ``mmreplk`` in ``XDG_CACHE_HOME``, or in
``~/.cache``. Nothing depends on it: where it cannot be written or read, or holds anything but what
was written here, the same things are found out once more, in each process.
"""

import json
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: the last of two that write at once wins
    fcntl = None

FORMAT = 1
PATIENCE = 5.0  # seconds for another process to write; then the last of the two wins
LARGEST = 16 << 20  # bytes; what is longer was not written here


def folder() -> Path | None:
    """Where the files lie; None where not even a home is known."""
    named = os.environ.get('MMREPLK_CACHE')
    if named:
        return Path(named) / 'gpu'
    base = os.environ.get('XDG_CACHE_HOME')
    if base and os.path.isabs(base):
        return Path(base) / 'mmreplk/gpu'
    home = os.path.expanduser('~')
    return None if home == '~' else Path(home) / '.cache/mmreplk/gpu'


def path_of(name: str) -> Path | None:
    """The file of a name."""
    where = folder()
    return None if where is None else where / f'{name}.json'


def read(name: str, about: dict[str, str]) -> dict:
    """The rows of a file by key; none where it is missing, damaged, or about something else.

    Args:
        name (str): Of the file, without ending.
        about (dict[str, str]): What its rows hold for.
    """
    path = path_of(name)
    try:
        if path is None or path.stat().st_size > LARGEST:
            return {}
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get('format') != FORMAT or found.get('about') != about:
        return {}
    rows = found.get('rows')
    return rows if isinstance(rows, dict) else {}


def add(name: str, about: dict[str, str], rows: dict) -> bool:
    """Add rows to a file; those of other processes stay.

    Returns:
        bool: Whether they are there now. A folder that cannot be written to is no error.
    """
    path = path_of(name)
    if path is None:
        return False
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            text = json.dumps(dict(format=FORMAT, about=about, rows=read(name, about) | rows),
                              indent=1, sort_keys=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix='.writing-')
            with os.fdopen(handle, 'w', encoding='utf-8') as file:
                file.write(text + '\n')
                file.flush()
                os.fsync(handle)
            os.replace(draft, path)
    except (OSError, ValueError):  # ValueError: of a path that is none
        if draft is not None:
            with suppress(OSError):
                os.remove(draft)
        return False
    return True


@contextmanager
def _alone(path: Path):
    """While no other process adds to the file, as far as the file system can tell."""
    with path.with_suffix('.lock').open('a') as file:
        end = time.monotonic() + PATIENCE
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
