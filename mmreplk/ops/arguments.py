"""What the ops and the kernels rely on: the ops are public, and graphs that call them are saved.

Each refusal is a RuntimeError that names the argument, before any work is done.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .torch_internals import is_zerotensor

# Sides of maps and their padding, and how far a kernel reaches: beyond, estimates would take longer
# than anybody waits, and sizes no longer be sure to fit what they are computed in.
LONGEST = 1 << 24
WIDEST = 1 << 20
# Bytes of a result that no machine has.
_IMPOSSIBLE = 1 << 46


def check_memory(**tensors: Tensor | None) -> None:
    """That the storage of each tensor holds what its sizes and strides say, wherever it lies.

    FSDP and others free storages and leave the tensors. PyTorch's convolution raises for them, its
    copies, which would be the first step here, crash.

    Raises:
        RuntimeError: If one holds less.
    """
    for name, tensor in tensors.items():
        if (not isinstance(tensor, Tensor)
                or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
                or tensor.is_nested or tensor.layout != torch.strided
                or tensor.device.type not in ('cpu', 'cuda')):
            continue
        elements = tensor.numel()
        if not elements:
            continue
        if not tensor.is_contiguous():
            elements = 1 + sum((size - 1) * step for size, step in zip(
                tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + elements) * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        if held < needed and not is_zerotensor(tensor):
            raise RuntimeError(
                f'{name} of shape {tuple(tensor.shape)} needs {needed} bytes, but its storage holds'
                f' {held}: its data was freed or cut, and has to be allocated again before use')


def check_tensors(**tensors: Tensor | None) -> None:
    """Ordinary tensors of one dtype and device, with memory behind them.

    Raises:
        RuntimeError: Else.
    """
    first = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        kind = ('nested' if tensor.is_nested else 'quantized' if tensor.is_quantized
                else str(tensor.layout) if tensor.layout != torch.strided else '')
        if kind:
            raise RuntimeError(f'mmreplk: {name} must be an ordinary strided tensor, not a {kind} '
                               'one: convert it, as with to_dense() or dequantize()')
        if first is None:
            first = name, tensor
        elif tensor.dtype != first[1].dtype or tensor.device != first[1].device:
            raise RuntimeError(
                f'mmreplk: {name} is {tensor.dtype} on {tensor.device}, but {first[0]} is '
                f'{first[1].dtype} on {first[1].device}: they must be alike')
    check_memory(**tensors)


def refuse_nested(schema):
    """A function that names the nested tensor among the arguments of an op, for the dispatcher."""
    def refuse(*args, **kwargs):
        given = [*zip((argument.name for argument in schema.arguments), args, strict=False),
                 *kwargs.items()]
        for name, value in given:
            for tensor in value if isinstance(value, (list, tuple)) else (value, ):
                if isinstance(tensor, Tensor):
                    check_tensors(**{name: tensor})
        raise RuntimeError(f'mmreplk: {schema.name} takes no nested tensors')
    return refuse


def check_sizes(name: str, values: Sequence[int], count: int, least: int, most: int) -> None:
    """So many whole numbers, each within bounds.

    Raises:
        RuntimeError: Else.
    """
    if len(values) != count:
        raise RuntimeError(f'mmreplk: {name} must be {count} numbers, not {list(values)}')
    if any(value < least or value > most for value in values):
        raise RuntimeError(f'mmreplk: {name} must be from {least} to {most}, not {list(values)}')


def check_convolution(x: Tensor, weight: Sequence[int], padding: Sequence[int],
                      dilation: Sequence[int], grad: Sequence[int] | None = None,
                      weight_name: str = 'weight', padding_name: str = 'padding',
                      grad_name: str = 'grad') -> None:
    """That the sizes are of a depth-wise convolution, and of one that can be computed.

    Args:
        x (Tensor): The input.
        weight (Sequence[int]): Shape of the weights.
        padding (Sequence[int]): Top, bottom, left, right.
        dilation (Sequence[int]): Down and right.
        grad (Sequence[int], optional): Shape of the output's gradient. Defaults to None.
        weight_name, padding_name, grad_name (str): What the caller calls them.

    Raises:
        RuntimeError: Else.
    """
    if x.dim() != 4:
        raise RuntimeError(f'mmreplk: x must have 4 dimensions (N, C, H, W), not {tuple(x.shape)}')
    if len(weight) != 4 or weight[1] != 1:
        raise RuntimeError(f'mmreplk: {weight_name} must be of shape (C * M, 1, Kh, Kw), not '
                           f'{tuple(weight)}')
    check_sizes(padding_name, padding, 4, 0, LONGEST)
    check_sizes('dilation', dilation, 2, 1, (1 << 63) - 1)
    check_sizes('kernel_size' if weight_name == 'kernel_size' else f'the kernel of {weight_name}',
                weight[2:], 2, 1, WIDEST)
    channels = x.shape[1]
    if not channels or weight[0] < 1 or weight[0] % channels:
        raise RuntimeError(f'mmreplk: {weight_name} has {weight[0]} output channels, which must be '
                           f'a multiple, from 1 on, of the {channels} channels of x')
    check_sizes('the sides of x', x.shape[2:], 2, 0, 2 * LONGEST)
    for d, k in zip(dilation, weight[2:], strict=True):
        if d * (k - 1) >= WIDEST:
            raise RuntimeError(f'mmreplk: dilation {list(dilation)} is too large for a kernel of '
                               f'{tuple(weight[2:])}: it must reach less than {WIDEST} pixels')
    size = out_size(x.shape, weight, padding, dilation)
    if min(size) < 1 or max(size) > LONGEST:
        raise RuntimeError(
            f'mmreplk: the output would be of size {size}, which must be from 1 to {LONGEST}: x '
            f'{tuple(x.shape)}, kernel {tuple(weight[2:])}, {padding_name} {list(padding)}, '
            f'dilation {list(dilation)}')
    if x.shape[0] * weight[0] * size[0] * size[1] * x.element_size() > _IMPOSSIBLE:
        raise RuntimeError(f'mmreplk: {padding_name} {list(padding)} makes an output of '
                           f'{(x.shape[0], weight[0], *size)}, more than any memory holds')
    if grad is not None and tuple(grad) != (x.shape[0], weight[0], *size):
        raise RuntimeError(f'mmreplk: {grad_name} must be of the shape of the output, '
                           f'{(x.shape[0], weight[0], *size)}, not {tuple(grad)}')


def plain_dilation(dilation: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Without that of a single tap, which has no neighbor."""
    return tuple(d if k > 1 else 1 for d, k in zip(dilation, kernel, strict=True))


def out_size(shape, weight_shape, padding, dilation) -> tuple[int, int]:
    """``(H', W')`` of an input and weights of these shapes."""
    return (shape[2] + padding[0] + padding[1] - dilation[0] * (weight_shape[2] - 1),
            shape[3] + padding[2] + padding[3] - dilation[1] * (weight_shape[3] - 1))
