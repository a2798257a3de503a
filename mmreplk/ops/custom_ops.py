"""The operator as PyTorch sees it: two custom ops, their gradients, their fakes, their vmap rules.

``mmreplk::dwconv2d`` is the convolution of stride 1, ``mmreplk::dwconv2d_weight_grad`` the gradient
of its weights. The gradient of the input is the first op again, with flipped weights, so that the
two ops differentiate each other to any order.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import dispatch
from .arguments import (
    WIDEST,
    check_convolution,
    check_sizes,
    check_tensors,
    out_size,
    refuse_nested,
)
from .arithmetic import opmath_dtype
from .problem import Problem, memory_format_of
from .torch_conv import convolve
from .torch_internals import is_legacy_batched, schema_of


# Plain-Python bodies of the custom ops, so that one op can call another without the dispatcher's
# 10 us.
def _dwconv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int],
              dilation: list[int], backend: str, keep: bool = False, relu: bool = False,
              strict: bool = True) -> Tensor:
    """The convolution of stride 1.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(C * M, 1, Kh, Kw)``.
        bias (Tensor | None): ``(C * M, )``.
        padding (list[int]): Top, bottom, left, right.
        dilation (list[int]): Down and right.
        backend (str): One of `dispatch.CHOICES`.
        keep (bool): Whether to keep the spectrum of the weights for the next call.
        relu (bool): Whether to apply ReLU to the result.
        strict (bool): Whether to raise where the backend cannot serve; else 'auto' takes over.
    """
    backend, strict = dispatch.read_backend(backend, strict)
    check_tensors(x=x, weight=weight, bias=bias)
    check_convolution(x, weight.shape, padding, dilation)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f'mmreplk: bias must be of shape {tuple(weight.shape[:1])}, one for each'
                           f' output channel of weight, not {tuple(bias.shape)}')
    problem = _problem(x, weight.shape, padding, dilation, bias is not None, relu)
    if problem is None:
        return convolve(x, weight, bias, padding, dilation, relu)
    return dispatch.forward(x, weight, bias, problem, backend, keep, strict)


def _dwconv2d_weight_grad(x: Tensor, grad: Tensor, kernel_size: list[int], padding: list[int],
                          dilation: list[int], backend: str, strict: bool = True) -> Tensor:
    """Gradient ``(C * M, 1, Kh, Kw)`` of the weights, for input x and output gradient grad."""
    backend, strict = dispatch.read_backend(backend, strict)
    check_tensors(x=x, grad=grad)
    if grad.dim() != 4:
        raise RuntimeError(f'mmreplk: grad must have 4 dimensions, not {tuple(grad.shape)}')
    check_sizes('kernel_size', kernel_size, 2, 1, WIDEST)
    shape = (grad.shape[1], 1, *kernel_size)
    check_convolution(x, shape, padding, dilation, grad.shape, 'grad')
    problem = _problem(x, shape, padding, dilation)
    if problem is None:
        return x.new_zeros(shape)
    return dispatch.weight_grad(x, grad, problem, backend, strict)


# New arguments come last and have defaults, so that graphs saved earlier still load. Schemas in
# words: torch 2.5 does not read them from annotations such as list[int].
dwconv2d = torch.library.custom_op(
    'mmreplk::dwconv2d', _dwconv2d, mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor? bias, SymInt[] padding, SymInt[] dilation, '
    'str backend, bool keep=False, bool relu=False, bool strict=True) -> Tensor')
dwconv2d_weight_grad = torch.library.custom_op(
    'mmreplk::dwconv2d_weight_grad', _dwconv2d_weight_grad, mutates_args=(),
    schema='(Tensor x, Tensor grad, SymInt[] kernel_size, SymInt[] padding, SymInt[] dilation, '
    'str backend, bool strict=True) -> Tensor')


@torch.library.custom_op(
    'mmreplk::dwconv2d_pair', mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor other, SymInt[] padding, SymInt[] other_padding, '
    'SymInt[] dilation, str backend) -> (Tensor, Tensor)')
def dwconv2d_pair(x: Tensor, weight: Tensor, other: Tensor, padding: list[int],
                  other_padding: list[int], dilation: list[int], backend: str
                  ) -> tuple[Tensor, Tensor]:
    """Two `dwconv2d` of the same x and dilation, whose gradients are computed together."""
    backend, strict = dispatch.read_backend(backend)
    check_tensors(x=x, weight=weight, other=other)
    check_convolution(x, other.shape, other_padding, dilation, weight_name='other',
                      padding_name='other_padding')
    return (_dwconv2d(x, weight, None, padding, dilation, backend, strict=strict),
            _dwconv2d(x, other, None, other_padding, dilation, backend, strict=strict))


@torch.library.custom_op(
    'mmreplk::dwconv2d_backward', mutates_args=(),
    schema='(Tensor x, Tensor[] grads, Tensor[] weights, SymInt[] paddings, SymInt[] dilations, '
    'str backend) -> Tensor[]')
def dwconv2d_backward(x: Tensor, grads: Sequence[Tensor], weights: Sequence[Tensor],
                      paddings: list[int], dilations: list[int], backend: str) -> list[Tensor]:
    """Gradients of x and of the weights of one or two convolutions of the same x.

    ``[gradient of x, summed over the convolutions; gradient of each weight]`` for the gradients of
    the outputs; paddings holds 4 and dilations 2 values for each convolution. A gradient that the
    backend cannot serve takes what 'auto' takes.
    """
    backend, _ = dispatch.read_backend(backend)
    _check_branches(grads, weights, paddings, dilations)
    branches = list(_branches(grads, weights, paddings, dilations))
    for i, (grad, weight, padding, dilation) in enumerate(branches):
        check_tensors(x=x, **{f'grads[{i}]': grad, f'weights[{i}]': weight})
        check_convolution(x, weight.shape, padding, dilation, grad.shape, f'weights[{i}]',
                          'paddings', f'grads[{i}]')
    problems = [_problem(x, weight.shape, padding, dilation)
                for _, weight, padding, dilation in branches]
    together = None if None in problems else dispatch.backward(x, grads, weights, problems, backend)
    if together is not None:
        return together
    total, out = None, []
    for grad, weight, padding, dilation in branches:
        grad_x = input_grad(grad, weight, x.shape[1], padding, dilation, backend, _dwconv2d)
        total = grad_x if total is None else total + grad_x
        out.append(_dwconv2d_weight_grad(x, grad, weight.shape[2:], padding, dilation, backend,
                                         strict=False))
    # In the format that the fake promises: a compiled graph relies on it.
    return [total.contiguous(memory_format=memory_format_of(x)), *out]


def _check_branches(grads, weights, paddings, dilations) -> None:
    if len(grads) not in (1, 2) or len(weights) != len(grads):
        raise RuntimeError(f'mmreplk: grads and weights must be one or two each, not {len(grads)} '
                           f'and {len(weights)}')
    for name, values, each in (('paddings', paddings, 4), ('dilations', dilations, 2)):
        if len(values) != each * len(grads):
            raise RuntimeError(f'mmreplk: {name} must be {each} numbers for each of the weights, '
                               f'not {list(values)}')


def _branches(grads, weights, paddings, dilations):
    for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
        yield grad, weight, paddings[4 * i:4 * i + 4], dilations[2 * i:2 * i + 2]


def _problem(x, weight_shape, padding, dilation, has_bias=False, relu=False) -> Problem | None:
    """None if there is nothing to compute."""
    if 0 in x.shape or 0 in weight_shape:
        return None
    return Problem.of(x, weight_shape, padding, dilation, has_bias=has_bias, relu=relu)


def _check_counts(x, weight, padding, dilation) -> None:
    """What can be said of sizes that may be symbols; the rest when the graph runs."""
    if x.dim() != 4 or weight.dim() != 4 or len(padding) != 4 or len(dilation) != 2:
        raise RuntimeError(
            f'mmreplk: x and weight must have 4 dimensions, padding 4 and dilation 2 numbers, not '
            f'{tuple(x.shape)}, {tuple(weight.shape)}, {list(padding)}, {list(dilation)}')


@dwconv2d.register_fake
def _(x, weight, bias, padding, dilation, backend, keep=False, relu=False, strict=True):
    _check_counts(x, weight, padding, dilation)
    height, width = out_size(x.shape, weight.shape, padding, dilation)
    torch._check(height > 0, lambda: f'the kernel {tuple(weight.shape[2:])} with dilation '
                 f'{tuple(dilation)} is taller than the padded input {tuple(x.shape)}')
    torch._check(width > 0, lambda: f'the kernel {tuple(weight.shape[2:])} with dilation '
                 f'{tuple(dilation)} is wider than the padded input {tuple(x.shape)}')
    return x.new_empty(x.shape[0], weight.shape[0], height, width).contiguous(
        memory_format=memory_format_of(x))


@dwconv2d_weight_grad.register_fake
def _(x, grad, kernel_size, padding, dilation, backend, strict=True):
    _check_counts(x, grad, padding, dilation)
    if len(kernel_size) != 2:
        raise RuntimeError(f'mmreplk: kernel_size must be 2 numbers, not {list(kernel_size)}')
    return x.new_empty(grad.shape[1], 1, *kernel_size)


@dwconv2d_pair.register_fake
def _(x, weight, other, padding, other_padding, dilation, backend):
    return (dwconv2d(x, weight, None, padding, dilation, backend),
            dwconv2d(x, other, None, other_padding, dilation, backend))


@dwconv2d_backward.register_fake
def _(x, grads, weights, paddings, dilations, backend):
    _check_branches(grads, weights, paddings, dilations)
    for _, weight, padding, dilation in _branches(grads, weights, paddings, dilations):
        _check_counts(x, weight, padding, dilation)
    grad_x = x.new_empty(x.shape).contiguous(memory_format=memory_format_of(x))
    return [grad_x, *(weight.new_empty(weight.shape) for weight in weights)]


# -- gradients -------------------------------------------------------------------------------------

def input_grad(grad: Tensor, weight: Tensor, channels: int, padding, dilation, backend: str,
               convolve=dwconv2d) -> Tensor:
    """Gradient of the input: a convolution of grad with the weights flipped in both directions.

    The padding is ``dilation * (K - 1) - padding``; where that is negative, outputs that see
    nothing but zeros are cut off first.
    """
    top, bottom, left, right = padding
    rh, rw = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    sides = [rh - top, rh - bottom, rw - left, rw - right]
    if min(sides) < 0:
        cut = [max(0, -side) for side in sides]
        grad = grad[:, :, cut[0]:grad.shape[2] - cut[1], cut[2]:grad.shape[3] - cut[3]]
        sides = [max(0, side) for side in sides]
    weight = weight.flip(2, 3)
    if weight.shape[0] == channels:
        return convolve(grad, weight, None, sides, dilation, backend, strict=False)
    # With a channel multiplier, maps are added up; 16-bit ones are to be rounded once.
    many, wide, size = weight.shape[0] // channels, opmath_dtype(grad.dtype), None
    for images, inputs, outputs in _parts(grad, channels, sides, dilation, weight.shape[2:]):
        part = convolve(grad[images, outputs].to(wide), weight[outputs].to(wide), None, sides,
                        dilation, backend, strict=False)
        part = part.unflatten(1, (-1, many)).sum(2).to(grad.dtype)
        if part.shape[:2] == (grad.shape[0], channels):
            return part
        if size is None:
            size = part.shape[2:]
            out = grad.new_empty(grad.shape[0], channels, *size).contiguous(
                memory_format=memory_format_of(grad))
        out[images, inputs] = part
    return out


# Bytes of the maps of a part of `input_grad` where these are not what it returns.
PART = 4 << 20


def _parts(grad: Tensor, channels: int, sides, dilation, kernel):
    """Slices (images, input channels, output channels) of maps of no more than `PART`, at least
    one channel; for shapes that are not known yet, and for second derivatives, all in one."""
    many = grad.shape[1] // channels
    pixels = grad.shape[2] * grad.shape[3] + math.prod(out_size(
        grad.shape, (0, 0, *kernel), sides, dilation))
    whole = slice(None), slice(None), slice(None)
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        yield whole
        return
    plane = max(1, pixels * many * opmath_dtype(grad.dtype).itemsize)
    if plane * channels * grad.shape[0] <= PART:
        yield whole
        return
    fit = max(1, PART // plane)
    step = min(channels, fit)
    images = max(1, fit // channels)
    for n in range(0, grad.shape[0], images):
        for c in range(0, channels, step):
            last = min(c + step, channels)
            yield slice(n, n + images), slice(c, last), slice(c * many, last * many)


def _keep(ctx, inputs, output):
    x, weight, _, ctx.padding, ctx.dilation, ctx.backend, _, ctx.relu, _ = inputs
    ctx.save_for_backward(x, weight, *([output] if ctx.relu else []))


def _dwconv2d_backward(ctx, grad):
    x, weight, *out = ctx.saved_tensors
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, *out, 0)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0] and ctx.needs_input_grad[1]:
        grad_x, grad_weight = _both_grads(
            x, [grad], [weight], ctx.padding, ctx.dilation, ctx.backend)
    elif ctx.needs_input_grad[0]:
        grad_x = input_grad(grad, weight, x.shape[1], ctx.padding, ctx.dilation, ctx.backend)
    elif ctx.needs_input_grad[1]:
        grad_weight = dwconv2d_weight_grad(
            x, grad, weight.shape[2:], ctx.padding, ctx.dilation, ctx.backend, strict=False)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3), dtype=opmath_dtype(grad.dtype)).to(grad.dtype)
    return grad_x, grad_weight, grad_bias, None, None, None, None, None, None


def _keep_pair(ctx, inputs, output):
    x, weight, other, padding, other_padding, dilation, ctx.backend = inputs
    ctx.paddings, ctx.dilations = [*padding, *other_padding], [*dilation, *dilation]
    ctx.save_for_backward(x, weight, other)


def _pair_backward(ctx, grad, other_grad):
    x, weight, other = ctx.saved_tensors
    grads = _both_grads(x, [grad, other_grad], [weight, other], ctx.paddings, ctx.dilations,
                        ctx.backend)
    return *grads, None, None, None, None


def _both_grads(x, grads, weights, paddings, dilations, backend: str) -> list[Tensor]:
    """`dwconv2d_backward`, but for what maps over gradients by the vmap from before torch.func:
    ``torch.autograd.grad(..., is_grads_batched=True)``. That knows no ops of lists of tensors."""
    if not any(map(is_legacy_batched, grads)):
        return dwconv2d_backward(x, grads, weights, paddings, dilations, backend)
    total, out = None, []
    for grad, weight, padding, dilation in _branches(grads, weights, paddings, dilations):
        grad_x = input_grad(grad, weight, x.shape[1], padding, dilation, backend)
        total = grad_x if total is None else total + grad_x
        out.append(dwconv2d_weight_grad(x, grad, weight.shape[2:], padding, dilation, backend,
                                        strict=False))
    return [total, *out]


def _keep_for_weight_grad(ctx, inputs, output):
    x, grad, _, ctx.padding, ctx.dilation, ctx.backend, _ = inputs
    ctx.save_for_backward(x, grad)


def _weight_grad_backward(ctx, grad_weight):
    # The gradient of the weights is linear in x and in grad, with grad_weight as the kernel.
    x, grad = ctx.saved_tensors
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = input_grad(grad, grad_weight, x.shape[1], ctx.padding, ctx.dilation, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_grad = dwconv2d(x, grad_weight, None, ctx.padding, ctx.dilation, ctx.backend,
                             strict=False)
    return grad_x, grad_grad, None, None, None, None, None


def _keep_for_backward(ctx, inputs, output):
    x, grads, weights, ctx.paddings, ctx.dilations, ctx.backend = inputs
    ctx.save_for_backward(x, *grads, *weights)


def _backward_backward(ctx, out_grads):
    # Each output is linear in each of its two factors, whose gradient is one of the ops again.
    (x, *saved), (of_x, *of_weights) = ctx.saved_tensors, out_grads
    count = len(saved) // 2
    grads, weights = saved[:count], saved[count:]
    grad_x, grad_grads, grad_weights = None, [], []
    for (grad, weight, padding, dilation), of_weight in zip(
            _branches(grads, weights, ctx.paddings, ctx.dilations), of_weights, strict=True):
        term = input_grad(grad, of_weight, x.shape[1], padding, dilation, ctx.backend)
        grad_x = term if grad_x is None else grad_x + term
        grad_grads.append(
            dwconv2d(of_x, weight, None, padding, dilation, ctx.backend, strict=False)
            + dwconv2d(x, of_weight, None, padding, dilation, ctx.backend, strict=False))
        grad_weights.append(dwconv2d_weight_grad(
            of_x, grad, weight.shape[2:], padding, dilation, ctx.backend, strict=False))
    return grad_x, grad_grads, grad_weights, None, None, None


dwconv2d_backward.register_autograd(_backward_backward, setup_context=_keep_for_backward)
dwconv2d_pair.register_autograd(_pair_backward, setup_context=_keep_pair)
dwconv2d.register_autograd(_dwconv2d_backward, setup_context=_keep)
dwconv2d_weight_grad.register_autograd(_weight_grad_backward, setup_context=_keep_for_weight_grad)


# Else the dispatcher has nothing to call, and says so on a page of backends.
_refusals = torch.library.Library('mmreplk', 'IMPL')
for _op in ('dwconv2d', 'dwconv2d_weight_grad', 'dwconv2d_pair', 'dwconv2d_backward'):
    _refusals.impl(_op, refuse_nested(schema_of(getattr(torch.ops.mmreplk, _op))),
                   'NestedTensorCPU')


@register_flop_formula(torch.ops.mmreplk.dwconv2d)
def _(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Two operations a tap and output, as PyTorch counts its convolutions."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[2:])


@register_flop_formula(torch.ops.mmreplk.dwconv2d_weight_grad)
def _(x_shape, grad_shape, kernel_size, *args, out_shape=None, **kwargs) -> int:
    """As many as the convolution has."""
    return 2 * math.prod(grad_shape) * math.prod(kernel_size)


@register_flop_formula(torch.ops.mmreplk.dwconv2d_pair)
def _(x_shape, weight_shape, other_shape, *args, out_shape=None, **kwargs) -> int:
    """As many as both convolutions have."""
    return sum(2 * math.prod(out) * math.prod(weight[2:])
               for out, weight in zip(out_shape, (weight_shape, other_shape), strict=True))


@register_flop_formula(torch.ops.mmreplk.dwconv2d_backward)
def _(x_shape, grad_shapes, weight_shapes, *args, out_shape=None, **kwargs) -> int:
    """Twice as many as the convolutions have."""
    return 4 * sum(math.prod(grad) * math.prod(weight[2:])
                   for grad, weight in zip(grad_shapes, weight_shapes, strict=True))


# -- vmap: a mapped input alone joins the images, mapped weights join the channels -----------------

@dwconv2d.register_vmap
def _(info, in_dims, x, weight, bias, padding, dilation, backend, keep=False, relu=False,
      strict=True):
    size = info.batch_size
    x_dim, weight_dim, bias_dim, *_ = in_dims
    if weight_dim is None and bias_dim is None:
        x = x.movedim(x_dim, 0)
        out = dwconv2d(x.flatten(0, 1), weight, bias, padding, dilation, backend, keep, relu,
                       strict)
        return out.unflatten(0, (size, -1)), 0
    x = _into_channels(x, x_dim, size, 1)
    weight = _into_channels(weight, weight_dim, size, 0)
    bias = None if bias is None else _into_channels(bias, bias_dim, size, 0)
    out = dwconv2d(x, weight, bias, padding, dilation, backend, False, relu, strict)
    return out.unflatten(1, (size, -1)), 1


@dwconv2d_pair.register_vmap
def _(info, in_dims, x, weight, other, padding, other_padding, dilation, backend):
    size = info.batch_size
    x = _into_channels(x, in_dims[0], size, 1)
    weight = _into_channels(weight, in_dims[1], size, 0)
    other = _into_channels(other, in_dims[2], size, 0)
    both = dwconv2d_pair(x, weight, other, padding, other_padding, dilation, backend)
    return tuple(out.unflatten(1, (size, -1)) for out in both), (1, 1)


@dwconv2d_weight_grad.register_vmap
def _(info, in_dims, x, grad, kernel_size, padding, dilation, backend, strict=True):
    size = info.batch_size
    x = _into_channels(x, in_dims[0], size, 1)
    grad = _into_channels(grad, in_dims[1], size, 1)
    out = dwconv2d_weight_grad(x, grad, kernel_size, padding, dilation, backend, strict)
    return out.unflatten(0, (size, -1)), 0


@dwconv2d_backward.register_vmap
def _(info, in_dims, x, grads, weights, paddings, dilations, backend):
    size = info.batch_size
    x_dim, grad_dims, weight_dims, *_ = in_dims
    grads = [_into_channels(g, d, size, 1) for g, d in zip(grads, grad_dims, strict=True)]
    weights = [_into_channels(w, d, size, 0) for w, d in zip(weights, weight_dims, strict=True)]
    grad_x, *out = dwconv2d_backward(
        _into_channels(x, x_dim, size, 1), grads, weights, paddings, dilations, backend)
    return ([grad_x.unflatten(1, (size, -1)), *(w.unflatten(0, (size, -1)) for w in out)],
            [1, *(0 for _ in out)])


def _into_channels(tensor: Tensor, mapped, size: int, channels: int) -> Tensor:
    """Fold the mapped dimension, or copies where there is none, into the channel dimension."""
    if mapped is None:
        tensor = tensor.unsqueeze(channels).expand(
            *tensor.shape[:channels], size, *tensor.shape[channels:])
    else:
        tensor = tensor.movedim(mapped, channels)
    return tensor.flatten(channels, channels + 1)
