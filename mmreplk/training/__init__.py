"""Training that can be killed and resumed: hooks, dataset wrapper, sampler, and :func:`harden`.

Everything is registered in :mod:`mmreplk.registry` and named in ``configs/_base_``.
"""

from typing import TYPE_CHECKING

from ..packages import need_mm

need_mm('mmreplk.training')

if TYPE_CHECKING:
    from .hardened_config import harden

__all__ = ['harden']


def __getattr__(name: str):
    if name == 'harden':
        from .hardened_config import harden  # when it is used: it loads every hook
        return harden
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
