"""ONNX files of merged models, for any batch and size, checked with onnxruntime."""

import json
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from ..config.types import type_names
from ..files import write_new
from ..version import __version__
from .merge import TOLERANCE, Difference, load_model

PARTS = ('model', 'backbone')
_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
_LIMIT = 1 << 31  # bytes of a protobuf message
# Before torch 2.6 the exporter of captured graphs ties them to the sizes of the example.
_TRACES_GRAPHS = torch.__version__ >= '2.6'


class BinAveragePool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products with matrices, which ONNX can do for any map size.

    Bin i of k over n points spans ``floor(i * n / k)`` to ``ceil((i + 1) * n / k)``, as in PyTorch.
    The mean over a rectangle is a mean over its rows of means over its columns.

    Args:
        output_size (int | tuple[int, int]): Bins down and right.
    """

    def __init__(self, output_size: int | tuple[int, int]):
        super().__init__()
        self.bins = (output_size, ) * 2 if isinstance(output_size, int) else tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, *bins)``."""
        if self.bins == (1, 1):
            return x.mean((2, 3), keepdim=True)
        down, right = (self._means(n, k, x) for n, k in zip(x.shape[2:], self.bins, strict=True))
        return down @ x @ right.transpose(0, 1)

    @staticmethod
    def _means(points: int, bins: int, like: Tensor) -> Tensor:
        index = torch.arange(bins, device=like.device)
        start = index * points // bins
        end = ((index + 1) * points + bins - 1) // bins
        point = torch.arange(points, device=like.device)
        inside = (point >= start[:, None]) & (point < end[:, None])
        return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)


class SegmentorLogits(nn.Module):
    """A segmentor from normalized images to logits at their size.

    Args:
        segmentor (EncoderDecoder): Of MMSegmentation.
    """

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, classes, H, W)``."""
        logits = self.segmentor.decode_head(self.segmentor.extract_feat(image))
        return F.interpolate(logits, size=image.shape[2:], mode='bilinear',
                             align_corners=self.segmentor.align_corners)


class ClassifierScores(nn.Module):
    """A classifier from normalized images to probabilities.

    Args:
        classifier (ImageClassifier): Of MMPretrain, with one linear head.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, classes)``."""
        return self.classifier.head(self.classifier.extract_feat(image)).softmax(1)


def check_exportable(cfg: Config, part: str) -> None:
    """Check that a part of a config's model can be exported here.

    Args:
        cfg (Config): The full config.
        part (str): One of :data:`PARTS`.

    Raises:
        ModuleNotFoundError: If a package is missing.
        ValueError: If the model is neither a segmentor nor a classifier of the kind known here.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'{", ".join(missing)} not installed: '
                                  f'pip install {" ".join(missing)}')
    if part == 'backbone':
        return
    kind, head = (next(iter(type_names(node, 'MODELS', cfg.default_scope)), None)
                  for node in (cfg.model, cfg.model.get('head')))
    if cfg.default_scope == 'mmdet':
        raise ValueError(f'CONFIG {cfg.filename}: {kind} is a detector; what follows the backbone '
                         "is not exported here. Use part='backbone'.")
    if (kind, head) not in (('EncoderDecoder', None), ('ImageClassifier', 'LinearClsHead')):
        raise ValueError(
            f'CONFIG {cfg.filename}: {kind}{f" with {head}" if head else ""} is neither an '
            "EncoderDecoder nor an ImageClassifier with LinearClsHead. Use part='backbone'.")


def exportable_module(model: nn.Module, part: str) -> tuple[nn.Module, list[str]]:
    """The part of a model to be exported, with adaptive pooling in a form that ONNX knows.

    Args:
        model (nn.Module): From the config, merged, in evaluation mode; changed in place.
        part (str): One of :data:`PARTS`.

    Returns:
        tuple[nn.Module, list[str]]: The module, and the names of its outputs.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, BinAveragePool2d(child.output_size))
    if part == 'backbone':
        return model.backbone, [f'stage{index}' for index in model.backbone.out_indices]
    if hasattr(model, 'decode_head'):
        return SegmentorLogits(model).eval(), ['logits']
    return ClassifierScores(model).eval(), ['scores']


@contextmanager
def _plain_resize(module: nn.Module):
    """Put ``F.interpolate`` in place of MMSegmentation's ``resize``.

    It is the same, but checks sizes for a warning, which would tie the graph to one size.
    """
    def resize(input, size=None, scale_factor=None, mode='nearest', align_corners=None,
               warning=True):
        return F.interpolate(input, size, scale_factor, mode, align_corners)

    found = []
    # A class may resize in what it inherits, as our UPerHead does.
    for name in {kind.__module__ for part in module.modules() for kind in type(part).__mro__}:
        original = getattr(sys.modules[name], 'resize', None)
        if getattr(original, '__module__', '').startswith('mmseg.'):
            found.append((sys.modules[name], original))
            sys.modules[name].resize = resize
    try:
        yield
    finally:
        for owner, original in found:
            owner.resize = original


def describe_input(model: nn.Module) -> dict[str, str]:
    """How a image becomes the input, for the metadata of the file.

    Args:
        model (nn.Module): From the config.

    Returns:
        dict[str, str]: ``mean``, ``std`` (0-255 scale, one a channel) and ``channels``.
    """
    preprocessor = model.data_preprocessor
    if not hasattr(preprocessor, 'mean'):
        return dict(mean='[]', std='[]')
    # The names differ between the codebases; MMSegmentation's and MMDetection's is private. Tried
    # with the versions of requirements/.
    converts = getattr(preprocessor, 'channel_conversion',
                       getattr(preprocessor, '_channel_conversion', False))
    return dict(
        mean=json.dumps([round(value, 4) for value in preprocessor.mean.flatten().tolist()]),
        std=json.dumps([round(value, 4) for value in preprocessor.std.flatten().tolist()]),
        channels='RGB' if converts else 'BGR')


def export(cfg: Config, checkpoint: str | None, out: str, part: str = 'model',
           size: tuple[int, int] = (224, 224)) -> tuple[list[str], bool]:
    """Merge a model, write it as ONNX, and compare the file with PyTorch.

    Batch, height and width are free in the file. Large kernels are plain ``Conv`` nodes.

    Args:
        cfg (Config): The full config.
        checkpoint (str, optional): Its weights; None for random ones.
        out (str): The file to write, which must not exist.
        part (str): One of :data:`PARTS`. Defaults to 'model'.
        size (tuple[int, int]): Height and width of the first comparison; the second has batch 2
            and other sizes. Defaults to (224, 224).

    Returns:
        tuple[list[str], bool]: Lines for the user, and whether ONNX and PyTorch agree. If they do
        not, nothing is written.

    Raises:
        FileExistsError: If ``out`` exists.
        ValueError: If the weights do not fit, or the file would be too large.
    """
    model, meta = load_model(cfg, checkpoint)
    model.backbone.switch_to_deploy()
    module, names = exportable_module(model, part)
    weight = sum(value.nbytes for value in module.state_dict().values())
    if weight >= _LIMIT:
        raise ValueError(f'OUT: {weight / 2**30:.1f} GiB of weights do not fit into an ONNX file.')
    metadata = dict(describe_input(model), part=part, mmreplk=__version__,
                    classes=json.dumps((meta.get('dataset_meta') or {}).get('classes', ())))
    channels = model.backbone.stem[0].conv.in_channels
    shapes = (1, channels, *size), (2, channels, size[0] + 33, max(size[1] - 31, 32))
    lines = [] if checkpoint else ['No CHECKPOINT, so the weights are random.']

    def write(path: str) -> bool:
        trace(module, names, shapes[1], path, metadata)
        lines.append(summary(path, out))
        found = [(shape, check(path, module, names, shape)) for shape in shapes]
        lines.extend(f'  {"x".join(map(str, shape))}, {difference}'
                     for shape, differences in found for difference in differences)
        return all(difference.ok for _, differences in found for difference in differences)

    agree = write_new(out, write)
    if not agree:
        lines.append(f'That is more than rounding ({TOLERANCE:g}). Nothing is written.')
    return lines, agree


def trace(module: nn.Module, names: list[str], shape: tuple[int, ...], path: str,
          metadata: dict[str, str]) -> None:
    """Write a module as an ONNX file.

    Args:
        module (nn.Module): From :func:`exportable_module`.
        names (list[str]): Of its outputs.
        shape (tuple[int, ...]): Of an example input; all but the channels is left free.
        path (str): The file.
        metadata (dict[str, str]): To be kept in it.
    """
    image = torch.zeros(shape)
    free = {0: 'batch', 2: 'height', 3: 'width'}
    with _plain_resize(module), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporters about themselves
        if _TRACES_GRAPHS:
            program = torch.onnx.export(
                module, (image, ), dynamo=True, input_names=['image'], output_names=names,
                dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in free.items()}, ),
                verbose=False)
            program.model.metadata_props.update(metadata)
            program.save(path, external_data=False)
        else:
            import onnx
            torch.onnx.export(
                module, (image, ), path, dynamo=False, input_names=['image'], output_names=names,
                dynamic_axes={'image': free, **{name: {0: 'batch'} for name in names}})
            model = onnx.load(path)
            onnx.helper.set_model_props(model, metadata)
            onnx.save(model, path)


def summary(path: str, name: str) -> str:
    """One line on what an ONNX file takes, and of what it is made."""
    import onnx
    graph = onnx.load(path).graph
    kinds = Counter(node.op_type for node in graph.node)
    shape = ', '.join(dim.dim_param or str(dim.dim_value)
                      for dim in graph.input[0].type.tensor_type.shape.dim)
    return (f'{name}: image ({shape}) to {", ".join(output.name for output in graph.output)}; '
            f'{sum(kinds.values())} nodes, {kinds["Conv"]} of them Conv')


@torch.inference_mode()
def check(path: str, module: nn.Module, names: list[str], shape: tuple[int, ...]
          ) -> list[Difference]:
    """Compare an ONNX file in onnxruntime with the module that it was made from.

    Args:
        path (str): The file.
        module (nn.Module): The module.
        names (list[str]): Of the outputs.
        shape (tuple[int, ...]): Of the input, which is normally distributed as images are after
            normalization.

    Returns:
        list[Difference]: One for each output.
    """
    import onnxruntime
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of MMSegmentation about sizes that nobody chose
        expected = module(image)
    expected = (expected, ) if isinstance(expected, Tensor) else expected
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found = session.run(None, {'image': image.numpy()})
    return [Difference.of(name, torch.from_numpy(value), wanted)
            for name, value, wanted in zip(names, found, expected, strict=True)]
