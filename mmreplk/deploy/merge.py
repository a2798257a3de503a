"""Merging a trained model, and comparing what it predicts before and after."""

import os.path as osp
import tempfile
from copy import deepcopy
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch import nn

from ..config.edit import innermost, replace_sync_bn
from ..config.model import drop_pretrained
from ..config.types import class_of, is_label_loader
from ..files import write_new
from ..registry import MODELS
from ..weights.load import load_model

# Of the largest value. Measured on full-size models with random norms: at most 3e-6, and 2e-4 or
# more if the eps of the norms is taken for 1e-3 in place of 1e-5.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """How far two runs of a model are apart in one of their outputs.

    Attributes:
        name (str): The output.
        largest (float): The largest absolute difference.
        scale (float): The largest absolute value.
    """
    name: str
    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference over the largest value."""
        return self.largest / self.scale if self.scale else self.largest

    @property
    def ok(self) -> bool:
        """Whether it is within rounding; NaN is not."""
        return self.relative <= TOLERANCE

    def __str__(self) -> str:
        return (f'{self.name}: largest difference {self.largest:.2g}, '
                f'{self.relative:.1e} of the largest value {self.scale:.3g}')

    @classmethod
    def of(cls, name: str, before: torch.Tensor, after: torch.Tensor) -> 'Difference':
        """Compare two tensors of one shape."""
        if before.shape != after.shape or not before.numel():
            return cls(name, float('nan'), float('nan'))
        return cls(name, (before - after).abs().max().item(), before.abs().max().item())


def example_image(height: int = 256, width: int = 320) -> np.ndarray:
    """An image for where the user gives none: soft patches of color with grain, always the same.

    Args:
        height (int): Rows. Defaults to 256.
        width (int): Columns. Defaults to 320.

    Returns:
        np.ndarray: ``(height, width, 3)``, uint8.
    """
    rng = np.random.default_rng(0)
    patches = cv2.resize(rng.uniform(0, 255, (6, 8, 3)), (width, height),
                         interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 12, (height, width, 3))
    return np.clip(patches + grain, 0, 255).astype(np.uint8)


def prepare_image(cfg: Config, model: nn.Module, image: str | None) -> dict:
    """Send a image through the config's test pipeline and the model's preprocessor.

    Args:
        cfg (Config): The full config, with a ``test_dataloader``.
        model (nn.Module): Its model.
        image (str, optional): A file; None for :func:`example_image`.

    Returns:
        dict: ``inputs`` and ``data_samples`` for the model.

    Raises:
        ValueError: If the pipeline cannot take a single image without labels.
    """
    steps = [step for step in innermost(cfg.test_dataloader.dataset)['pipeline']
             if not is_label_loader(step, cfg.default_scope)]
    with tempfile.TemporaryDirectory() as folder:
        if image is None:
            image = osp.join(folder, 'example.png')
            cv2.imwrite(image, example_image())
        try:
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                data = Compose(steps)(dict(img_path=osp.abspath(image), img_id=0))
        except Exception as error:  # a pipeline is the user's program
            raise ValueError(f'image: the pipeline of test_dataloader cannot take {image}: '
                             f'{type(error).__name__}: {error}') from error
    return model.data_preprocessor(pseudo_collate([data]), False)


@torch.inference_mode()
def run_model(model: nn.Module, data: dict) -> dict[str, torch.Tensor]:
    """Everything that a model makes of one image.

    Args:
        model (nn.Module): A classifier, segmentor or detector of the mm packages.
        data (dict): From :func:`prepare_image`.

    Returns:
        dict[str, Tensor]: Feature maps, ``logits`` of a segmentor, ``scores`` of a classifier or
        detector, ``boxes`` of a detector, and ``labels``.
    """
    out = {f'features {index}': value
           for index, value in enumerate(model.backbone(data['inputs']))}
    result = model(data['inputs'], deepcopy(data['data_samples']), mode='predict')[0]
    if 'seg_logits' in result:
        out.update(logits=result.seg_logits.data, labels=result.pred_sem_seg.data)
    elif 'pred_score' in result:
        out.update(scores=result.pred_score, labels=result.pred_label)
    elif 'pred_instances' in result:
        found = result.pred_instances
        out.update(boxes=found.bboxes, scores=found.scores, labels=found.labels)
    return out


def compare(before: dict, after: dict) -> tuple[list[Difference], str]:
    """Compare two results of :func:`run_model`.

    Args:
        before (dict[str, Tensor]): The one.
        after (dict[str, Tensor]): The other.

    Returns:
        tuple[list[Difference], str]: For each output, and a line on the labels.
    """
    # Which boxes survive suppression may hang on the last digit: they are reported, not judged.
    judged = [name for name in before
              if name.startswith('features') or ('boxes' not in before and name != 'labels')]
    differences = [Difference.of(name, before[name], after[name]) for name in judged]
    old, new = before.get('labels'), after.get('labels')
    if old is None:
        return differences, 'no labels to compare'
    what = 'boxes' if 'boxes' in before else 'pixels' if old.dim() > 1 else 'label'
    if old.shape != new.shape:
        return differences, f'labels: {len(old)} {what} before and {len(new)} after'
    count = int((old != new).sum())
    if what == 'label':
        return differences, f'labels: {"another one" if count else "the same"}'
    line = f'labels: {count} of {old.numel()} {what} differ' if count else (
        f'labels: the same on all {old.numel()} {what}')
    if what == 'boxes' and old.numel():
        gaps = [(before[key] - after[key]).abs().max() for key in ('scores', 'boxes')]
        line += f'; scores within {gaps[0]:.1e}, corners within {gaps[1]:.1e} pixels'
    return differences, line


def deploy_config(cfg: Config) -> Config:
    """The config of the merged model: ``deploy=True``, and no weights to start from.

    In place of MMSegmentation's ``UPerHead`` it names ``mmreplk.UPerHead``, which has the same
    weights and is faster on a CPU.

    Args:
        cfg (Config): The full config of the trained model.

    Returns:
        Config: A copy.
    """
    cfg = deepcopy(cfg)
    drop_pretrained(cfg.model)
    cfg.model.backbone.deploy = True
    if _has_uper_head(cfg):
        cfg.model.decode_head.type = 'mmreplk.UPerHead'
    cfg.load_from, cfg.resume = None, False
    return cfg


def _has_uper_head(cfg: Config) -> bool:
    """Whether the decode head is MMSegmentation's UPerHead itself, not a class derived from it."""
    head = class_of(cfg.model.get('decode_head'), 'MODELS', cfg.default_scope)
    return (getattr(head, '__module__', None), getattr(head, '__name__', None)) == (
        'mmseg.models.decode_heads.uper_head', 'UPerHead')


def deploy_model(cfg: Config, model: nn.Module) -> None:
    """Turn a trained model into that of :func:`deploy_config`, in place.

    Args:
        cfg (Config): The full config of the trained model.
        model (nn.Module): The model, from :func:`mmreplk.weights.load.load_model`.

    Raises:
        TypeError: If a norm does not fold into a convolution.
    """
    model.backbone.switch_to_deploy()
    if _has_uper_head(cfg):
        options = deepcopy(deploy_config(cfg).model.decode_head)
        replace_sync_bn(options)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            head = MODELS.build(options)
        head.load_state_dict(model.decode_head.state_dict())
        model.decode_head = head.eval()


def reparameterize(cfg: Config, checkpoint: str, out: str, config_out: str,
                   image: str | None = None) -> tuple[list[str], bool]:
    """Merge the small kernels of a trained model into the large ones, and compare it with itself.

    Args:
        cfg (Config): The full config of the trained model.
        checkpoint (str): Its weights.
        out (str): The file for the merged weights, which must not exist.
        config_out (str): The file for the config to go with it, which must not exist.
        image (str, optional): The image to compare on. Defaults to None, a drawn one.

    Returns:
        tuple[list[str], bool]: Lines for the user, and whether the predictions agree. If they do
        not, nothing is written.

    Raises:
        FileExistsError: If an output exists.
        ValueError: If the weights do not fit, are merged already, or cannot be merged.
    """
    model, meta = load_model(cfg, checkpoint)
    data = prepare_image(cfg, model, image)
    before = run_model(model, data)
    count = sum(value.numel() for value in model.parameters())
    try:
        deploy_model(cfg, model)
    except TypeError as error:
        raise ValueError(f'CONFIG {cfg.filename}: model.backbone: {error}') from error
    differences, labels = compare(before, run_model(model, data))
    size = 'x'.join(map(str, data['inputs'].shape[2:]))
    lines = [f'on {image or "a drawn picture"}, {size} after the pipeline:',
             *(f'  {difference}' for difference in differences), f'  {labels}']
    if not all(difference.ok for difference in differences):
        lines.append(f'That is more than rounding ({TOLERANCE:g}). Nothing is written.')
        return lines, False
    meta['merged_from'] = osp.basename(checkpoint)
    write_new(out, lambda path: torch.save(dict(meta=meta, state_dict=model.state_dict()), path))
    write_new(config_out, deploy_config(cfg).dump)
    merged = sum(value.numel() for value in model.parameters())
    lines += [f'{out}: merged weights, {merged:,} parameters instead of {count:,}',
              f'{config_out}: the config for them']
    return lines, True
