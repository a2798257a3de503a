"""Weights from one layout of names into another; see :mod:`mmreplk.weights.layouts`."""

import os.path as osp
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from ..files import write_new
from ..models import RepLKNet
from ..models.arch import Arch
from ..models.keys import adopt_final_norm, is_folded, is_merged, stage_norms
from ..models.reparam import merge_kernels
from .fit import compare
from .layouts import (
    DATASET_META,
    EMA_WRAPPERS,
    PREFIX,
    WRAPPERS,
    arch_of,
    check_values,
    describe_arch,
    name_of,
    num_classes,
    split,
    unwrap,
)
from .safe_load import read_checkpoint

LAYOUTS = ('mmreplk', 'official', 'mmpretrain')
_OWNERS = dict(
    mmreplk='this project\'s', official='the authors\'', mmpretrain='MMPretrain\'s')
_SEGMENTOR_PARTS = ('decode_head', 'auxiliary_head')
_DETECTOR_PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head')

# What is of floating point in any network; heads may have buffers of integers.
_NUMBERS = ('.weight', '.bias', '.running_mean', '.running_var')


@dataclass(frozen=True)
class Recognized:
    """What a file of weights was found to be.

    Attributes:
        layout (str): One of :data:`LAYOUTS`; that of segmentors and detectors is the same in all,
            and called 'mmreplk'.
        kind (str): 'classifier', 'backbone', 'segmentor' or 'detector'.
        arch (Arch): Read from the shapes; ``small_kernel`` is None where ``merged``.
        merged (bool): Whether the small kernels are merged into the large ones.
        body (dict[str, Tensor]): The backbone's weights under the authors' names.
        heads (dict[str, Tensor]): The others, under the names of the file.
    """
    layout: str
    kind: str
    arch: Arch
    merged: bool
    body: dict
    heads: dict

    def describe(self) -> str:
        """One line for the user."""
        owner = 'a' if self.kind in ('segmentor', 'detector') else _OWNERS[self.layout]
        arch = describe_arch(self.arch, self.merged)
        known = name_of(self.arch, self.merged) is not None
        parts = [f'{owner} {self.kind}', f'arch {arch}' if known else f'unpublished arch ({arch})',
                 'merged and its norms folded' if is_folded(self.body) else
                 'merged' if self.merged else 'not merged']
        norms = stage_norms(self.body)
        if norms:
            parts.append(f'norms on stages {", ".join(map(str, norms))}')
        classes = num_classes(self.heads)
        if classes is not None:
            parts.append(f'{classes} classes')
        tensors = {**self.body, **{f'heads.{name}': value for name, value in self.heads.items()}}
        size = sum(value.numel() for value in tensors.values())
        parts.append(f'{len(tensors)} tensors with {size:,} numbers')
        kinds = Counter(str(value.dtype).removeprefix('torch.') for value in tensors.values()
                        if value.is_floating_point())
        if set(kinds) != {'float32'}:
            parts.append(' and '.join(kinds))
        heads = Counter(name.split('.')[0] for name in self.heads)
        if heads:
            parts.append('with ' + ', '.join(f'{head} ({n})' for head, n in heads.items()))
        return ', '.join(parts)


def recognize(state: Mapping[str, torch.Tensor], arch: str | None = None) -> Recognized:
    """Find out what weights are, and check that they are complete.

    Of the heads of segmentors and detectors, only the names are looked at: what they have to hold
    depends on the config, and ``tools/test.py`` compares the two.

    Args:
        state (Mapping[str, Tensor]): The weights of a whole model, as from :func:`unwrap`.
        arch (str, optional): The architecture that it has to be. Defaults to None, any.

    Returns:
        Recognized: What was found.

    Raises:
        ValueError: If it is another network or architecture, or something is missing or unknown.
            The message ends a sentence that begins with the file.
    """
    prefix, body, heads = split(state)
    parts = {name.split('.')[0] for name in heads}
    if prefix and parts & {*_SEGMENTOR_PARTS, *_DETECTOR_PARTS}:
        layout, kind = 'mmreplk', 'segmentor' if 'decode_head' in parts else 'detector'
        unknown = parts - {*_SEGMENTOR_PARTS, *_DETECTOR_PARTS}
    else:
        kind = 'classifier' if heads else 'backbone'
        last = [max(int(name.split('.')[1]) for name in body if name.startswith('stages.'))]
        alien = prefix and 'norm.weight' not in body and stage_norms(body) == last
        layout = 'mmpretrain' if alien else 'mmreplk' if prefix else 'official'
        linear = 'head.fc' if prefix else 'head'
        unknown = set(heads) - {f'{linear}.weight', f'{linear}.bias'}
        if layout == 'mmpretrain':
            adopt_final_norm(body, '', ('norm.weight', ))
    if unknown:
        raise ValueError('holds a RepLKNet and something unknown: '
                         f'{", ".join(sorted(unknown)[:4])}')
    merged, found = is_merged(body), arch_of(body)
    name = name_of(found, merged)
    if arch is not None and arch != name:
        raise ValueError(f'is of arch {describe_arch(found, merged)}, not {arch} as asked '
                         'for')
    _check_complete(body, found, merged, kind, heads)
    return Recognized(layout, kind, found, merged, body, heads)


def _check_complete(body: dict, arch: Arch, merged: bool, kind: str, heads: dict) -> None:
    norms = stage_norms(body)
    with torch.device('meta'):
        backbone = RepLKNet(
            asdict(arch),
            in_channels=body['stem.0.conv.weight'].shape[1],
            out_indices=norms or None,
            norm_intermediate_features=bool(norms),
            final_norm=kind == 'classifier' or 'norm.weight' in body,
            deploy=is_folded(body))
        if merged:
            merge_kernels(backbone)
    misfit = compare(backbone.state_dict(), body)
    if misfit:
        raise ValueError(f'is an incomplete or altered {describe_arch(arch, merged)}: '
                         f'{misfit.describe()}')
    if kind == 'classifier':
        shapes = [tuple(value.shape) for name, value in sorted(heads.items(), reverse=True)]
        if len(shapes) != 2 or shapes[0] != (*shapes[1], arch.channels[-1]):
            raise ValueError(f'has a classifier of the wrong form: {", ".join(heads)} of '
                             f'{", ".join(map(str, shapes))}')


def rename(found: Recognized, to: str) -> dict[str, torch.Tensor]:
    """The weights under the names of another layout; nothing is copied.

    Args:
        found (Recognized): The weights.
        to (str): One of :data:`LAYOUTS`.

    Returns:
        dict[str, Tensor]: Name to tensor.

    Raises:
        ValueError: If that layout has no place for them.
    """
    body, norms, stages = found.body, stage_norms(found.body), len(found.arch.layers)
    dense = found.kind in ('segmentor', 'detector')
    if to != 'mmreplk' and is_folded(body):
        raise ValueError(f'has no norms left, which {_OWNERS[to]} network needs: convert the '
                         'weights from before switch_to_deploy or tools/reparameterize.py')
    if to == 'mmpretrain':
        # Its class has a norm on every output, and no other: that of the classifier is the last's.
        if dense and norms != list(range(stages)):
            raise ValueError(
                'cannot be put into MMPretrain\'s class, which always has norms on the outputs of '
                f'a dense backbone: these weights have {norms or "none"}')
        if not dense and (norms or 'norm.weight' not in body):
            raise ValueError(
                'cannot be put into MMPretrain\'s class, which has exactly one norm, behind the '
                f'last stage: these weights have {norms or "none"}')
    if to == 'official' and not dense:
        start, linear = '', 'head'
    else:
        start, linear = PREFIX, 'head.fc'
    if to == 'mmpretrain' and not dense:
        last = f'stages.{stages - 1}.norm.'
        body = {f'{last}{name[len("norm."):]}' if name.startswith('norm.') else name: value
                for name, value in body.items()}
    heads = found.heads if dense else {
        f'{linear}.{name.rsplit(".", 1)[1]}': value for name, value in found.heads.items()}
    return {**{start + name: value for name, value in body.items()}, **heads}


def convert(source: str, out: str, to: str = 'mmreplk', arch: str | None = None,
            ema: bool = False) -> list[str]:
    """Turn a file of weights into one of another layout.

    The values stay as they are, bit by bit, and on disk until they are written.

    Args:
        source (str): The file, of any known layout.
        out (str): The file to write, which must not exist.
        to (str): One of :data:`LAYOUTS`. Defaults to 'mmreplk'.
        arch (str, optional): The architecture that it has to be. Defaults to None, any.
        ema (bool): Whether to take the moving average that the authors' training script saves
            beside the weights. Defaults to False.

    Returns:
        list[str]: Lines that say what was recognized, left out and written.

    Raises:
        FileExistsError: If ``out`` exists.
        ValueError: If the file is not what it should be, as with weights of integers, or the layout
            has no place for it.
    """
    try:
        checkpoint = read_checkpoint(source)
        weights = unwrap(checkpoint, ema)
        check_values(weights, {name: torch.empty(0) for name in weights if name.endswith(_NUMBERS)})
        found = recognize(weights, arch)
        state = rename(found, to)
    except ValueError as error:
        raise ValueError(f'SRC: {source!r} {error}.') from error
    lines = [f'{source}: {found.describe()}']
    wrapper = next((name for name in WRAPPERS if isinstance(checkpoint.get(name), Mapping)), None)
    if wrapper or ema:
        left = [str(name) for name in checkpoint if name not in (wrapper, 'meta')]
        if left:
            lines.append(f'left out: {", ".join(left)}')
    averages = [name for name in EMA_WRAPPERS if name in checkpoint]
    if averages and not ema:
        lines.append(f'{averages[0]} holds a moving average of the weights: ema=True takes it '
                     'instead')
    meta = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), Mapping) else {}
    kept = {name: meta[name] for name in DATASET_META if name in meta}
    kept['converted'] = dict(source=osp.basename(source), layout=found.layout, ema=ema)
    raw = to == 'official' and found.kind in ('classifier', 'backbone')
    content = state if raw else dict(meta=kept, state_dict=state)
    write_new(out, lambda path: torch.save(content, path))
    renamed = found.layout != to and found.kind in ('classifier', 'backbone')
    lines.append(f'{out}: {len(state)} tensors under {_OWNERS[to]} names'
                 f'{"" if renamed else ", which are those of the file"}')
    return lines
