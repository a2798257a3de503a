"""The operator under the name by which the field's networks import theirs.

RepLKNet, UniRepLKNet, SLaK, OverLoCK, SMPConv, FCViT, PLKSR and others import the CUDA extension
``depthwise_conv2d_implicit_gemm`` (of the RepLKNet authors, github.com/DingXiaoH/RepLKNet-pytorch).
The folder :func:`folder` holds modules of its names, with everything that these networks call. Any
of these puts them in its place, without an edit::

    export LARGE_KERNEL_CONV_IMPL=$(python -m mmreplk.ops dropin)   # RepLKNet and its family
    export DWCONV_IMPL=$(python -m mmreplk.ops dropin)              # the family of HorNet
    export PYTHONPATH=$(python -m mmreplk.ops dropin):$PYTHONPATH   # plain imports
    import mmreplk.ops.dropin; mmreplk.ops.dropin.install()         # in Python, before the network

Networks append the folder of the variables to ``sys.path``, so an extension that is installed goes
before it; nothing here replaces one unless :func:`install` is told to. What each network needs
stands in docs/dropin.md.
"""

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from mmreplk.ops.functional import AUTOCAST_DEVICES, large_kernel_dwconv2d

NAMES = ('depthwise_conv2d_implicit_gemm', '_depthwise_conv2d_implicit_gemm_C')


def folder() -> str:
    """The folder that holds the modules, for ``sys.path`` or the networks' variables."""
    return str(Path(__file__).with_name('modules'))


def install(replace: bool = False) -> None:
    """Make ``import depthwise_conv2d_implicit_gemm`` find the operator of mmreplk.

    Where it is found already, from the folder or from the wheel of the old name, nothing changes.

    Args:
        replace (bool): Whether to take the place of an extension of that name which is installed
            here. Defaults to False.

    Raises:
        ImportError: If one is installed and ``replace`` is False. Nothing is changed then.
    """
    taken = {name: where for name in NAMES if (where := _where(name)) is not None}
    if taken and not replace:
        raise ImportError(
            f'mmreplk.ops.dropin.install: {", ".join(taken)} is installed here already '
            f'({next(iter(taken.values()))}). Uninstall it, or put ours in its place with '
            'install(replace=True).')
    # Ours stays if it is imported: a second copy would have other classes than existing layers.
    for name in taken:
        sys.modules.pop(name, None)
    sys.path[:] = [folder(), *(path for path in sys.path if path != folder())]
    importlib.invalidate_caches()


def _where(name: str) -> str | None:
    """Where a module of that name that is not mmreplk's would come from."""
    if name in sys.modules:
        path = getattr(sys.modules[name], '__file__', None) or 'imported'
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        path = spec.origin or 'a namespace package'
    return None if Path(path).is_file() and b'mmreplk' in Path(path).read_bytes() else path


def convolve(x: Tensor, weight: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
    """The depth-wise convolution of x in its own dtype, whatever that of weight and autocast's.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(C, 1, Kh, Kw)``.
        padding (tuple[int, int], optional): Down and right. Defaults to None, half the kernel.
    """
    if padding is None:
        padding = weight.shape[2] // 2, weight.shape[3] // 2
    device = x.device.type
    with torch.autocast(device, enabled=False) if device in AUTOCAST_DEVICES else nullcontext():
        return large_kernel_dwconv2d(x, weight.to(x.dtype), padding=padding)
