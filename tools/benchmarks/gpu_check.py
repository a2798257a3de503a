"""Part 'correct' of `first_gpu.py`: the kernels beside float64, in poisoned memory and other."""

import torch
from gpu_parts import DTYPES, TASKS, Context, able, allow_tf32, mode_of, shape_of

from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.gpu import memory, selfcheck
from mmreplk.ops.gpu.arch import arch_of

# (N, C, H, W), (Kh, Kw): the network's maps with few channels, odd widths, odd kernels, one image.
SHAPES = [
    ((4, 3, 16, 16), (31, 31)), ((4, 3, 32, 32), (31, 31)), ((4, 3, 64, 64), (31, 31)),
    ((3, 3, 56, 56), (31, 31)), ((5, 2, 28, 28), (29, 29)), ((9, 3, 14, 14), (27, 27)),
    ((9, 3, 7, 7), (13, 13)), ((1, 4, 25, 40), (13, 13)), ((1, 3, 50, 80), (27, 27)),
    ((1, 2, 128, 128), (31, 31)), ((1, 2, 200, 320), (31, 31)), ((2, 3, 25, 25), (5, 5)),
    ((2, 3, 50, 50), (3, 3)), ((2, 3, 33, 47), (51, 51)), ((2, 3, 40, 33), (51, 5)),
    ((2, 3, 33, 40), (5, 51)), ((2, 3, 17, 24), (1, 31)), ((2, 3, 24, 17), (31, 1)),
    ((1, 1, 1, 40), (1, 31)), ((70, 2, 8, 8), (9, 9))]


def run(context: Context) -> None:
    """Rows of all shapes and dtypes, then of what is special."""
    for dtype in ('fp16', 'tf32', 'bf16', 'fp32'):
        allow_tf32(dtype)
        for shape, kernel in SHAPES:
            problem = context.problem(dtype, *shape, kernel, has_bias=True, relu=dtype == 'bf16')
            for task in TASKS:
                for family in able(problem, task):
                    context.check_time(f'{dtype} {shape}')
                    context.attempt(
                        dict(kind='poisoned', dtype=dtype, task=task, family=family.name,
                             shape=shape_of(problem)),
                        lambda f=family, p=problem, t=task, d=dtype: _poisoned(context, f, p, t, d))
    special = dict(unaligned=_unaligned, channels_last=_channels_last, streams=_streams,
                   graph=_graph, infinite=_infinite)
    for dtype in ('fp16', 'tf32'):
        allow_tf32(dtype)
        for kind, check in special.items():
            for shape, kernel in (SHAPES[1], SHAPES[6]):
                problem = context.problem(dtype, *shape, kernel)
                for family in able(problem, 'forward'):
                    context.check_time(kind)
                    context.attempt(
                        dict(kind=kind, dtype=dtype, task='both', family=family.name,
                             shape=shape_of(problem)),
                        lambda c=check, f=family, p=problem, d=dtype: c(context, f, p, d))


def _variant(context, family, problem, task, dtype):
    return family.variants(problem, task, mode_of(dtype), arch_of(context.machine.device))[0]


def _poisoned(context, family, problem, task, dtype) -> dict:
    variant = _variant(context, family, problem, task, dtype)
    small = problem if task == 'forward' else problem._replace(has_bias=False, relu=False)
    found = selfcheck.outcome_of(family, context.machine.device, small, task, mode_of(dtype),
                                 variant)
    if found == selfcheck.RIGHT:
        return dict(status='ok', variant=str(variant))
    return dict(status='wrong', variant=str(variant), note=found)


def _judge(outs, expected, dtype) -> dict:
    """The larger error of some results, and whether it is allowed."""
    mode = mode_of(dtype)
    allowed = selfcheck.TOLERANCE[DTYPES[dtype] if mode == 'half' else mode]
    error = max(selfcheck.relative_error(out, right)
                for out, right in zip(outs, expected, strict=True))
    return dict(status='ok' if error <= allowed else 'wrong', error=error, tolerance=allowed)


def _inputs(context, problem):
    p = problem
    x = context.normal(p.batch, p.channels, p.height, p.width, dtype=p.dtype)
    weight = context.normal(p.channels, 1, *p.kernel, dtype=p.dtype)
    return x, weight, context.normal(*p.out_shape, dtype=p.dtype)


def _exact(x, weight, grad, problem):
    return (selfcheck.exact_forward(x, weight, None, problem),
            selfcheck.exact_weight_grad(x, grad, problem))


def _both(context, family, problem, dtype, x, weight, grad):
    mode = mode_of(dtype)
    return (family.forward(x, weight, None, problem, mode, _variant(
                context, family, problem, 'forward', dtype)),
            family.weight_grad(x, grad, problem, mode, _variant(
                context, family, problem, 'weight_grad', dtype)))


def _unaligned(context, family, problem, dtype) -> dict:
    x, weight, grad = _inputs(context, problem)

    def shifted(tensor):
        whole = tensor.new_full((tensor.numel() + 8, ), memory.POISON)
        return whole[1:1 + tensor.numel()].view(tensor.shape).copy_(tensor)

    outs = _both(context, family, problem, dtype, shifted(x), shifted(weight), shifted(grad))
    return _judge(outs, _exact(x, weight, grad, problem), dtype)


def _channels_last(context, family, problem, dtype) -> dict:
    x, weight, grad = _inputs(context, problem)
    last = problem._replace(channels_last=True)
    outs = _both(context, family, last, dtype, x.contiguous(memory_format=torch.channels_last),
                 weight, grad.contiguous(memory_format=torch.channels_last))
    found = _judge(outs, _exact(x, weight, grad, problem), dtype)
    if not outs[0].is_contiguous(memory_format=torch.channels_last):
        found.update(status='wrong', note='the result is not channels-last')
    return found


def _streams(context, family, problem, dtype) -> dict:
    """Twice beside each other, with workspaces of their own."""
    several = [_inputs(context, problem) for _ in range(2)]
    outs = context.machine.on_two_streams([
        lambda t=tensors: _both(context, family, problem, dtype, *t) for tensors in several * 4])
    expected = [_exact(*tensors, problem) for tensors in several] * 4
    return _judge([o for pair in outs for o in pair], [e for pair in expected for e in pair], dtype)


def _graph(context, family, problem, dtype) -> dict:
    """Recorded, and replayed on other values."""
    x, weight, grad = _inputs(context, problem)
    replay = context.machine.captured(
        lambda: _both(context, family, problem, dtype, x, weight, grad))
    for tensor in (x, weight, grad):
        tensor.copy_(context.normal(*tensor.shape, dtype=tensor.dtype))
    return _judge(replay(), _exact(x, weight, grad, problem), dtype)


def _infinite(context, family, problem, dtype) -> dict:
    """Inf and NaN reach what sees them, and nothing else; through the public function."""
    x, weight, _ = _inputs(context, problem)
    middle = problem.height // 2, problem.width // 2
    x[0, 0, 0, 0], x[-1, -1, middle[0], middle[1]] = float('inf'), float('nan')
    out = large_kernel_dwconv2d(x, weight, padding=problem.padding[::2], backend=family.name)
    # What sees a place: ones as weights, and 1 at the place alone.
    marks = torch.zeros_like(x)
    marks[0, 0, 0, 0] = marks[-1, -1, middle[0], middle[1]] = 1
    seen = selfcheck.exact_forward(marks, torch.ones_like(weight), None, problem) > 0.5
    same = torch.equal(~out.isfinite(), seen)
    return dict(status='ok') if same else dict(status='wrong', note='other places are not finite')
