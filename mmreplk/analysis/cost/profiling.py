"""Where the time of a call goes, by kind of layer, from PyTorch's profiler. Needs torch alone."""

from collections.abc import Callable, Iterable

import torch

# The kinds of .count, and what is not counted there: norms, activations, resizing.
DEPTHWISE, POINTWISE, OTHER, REST = 'depth-wise', '1x1', 'other', 'rest'
TIME_KINDS = (DEPTHWISE, POINTWISE, OTHER, REST)

# The operators that a convolution is, with the place of the weight among their arguments; the input
# stands before it. All of ours are depth-wise by definition.
_CONVOLUTIONS = {'aten::convolution': 1, 'aten::convolution_backward': 2}
_OURS = 'mmreplk::dwconv2d'
_OURS_1X1 = 'mkldnn::_linear_pointwise'  # see mmreplk.models.cpu_inference.pointwise
_OURS_OTHER = 'mmreplk::conv2d_of_resized'  # see mmreplk.models.cpu_inference.resized_conv
_PRODUCTS = {f'aten::{name}' for name in (
    'linear', 'matmul', 'mm', 'bmm', 'addmm', 'baddbmm', 'einsum', 'scaled_dot_product_attention')}


def conv_kind(weight_shape, groups: int) -> str:
    """The kind of a convolution.

    Args:
        weight_shape (Sequence[int]): ``(out, in / groups, ...)``.
        groups (int): Its groups.

    Returns:
        str: ``'depth-wise'`` if each output channel sees one of several input channels, ``'1x1'``
        of a dense one without neighbors, else ``'other'``.
    """
    if groups > 1 and weight_shape[1] == 1:
        return DEPTHWISE
    return POINTWISE if groups == 1 and all(size == 1 for size in weight_shape[2:]) else OTHER


def time_by_kind(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile one call.

    On a GPU it is the time of the kernels, on a CPU that of the operators, in the calling and the
    autograd thread. Backward passes count for the kind of their convolution.

    Args:
        run (Callable): The call.
        device (torch.device): Where it runs.

    Returns:
        dict[str, float]: Seconds for each of :data:`TIME_KINDS`.
    """
    from torch.profiler import ProfilerActivity, profile
    activities = [ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as trace:
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
    return sum_by_kind(trace.events(), device.type)


def depthwise_share(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds in the depth-wise convolutions of one call, and in all operators.

    Args:
        run (Callable): The call.
        device (torch.device): Where it runs.
    """
    seconds = time_by_kind(run, device)
    return seconds[DEPTHWISE], sum(seconds.values())


def sum_by_kind(events: Iterable, device_type: str) -> dict[str, float]:
    """:func:`time_by_kind` of a profile's events."""
    seconds = dict.fromkeys(TIME_KINDS, 0.0)

    def time_of(event):
        time = event.device_time_total if device_type == 'cuda' else event.cpu_time_total
        return time * 1e-6

    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        if event.cpu_parent is None:
            seconds[REST] += time_of(event)
        kind = _kind_of(event)
        if kind is not None and not _is_inside_another(event):
            seconds[kind] += time_of(event)
            seconds[REST] -= time_of(event)
    seconds[REST] = max(0.0, seconds[REST])
    return seconds


def _kind_of(event) -> str | None:
    if event.name.startswith(_OURS):
        return DEPTHWISE
    if event.name.startswith(_OURS_1X1):
        return POINTWISE
    if event.name in _PRODUCTS or event.name == _OURS_OTHER:
        return OTHER
    place = _CONVOLUTIONS.get(event.name)
    if place is None or len(event.input_shapes) <= place:
        return None
    image, weight = event.input_shapes[place - 1:place + 1]
    if len(image) < 3 or len(weight) < 3:
        return None
    return conv_kind(weight, image[1] // weight[1])


def _is_inside_another(event) -> bool:
    above = event.cpu_parent
    while above is not None:
        if _kind_of(above) is not None:
            return True
        above = above.cpu_parent
    return False
