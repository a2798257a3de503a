"""Do weights fit the model that a config asks for?

MMEngine loads what fits, warns of the rest, and goes on with random numbers in its place; the tools
ask here before they begin.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from mmengine.config import Config
from torch import nn

from ..config.model import build_model
from ..config.types import is_pretrained, type_names
from ..models import EnlargedBackbone, RepLKNet
from ..models.first_conv import channels_hint
from ..models.keys import is_merged
from ..paths import check_file, is_remote
from .fit import compare
from .layouts import check_values, num_classes, other_arch, split, unwrap
from .pretrained import AUTO, MERGED, NOT_MERGED, start_weights
from .safe_load import UnsafeFileError, read_any

_REMEDY = 'Name the weights of this config, or the config of these weights'
_RANDOM = 'These start from the values that init_weights gives them.'


def _pretrained(node, name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, path) of every weight file that a model config starts from."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _pretrained(item, f'{name}.{index}')
    elif isinstance(node, dict):
        if is_pretrained(node) and isinstance(node.get('checkpoint'), str):
            yield f'{name}.checkpoint', node['checkpoint']
        if isinstance(node.get('pretrained'), str):
            yield f'{name}.pretrained', node['pretrained']
        for key, value in node.items():
            yield from _pretrained(value, f'{name}.{key}')


def check_pretrained(cfg: Config, backbone: RepLKNet | EnlargedBackbone | None = None,
                     first: bool = True) -> str | None:
    """Check the weight files from which the model starts its training.

    Of other networks, and of the original one inside an EnlargedBackbone, only whether local files
    exist.

    Args:
        cfg (Config): The full config.
        backbone (RepLKNet | EnlargedBackbone, optional): The config's, on 'meta'. Defaults to None,
            another network.
        first (bool): Whether this process is the one of its machine that fetches addresses, into
            MMEngine's cache, to look at them. Defaults to True.

    Returns:
        str | None: Lines about heads that differ.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one cannot be fetched or does not fit.
    """
    notes = []
    for name, path in _pretrained(cfg.model, 'model'):
        owner = name.rsplit('.', 1)[0] if name.endswith('.checkpoint') else name
        remedy = (f'Name another file by {name}=FILE, or start from random weights by '
                  f'{owner}=None.')
        check_file(path, name, remedy)
        if backbone is None or (is_remote(path) and not first):
            continue
        try:
            if name.startswith('model.backbone.init_cfg.'):
                entry = _entry(cfg, owner)
                start_weights(backbone, _read(path), entry.get('prefix', AUTO),
                              entry.get('in_channels'))
            elif name.startswith('model.init_cfg.'):
                difference = check_model_weights(build_model(cfg), _read(path), True)
                notes.append(difference and f'{name}: {path!r} {difference}. {_RANDOM}')
        except ValueError as error:
            raise ValueError(f'{name}: {path!r} {error}. {remedy}') from error
    return '\n'.join(filter(None, notes)) or None


def _entry(cfg: Config, name: str):
    node = cfg
    for key in name.split('.'):
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    return node


def _read(path: str) -> Mapping:
    if not is_remote(path):
        return read_any(path)
    try:
        return read_any(path)
    except UnsafeFileError:
        raise
    except Exception as error:  # whatever a connection or its libraries raise
        raise ValueError(f'cannot be fetched ({type(error).__name__}: {error}); without a '
                         'connection, name a local copy') from error


def check_weights(cfg: Config,
                  path: str,
                  argument: str,
                  check_more: Callable[[Mapping], None] | None = None,
                  heads_may_differ: bool = False,
                  first: bool = True) -> str | None:
    """Check that a checkpoint fits the config's model, without running it.

    Args:
        cfg (Config): The full config.
        path (str): The checkpoint.
        argument (str): What the user calls it.
        check_more (Callable, optional): Called with what was read; raises a ValueError whose
            message ends a sentence that begins with the file. Defaults to None.
        heads_may_differ (bool): Whether the backbone alone has to fit. Defaults to False.
        first (bool): As of :func:`check_pretrained`. Defaults to True.

    Returns:
        str | None: A line about what differs, if it may.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or one that does not fit.
    """
    check_file(path, argument, 'Check the path; train.py writes *.pth to its work dir.')
    if is_remote(path) and not first:
        return None
    model = build_model(cfg)
    try:
        checkpoint = _read(path)
        if check_more is not None:
            check_more(checkpoint)
        difference = check_model_weights(model, checkpoint, heads_may_differ)
        check_wrapped(cfg, checkpoint)
    except ValueError as error:
        raise ValueError(f'{argument}: {path!r} {error}.') from error
    return difference and f'{argument}: {path!r} {difference}. {_RANDOM}'


def state_for_mmengine(checkpoint: Mapping) -> dict:
    """The weights that MMEngine would find in a file."""
    state = checkpoint.get('state_dict', checkpoint)
    return {str(name).removeprefix('module.'): value for name, value in dict(state).items()
            if isinstance(value, torch.Tensor)}


def check_model_weights(model: nn.Module, checkpoint: Mapping, heads_may_differ: bool = False
                        ) -> str | None:
    """Check that a file has every weight of a model, and nothing else for its backbone.

    Args:
        model (nn.Module): The model, on 'meta'.
        checkpoint (Mapping): What was read from the file.
        heads_may_differ (bool): Whether everything but a RepLKNet backbone may be missing or of
            another shape, as at the start of a fine-tuning. Defaults to False.

    Returns:
        str | None: A phrase about what differs, if it may.

    Raises:
        ValueError: If the weights do not fit. The message ends a sentence that begins with the
            file.
    """
    backbone = getattr(model, 'backbone', None)
    ours = isinstance(backbone, RepLKNet)
    state = state_for_mmengine(checkpoint)
    check_values(state, model.state_dict())
    state = {name: value.to('meta') for name, value in state.items()}
    misfit = compare(model, state)
    # More heads than the model has do no harm, more layers of the backbone would have an effect.
    misfit = misfit._replace(unexpected=[
        name for name in misfit.unexpected if ours and name.startswith('backbone.')])
    if not misfit:
        return None
    hint = ''
    if ours:
        _explain_backbone(backbone, checkpoint, state)
        if heads_may_differ:  # a run starts from it, which it could do otherwise
            hint = channels_hint(model, state)
    found, wanted = num_classes(state), num_classes(model.state_dict())
    text = f'does not match the model: {misfit.describe()}'
    nothing = len(misfit.missing) == sum(not name.endswith('num_batches_tracked')
                                  for name in model.state_dict())
    differs = [name for names in misfit for name in names if name.startswith('backbone.')]
    if heads_may_differ and not nothing and not (ours and differs):
        return text
    if found and wanted and found != wanted:
        text = f'has {found} classes, but the model {wanted} (num_classes of its heads), and {text}'
    raise ValueError(f'{text}{hint}. {_REMEDY}')


def _explain_backbone(backbone: RepLKNet, checkpoint: Mapping, state: dict) -> None:
    """Raise what is wrong if the weights are of another layout, arch, or are merged otherwise."""
    prefix, body, _ = split(unwrap(checkpoint))
    reason = other_arch(backbone, body)
    if reason:
        raise ValueError(f'{reason}. {_REMEDY}')
    if is_merged(body) != backbone.deploy:
        raise ValueError(MERGED if is_merged(body) else NOT_MERGED)
    if not prefix or 'backbone.stem.0.conv.weight' not in state:
        raise ValueError('holds the right backbone in a layout that MMEngine does not read: '
                         'tools/convert_checkpoint.py turns it into a file that this config loads')


def check_wrapped(cfg: Config, checkpoint: Mapping) -> None:
    """Check that weights stand under ``state_dict`` where a hook of the config reads them there.

    Args:
        cfg (Config): The full config.
        checkpoint (Mapping): What was read from the file.

    Raises:
        ValueError: If they do not, and the config has an EMAHook.
    """
    averaged = any('EMAHook' in type_names(hook, 'HOOKS', cfg.get('default_scope'))
                   for hook in cfg.get('custom_hooks') or [])
    if averaged and 'state_dict' not in checkpoint:
        raise ValueError('holds bare weights, but the EMAHook of this config reads them under '
                         'state_dict: tools/convert_checkpoint.py puts them there')
