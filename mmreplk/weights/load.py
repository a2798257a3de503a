"""A whole model from a config and a checkpoint."""

from copy import deepcopy

from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from ..config.edit import replace_sync_bn
from ..config.model import build_model
from ..models import EnlargedBackbone, RepLKNet
from ..models.keys import is_merged
from .checks import check_model_weights, state_for_mmengine
from .layouts import DATASET_META
from .safe_load import read_any


def load_model(cfg: Config, path: str | None) -> tuple[nn.Module, dict]:
    """Build the model of a config on the CPU, in evaluation mode, and load its weights.

    Args:
        cfg (Config): The full config.
        path (str, optional): The checkpoint; None leaves the weights as constructed.

    Returns:
        tuple[nn.Module, dict]: The model, and what the checkpoint says of its data set.

    Raises:
        ValueError: If the checkpoint cannot be read safely, or does not fit.
    """
    cfg = deepcopy(cfg)
    replace_sync_bn(cfg.model)
    meta = {}
    model = build_model(cfg, 'cpu')
    if path is not None:
        try:
            checkpoint = read_any(path)
            ours = isinstance(getattr(model, 'backbone', None), (EnlargedBackbone, RepLKNet))
            if (ours and not model.backbone.deploy and is_merged(state_for_mmengine(checkpoint))):
                raise ValueError('is merged already; there is nothing left to merge. Use it with '
                                 'the config beside it, or with model.backbone.deploy=True')
            check_model_weights(build_model(cfg), checkpoint)
        except ValueError as error:
            raise ValueError(f'CHECKPOINT: {path!r} {error}.') from error
        load_state_dict(model, state_for_mmengine(checkpoint), logger='silent')
        saved = checkpoint.get('meta') or {}
        meta = {name: saved[name] for name in DATASET_META if name in saved}
    return model.eval(), meta
