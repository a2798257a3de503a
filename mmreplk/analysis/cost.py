"""Parameters and multiply-adds of any model of the three codebases, by part and by kind of layer.

Counted are the multiply-adds of convolutions and matrix products, as in the tables of the field;
norms, activations, pooling, resizing and RoI pooling are not. Everything runs on the meta device,
so that a model of any size costs seconds and no memory, and weights are never looked for.
"""

import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from mmengine.config import Config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..engine.evaluation import innermost
from ..engine.launch import replace_sync_bn
from ..engine.weights import build_model

KINDS = ('depth-wise', '1x1', 'other')
# The convention for detectors: the RPN's proposals, of which so many become instances.
PROPOSALS, INSTANCES = 1000, 100


@dataclass
class PartCost:
    """Cost of one part of a model.

    Attributes:
        params (dict[str, int]): Parameters by kind of layer, see :data:`KINDS`.
        macs (dict[str, int]): Multiply-adds by kind of layer.
    """
    params: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    macs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


@dataclass
class ModelCost:
    """Cost of a model for one image.

    Attributes:
        parts (dict[str, PartCost]): By the parts' names in the model, in its order.
        shape (tuple[int, int]): Height and width of the image in pixels.
        merged (bool | None): Whether small kernels were merged into large ones; None of a model
            that has nothing to merge.
    """
    parts: dict[str, PartCost]
    shape: tuple[int, int]
    merged: bool | None

    @property
    def params(self) -> int:
        """Parameters of the whole model, heads that only training uses included."""
        return sum(sum(part.params.values()) for part in self.parts.values())

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model in evaluation."""
        return sum(sum(part.macs.values()) for part in self.parts.values())

    def by_kind(self, what: str) -> dict[str, int]:
        """Sum over the parts.

        Args:
            what (str): ``'params'`` or ``'macs'``.

        Returns:
            dict[str, int]: One number for each of :data:`KINDS`.
        """
        return {
            kind: sum(getattr(part, what)[kind] for part in self.parts.values())
            for kind in KINDS
        }


def cost_of(cfg: Config, shape: tuple[int, int] | None = None, deploy: bool = False) -> ModelCost:
    """Count the parameters of a config's model and the multiply-adds of one image.

    What runs is what the codebases' own counters run: backbone, neck and the heads of evaluation,
    without post-processing. Heads that only training uses add parameters alone. Of a two-stage
    detector, each stage's box head sees 1000 proposals and each stage's mask head 100 instances,
    as in MMDetection 2.

    Args:
        cfg (Config): The full config; its model is not changed.
        shape (tuple[int, int], optional): Height and width of the image. Defaults to None, what
            :func:`default_shape` finds in the config.
        deploy (bool): Whether to merge small kernels into large ones first. Defaults to False.

    Returns:
        ModelCost: Parameters and multiply-adds.

    Raises:
        ValueError: If the shape is impossible, if none is given and the config does not tell one,
            or if there is nothing to merge.
        RuntimeError: If the model does not run on the meta device.
    """
    shape = shape or default_shape(cfg)
    if min(shape) < 1:
        raise ValueError(f'--shape {shape[0]} {shape[1]}: height and width must be positive.')
    model = build_on_meta(cfg)
    mergeable = [module for module in model.modules() if hasattr(module, 'switch_to_deploy')]
    if deploy and not mergeable:
        raise ValueError(f'--deploy: the model of CONFIG {cfg.filename} has nothing to merge; '
                         'leave --deploy out.')
    for module in mergeable if deploy else ():
        module.switch_to_deploy()
    parts = {name: PartCost() for name in _part_names(model)}
    _count_params(model, parts)
    counter = _Counter(parts)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    image = torch.empty(1, first.in_channels, *shape, device='meta')
    try:
        with _silence(), _parts_announced(model, counter), torch.no_grad(), counter:
            _run(model, image)
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(f'CONFIG {cfg.filename}: the model cannot be counted on an image of '
                           f'{shape[0]} x {shape[1]} pixels: {error}') from error
    used = {name: part for name, part in parts.items()
            if any(part.params.values()) or any(part.macs.values())}
    return ModelCost(used, tuple(shape), deploy if mergeable else None)


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
    crops = [step for step in dataset.get('pipeline', []) if step['type'] == 'CenterCrop']
    steps = crops or [step for step in dataset.get('pipeline', []) if step['type'] == 'Resize']
    size = steps[-1].get('crop_size', steps[-1].get('scale')) if steps else None
    if size is None:
        raise ValueError(f'CONFIG {cfg.filename}: its test pipeline has neither CenterCrop nor '
                         'Resize with a scale, so give the size of the image: --shape H W.')
    return (size, size) if isinstance(size, int) else (size[1], size[0])


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


def format_cost(cost: ModelCost) -> str:
    """Write a cost as a table of parts and one of kinds of layers, with what is counted.

    Args:
        cost (ModelCost): The cost.

    Returns:
        str: Several lines.
    """
    rows = [(name or 'model itself', sum(part.params.values()), sum(part.macs.values()))
            for name, part in cost.parts.items()]
    kinds = [(kind, cost.by_kind('params')[kind], cost.by_kind('macs')[kind]) for kind in KINDS]
    width = max(len(row[0]) for row in (*rows, *kinds, ('parameters', )))

    def line(name, params, macs):
        return f'{name:<{width}}  {params / 1e6:>10.2f} M  {macs / 1e9:>11.2f} G'

    head = f'{"":<{width}}  {"parameters":>12}  {"multiply-adds":>13}'
    rule = '-' * len(head)
    network = {
        True: ', merged network: one kernel in place of each large and small one',
        False: ', training network: small kernels beside the large ones',
        None: '',
    }[cost.merged]
    return '\n'.join([
        f'{cost.shape[0]} x {cost.shape[1]} pixels (height x width){network}', '', head, rule,
        *(line(*row) for row in rows), rule, line('whole model', cost.params, cost.macs), '',
        head, rule, *(line(*row) for row in kinds), '', _counted(cost)])


def _counted(cost: ModelCost) -> str:
    text = ('Counted: multiply-adds of convolutions and matrix products, one image, as evaluation '
            'runs them. Not counted: norms, activations, pooling, resizing.')
    idle = [name for name, part in cost.parts.items() if not any(part.macs.values())]
    if idle:
        text += f'\nNot run in evaluation: {", ".join(idle)}.'
    if any(name.startswith('roi_head') for name in cost.parts):
        text += (f'\nEach box head sees {PROPOSALS} proposals, each mask head {INSTANCES} '
                 'instances.')
    return text


@contextmanager
def _silence():
    """Without what losses and resizing warn of: nothing is trained or predicted here."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def _part_names(model: nn.Module) -> list[str]:
    """The model's children; a RoI head, which is a bag of heads, stands for its own children."""
    names = ['']
    for name, child in model.named_children():
        if name == 'roi_head':
            names += [f'{name}.{inner}' for inner, _ in child.named_children()]
        names.append(name)
    return names


def _kind(module: nn.Module) -> str:
    if not isinstance(module, nn.modules.conv._ConvNd):
        return 'other'
    return _conv_kind(module.weight.shape, module.groups)


def _conv_kind(weight_shape, groups: int) -> str:
    if groups > 1 and weight_shape[1] == 1:
        return 'depth-wise'
    return '1x1' if groups == 1 and all(size == 1 for size in weight_shape[2:]) else 'other'


def _count_params(model: nn.Module, parts: dict[str, PartCost]) -> None:
    seen = set()
    for path, module in model.named_modules():
        part = parts[_owner(path, parts)]
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                part.params[_kind(module)] += parameter.numel()


def _owner(path: str, parts) -> str:
    while path and path not in parts:
        path = path.rpartition('.')[0]
    return path


class _Counter(TorchDispatchMode):
    """Adds the multiply-adds of every operation to the part that runs it."""

    def __init__(self, parts: dict[str, PartCost]):
        super().__init__()
        self.parts = parts
        self.running = ['']

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func._overloadpacket
        if operator in flop_registry:
            # PyTorch counts a multiplication and an addition as two.
            macs = flop_registry[operator](*args, **kwargs, out_val=out) // 2
            self.parts[self.running[-1]].macs[self._kind(operator, args)] += macs
        return out

    @staticmethod
    def _kind(operator, args) -> str:
        if operator is torch.ops.aten.convolution:
            return _conv_kind(args[1].shape, groups=args[8])
        return 'depth-wise' if 'dwconv2d' in str(operator) else 'other'


@contextmanager
def _parts_announced(model: nn.Module, counter: _Counter):
    """Tell the counter which part runs, however it is called.

    Forward hooks would not do: some models call ``head.forward`` itself.
    """
    wrapped = []

    def announce(module, name):
        forward = module.forward

        def announced(*args, **kwargs):
            counter.running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                counter.running.pop()

        module.forward = announced
        wrapped.append(module)

    for name in filter(None, counter.parts):
        part = model.get_submodule(name)
        for module in part if isinstance(part, nn.ModuleList) else [part]:
            announce(module, name)
    try:
        yield
    finally:
        for module in wrapped:
            del module.forward


def _run(model: nn.Module, image: torch.Tensor) -> None:
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
        head(_pooled(pool, PROPOSALS))
    if not roi_head.with_mask:
        return
    # A mask head without an extractor of its own shares that of the boxes.
    pools = _listed(getattr(roi_head, 'mask_roi_extractor', None) or pools[-1])
    for pool, head in zip(pools, _listed(roi_head.mask_head), strict=True):
        head(_pooled(pool, INSTANCES))


def _listed(modules) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def _pooled(extractor: nn.Module, count: int) -> torch.Tensor:
    return torch.empty(
        count, extractor.out_channels, *extractor.roi_layers[0].output_size, device='meta')
