"""Whole networks for benchmarks: built from a config, and with other convolutions inside."""

import copy

import torch
from torch import nn


def build(name: str, crop: tuple[int, int]):
    """A config's model with random weights, fitted to one process on this device.

    Args:
        name (str): A config file, or ``mmreplk::NAME.py``.
        crop (tuple[int, int]): Height and width of the images.

    Returns:
        tuple[Config, nn.Module]: The full config, and the model in training mode.
    """
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import mmreplk  # noqa: F401  # makes mmreplk::NAME.py a config path
    from mmreplk.engine import launch
    cfg = Config.fromfile(name)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = crop
    launch.replace_sync_bn(cfg.model)
    return cfg, MODELS.build(cfg.model).train()


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """A copy in which every `LargeKernelDWConv2d` is an `nn.Conv2d` with the same weights."""
    from mmreplk.ops import LargeKernelDWConv2d
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LargeKernelDWConv2d):
                conv = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size,
                                 child.stride, child.padding, child.dilation, child.groups,
                                 child.bias is not None, child.padding_mode)
                conv.load_state_dict(child.state_dict())
                setattr(module, name, conv.to(child.weight))
    return model


def depthwise_share(run, device: torch.device) -> tuple[float, float]:
    """Seconds in the depth-wise convolutions of one call, and in all operators, by the profiler.

    Kernels of all sizes count, in the forward and in the backward pass. On a GPU it is the time
    of the kernels, on a CPU that of the operators in the calling and the autograd thread.

    Args:
        run (Callable): The call.
        device (torch.device): Where it runs.
    """
    from torch.profiler import ProfilerActivity, profile
    activities = [ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as trace:
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
    return sum_depthwise(trace.events(), device.type)


# The operators that a convolution is, with the place of the weight among their arguments. All of
# ours are depth-wise by definition.
_CONVOLUTIONS = {'aten::convolution': 1, 'aten::convolution_backward': 2}
_OURS = 'mmreplk::dwconv2d'


def sum_depthwise(events, device_type: str) -> tuple[float, float]:
    """`depthwise_share` of a profile's events."""
    def seconds(event):
        time = event.device_time_total if device_type == 'cuda' else event.cpu_time_total
        return time * 1e-6

    def is_depthwise(event):
        if event.name.startswith(_OURS):
            return True
        place = _CONVOLUTIONS.get(event.name)
        if place is None or len(event.input_shapes) <= place:
            return False
        weight = event.input_shapes[place]
        return len(weight) == 4 and weight[1] == 1 and weight[0] > 1

    operators = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    depthwise = 0.0
    for event in operators:
        above = event.cpu_parent
        if is_depthwise(event):
            while above is not None and not is_depthwise(above):
                above = above.cpu_parent
            if above is None:
                depthwise += seconds(event)
    total = sum(seconds(event) for event in operators if event.cpu_parent is None)
    return depthwise, total
