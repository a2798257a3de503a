"""Whole networks for benchmarks: built from a config, and with other convolutions inside."""

import copy

from torch import nn


def build(name: str, crop: tuple[int, int]):
    """A config's model with random weights, fitted to one process on this device.

    UperNet has the head of deployed models, which computes the same.

    Args:
        name (str): A config file, or ``mmreplk::NAME.py``.
        crop (tuple[int, int]): Height and width of the images.

    Returns:
        tuple[Config, nn.Module]: The full config, and the model in training mode.
    """
    from mmengine.registry import MODELS, init_default_scope

    import mmreplk  # noqa: F401  # registers RepLKNet
    from mmreplk.config.edit import replace_sync_bn
    from mmreplk.config.files import read
    from mmreplk.deploy.merge import deploy_config
    cfg = read(name)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    cfg.model.backbone.init_cfg = None
    if 'decode_head' in cfg.model:  # of the others, the preprocessor takes any size
        cfg.model.data_preprocessor.size = crop
        cfg.model.decode_head.type = deploy_config(cfg).model.decode_head.type
    replace_sync_bn(cfg.model)
    return cfg, MODELS.build(cfg.model).train()


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """A copy in which every convolution of ours is an `nn.Conv2d` with the same weights.

    UperNet's head is MMSegmentation's then.
    """
    from mmreplk.models.cpu_inference.pointwise import PointwiseConv2d
    from mmreplk.ops import LargeKernelDWConv2d
    model = resized_first(copy.deepcopy(model))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (LargeKernelDWConv2d, PointwiseConv2d)):
                conv = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size,
                                 child.stride, child.padding, child.dilation, child.groups,
                                 child.bias is not None, child.padding_mode)
                conv.load_state_dict(child.state_dict())
                conv.to(child.weight)
                if child.activation == 'relu':
                    conv = nn.Sequential(conv, nn.ReLU(inplace=True))
                elif child.activation == 'gelu':
                    conv = nn.Sequential(conv, nn.GELU())
                setattr(module, name, conv)
        # Behind a merged kernel, where our operator does it on the way; others are in place by now.
        if getattr(getattr(module, 'large_kernel', None), 'deploy', False) and (
                isinstance(module.lk_nonlinear, nn.ReLU)):
            module.lk_nonlinear.inplace = True
    return model


def resized_first(model: nn.Module) -> nn.Module:
    """The model, with the order of things in UperNet's head that MMSegmentation has."""
    for module in model.modules():
        if hasattr(module, 'resize_last'):
            module.resize_last = False
    return model
