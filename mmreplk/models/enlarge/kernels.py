"""Large kernels in any network: the paper's guidelines as a tool (section 3)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import BatchNorm2d, SyncBatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from ...ops import LargeKernelDWConv2d
from ...ops.torch_internals import BatchNorm, children_of, has_forward_hooks
from ..reparam import ReparamLargeKernelConv
from .conv import EnlargedConv, pads_itself

# What blocks call the switch of their identity shortcut: in torchvision and the MobileNetV2 of
# MMPretrain and MMSegmentation, in MMDetection and other networks, in EfficientNet's blocks without
# a depth-wise convolution, in timm.
_SHORTCUTS = ('use_res_connect', 'with_res_shortcut', 'with_residual', 'has_skip')
# Of timm's blocks that are no nn.Sequential: the convolution, and the norm that they call next.
_TIMM_NORMS = {
    ('DepthwiseSeparableConv', 'conv_dw'): 'bn1',
    ('InvertedResidual', 'conv_dw'): 'bn2',
    ('ConvNormAct', 'conv'): 'bn',
}


def enlarge_kernels(model: nn.Module,
                    kernel_size: int | Sequence[int],
                    small_kernel: int | None = 3,
                    stages: str | Sequence[str] | None = None,
                    dilation: int = 1,
                    keep_output: bool = True) -> list[str]:
    """Replace depth-wise convolutions by large re-parameterized ones, in place.

    Each becomes an :class:`EnlargedConv`, whose docstring says what it computes and how its weights
    start. All other weights stay. A batch norm that follows at once goes into the branches, one
    for each, and ``nn.Identity`` (in timm the activation alone) takes its place. That it follows is
    known inside ``nn.Sequential``, MMCV's ``ConvModule`` and timm's MobileNet and EfficientNet
    blocks. Elsewhere (blocks of other kinds; ConvNeXt, whose norm is no batch norm) the branches
    have none of their own. 1x1 kernels stay. Build the optimizer afterwards.

    Args:
        model (nn.Module): Any network.
        kernel_size (int | Sequence[int]): The large kernel K; with a sequence, one for each entry
            of ``stages``.
        small_kernel (int, optional): The parallel small kernel; None for none. Defaults to 3.
        stages (str | Sequence[str], optional): Dotted names of modules, whose convolutions are
            replaced. Defaults to None, the whole network.
        dilation (int): Of the large kernel, to compare a dilated kernel with a dense one of the
            same extent ``dilation * (K - 1) + 1``. Defaults to 1, dense.
        keep_output (bool): Whether the network is to compute the same function at first, in
            training and in evaluation. Otherwise the new kernels are drawn as PyTorch draws them
            and their norms start anew. Defaults to True.

    Returns:
        list[str]: Names of the convolutions replaced.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument has an impossible value, a stage has no depth-wise convolution,
            or a convolution cannot be replaced. Nothing is changed then.

    Example:
        >>> from torchvision.models import mobilenet_v2
        >>> model = mobilenet_v2()
        >>> len(enlarge_kernels(model, 13))
        17
    """
    stages, sizes = _parse(kernel_size, small_kernel, stages, dilation)
    sites = list(_sites(model))
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    branches = {id(module) for kernel in model.modules()
                if isinstance(kernel, ReparamLargeKernelConv) for module in kernel.modules()}
    wanted = {}
    for stage, size in zip(stages, sizes, strict=True):
        chosen = [site for site in sites if _is_inside(site.name, stage)]
        if not chosen:
            raise ValueError(_nothing(model, sites, stage))
        for site in chosen:
            if site.name in wanted:
                raise ValueError(f'stages={stages}: {site.name} belongs to two of them. Name each '
                                 'part of the network once')
            _check_site(site, branches)
            wanted[site.name] = size
    _check_shared(sites, wanted)
    new = {}
    for site in sites:
        if site.name not in wanted or id(site.conv) in new:
            continue
        key = None if modules[id(site.conv)] > 1 else _norm_behind(site, modules)
        norm, behind = (None, None) if key is None else _split_norm(getattr(site.parent, key))
        try:
            large = EnlargedConv(site.conv, norm, wanted[site.name], small_kernel, dilation,
                                 keep_output)
        except ValueError as error:
            raise ValueError(f'{error} ({site.name}).') from error
        new[id(site.conv)] = large, key, behind
    for site in sites:
        if site.name in wanted:
            large, key, behind = new[id(site.conv)]
            setattr(site.parent, site.key, large)
            if key is not None:
                setattr(site.parent, key, behind)
            if isinstance(site.parent, ConvModule):
                # It would look for the weights of a plain convolution.
                site.parent.turn_on_efficient_conv_bn_eval(False)
    return list(wanted)


def remove_shortcuts(model: nn.Module) -> list[str]:
    """Switch the identity shortcuts of inverted residual blocks off (paper, guideline 2).

    It knows the blocks of MobileNetV2 and of its relatives in torchvision, timm, MMPretrain,
    MMSegmentation and MMDetection.

    Args:
        model (nn.Module): The network, changed in place.

    Returns:
        list[str]: Names of the blocks that had one.

    Raises:
        ValueError: If there is no block with a shortcut.
    """
    found = []
    for name, module in model.named_modules():
        for switch in _SHORTCUTS:
            if getattr(module, switch, None) is True:
                setattr(module, switch, False)
                found.append(name)
    if not found:
        raise ValueError(f'{type(model).__name__} has no block with a shortcut that can be '
                         f'switched off (attributes {", ".join(_SHORTCUTS)}).')
    return found


class _Site(NamedTuple):
    """A depth-wise convolution, and where it stands."""
    name: str
    parent: nn.Module
    key: str
    conv: nn.Conv2d


def _parse(kernel_size, small_kernel, stages, dilation) -> tuple[list[str], list[int]]:
    several = isinstance(kernel_size, Sequence) and not isinstance(kernel_size, str)
    if stages is not None and not isinstance(stages, Sequence):
        raise TypeError(f'stages must be names of modules, such as "features.17", got {stages!r}')
    if stages is None and several:
        raise ValueError(f'kernel_size={kernel_size!r} needs stages, one for each entry')
    names = [''] if stages is None else [stages] if isinstance(stages, str) else list(stages)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f'stages must be names of modules, such as "features.17", got {stages!r}')
    sizes = list(kernel_size) if several else [kernel_size] * len(names)
    if len(sizes) != len(names):
        raise ValueError(f'kernel_size={kernel_size!r} has {len(sizes)} entries, but stages '
                         f'{len(names)}: give one for each')
    for name, value in (*(('kernel_size', size) for size in sizes), ('dilation', dilation),
                        ('small_kernel', 1 if small_kernel is None else small_kernel)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f'{name} must be an int, got {value!r}')
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if small_kernel is not None:
        if dilation > 1:
            raise ValueError(f'small_kernel={small_kernel} does not merge into a kernel of '
                             f'dilation {dilation}. Choose small_kernel=None')
        for size in sizes:
            if small_kernel > size or (size - small_kernel) % 2:
                raise ValueError(
                    f'small_kernel={small_kernel} must be at most kernel_size={size} and, like '
                    f'it, {"odd" if size % 2 else "even"}, to share its center; None for no such '
                    'branch')
    return names, sizes


def _sites(model: nn.Module) -> Iterator[_Site]:
    for prefix, parent in model.named_modules(remove_duplicate=False):
        for key, module in parent.named_children():
            if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
                continue
            # A lazy convolution does not know its input channels yet, and may be depth-wise.
            lazy = isinstance(module, LazyModuleMixin)
            if module.groups > 1 and (lazy or module.groups == module.in_channels):
                yield _Site(f'{prefix}.{key}' if prefix else key, parent, key, module)


def _is_inside(name: str, stage: str) -> bool:
    return not stage or name == stage or name.startswith(f'{stage}.')


def _nothing(model, sites, stage) -> str:
    if not sites:
        return (f'{type(model).__name__} has no depth-wise convolution with a kernel larger than '
                '1x1, so there is nothing to enlarge.')
    names = [site.name for site in sites]
    shown = ', '.join(names if len(names) <= 8 else [*names[:3], '...', *names[-3:]])
    return (f'stages: {stage!r} has no depth-wise convolution. Name a module around some of these: '
            f'{shown}.')


def _check_site(site: _Site, branches: set[int]) -> None:
    conv = site.conv
    if id(conv) in branches:
        raise ValueError(f'{site.name} is part of a re-parameterized kernel already. Enlarge the '
                         'original network; the kernels of RepLKNet are set by its arch.')
    if isinstance(conv, LazyModuleMixin):
        raise ValueError(f'{site.name} has no weights yet: run the network once first.')
    if is_parametrized(conv) or has_forward_hooks(conv):
        raise ValueError(f'{site.name} has hooks or a parametrization (weight or spectral norm), '
                         'which the new kernel would lack: remove them first.')
    plain = type(conv).forward in (nn.Conv2d.forward, LargeKernelDWConv2d.forward)
    if not (plain or pads_itself(conv)):
        raise ValueError(f'{site.name} is a {type(conv).__name__}, which computes something else '
                         'than nn.Conv2d. Leave it out by stages.')


def _check_shared(sites: list[_Site], wanted: dict[str, int]) -> None:
    """A convolution that stands in several places stays one."""
    places = {}
    for site in sites:
        places.setdefault(id(site.conv), []).append(site.name)
    for names in places.values():
        if len({wanted.get(name) for name in names}) > 1:
            raise ValueError(f'{" and ".join(names)} are one convolution: stages must name all of '
                             'them or none, with one kernel_size.')


def _norm_behind(site: _Site, modules: Counter) -> str | None:
    """The key, in the same parent, of a batch norm that takes the convolution's output."""
    parent, key = site.parent, None
    if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
        keys = list(children_of(parent))
        key = dict(zip(keys, keys[1:], strict=False)).get(site.key)
    elif isinstance(parent, ConvModule) and type(parent).forward is ConvModule.forward:
        order = parent.order
        if site.key == 'conv' and order.index('norm') == order.index('conv') + 1:
            key = parent.norm_name
    elif type(parent).__module__.startswith('timm.'):
        key = _TIMM_NORMS.get((type(parent).__name__, site.key))
    norm = getattr(parent, key) if key else None
    plain = isinstance(norm, BatchNorm) and (_has_activation(norm) or type(norm).forward in (
        BatchNorm2d.forward, SyncBatchNorm.forward))
    fits = plain and norm.affine and norm.num_features == site.conv.out_channels
    watched = plain and (has_forward_hooks(norm) or is_parametrized(norm))
    return key if fits and not watched and modules[id(norm)] == 1 else None


def _has_activation(norm: nn.Module) -> bool:
    """Whether it is timm's batch norm with the activation inside."""
    return type(norm).__name__ == 'BatchNormAct2d' and type(norm).__module__.startswith('timm.')


def _split_norm(norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A batch norm alone, and what the module does besides."""
    if not _has_activation(norm):
        return norm, nn.Identity().train(norm.training)
    alone = deepcopy(norm)
    del alone.drop, alone.act
    alone.__class__ = BatchNorm2d  # whose attributes, parameters and buffers are the same
    behind = nn.Sequential()
    behind.add_module('drop', norm.drop)
    behind.add_module('act', norm.act)
    behind.training = norm.training
    return alone, behind
