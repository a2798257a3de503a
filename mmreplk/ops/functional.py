"""The public functions: ``large_kernel_dwconv2d`` and ``explain``."""

from contextlib import suppress
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import dispatch, ready
from .arguments import LONGEST, WIDEST, check_memory
from .custom_ops import dwconv2d, dwconv2d_pair
from .problem import Problem
from .torch_conv import HANGING_WIDTH, conv2d, is_spread
from .torch_internals import (
    functorch_level,
    is_any_autocast_enabled,
    is_differentiated_by_func,
)

# Below this product of input points and taps, PyTorch's convolution takes about as long as its own
# call overhead, and looking for anything better would cost more than it brings.
TINY = 1 << 12


def large_kernel_dwconv2d(x: Tensor,
                          weight: Tensor,
                          bias: Tensor | None = None,
                          stride: int | tuple[int, int] = 1,
                          padding: int | tuple[int, int] | str = 0,
                          dilation: int | tuple[int, int] = 1,
                          groups: int | None = None,
                          *,
                          activation: str | None = None,
                          backend: str = 'auto') -> Tensor:
    """Depth-wise convolution: ``F.conv2d(x, weight, bias, stride, padding, dilation, groups=C)``.

    Serves every input that ``F.conv2d`` serves, with the same result up to rounding. What no
    faster path covers (strides, complex numbers, other devices...) goes to PyTorch's convolution.
    Sums are accumulated in float32, or in float64 for float64. The error of 'fft' scales with
    ``max|x|`` in the receptive field of an output times ``||w||``, that of 'direct' with
    ``sum |x w|``: bounds are in the README of mmreplk.ops. On a GPU, float32 uses TF32 where
    PyTorch's own switch for convolutions, ``torch.backends.cudnn.allow_tf32``, allows it.

    Args:
        x (Tensor): Input ``(N, C, H, W)`` or ``(C, H, W)``.
        weight (Tensor): Kernels ``(C * M, 1, Kh, Kw)``; output channel ``c`` reads input channel
            ``c // M``.
        bias (Tensor, optional): ``(C * M, )``. Defaults to None.
        stride (int | tuple[int, int]): Down and right. Defaults to 1.
        padding (int | tuple[int, int] | str): Zeros on both sides, down and right, or 'same' or
            'valid'. Defaults to 0.
        dilation (int | tuple[int, int]): Down and right. Defaults to 1.
        groups (int, optional): Those of ``F.conv2d``: the channels C that x has to have. Defaults
            to None, as many as it has.
        activation (str, optional): 'relu' for ``F.relu`` of the result, at no cost: the kernels
            apply it to what they are about to store. Defaults to None.
        backend (str): 'auto' picks the fastest; `explain` says which and why. 'triton' (GPU),
            'fft', 'direct' (CPU, compiled) and 'torch' ask for one. The gradients of a backend
            asked for by name use it where it can serve them, and otherwise what 'auto' picks.

    Returns:
        Tensor: ``(N, C * M, H', W')`` or ``(C * M, H', W')``, in the memory format of x, and in
        its dtype or, under autocast, in autocast's.

    Raises:
        RuntimeError: For bad shapes, dtypes or devices, what PyTorch's convolution raises; also
            if the backend asked for cannot serve, with the reason.
        ValueError: If backend or activation is not one of the names above.
    """
    relu = activation is not None
    if relu and activation != 'relu':
        raise ValueError(f"activation must be 'relu' or None, not {activation!r}")
    # Whoever listens decides by himself, also torch.fx, whose proxies have no sizes to look at.
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(large_kernel_dwconv2d, (x, weight, bias), x, weight, bias,
                                     stride, padding, dilation, groups, activation=activation,
                                     backend=backend)
    # Not for the compiler: it is to see no sizes looked up. Most calls of a network end here.
    key = None
    if not torch.compiler.is_compiling() and ready.is_unobserved(x, weight, bias):
        key = ready.key_of(x, weight, bias, stride, padding, dilation, backend, relu, groups)
        out = ready.at_once(key, x, weight, bias)
        if out is not None:
            return out
    if groups is not None and (x.dim() not in (3, 4) or x.shape[-3] != groups):
        raise RuntimeError(f'groups={groups}: x must be (N, {groups}, H, W) or ({groups}, H, W), '
                           f'one channel a group, not {tuple(x.shape)}')
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()
            or functorch_level() is not None):
        check_memory(x=x, weight=weight, bias=bias)
    if backend == 'auto':
        # A shortcut for problems of a few microseconds; every check below would be felt.
        if (x.dim() == 4 and weight.dim() == 4 and x.device.type == 'cpu'
                and _is_tiny(x, weight.shape[2:], stride, dilation)
                and not torch.compiler.is_compiling()):
            return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    elif backend not in dispatch.CHOICES:
        raise ValueError(f'backend must be one of {", ".join(dispatch.CHOICES)}, not {backend!r}')
    if x.dim() == 3 and weight.dim() == 4:
        return large_kernel_dwconv2d(
            x.unsqueeze(0), weight, bias, stride, padding, dilation, activation=activation,
            backend=backend).squeeze(0)
    trained = weight
    x, weight, bias = _autocast(x, weight, bias)
    # Spectra of weights are kept while nobody trains them. A copy made by autocast does not last.
    keep = weight is trained and not (torch.is_grad_enabled() and weight.requires_grad)

    # Custom operators know the derivatives of autograd's backward pass alone.
    if is_differentiated_by_func():
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    # A graph for other runtimes holds a plain convolution, which all of them know.
    if torch.jit.is_tracing():
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    if torch.compiler.is_compiling() or _has_symbolic_sizes(x, weight):
        return _graph(x, weight, bias, stride, padding, dilation, backend, keep, relu)

    problem, chosen, is_open = _plan(x, weight, bias, stride, padding, dilation, backend, relu)
    if problem is None:  # bad input, for which PyTorch has the words, or nothing to compute
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    if key is not None and not is_open:
        ready.keep_call(key, _by_pytorch(stride, padding, dilation, problem) if chosen == 'torch'
                        else dispatch.prepared(problem, chosen, x.stride(), backend))
    if chosen == 'torch' and not is_open and not (
            backend == 'auto' and _trains_better(weight, problem)):
        return _by_pytorch(stride, padding, dilation, problem)(x, weight, bias)
    if ready.is_plain(x, weight, bias):
        return dispatch.forward(x, weight, bias, problem, backend, keep)
    return dwconv2d(x, weight, bias, problem.padding, problem.dilation, backend, keep, relu)


def _by_pytorch(stride, padding, dilation, problem: Problem):
    """PyTorch's convolution with these arguments, in the memory format of the problem."""
    def run(x, weight, bias):
        out = _pytorch(x, weight, bias, stride, padding, dilation, problem.relu)
        return out.contiguous(memory_format=problem.memory_format)
    return run


def _graph(x, weight, bias, stride, padding, dilation, backend, keep, relu) -> Tensor:
    """What stands in a graph: one call of the op, or PyTorch's convolution."""
    if torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    if backend == 'torch' or _pair(stride) != (1, 1) or not _is_depthwise(x, weight):
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    dilation = _pair(dilation)
    sides = None if dilation is None else _sides(padding, weight.shape[2:], dilation)
    # Of bad input, PyTorch says what is wrong.
    if (sides is None or min(sides) < 0 or max(sides) > LONGEST or min(dilation) < 1
            or not _reaches(dilation, weight.shape[2:]) or not _are_alike(x, weight, bias)):
        return _pytorch(x, weight, bias, stride, padding, dilation, relu)
    # The choice falls when the graph runs: sizes may be symbols here.
    return dwconv2d(x, weight, bias, sides, dilation, backend, keep, relu)


def large_kernel_dwconv2d_pair(x: Tensor,
                               weight: Tensor,
                               small_weight: Tensor,
                               *,
                               backend: str = 'auto') -> tuple[Tensor, Tensor]:
    """Two depth-wise convolutions of one input: the branches of a re-parameterized block.

    ``(large_kernel_dwconv2d(x, w, padding=K // 2) for w in (weight, small_weight))``. Where it is
    faster (CPU, float32 or 16 bits, all gradients wanted), one pass computes the gradients of both
    branches: it transforms the input once and the input's gradient once.

    Args:
        x (Tensor): Input ``(N, C, H, W)``.
        weight (Tensor): Kernels ``(C, 1, Kh, Kw)`` of odd sizes.
        small_weight (Tensor): Kernels ``(C, 1, kh, kw)`` of odd sizes, at most ``(Kh, Kw)``.
        backend (str): As of `large_kernel_dwconv2d`.

    Returns:
        tuple[Tensor, Tensor]: Two of ``(N, C, H, W)``, as from two calls.

    Raises:
        RuntimeError, ValueError: As `large_kernel_dwconv2d`.
    """
    pair = weight, small_weight
    if has_torch_function((x, *pair)):
        return handle_torch_function(large_kernel_dwconv2d_pair, (x, *pair), x, *pair,
                                     backend=backend)
    if not _goes_as_pair(x, pair, backend):
        return tuple(large_kernel_dwconv2d(
            x, w, padding=[k // 2 for k in w.shape[2:]], backend=backend) for w in pair)
    cast_x, cast_weight, _ = _autocast(x, weight, None)
    cast_small = _autocast(x, small_weight, None)[1]
    sides = [_sides([k // 2 for k in w.shape[2:]], w.shape[2:], (1, 1)) for w in pair]
    return dwconv2d_pair(cast_x, cast_weight, cast_small, *sides, (1, 1), backend)


def _goes_as_pair(x: Tensor, pair: tuple[Tensor, Tensor], backend: str) -> bool:
    """Whether the gradients of both branches come cheaper together."""
    if not (torch.is_grad_enabled() and x.requires_grad and x.dim() == 4 and x.device.type == 'cpu'
            and backend in ('auto', 'fft') and all(w.requires_grad and w.dim() == 4 for w in pair)):
        return False
    if (torch.jit.is_tracing() or is_differentiated_by_func()
            or torch.compiler.is_compiling() or any(_has_symbolic_sizes(x, w) for w in pair)):
        return False
    problems = []
    for w in pair:
        cast_x, w, _ = _autocast(x, w, None)
        sides = tuple(k // 2 for k in w.shape[2:])
        problems.append(_plan(cast_x, w, None, 1, sides, 1, backend)[0])
    return None not in problems and dispatch.one_backward(tuple(problems), backend)


def _trains_better(weight: Tensor, problem: Problem) -> bool:
    """Whether a gradient will be wanted for which another backend is faster than PyTorch's own.

    Then the custom op runs PyTorch's forward pass, and chooses anew for each gradient.
    """
    return (weight.requires_grad and torch.is_grad_enabled() and problem.stride == (1, 1)
            and (dispatch.is_open(problem, 'weight_grad', weight.device)
                 or dispatch.choose_weight_grad(problem, device=weight.device).backend != 'torch'))


def explain(x: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: int | tuple[int, int] = 1,
            padding: int | tuple[int, int] | str = 0,
            dilation: int | tuple[int, int] = 1,
            *,
            backend: str = 'auto') -> dispatch.Choice:
    """Which backend `large_kernel_dwconv2d` takes for these arguments, and why.

    Nothing is computed. Arguments as of `large_kernel_dwconv2d`.

    Returns:
        Choice: ``backend``, ``reason``, and ``candidates``: for each backend its estimated time in
        seconds (None where there is no estimate) or the reason why it cannot serve.

    Raises:
        RuntimeError: As `large_kernel_dwconv2d`.
        ValueError: As `large_kernel_dwconv2d`.
    """
    if backend not in dispatch.CHOICES:
        raise ValueError(f'backend must be one of {", ".join(dispatch.CHOICES)}, not {backend!r}')
    if x.dim() == 3:
        x = x.unsqueeze(0)
    x, weight, bias = _autocast(x, weight, bias)
    problem = problem_of(x, weight, bias, stride, padding, dilation)
    if problem is None:
        _pytorch(x[:1], weight, bias, stride, padding, dilation)  # raises for bad input
        return dispatch.Choice('torch', 'nothing to compute, or not a strided real tensor', {})
    choice = dispatch.choose(problem, backend, device=x.device)
    choice = choice._replace(candidates=dict(choice.candidates))  # the caller's own
    if (backend == 'auto' and problem.device == 'cpu'
            and _is_tiny(x, problem.kernel, stride, dilation)):
        return choice._replace(backend='torch', reason='so small that any choice costs more')
    return choice


def _plan(x, weight, bias, stride, padding, dilation, backend, relu=False
          ) -> tuple[Problem | None, str | None, bool]:
    """`problem_of`, the backend, and whether it is open, as kernels are to be timed first.

    Looked up by what they depend on in a tenth of the time.
    """
    key = ready.key_of(x, weight, bias, stride, padding, dilation, backend, relu)
    try:
        return dispatch.plans[key]
    except (KeyError, TypeError):  # not seen yet, or given as lists
        pass
    problem = problem_of(x, weight, bias, stride, padding, dilation, relu)
    if problem is None:
        plan = None, None, False
    else:
        plan = (problem, dispatch.choose(problem, backend, device=x.device).backend,
                backend == 'auto' and dispatch.is_open(problem, 'forward', x.device))
    if plan[2]:
        return plan
    if len(dispatch.plans) >= dispatch.PLANS:
        dispatch.plans.clear()
    with suppress(TypeError):
        dispatch.plans[key] = plan
    return plan


def problem_of(x, weight, bias, stride, padding, dilation, relu=False) -> Problem | None:
    """The call as a `Problem`; None for what PyTorch's convolution has to refuse or to answer."""
    if not _is_depthwise(x, weight) or x.layout != torch.strided or weight.layout != torch.strided:
        return None
    if not _are_alike(x, weight, bias):
        return None
    outputs, _, *kernel = weight.shape
    stride, dilation = _pair(stride), _pair(dilation)
    if stride is None or dilation is None or min(stride) < 1 or min(dilation) < 1:
        return None
    if padding == 'same' and stride != (1, 1):
        return None
    sides = _sides(padding, kernel, dilation)
    if (sides is None or min(sides) < 0 or max(sides) > LONGEST or not x.numel() or not outputs
            or min(kernel) < 1 or not _reaches(dilation, kernel)):
        return None
    problem = Problem.of(x, weight.shape, sides, dilation, stride, bias is not None, relu)
    return problem if min(problem.out_size) > 0 and max(problem.out_size) < LONGEST else None


def _is_depthwise(x: Tensor, weight: Tensor) -> bool:
    return (x.dim() == 4 and weight.dim() == 4 and weight.shape[1] == 1 and x.shape[1] > 0
            and weight.shape[0] % x.shape[1] == 0)


def _reaches(dilation, kernel) -> bool:
    """Whether a kernel is of a size that the kernels and their estimates take."""
    return all(d * (k - 1) < WIDEST for d, k in zip(dilation, kernel, strict=True))


def _has_symbolic_sizes(*tensors: Tensor) -> bool:
    """Whether sizes are symbols, as while ``make_fx`` traces: no plan can be looked up by them."""
    return any(type(size) is not int for t in tensors for size in t.shape)


def _are_alike(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether dtypes, devices and the bias's size are as a convolution needs them."""
    return (x.dtype.is_floating_point and weight.device == x.device and weight.dtype == x.dtype
            and (bias is None or (bias.device == x.device and bias.dtype == x.dtype
                                  and bias.shape == weight.shape[:1])))


def _pair(value) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Integral):  # NumPy's
        return int(value), int(value)
    value = tuple(value)
    if len(value) == 1:
        return value * 2
    return value if len(value) == 2 else None


def _sides(padding, kernel, dilation: tuple[int, int]) -> tuple[int, ...] | None:
    """Zeros at the top, bottom, left and right."""
    if padding == 'valid':
        return 0, 0, 0, 0
    if padding == 'same':
        # Of an odd total, PyTorch puts the larger half at the end.
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2,
                totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, str):
        return None
    pair = _pair(padding)
    return None if pair is None else (pair[0], pair[0], pair[1], pair[1])


def _is_tiny(x, kernel, stride, dilation) -> bool:
    """Whether to go to PyTorch at once; not where it would hang or err in autocast's 16 bits.

    See `conv2d`, which must get what autocast makes of the arguments.
    """
    return (x.numel() * kernel[0] * kernel[1] < TINY and kernel[1] < HANGING_WIDTH
            and not (is_any_autocast_enabled()
                     and (is_spread(dilation) or is_spread(stride))))


def _pytorch(x, weight, bias, stride, padding, dilation, relu=False) -> Tensor:
    try:
        out = conv2d(x, weight, bias, stride, padding, dilation, x.shape[1] if x.dim() == 4 else 1)
    except RuntimeError:
        # Where PyTorch has no words for what is wrong.
        if weight.dim() == 5:
            raise RuntimeError(f'weight must be (C * M, 1, Kh, Kw), not {tuple(weight.shape)}: for '
                               '3-d convolutions, use F.conv3d') from None
        if x.is_quantized or weight.is_quantized:
            raise RuntimeError(
                'x or weight is quantized, and the operator takes floating-point numbers: '
                'dequantize() first, or have nn.Conv2d in what is to be quantized') from None
        raise
    return F.relu(out) if relu else out


# Asked once: dynamo of torch 2.5 does not trace the question.
AUTOCAST_DEVICES = frozenset(
    device for device in ('cpu', 'cuda', 'xpu', 'hpu', 'mps', 'mtia', 'privateuseone')
    if torch.amp.is_autocast_available(device))


def _autocast(x, weight, bias):
    """What autocast would do to the arguments of ``F.conv2d``."""
    if not is_any_autocast_enabled():
        return x, weight, bias
    device = x.device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in (x, weight, bias))
