"""The operator under the name by which the field's networks import theirs.

RepLKNet, UniRepLKNet, SLaK, OverLoCK, HorNet, SMPConv, PLKSR and others import the CUDA extension
``depthwise_conv2d_implicit_gemm`` (of the RepLKNet authors, github.com/DingXiaoH/RepLKNet-pytorch).
The folder :func:`folder` holds modules of its names, with everything that these networks call. Any
of these puts them in its place, without an edit::

    export LARGE_KERNEL_CONV_IMPL=$(python -m mmreplk.ops dropin)   # RepLKNet and its family
    export DWCONV_IMPL=$(python -m mmreplk.ops dropin)              # HorNet and its family
    export PYTHONPATH=$(python -m mmreplk.ops dropin):$PYTHONPATH   # plain imports
    import mmreplk.ops.dropin; mmreplk.ops.dropin.install()         # in Python, before the network

Networks append the folder of the variables to ``sys.path``, so an extension that is installed goes
before it; nothing here replaces one unless :func:`install` is told to.
"""

import importlib.util
import sys
from pathlib import Path

NAMES = ('depthwise_conv2d_implicit_gemm', '_depthwise_conv2d_implicit_gemm_C')


def folder() -> str:
    """The folder that holds the modules, for ``sys.path`` or the networks' variables."""
    return str(Path(__file__).with_name('modules'))


def install(replace: bool = False) -> None:
    """Make ``import depthwise_conv2d_implicit_gemm`` find the operator of mmreplk.

    Args:
        replace (bool): Whether to take the place of an extension of that name which is installed
            here. Defaults to False.

    Raises:
        ImportError: If one is installed and ``replace`` is False. Nothing is changed then.
    """
    if not replace:
        taken = {name: where for name in NAMES if (where := _where(name)) is not None}
        if taken:
            raise ImportError(
                f'mmreplk.ops.dropin.install: {", ".join(taken)} is installed here already '
                f'({next(iter(taken.values()))}). Uninstall it, or put ours in its place with '
                'install(replace=True).')
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.path[:] = [folder(), *(path for path in sys.path if path != folder())]
    importlib.invalidate_caches()


def _where(name: str) -> str | None:
    """Where another module of that name would come from."""
    if name in sys.modules:
        path = getattr(sys.modules[name], '__file__', None) or 'imported'
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        path = spec.origin or 'a namespace package'
    return None if Path(path).parent == Path(folder()) else path
