"""Parameters and multiply-adds of any model of the three codebases, by part and by kind of layer.

Counted are the multiply-adds of convolutions and matrix products, as in the tables of the field;
norms, activations, pooling, resizing and RoI pooling are not. Everything runs on the meta device,
so that a model of any size costs seconds and no memory, and weights are never looked for.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import flop_registry

from ...ops.torch_internals import ConvNd, TorchDispatchMode, packet_of
from .models import (
    build_on_meta,
    check_shape,
    default_shape,
    first_channels,
    merge,
    run_model,
    silence,
)
from .profiling import DEPTHWISE, OTHER, POINTWISE, conv_kind

KINDS = (DEPTHWISE, POINTWISE, OTHER)


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
    check_shape(shape)
    model = build_on_meta(cfg)
    mergeable = any(hasattr(module, 'switch_to_deploy') for module in model.modules())
    if deploy:
        merge(model, cfg)
    parts = {name: PartCost() for name in _part_names(model)}
    _count_params(model, parts)
    counter = _Counter(parts)
    image = torch.empty(1, first_channels(model), *shape, device='meta')
    try:
        with silence(), _parts_announced(model, counter), torch.no_grad(), counter:
            run_model(model, image)
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(f'CONFIG {cfg.filename}: the model cannot be counted on an image of '
                           f'{shape[0]} x {shape[1]} pixels: {error}') from error
    used = {name: part for name, part in parts.items()
            if any(part.params.values()) or any(part.macs.values())}
    return ModelCost(used, tuple(shape), deploy if mergeable else None)


def _part_names(model: nn.Module) -> list[str]:
    """The model's children; a RoI head, which is a bag of heads, stands for its own children."""
    names = ['']
    for name, child in model.named_children():
        if name == 'roi_head':
            names += [f'{name}.{inner}' for inner, _ in child.named_children()]
        names.append(name)
    return names


def _kind(module: nn.Module) -> str:
    if not isinstance(module, ConvNd):
        return OTHER
    return conv_kind(module.weight.shape, module.groups)


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
        operator = packet_of(func)
        if operator in flop_registry:
            # PyTorch counts a multiplication and an addition as two.
            macs = flop_registry[operator](*args, **kwargs, out_val=out) // 2
            self.parts[self.running[-1]].macs[self._kind(operator, args)] += macs
        return out

    @staticmethod
    def _kind(operator, args) -> str:
        if operator is torch.ops.aten.convolution:
            return conv_kind(args[1].shape, groups=args[8])
        return DEPTHWISE if 'dwconv2d' in str(operator) else OTHER


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
