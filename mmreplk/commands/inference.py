"""Images and videos through a trained model: the codebase's inferencer computes, we draw."""

import os
import os.path as osp
import sys
from collections.abc import Callable, Iterator
from glob import escape, glob

import cv2
import mmcv
import numpy as np
from mmengine.config import Config

from ..config.edit import innermost
from ..config.types import is_label_loader, type_names
from . import drawing
from .evaluation import set_default_visualizer

LOADER = 'LoadImageFromFile'
IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
VIDEO_LEGEND = 3  # lines


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


def build_predictor(cfg: Config, checkpoint: str, device: str | None, score_thr: float,
                    opacity: float) -> Callable[[np.ndarray], drawing.Drawing]:
    """Build a model that predicts and draws one image after the other.

    Args:
        cfg (Config): The full config, of any of the three codebases.
        checkpoint (str): Weights, a path or an address.
        device (str, optional): Such as ``cuda:0``. None takes a GPU where there is one.
        score_thr (float): Detections below this score are not drawn.
        opacity (float): Of masks, 0 to 1.

    Returns:
        Callable: Takes an image as OpenCV reads it, BGR ``(H, W, 3)`` uint8.
    """
    set_default_visualizer(cfg)  # the inferencers need one, and nowhere to draw
    cfg.visualizer['vis_backends'] = []
    use_known_names(cfg)
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        inferencer.show_progress = False  # MMSegmentation 1.2 takes no argument for it
        meta = _meta(inferencer)

        def predict(image):
            sample = inferencer(image, return_datasamples=True)
            sample = sample[0] if isinstance(sample, list) else sample
            found = sample.pred_sem_seg.data[0].cpu().numpy()
            return drawing.of_segments(mmcv.bgr2rgb(image), found, meta['classes'],
                                       meta.get('palette'), opacity)
    elif cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer
        inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        meta = _meta(inferencer)

        def predict(image):
            sample, = inferencer(image, return_datasamples=True)['predictions']
            return drawing.of_detections(mmcv.bgr2rgb(image), sample.pred_instances,
                                         meta['classes'], meta.get('palette'), opacity, score_thr)
    else:
        from mmpretrain.apis import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)

        def predict(image):
            scores = np.asarray(inferencer(image)[0]['pred_scores'])
            classes = inferencer.classes or [f'class {index}' for index in range(len(scores))]
            return drawing.of_classes(mmcv.bgr2rgb(image), scores, classes)
    return predict


def _meta(inferencer) -> dict:
    """Names and colors of the classes: the checkpoint's, else what the inferencer falls back to."""
    meta = getattr(inferencer.model, 'dataset_meta', None)
    return meta if meta and meta.get('classes') else inferencer.visualizer.dataset_meta


def kind_of_input(path: str, out: str) -> str:
    """What an input is, and whether the output goes with it.

    Args:
        path (str): An image, a folder of images or a video.
        out (str): What is to be written.

    Returns:
        str: ``'folder'``, ``'video'`` or ``'image'``.

    Raises:
        ValueError: If a folder has no images, or ``out`` is no name for the result.
    """
    if osp.isdir(path):
        if not _images(path):
            raise ValueError(f'IMAGE: the folder {path!r} has no images ({", ".join(IMAGES)}).')
        if osp.splitext(out)[1].lower() in IMAGES + VIDEOS:
            raise ValueError(f'--out {out}: IMAGE is a folder; name a folder.')
        return 'folder'
    kind, endings = ('video', ('.mp4', '.avi')) if path.lower().endswith(VIDEOS) else (
        'image', IMAGES)
    if not out.lower().endswith(endings):
        raise ValueError(f'--out {out}: name a file that ends in {" or ".join(endings)}.')
    return kind


def draw(predict: Callable, kind: str, path: str, out: str) -> None:
    """Predict, write the drawings, and print where they are and what was found.

    Args:
        predict (Callable): Of :func:`build_predictor`.
        kind (str): Of :func:`kind_of_input`.
        path (str): The input.
        out (str): The output.

    Raises:
        ValueError: If the image or video cannot be read.
    """
    if kind == 'video':
        _draw_video(predict, path, out)
        return
    files = _images(path) if kind == 'folder' else [path]
    for number, file in enumerate(files, 1):
        target = out if kind == 'image' else osp.join(out, osp.basename(file))
        image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'IMAGE: {file!r} is no image that can be read.')
        result = predict(image)
        mmcv.imwrite(mmcv.rgb2bgr(drawing.render(result)), target)
        count = f'{number}/{len(files)} ' if kind == 'folder' else ''
        print(f'{count}{target}: {result.words}', flush=True)


def _images(folder: str) -> list[str]:
    return sorted(file for file in glob(osp.join(escape(folder), '*'))
                  if file.lower().endswith(IMAGES))


def _draw_video(predict: Callable, path: str, out: str) -> None:
    source = cv2.VideoCapture(path)
    count, rate = int(source.get(cv2.CAP_PROP_FRAME_COUNT)), source.get(cv2.CAP_PROP_FPS) or 25
    writer, seen, number = None, set(), 0
    for number, frame in enumerate(_frames(source), 1):
        result = predict(frame)
        drawn = mmcv.rgb2bgr(drawing.render(result, VIDEO_LEGEND))
        drawn = drawn[:drawn.shape[0] // 2 * 2, :drawn.shape[1] // 2 * 2]  # as codecs want it
        if writer is None:
            code = 'mp4v' if out.lower().endswith('.mp4') else 'MJPG'
            os.makedirs(osp.dirname(osp.abspath(out)), exist_ok=True)
            writer = cv2.VideoWriter(out, cv2.VideoWriter_fourcc(*code), rate, drawn.shape[1::-1])
            if not writer.isOpened():
                raise ValueError(f'--out: OpenCV cannot write {out!r} here. Try the ending .avi.')
        writer.write(drawn)
        if number % max(1, count // 20) == 0:
            print(f'frame {number}/{count}: {result.words}', file=sys.stderr, flush=True)
        seen.update(text for text, _ in result.legend)
    source.release()
    if writer is None:
        raise ValueError(f'IMAGE: {path!r} is no video that OpenCV can read.')
    writer.release()
    names = sorted({text.removesuffix('%').rsplit(' ', 1)[0] if text.endswith('%') else
                    text.partition(' x ')[2] for text in seen})
    print(f'{out}: {number} frames, {", ".join(names) or "nothing found"}', flush=True)


def _frames(source) -> Iterator[np.ndarray]:
    while True:
        more, frame = source.read()
        if not more:
            return
        yield frame
