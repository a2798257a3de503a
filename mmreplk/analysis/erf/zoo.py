"""Networks of timm and torchvision for the effective receptive field. Both are optional."""

import warnings
from difflib import get_close_matches
from importlib import import_module

from torch import nn

from .models import ErfModel, ModelSpec
from .stages import children_of, forward_to, is_number, named_module, output_number

# ImageNet's, on pixels of 0 to 255; those of torchvision's networks without weights of their own.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Where the last map of torchvision's classifiers is: what goes into the pooling of most, what comes
# out of these parts of the others.
_LAST_PARTS = ('features', 'layers', 'conv5')
_HEADS = ('fc', 'classifier', 'head', 'heads', 'aux1', 'aux2', 'AuxLogits')


def open_zoo_model(spec: ModelSpec, size: int, pretrained: bool) -> ErfModel:
    """Build a network of timm or torchvision; see :func:`.models.open_model`.

    A stage of timm is a number among ``forward_intermediates``, or a module. Of torchvision's
    classifiers the last map before the pooling is known by its number -1, others by their module.

    Args:
        spec (ModelSpec): Which.
        size (int): Side of the images.
        pretrained (bool): Whether to fetch the package's weights where no checkpoint is given.

    Returns:
        ErfModel: The network.

    Raises:
        ImportError: If the package is missing.
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If there is no such network or stage, or weights do not fit or cannot be
            fetched.
    """
    zoo, name = spec.source.split(':', 1)
    try:
        module = import_module(zoo)
    except ImportError as error:
        raise ImportError(f'MODEL {spec.source}: {zoo} is not installed here ({error}). `pip '
                          f'install {zoo}` in this environment adds it.') from error
    fetch = pretrained and spec.checkpoint is None
    build = _timm if zoo == 'timm' else _torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            network, mean, std, heads = build(module, name, fetch)
    except _UnknownNameError as error:
        close = get_close_matches(name, error.args[0], 3)
        hint = f'Did you mean {", ".join(close)}?' if close else f'See {error.args[1]}.'
        raise ValueError(f'MODEL {spec.source}: {zoo} has no such network. {hint}') from error
    except Exception as error:  # of a constructor, or of a connection
        remedy = ' Without a connection, give a local CHECKPOINT.' if fetch else ''
        raise ValueError(f'MODEL {spec.source}: cannot be built: {type(error).__name__}: '
                         f'{str(error).rstrip(".")}.{remedy}') from error
    if spec.checkpoint is not None:
        _load(network, spec, heads)
    if hasattr(network, 'set_input_size'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            network.set_input_size(img_size=(size, size))
    forward = (_timm_forward if zoo == 'timm' else _torchvision_forward)(network, spec)
    weights = spec.checkpoint or ('pretrained' if fetch else 'random')
    return ErfModel(network, forward, weights, tuple(255 * value for value in mean),
                    tuple(255 * value for value in std))


class _UnknownNameError(Exception):
    """Holds the known names, and where they are listed."""


def _timm(timm, name: str, fetch: bool):
    if not timm.is_model(name.split('.')[0]):
        raise _UnknownNameError(timm.list_models(), 'timm.list_models()')
    network = timm.create_model(name, pretrained=fetch)
    data = timm.data.resolve_model_data_config(network)
    heads = network.pretrained_cfg.get('classifier') or ()
    return network, data['mean'], data['std'], (heads, ) if isinstance(heads, str) else heads


def _timm_forward(network: nn.Module, spec: ModelSpec):
    if not is_number(spec.stage):
        return forward_to(named_module(network, spec.stage), network)
    if not hasattr(network, 'forward_intermediates'):
        raise ValueError(f'stage {spec.stage}: {spec.source} does not number its feature maps; '
                         f'name a module: {children_of(network)}.')
    return output_number(
        lambda images: network.forward_intermediates(
            images, output_fmt='NCHW', intermediates_only=True), spec.stage)


def _torchvision(torchvision, name: str, fetch: bool):
    models = torchvision.models
    if name not in models.list_models(module=models):
        raise _UnknownNameError(
            models.list_models(module=models),
            'torchvision.models.list_models(module=torchvision.models), the classifiers')
    best = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=best if fetch else None)
    preset = best.transforms()
    return network, getattr(preset, 'mean', _MEAN), getattr(preset, 'std', _STD), _HEADS


def _torchvision_forward(network: nn.Module, spec: ModelSpec):
    if not is_number(spec.stage):
        return forward_to(named_module(network, spec.stage), network)
    parts = dict(network.named_children())
    last = next((parts[part] for part in _LAST_PARTS if part in parts), None)
    if spec.stage != '-1' or ('avgpool' not in parts and last is None):
        raise ValueError(f'stage {spec.stage}: torchvision does not number the feature maps of '
                         f'{spec.source}; name a module: {children_of(network)}, or one inside.')
    if 'avgpool' in parts:
        return forward_to(parts['avgpool'], network, take_input=True)
    return forward_to(last, network)


def _load(network: nn.Module, spec: ModelSpec, heads: tuple[str, ...]) -> None:
    """Load a file strictly, but for the classifier, which is not run."""
    from ...paths import check_file
    from ...weights.fit import compare
    from ...weights.layouts import check_values, unwrap
    from ...weights.safe_load import read_checkpoint
    check_file(spec.checkpoint, 'CHECKPOINT', 'Check the path.')
    try:
        state = unwrap(read_checkpoint(spec.checkpoint))
        check_values(state, network.state_dict())
    except ValueError as error:
        raise ValueError(f'CHECKPOINT: {spec.checkpoint!r} {error}.') from error

    def runs(name):
        return not name.startswith(tuple(f'{head}.' for head in heads))

    own = {name: value for name, value in network.state_dict().items() if runs(name)}
    misfit = compare(own, {name: value for name, value in state.items() if runs(name)})
    if misfit:
        raise ValueError(f'CHECKPOINT: {spec.checkpoint!r} does not match {spec.source}: '
                         f'{misfit.describe()}. Name the weights of '
                         'this network, or the network of these weights.')
    network.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
