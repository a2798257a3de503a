"""One image through a trained model, drawn by the codebase's own inferencer."""

import os
import os.path as osp
import tempfile

import mmcv
import numpy as np
from mmengine.config import Config

from ..config.edit import innermost
from ..config.types import is_label_loader, type_names
from .evaluation import set_default_visualizer

LOADER = 'LoadImageFromFile'


def _draw_segmentation(cfg, checkpoint, image, device, score_thr) -> np.ndarray:
    from mmseg.apis import MMSegInferencer
    inferencer = MMSegInferencer(cfg, checkpoint, device=device)
    inferencer.show_progress = False  # MMSegmentation 1.2 takes no argument for it
    return inferencer(image, return_vis=True)['visualization']


def _draw_detection(cfg, checkpoint, image, device, score_thr) -> np.ndarray:
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
    return inferencer(image, return_vis=True, pred_score_thr=score_thr)['visualization'][0]


def _draw_classification(cfg, checkpoint, image, device, score_thr) -> np.ndarray:
    from mmpretrain.apis import ImageClassificationInferencer
    inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
    # It draws only what it also writes.
    with tempfile.TemporaryDirectory() as folder:
        inferencer(image, show_dir=folder)
        return mmcv.imread(osp.join(folder, os.listdir(folder)[0]), channel_order='rgb')


DRAW = {
    'mmseg': _draw_segmentation,
    'mmdet': _draw_detection,
    'mmpretrain': _draw_classification,
}


def use_known_names(cfg: Config) -> None:
    """Write the test pipeline as the inferencers expect it, which look for names of transforms.

    Args:
        cfg (Config): The full config, changed in place: no transform reads annotations, and the one
            that loads the image has its bare name.
    """
    scope = cfg.default_scope
    pipeline = [step for step in innermost(cfg.test_dataloader.dataset)['pipeline']
                if not is_label_loader(step, scope)]
    for step in pipeline:
        if type_names(step, 'TRANSFORMS', scope)[:1] == (LOADER, ):
            step['type'] = LOADER
    cfg.test_dataloader.dataset['pipeline'] = pipeline


def draw_prediction(cfg: Config,
                    checkpoint: str,
                    image: str,
                    out: str,
                    device: str | None = None,
                    score_thr: float = 0.3) -> None:
    """Predict for one image and write the picture.

    Args:
        cfg (Config): The full config, of any of the three codebases.
        checkpoint (str): Weights, a path or an address.
        image (str): The image.
        out (str): The picture to write.
        device (str, optional): Such as ``cuda:0``. Defaults to None, a GPU where there is one.
        score_thr (float): Detections below this score are not drawn. Defaults to 0.3.
    """
    set_default_visualizer(cfg)  # the inferencers need one
    use_known_names(cfg)
    picture = DRAW[cfg.default_scope](cfg, checkpoint, image, device, score_thr)
    mmcv.imwrite(mmcv.rgb2bgr(np.asarray(picture)), out)
