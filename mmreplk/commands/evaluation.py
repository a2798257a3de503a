"""The options of test.py, as changes to the config, for each of the three codebases."""

import os.path as osp
from copy import deepcopy

from mmengine.config import Config, ConfigDict
from mmengine.visualization import LocalVisBackend

from ..config.edit import leaves
from ..config.types import class_of, type_names

VISUALIZERS = {
    'mmseg': 'SegLocalVisualizer',
    'mmdet': 'DetLocalVisualizer',
    'mmpretrain': 'UniversalVisualizer',
}
VISUALIZATION_HOOKS = {
    'mmseg': 'SegVisualizationHook',
    'mmdet': 'DetVisualizationHook',
    'mmpretrain': 'VisualizationHook',
}
TTA_MODELS = {
    'mmseg': dict(type='SegTTAModel'),
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}
PNG_WRITERS = ('IoUMetric', 'CityscapesMetric')
DUMPERS = {'mmdet': 'DumpDetResults', 'mmpretrain': 'DumpResults'}


def name_as_test(cfg: Config) -> None:
    """Name the copy of the config in the work dir ``<name>_test.py``.

    The Runner writes that copy under the config's own name, over that of the training run.

    Args:
        cfg (Config): The full config, changed in place.
    """
    stem, suffix = osp.splitext(cfg.filename)
    # Config passes attributes on to its dictionary, except in this way, which its own code uses
    # (tried with mmengine 0.10.7 and onedl-mmengine 0.10.12).
    object.__setattr__(cfg, '_filename', f'{stem}_test{suffix}')


def metrics_of(cfg: Config) -> list:
    """Turn ``test_evaluator`` into a list of metrics that can be appended to.

    Args:
        cfg (Config): The full config, changed in place.

    Returns:
        list[dict]: The list inside the config.
    """
    evaluator = deepcopy(cfg.test_evaluator)
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        metrics = evaluator['metrics']
        evaluator['metrics'] = metrics if isinstance(metrics, list) else [metrics]
        cfg.test_evaluator = evaluator
        return cfg.test_evaluator['metrics']
    cfg.test_evaluator = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    return cfg.test_evaluator


def use_out(cfg: Config, out: str) -> None:
    """``--out``: write the predictions, as PNG files or as a pickle.

    Args:
        cfg (Config): The full config, changed in place.
        out (str): A folder for segmentors, a ``.pkl`` file for detectors and classifiers.

    Raises:
        ValueError: If the path has the wrong form, or no metric of the config writes predictions.
    """
    scope = cfg.default_scope
    metrics = metrics_of(cfg)
    if scope == 'mmseg':
        if out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out {out}: segmentors write PNG files; name a folder.')
        writers = [item for item in metrics
                   if set(PNG_WRITERS) & set(type_names(item, 'METRICS', scope))]
        if not writers:
            raise ValueError('--out: no metric of test_evaluator writes predictions. Add '
                             "dict(type='IoUMetric') to it.")
        # The first alone: a second one would write the same files.
        writers[0].update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {out}: {scope} writes one pickle; name a file that ends in .pkl.')
    metrics.append(dict(type=DUMPERS[scope], out_file_path=out))


def set_default_visualizer(cfg: Config) -> None:
    """Give a config without a visualizer that of its codebase.

    Args:
        cfg (Config): The full config, changed in place.
    """
    if cfg.get('visualizer') is None:
        cfg.visualizer = dict(type=VISUALIZERS[cfg.default_scope], name='visualizer')


def use_show_dir(cfg: Config, folder: str, processes: int = 1) -> None:
    """``--show-dir``: draw the prediction for every image, straight into a folder.

    Args:
        cfg (Config): The full config, changed in place.
        folder (str): The folder.
        processes (int): The number of processes. Defaults to 1.

    Raises:
        ValueError: With test-time augmentation of a classifier, which MMPretrain cannot draw.
    """
    scope = cfg.default_scope
    if scope == 'mmpretrain' and 'module' in cfg.model:
        raise ValueError('--show-dir: MMPretrain cannot draw augmented images. Leave --tta out.')
    # Absolute, since the codebases take a relative path from different places.
    folder = osp.abspath(folder)
    cfg.setdefault('default_hooks', ConfigDict())
    hook = cfg.default_hooks.get('visualization') or ConfigDict(type=VISUALIZATION_HOOKS[scope])
    hook['interval'] = 1
    if scope == 'mmpretrain':
        hook.update(enable=True, out_dir=folder)
    else:
        hook['draw'] = True
    if scope == 'mmdet':
        hook['test_out_dir'] = folder
    cfg.default_hooks.visualization = hook
    set_default_visualizer(cfg)
    if scope == 'mmseg':
        # Its hook draws through the visualizer's backends only.
        others = [item for item in cfg.visualizer.get('vis_backends') or []
                  if class_of(item, 'VISBACKENDS', scope) is not LocalVisBackend]
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend', img_save_dir=folder), *others]
    if processes > 1:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []),
                            dict(type='mmreplk.DrawOnEveryProcessHook')]


def flip_pipeline(pipeline: list, scope: str) -> list:
    """Make a pipeline with horizontal flip out of a test pipeline.

    Args:
        pipeline (list[dict]): The test pipeline; packing the inputs comes last.
        scope (str): The codebase.

    Returns:
        list[dict]: The pipeline for test-time augmentation.
    """
    *steps, pack = deepcopy(list(pipeline))
    if scope == 'mmdet':
        # The merge needs to know of the flip; the list of the test pipeline leaves it out.
        keys = pack.get('meta_keys',
                        ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
        pack['meta_keys'] = tuple(dict.fromkeys((*keys, 'flip', 'flip_direction')))
    # Unflipped first: the codebases take the label, which is flipped too, from the first copy.
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def use_tta(cfg: Config) -> None:
    """``--tta``: test-time augmentation, by the config's ``tta_model`` and ``tta_pipeline``.

    What the config does not have is replaced by a horizontal flip and the codebase's own merge.

    Args:
        cfg (Config): The full config, changed in place.

    Raises:
        ValueError: If masks of instances are to be evaluated; MMDetection merges boxes only.
    """
    scope = cfg.default_scope
    if scope == 'mmdet' and 'mask_head' in str(cfg.model):
        raise ValueError('--tta: MMDetection merges boxes only, and this model predicts masks. '
                         'Leave --tta out.')
    cfg.test_dataloader = deepcopy(cfg.test_dataloader)
    wrapper = deepcopy(cfg.get('tta_model') or TTA_MODELS[scope])
    wrapper['module'] = cfg.model
    cfg.model = wrapper
    for dataset in leaves(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.get('tta_pipeline') or flip_pipeline(dataset['pipeline'], scope)


def use_test_amp(cfg: Config) -> None:
    """``--amp``: predict under autocast, float16 on a GPU and bfloat16 on a CPU.

    Args:
        cfg (Config): The full config, changed in place.
    """
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')
    cfg.test_cfg['fp16'] = True


def use_acceleration(cfg: Config) -> None:
    """``--accelerate``: depth-wise convolutions, 1x1 convolutions and UperNet's head run by ours.

    Args:
        cfg (Config): The full config, changed in place.
    """
    hooks = [hook for hook in cfg.get('custom_hooks') or []
             if hook.get('type') not in ('AccelerateHook', 'mmreplk.AccelerateHook')]
    cfg.custom_hooks = [*hooks, dict(type='mmreplk.AccelerateHook', inference=True)]
