"""Models as :mod:`.count` counts and :mod:`.latency` times them: built, merged, run on an image."""

import warnings
from contextlib import contextmanager
from copy import deepcopy

import torch
from mmengine.config import Config
from torch import nn

from ...config.edit import innermost, replace_sync_bn
from ...config.model import build_model
from ...config.types import type_names

# The convention for detectors: the RPN's proposals, of which so many become instances.
PROPOSALS, INSTANCES = 1000, 100


def default_shape(cfg: Config) -> tuple[int, int]:
    """The size of image at which a config's model is counted unless another is asked for.

    Args:
        cfg (Config): The full config.

    Returns:
        tuple[int, int]: Height and width: of a segmentor, the scale to which its test pipeline
        resizes; of a classifier, the crop of its test pipeline; of a detector, 800 and 1280, as in
        the tables of the field.

    Raises:
        ValueError: If the test pipeline has no such step.
    """
    if cfg.get('default_scope') == 'mmdet':
        return 800, 1280
    dataset = innermost((cfg.get('test_dataloader') or {}).get('dataset') or {})
    named = [(step, type_names(step, 'TRANSFORMS', cfg.get('default_scope')))
             for step in dataset.get('pipeline', [])]
    crops = [step for step, names in named if 'CenterCrop' in names]
    steps = crops or [step for step, names in named if 'Resize' in names]
    size = steps[-1].get('crop_size', steps[-1].get('scale')) if steps else None
    if size is None:
        raise ValueError(f'CONFIG {cfg.filename}: its test pipeline has neither CenterCrop nor '
                         'Resize with a scale, so give the size of the image: shape H W.')
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def check_shape(shape: tuple[int, int]) -> None:
    """Check the size of an image.

    Args:
        shape (tuple[int, int]): Height and width in pixels.

    Raises:
        ValueError: If one is not positive.
    """
    if min(shape) < 1:
        raise ValueError(f'shape {shape[0]} {shape[1]}: height and width must be positive.')


def merge(model: nn.Module, cfg: Config) -> None:
    """Merge small kernels into large ones, in place.

    Args:
        model (nn.Module): The model.
        cfg (Config): Its config.

    Raises:
        ValueError: If there is nothing to merge.
    """
    mergeable = [module for module in model.modules() if hasattr(module, 'switch_to_deploy')]
    if not mergeable:
        raise ValueError(f'deploy: the model of CONFIG {cfg.filename} has nothing to merge; '
                         'leave deploy out.')
    for module in mergeable:
        module.switch_to_deploy()


def first_channels(model: nn.Module) -> int:
    """The channels of a model's images: those that its first convolution takes."""
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's model without memory, in evaluation mode.

    Args:
        cfg (Config): The full config; it is not changed.

    Returns:
        nn.Module: The model on the meta device.

    Raises:
        ValueError: If it cannot be built.
    """
    cfg = deepcopy(cfg)
    replace_sync_bn(cfg.model)
    return build_model(cfg).eval()


@contextmanager
def silence():
    """Without what losses and resizing warn of: nothing is trained or predicted here."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def run_model(model: nn.Module, image: torch.Tensor) -> None:
    """Run backbone, neck and the heads of evaluation, without post-processing.

    Args:
        model (nn.Module): The model.
        image (Tensor): (N, C, H, W), on its device.
    """
    if getattr(model, 'with_roi_head', False):
        _run_two_stage(model, image)
    else:
        model(image, mode='tensor')


def _run_two_stage(model: nn.Module, image: torch.Tensor) -> None:
    """Run a two-stage detector with stand-ins for what depends on values: NMS and RoI pooling."""
    features = model.extract_feat(image)
    model.rpn_head(features)
    roi_head = model.roi_head
    pools = _listed(roi_head.bbox_roi_extractor)
    for pool, head in zip(pools, _listed(roi_head.bbox_head), strict=True):
        head(_pooled(pool, len(image) * PROPOSALS, image.device))
    if not roi_head.with_mask:
        return
    # A mask head without an extractor of its own shares that of the boxes.
    pools = _listed(getattr(roi_head, 'mask_roi_extractor', None) or pools[-1])
    for pool, head in zip(pools, _listed(roi_head.mask_head), strict=True):
        head(_pooled(pool, len(image) * INSTANCES, image.device))


def _listed(modules) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def _pooled(extractor: nn.Module, count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(
        count, extractor.out_channels, *extractor.roi_layers[0].output_size, device=device)
