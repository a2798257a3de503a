"""The published architectures (paper, table 5 and section 4.1) and the checks of the arguments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real


@dataclass(frozen=True)
class Arch:
    """One RepLKNet architecture.

    Attributes:
        large_kernel_sizes (tuple[int]): Large kernel of each stage, odd.
        layers (tuple[int]): Pairs of RepLKBlock and ConvFFN in each stage.
        channels (tuple[int]): Channels of each stage.
        small_kernel (int | None): Small kernel beside every large one.
        dw_ratio (float): Depth-wise channels over stage channels.
        ffn_ratio (float): Hidden channels of ConvFFN over stage channels.
    """
    large_kernel_sizes: tuple[int, ...]
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    small_kernel: int | None = 5
    dw_ratio: float = 1
    ffn_ratio: float = 4


ARCHS = {
    '31B': Arch((31, 29, 27, 13), (2, 2, 18, 2), (128, 256, 512, 1024)),
    '31L': Arch((31, 29, 27, 13), (2, 2, 18, 2), (192, 384, 768, 1536)),
    'XL': Arch((27, 27, 27, 13), (2, 2, 18, 2), (256, 512, 1024, 2048), None, 1.5)
}
_LISTS = ('large_kernel_sizes', 'layers', 'channels')
_OPTIONS = ('small_kernel', 'dw_ratio', 'ffn_ratio')


def parse_arch(arch: str | dict, small_kernel: int | None | str = 'arch',
               dw_ratio: float | None = None, ffn_ratio: float | None = None) -> Arch:
    """Look up or build an architecture, override its options, and check the result.

    Args:
        arch (str | dict): A name, or a dict of the fields of :class:`Arch`.
        small_kernel (int | None | str): Overrides the field unless it is ``'arch'``.
        dw_ratio (float, optional): Overrides the field unless it is None.
        ffn_ratio (float, optional): Overrides the field unless it is None.

    Returns:
        Arch: The checked architecture.

    Raises:
        TypeError: If ``arch`` is neither a str nor a dict.
        ValueError: If the name is unknown or a field is missing, unknown or impossible.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'arch={arch!r} is unknown; choose one of {", ".join(map(repr, ARCHS))}, or give a '
                f'dict with the keys {", ".join(_LISTS)}')
        parsed = ARCHS[arch]
    elif isinstance(arch, dict):
        parsed = _arch_from_dict(arch)
    else:
        raise TypeError(f'arch must be a str or a dict, got {type(arch).__name__}')
    overrides = {}
    if small_kernel != 'arch':
        overrides['small_kernel'] = small_kernel
    if dw_ratio is not None:
        overrides['dw_ratio'] = dw_ratio
    if ffn_ratio is not None:
        overrides['ffn_ratio'] = ffn_ratio
    parsed = replace(parsed, **overrides)
    _check_kernels(parsed)
    _check_widths(parsed)
    return parsed


def parse_out_indices(out_indices: Sequence[int] | None, num_stages: int) -> tuple[int, ...]:
    """Check ``out_indices``; None stands for all stages.

    Raises:
        ValueError: If it is empty, not ascending, or names a stage that does not exist.
    """
    if out_indices is None:
        return tuple(range(num_stages))
    if isinstance(out_indices, Integral):
        out_indices = (out_indices, )
    out_indices = tuple(out_indices)
    valid = f'the stages are 0 to {num_stages - 1}'
    if not out_indices:
        raise ValueError(f'out_indices is empty; name at least one stage ({valid})')
    for index in out_indices:
        if not isinstance(index, Integral) or not 0 <= index < num_stages:
            raise ValueError(f'out_indices={out_indices} names stage {index!r}; {valid}')
    if list(out_indices) != sorted(set(out_indices)):
        raise ValueError(
            f'out_indices={out_indices} must be ascending and without repeats, as the outputs come '
            f'in the order of the stages; write {tuple(sorted(set(out_indices)))}')
    return out_indices


def parse_frozen_stages(frozen_stages: int, num_stages: int) -> int:
    """Check ``frozen_stages``.

    Raises:
        ValueError: If it is not an int from -1 to the number of stages.
    """
    if not isinstance(frozen_stages, Integral) or not -1 <= frozen_stages <= num_stages:
        raise ValueError(
            f'frozen_stages={frozen_stages!r} must be an int from -1 (nothing) over 0 (the stem) '
            f'to {num_stages} (every stage)')
    return frozen_stages


def _arch_from_dict(arch: dict) -> Arch:
    missing = [key for key in _LISTS if key not in arch]
    unknown = [key for key in arch if key not in _LISTS + _OPTIONS]
    if missing or unknown:
        raise ValueError(
            f'arch={dict(arch)!r}: missing keys {missing}, unknown keys {unknown}; it needs '
            f'{", ".join(_LISTS)} and may have {", ".join(_OPTIONS)}')
    fields = dict(arch)
    for key in _LISTS:
        if isinstance(fields[key], str) or not isinstance(fields[key], Sequence):
            raise ValueError(f'arch[{key!r}]={fields[key]!r} must be a list with one entry a stage')
        fields[key] = tuple(fields[key])
    lengths = {key: len(fields[key]) for key in _LISTS}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f'the lists of arch must have one entry for each stage, but have {lengths}')
    return Arch(**fields)


def _check_kernels(arch: Arch) -> None:
    sizes = dict(large_kernel_sizes=arch.large_kernel_sizes)
    if arch.small_kernel is not None:
        sizes['small_kernel'] = (arch.small_kernel, )
    for name, values in sizes.items():
        for size in values:
            if not _is_count(size) or size % 2 == 0:
                raise ValueError(
                    f'{name} has {size!r}, but kernels must be positive odd ints: an even one '
                    'cannot keep the size of the feature map and be centered')
    if arch.small_kernel is not None and arch.small_kernel > min(arch.large_kernel_sizes):
        raise ValueError(
            f'small_kernel={arch.small_kernel} is larger than the smallest of large_kernel_sizes='
            f'{arch.large_kernel_sizes}, so it could not be merged; choose one of at most '
            f'{min(arch.large_kernel_sizes)}, or None for no small branch')


def _check_widths(arch: Arch) -> None:
    for name in ('layers', 'channels'):
        for value in getattr(arch, name):
            if not _is_count(value):
                raise ValueError(f'{name} has {value!r}, but its entries must be positive ints')
    for name in ('dw_ratio', 'ffn_ratio'):
        ratio = getattr(arch, name)
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or ratio <= 0:
            raise ValueError(f'{name}={ratio!r} must be a positive number')
        if int(min(arch.channels) * ratio) < 1:
            raise ValueError(
                f'{name}={ratio!r} leaves no channel at channels={arch.channels}; enlarge it')


def _is_count(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def check_start(init_cfg: dict | list | None, pretrained: str | None) -> None:
    """Check how a backbone is told which weights to start from.

    Args:
        init_cfg (dict | list[dict] | None): MMEngine's initialization config.
        pretrained (str, optional): What has to be None.

    Raises:
        TypeError: If ``init_cfg`` is of another type.
        ValueError: If there is a ``pretrained``.
    """
    if pretrained is not None:
        raise ValueError(
            f'pretrained={pretrained!r}: RepLKNet takes no pretrained. A stock config has that of '
            'its own backbone: write pretrained=None in model. Weights of RepLKNet: '
            "init_cfg=dict(type='Pretrained', checkpoint=FILE) in the backbone")
    for item in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(item, str):
            raise TypeError(f'init_cfg={init_cfg!r} is a str. Write '
                            f"init_cfg=dict(type='Pretrained', checkpoint={item!r})")
        if item is not None and not isinstance(item, dict):
            raise TypeError(f'init_cfg must be a dict or a list of dicts, got {init_cfg!r}')
