"""The networks that network.py compares: built alike, from the same random weights."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from networks import with_plain_convolutions
from torch import nn

CLASSES = 1000
ARCHS = ('31B', '31L', 'XL')
# Of the paper's table 6 and of ConvNeXt's; timm's names at 224 and at other sizes, and published
# parameters in millions, which the built network has to have.
TIMM = {
    'Swin-B': ('swin_base_patch4_window7_224', 'swin_base_patch4_window12_384', 88),
    'Swin-L': ('swin_large_patch4_window7_224', 'swin_large_patch4_window12_384', 197),
    'ConvNeXt-B': ('convnext_base', 'convnext_base', 89),
    'ConvNeXt-L': ('convnext_large', 'convnext_large', 198),
}
NETWORKS = (*(f'RepLKNet-{arch}' for arch in ARCHS), *TIMM)


class Candidate(NamedTuple):
    """One way to compute a network.

    Attributes:
        model (nn.Module): On its device, in its mode, dtype and memory format.
        layout (torch.memory_format): For the images.
        group (str): Candidates of one group compute the same function.
    """
    model: nn.Module
    layout: torch.memory_format
    group: str


class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer.

    Args:
        backbone (nn.Module): Returns a sequence of maps ``(N, C, H, W)``; the last is taken.
        channels (int): C of the last.
    """

    def __init__(self, backbone: nn.Module, channels: int):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, 3, H, W)`` to ``(N, 1000)``."""
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


def randomize(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that make a wrong fold visible, and keep values in range."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.bias, -0.1, 0.1),
                                      (module.running_var, 0.8, 1.2), (module.weight, 0.8, 1.2)):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def replknet(arch: str | dict, **options) -> Classifier:
    """Our classifier with random weights."""
    from mmreplk import RepLKNet
    backbone = RepLKNet(arch, final_norm=True, out_indices=(3, ), drop_path_rate=0.0, **options)
    return randomize(Classifier(backbone, backbone.arch.channels[-1]))


def mmpretrains(ours: Classifier) -> Classifier:
    """The same network on MMPretrain's class, with the same weights."""
    from mmpretrain.models.backbones import RepLKNet
    arch = {key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(ours.backbone.arch).items() if key != 'ffn_ratio'}
    last = len(arch['channels']) - 1
    theirs = Classifier(RepLKNet(arch, out_indices=(last, ), drop_path_rate=0.0,
                                 ffn_ratio=ours.backbone.arch.ffn_ratio), arch['channels'][-1])
    # It keeps the norm before the pooling as that of the last stage.
    theirs.load_state_dict({
        name.replace('backbone.norm.', f'backbone.stages.{last}.norm.'): value
        for name, value in ours.state_dict().items()})
    return theirs


def timms(name: str, size: int) -> nn.Module:
    """A network of timm with random weights.

    Raises:
        ValueError: If it has not the published number of parameters.
    """
    import timm
    small, large, millions = TIMM[name]
    options = dict(img_size=size) if name.startswith('Swin') else {}
    model = timm.create_model(small if size <= 224 else large, num_classes=CLASSES, **options)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    if abs(count - millions) > 1:
        raise ValueError(f'{name} of timm has {count:.1f}M parameters, not {millions}M')
    return model


def classifiers(name: str, size: int, training: bool, wanted) -> dict[str, Callable]:
    """The ways to compute a classifier: functions that build them, on the CPU in float32.

    Args:
        name (str): One of :data:`NETWORKS`.
        size (int): Side of the images.
        training (bool): For training, which needs norms and both branches.
        wanted (Container[str]): Names to build.

    Returns:
        dict[str, Callable[[], Candidate]]: By name.
    """
    nchw, last = torch.contiguous_format, torch.channels_last
    if name in TIMM:
        model = timms(name, size)
        found = dict(timm=(lambda: model, nchw, 'timm'))
        if name.startswith('ConvNeXt'):
            found['timm channels_last'] = lambda: copy.deepcopy(model), last, 'timm'
    else:
        ours = replknet(name.removeprefix('RepLKNet-'))
        found = _trained(ours) if training else _deployed(ours)
    return {key: (lambda make=make, layout=layout, group=group: Candidate(make(), layout, group))
            for key, (make, layout, group) in found.items() if key in wanted}


def _trained(ours: Classifier) -> dict:
    nchw, last = torch.contiguous_format, torch.channels_last

    def checkpointed(what):
        model = replknet(asdict(ours.backbone.arch), with_cp=what)
        model.load_state_dict(ours.state_dict())
        return model

    return {
        'ours': (lambda: copy.deepcopy(ours), nchw, 'replknet'),
        'ours channels_last': (lambda: copy.deepcopy(ours), last, 'replknet'),
        **{f'ours with_cp={what}': (lambda what=what: checkpointed(what), nchw, 'replknet')
           for what in ('large_kernel', 'ffn', True)},
        'conv2d': (lambda: with_plain_convolutions(ours), nchw, 'replknet'),
        'conv2d channels_last': (lambda: with_plain_convolutions(ours), last, 'replknet'),
        'mmpretrain': (lambda: mmpretrains(ours), nchw, 'replknet'),
    }


def _deployed(ours: Classifier) -> dict:
    nchw, last = torch.contiguous_format, torch.channels_last

    def deployed():
        model = copy.deepcopy(ours)
        model.backbone.switch_to_deploy()
        return model

    def merged():
        model = mmpretrains(ours)
        model.backbone.switch_to_deploy()
        return model

    return {
        'ours': (deployed, nchw, 'replknet'),
        'ours channels_last': (deployed, last, 'replknet'),
        'ours compiled': (lambda: torch.compile(deployed()), nchw, 'replknet'),
        'ours not deployed': (lambda: copy.deepcopy(ours), nchw, 'replknet'),
        'conv2d': (lambda: with_plain_convolutions(deployed()), nchw, 'replknet'),
        'conv2d channels_last': (lambda: with_plain_convolutions(deployed()), last, 'replknet'),
        'mmpretrain': (lambda: mmpretrains(ours), nchw, 'replknet'),
        'mmpretrain merged': (merged, nchw, 'replknet'),
    }


CANDIDATES = ('ours', 'ours channels_last', 'ours compiled', 'ours not deployed',
              'ours resize first', 'ours with_cp=large_kernel', 'ours with_cp=ffn',
              'ours with_cp=True', 'conv2d', 'conv2d channels_last', 'mmpretrain',
              'mmpretrain merged', 'timm', 'timm channels_last')
