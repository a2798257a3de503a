"""Networks whose effective receptive field can be measured, and where they come from.

A network is named as on the command line of ``tools/erf.py``:

* ``CONFIG.py`` or ``mmreplk::NAME.py``: a classifier, segmentor or detector of the mm packages;
* ``timm:NAME`` or ``torchvision:NAME``: see :mod:`.zoo`.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .stages import (
    StageError,
    children_of,
    forward_to,
    is_number,
    named_module,
    output_number,
    stage_words,
)

ZOOS = ('timm', 'torchvision')
_CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


@dataclass(frozen=True)
class ModelSpec:
    """A network as the user names it.

    Attributes:
        source (str): Config, ``timm:NAME`` or ``torchvision:NAME``.
        checkpoint (str | None): File of its weights, if any.
        stage (str): Number among the outputs of its backbone, or the dotted name of a module.
        name (str): What it is called in results.
    """
    source: str
    checkpoint: str | None = None
    stage: str = '-1'
    name: str = ''

    @property
    def zoo(self) -> str | None:
        """``timm`` or ``torchvision``; None of a config."""
        return self.source.partition(':')[0] if _is_zoo(self.source) else None


@dataclass
class ErfModel:
    """A network ready to be measured.

    Attributes:
        network (nn.Module): In evaluation mode, without gradients for its parameters.
        forward (Callable): Turns (N, channels, H, W), as the network takes them, into the feature
            map.
        weights (str): ``random``, ``pretrained`` or the name of the file.
        mean (tuple[float, ...]): Subtracted from pixels of 0 to 255.
        std (tuple[float, ...]): What the difference is divided by.
        bgr (bool): Whether the network takes blue first.
        prefix (str): Of the network's modules, where it is a part of a model.
        channels (int): Of its images. Defaults to 3, colors.
    """
    network: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    prefix: str = ''
    channels: int = 3

    def __post_init__(self):
        self.network.eval()
        self.network.requires_grad_(False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network up to the feature map that is looked at.

        Args:
            images (Tensor): (N, channels, H, W), as :meth:`prepare` makes them.

        Returns:
            Tensor: (N, C, h, w).

        Raises:
            StageError: If it is no feature map, or has its channels last.
        """
        features = self.forward(images)
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else None
        square = images.shape[2] == images.shape[3]
        if shape is None or len(shape) != 4 or (square and shape[2] != shape[3]):
            raise StageError(f'stage: gives {shape or type(features).__name__} for pictures of '
                             f'{images.shape[2]} x {images.shape[3]} pixels, not a feature map of '
                             'shape (N, C, H, W); name another stage or a module, such as '
                             f'{children_of(self.network, self.prefix)}')
        return features

    def check_stage(self, size: int) -> None:
        """Check on the meta device, where the network stays, that the stage is a feature map.

        Args:
            size (int): Side of the images.

        Raises:
            StageError: If it is none. Networks that do not run there are not checked.
        """
        self.network.to('meta')
        try:
            with torch.no_grad():
                self.features(torch.empty(
                    1, self.channels, size, size, device='meta', dtype=self._dtype()))
        except StageError:
            raise
        except Exception:  # noqa: S110  # what depends on values cannot run there
            pass

    def prepare(self, image: np.ndarray, device: str | torch.device) -> torch.Tensor:
        """Normalize a image as the network was trained with.

        Args:
            image (np.ndarray): (H, W, channels), of values from 0 to 255; three are RGB. Where mean
                and std are for fewer channels, they are used in turn.
            device (str | torch.device): Where the network is.

        Returns:
            Tensor: (1, channels, H, W), in the dtype of the network's weights.
        """
        colors = image.shape[-1] == 3
        pixels = image[..., ::-1] if self.bgr and colors else image
        mean, std = (np.resize(np.float32(value), image.shape[-1])
                     for value in (self.mean, self.std))
        pixels = (pixels.astype(np.float32) - mean) / std
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        return images.to(device, self._dtype())

    def _dtype(self) -> torch.dtype:
        return next((value.dtype for value in self.network.parameters()
                     if value.is_floating_point()), torch.float32)


def parse_models(arguments: Sequence[str], stages: Sequence[str] = ('-1', ),
                 names: Sequence[str] = ()) -> list[ModelSpec]:
    """Read ``MODEL [CHECKPOINT] [MODEL [CHECKPOINT] ...]``.

    Args:
        arguments (Sequence[str]): What is no model is the checkpoint of the model before it.
        stages (Sequence[str]): One for all models, or one for each. Defaults to the last output.
        names (Sequence[str]): One for each model, or none. Defaults to none.

    Returns:
        list[ModelSpec]: In their order, with names that differ.

    Raises:
        ValueError: If a checkpoint has no model, or numbers do not match.
    """
    pairs = []
    for argument in arguments:
        if _is_model(argument):
            pairs.append([argument, None])
        elif pairs and pairs[-1][1] is None:
            pairs[-1][1] = argument
        else:
            why = (f'{pairs[-1][0]} has its checkpoint already' if pairs else
                   'there is no model before it whose checkpoint it could be')
            raise ValueError(f'MODEL: {argument!r} is no model, and {why}. A config ends in .py or '
                             'begins with mmreplk::, others are timm:NAME or torchvision:NAME.')
    for option, values in (('stage', stages), ('name', names)):
        one_for_all = option == 'stage' and len(values) == 1
        if values and not one_for_all and len(values) != len(pairs):
            rule = 'once for each, or once for all' if option == 'stage' else 'once for each'
            raise ValueError(f'{option}: given {len(values)} times for {len(pairs)} models. Give '
                             f'it {rule}.')
    stages = list(stages) * (len(pairs) if len(stages) == 1 else 1)
    labels = list(names) or _labels(pairs, stages)
    if len(set(labels)) < len(labels):
        raise ValueError('name: two models have the same name; give each its own with name.')
    return [ModelSpec(source, checkpoint, stage, label)
            for (source, checkpoint), stage, label in zip(pairs, stages, labels, strict=True)]


def _is_zoo(source: str) -> bool:
    return source.startswith(tuple(f'{zoo}:' for zoo in ZOOS))


def _is_model(argument: str) -> bool:
    return (_is_zoo(argument) or argument.startswith('mmreplk::')
            or argument.endswith(_CONFIG_SUFFIXES))


def _labels(pairs: list, stages: list[str]) -> list[str]:
    """Names of the models, and where they are the same, of what tells them apart."""

    def stem(path):
        return path.replace('\\', '/').rsplit('/', 1)[-1]

    models = []
    for source, _ in pairs:
        name = stem(source.rpartition(':')[2])
        models.append(next((name.removesuffix(end) for end in _CONFIG_SUFFIXES
                            if name.endswith(end)), name))
    files = [stem(checkpoint).rsplit('.', 1)[0] if checkpoint else 'random'
             for _, checkpoint in pairs]
    zoos = [source.partition(':')[0] if _is_zoo(source) else 'config' for source, _ in pairs]
    labels, words = models, [stage_words(stage) for stage in stages]
    for extras in (zoos, files, words, [str(index + 1) for index in range(len(pairs))]):
        same = {label: {extra for other, extra in zip(labels, extras, strict=True)
                        if other == label} for label in labels}
        labels = [f'{label} {extra}' if len(same[label]) > 1 else label
                  for label, extra in zip(labels, extras, strict=True)]
    return labels


def open_model(spec: ModelSpec, size: int, pretrained: bool = False,
               cfg_options: dict | None = None) -> ErfModel:
    """Build a network on the CPU and load its weights.

    Random weights are those with which training would start, always the same.

    Args:
        spec (ModelSpec): Which.
        size (int): Side of the images, which some networks have to know.
        pretrained (bool): Whether one without a checkpoint takes the weights that its package, or
            its config for the start of training, names. Defaults to False, random ones.
        cfg_options (dict, optional): Changes to a config. Defaults to None.

    Returns:
        ErfModel: The network.

    Raises:
        ImportError: If a package is missing.
        FileNotFoundError: If a file is missing.
        ValueError: If there is no such network or stage, or weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if spec.zoo is not None:
            from .zoo import open_zoo_model
            return open_zoo_model(spec, size, pretrained)
        return _open_config(spec, pretrained, cfg_options)


def _open_config(spec: ModelSpec, pretrained: bool, cfg_options: dict | None) -> ErfModel:
    from ...config.edit import replace_sync_bn
    from ...config.model import check_scope, drop_pretrained, read_config
    from ...models.from_config import check_backbone
    from ...paths import check_file
    from ...weights.checks import check_pretrained
    from ...weights.load import load_model
    cfg = read_config(spec.source, deepcopy(cfg_options))
    check_scope(cfg)
    backbone = check_backbone(cfg)
    replace_sync_bn(cfg.model)
    start = pretrained and spec.checkpoint is None
    if start:
        untouched = deepcopy(cfg.model)
        drop_pretrained(untouched)
        if untouched == cfg.model:
            raise ValueError(f'pretrained: CONFIG {spec.source} names no weights to start from; '
                             'give it a CHECKPOINT.')
        check_pretrained(cfg, backbone)
    else:
        drop_pretrained(cfg.model)
    if spec.checkpoint is not None:
        check_file(spec.checkpoint, 'CHECKPOINT', 'Check the path.')
    model, _ = load_model(cfg, spec.checkpoint)
    if spec.checkpoint is None:
        with _silent_logger():
            model.init_weights()
    weights = spec.checkpoint or ('pretrained' if start else 'random')
    mean, std, bgr = _normalization(cfg)
    if is_number(spec.stage):
        if not isinstance(getattr(model, 'backbone', None), nn.Module):
            raise ValueError(f'stage {spec.stage}: the model of CONFIG {spec.source} has no '
                             f'backbone; name a module: {children_of(model)}.')
        # The rest of the model would only take memory.
        backbone = model.backbone
        return ErfModel(backbone, output_number(backbone, spec.stage), weights, mean, std, bgr,
                        'backbone.', _channels(backbone))
    module = named_module(model, spec.stage)
    run = forward_to(module, lambda images: model(images, mode='tensor'))
    return ErfModel(model, run, weights, mean, std, bgr, channels=_channels(
        getattr(model, 'backbone', model)))


def _channels(network: nn.Module) -> int:
    """Channels of a network's images: its first convolution's; colors if it has none."""
    return next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)


def _silent_logger():
    """MMEngine prints how every parameter was initialized where no logger has been set up."""
    import logging
    from contextlib import ExitStack
    stack = ExitStack()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    stack.callback(logging.disable, previous)
    return stack


def _normalization(cfg) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean, standard deviation, and whether the network takes blue first, as mm pipelines read."""
    options = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean, std = options.get('mean') or (0.0, ), options.get('std') or (1.0, )
    mean, std = (tuple(value) if isinstance(value, (list, tuple)) else (value, )
                 for value in (mean, std))
    return mean, std, not (options.get('bgr_to_rgb') or options.get('to_rgb'))
