"""Parts 'ceilings', 'compile', 'tiles', 'cudnn', 'ours' and 'small' of `first_gpu.py`."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import ceilings
import torch
import torch.nn.functional as F
from gpu_parts import DTYPES, TASKS, Context, able, allow_tf32, mode_of, shape_of

from mmreplk.ops import caches, large_kernel_dwconv2d
from mmreplk.ops.gpu import families, tiles
from mmreplk.ops.gpu.arch import arch_of

FORMATS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
SMALL_KERNELS = (3, 5, 7, 13)
# (N, C, H, W, K) beside the stack: the network's maps, odd widths among them.
FACTS = [(64, 128, 56, 56, 31), (64, 256, 28, 28, 29), (64, 512, 14, 14, 27),
         (64, 1024, 7, 7, 13), (1, 1024, 25, 25, 13), (1, 512, 50, 50, 27)]


def measure_ceilings(context: Context) -> None:
    """Clocks, and the rates of copies and matrix products by dtype."""
    context.row(kind='clocks', status='ok', note=context.machine.clocks())
    for dtype in ('fp16', 'tf32', 'fp32'):
        allow_tf32(dtype)
        context.check_time(dtype)

        def rates(dtype=dtype):
            found = ceilings.measure(context.machine.device, DTYPES[dtype])
            return dict(bandwidth=found.bandwidth, rate=found.rate)

        context.attempt(dict(kind='rates', dtype=dtype), rates)
    context.row(kind='clocks', status='ok', note=context.machine.clocks())


def rates_of(context: Context, dtype: str) -> ceilings.Ceilings | None:
    """What `measure_ceilings` has found."""
    for row in reversed(context.rows):
        if row.get('kind') == 'rates' and row.get('dtype') == dtype and row['status'] == 'ok':
            return ceilings.Ceilings(row['bandwidth'], row['rate'])
    return None


def classes(variants: list, most: int) -> list:
    """The first variant of each class: patches and bytes of a load, or what stands there."""
    found = {}
    for variant in variants:
        tile = variant.tile if hasattr(variant, 'tile') else variant
        kind = (tile[0], getattr(tile, 'vector', None), getattr(variant, 'more', None))
        found.setdefault(kind, variant)
    return list(found.values())[:most]


def compile_all(context: Context) -> None:
    """What the other parts will launch, in threads."""
    from compile_only import nothing_runs
    jobs = []
    facts = [(dtype, context.problem(dtype, *shape[:4], (shape[4], shape[4])))
             for shape in FACTS for dtype in ('fp16', 'tf32')]
    device = arch_of(context.machine.device)
    for number, (dtype, problem) in enumerate([*context.stack(), *facts]):
        for task in TASKS:
            for family in able(problem, task):
                options = family.variants(problem, task, mode_of(dtype), device)
                most = 6 if number < len(context.stack()) else 1
                jobs += [(family, problem, task, dtype, each) for each in classes(options, most)]
    seen, unique = set(), []
    for family, problem, task, dtype, variant in jobs:
        key, small = family.probe(problem, task, mode_of(dtype), variant, device)
        if (family.name, key) not in seen:
            seen.add((family.name, key))
            unique.append((family, small, task, dtype, variant))

    def one(job):
        family, small, task, dtype, variant = job
        start = time.perf_counter()
        x = torch.zeros(small.batch, small.channels, small.height, small.width, dtype=small.dtype,
                        device=context.machine.device)
        if task == 'forward':
            weight = x.new_zeros(small.channels, 1, *small.kernel)
            bias = x.new_zeros(small.channels) if small.has_bias else None
            family.forward(x, weight, bias, small, mode_of(dtype), variant)
        else:
            family.weight_grad(x, x.new_zeros(small.out_shape), small, mode_of(dtype), variant)
        return time.perf_counter() - start

    def wait(jobs, pool):
        pending = {pool.submit(one, job): job for job in jobs}
        for future in as_completed(pending):
            family, small, task, dtype, variant = pending[future]
            context.attempt(dict(kind='compiled', family=family.name, task=task, dtype=dtype,
                                 variant=str(variant), shape=shape_of(small)),
                            lambda future=future: dict(seconds=round(future.result(), 2)))
            if time.monotonic() > context.deadline:
                for other in pending:
                    other.cancel()
                context.check_time('compilation')

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        with nothing_runs():
            wait([job for job in unique if job[0].name == 'triton'], pool)
        # The first call of another family compiles it.
        wait([job for job in unique if job[0].name != 'triton'], pool)


def _tensors(context, problem, task):
    p = problem
    x = context.normal(p.batch, p.channels, p.height, p.width, dtype=p.dtype)
    if task == 'forward':
        return x, context.normal(p.channels, 1, *p.kernel, dtype=p.dtype,
                                 scale=(p.kernel[0] * p.kernel[1])**-0.5)
    return x, context.normal(*p.out_shape, dtype=p.dtype)


def _timed(context, run, seconds=0.4) -> dict:
    median, least, most, samples = context.machine.milliseconds(run, seconds)
    return dict(median_ms=median, least_ms=least, most_ms=most, samples=samples)


def time_tiles(context: Context, out: Path) -> None:
    """One tile of each class, replayed from a graph; the winners go to ``tiles.json``."""
    device = arch_of(context.machine.device)
    winners = {}
    for task in TASKS:
        for dtype, problem in context.stack():
            allow_tf32(dtype)
            for family in able(problem, task):
                x, other = _tensors(context, problem, task)
                options = family.variants(problem, task, mode_of(dtype), device)
                best = None
                for variant in classes(options, 6):
                    context.check_time(f'{task} {dtype} {shape_of(problem)}')

                    def call(family=family, variant=variant, x=x, other=other, task=task,
                             problem=problem, dtype=dtype):
                        if task == 'forward':
                            return family.forward(x, other, None, problem, mode_of(dtype), variant)
                        return family.weight_grad(x, other, problem, mode_of(dtype), variant)

                    row = context.attempt(
                        dict(kind='tile', family=family.name, task=task, dtype=dtype,
                             shape=shape_of(problem), variant=str(variant)),
                        lambda call=call: _timed(context, context.machine.captured(call), 0.2))
                    if row['status'] == 'ok' and (best is None or row['median_ms'] < best[0]):
                        best = row['median_ms'], variant
                if best and family.name == 'triton' and not best[1].more:
                    winners[tiles.key(problem, task, mode_of(dtype), device)] = best[1].tile
                    (out / 'tiles.json').write_text(
                        json.dumps(winners, indent=0, sort_keys=True) + '\n', encoding='utf-8')


def follow(table: Path) -> None:
    """Have the operator take the tiles of a table."""
    if table.exists():
        tiles.TABLE = table
        caches.clear_all()


def _pytorch(context, problem, task, x, other, layout):
    """PyTorch's call for a task: 'forward', 'weight_grad' or 'backward' (both gradients)."""
    p, pad = problem, problem.padding[::2]
    x = x.contiguous(memory_format=FORMATS[layout])
    if task == 'forward':
        other = other.contiguous(memory_format=FORMATS[layout])
        return lambda: F.conv2d(x, other, padding=pad, groups=p.channels)
    grad = other.contiguous(memory_format=FORMATS[layout])
    weight = context.normal(p.channels, 1, *p.kernel, dtype=p.dtype)
    wanted = task == 'backward', True, False
    return lambda: torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), pad, (1, 1), False, (0, 0), p.channels, wanted)


def time_cudnn(context: Context) -> None:
    """PyTorch in cuDNN's benchmark mode, one layer of the stack, both formats, forward first."""
    for task in ('forward', 'backward'):
        for dtype, problem in context.stack():
            allow_tf32(dtype)
            x, other = _tensors(context, problem, task)
            for layout in FORMATS:
                context.check_time(f'{task} {dtype} {shape_of(problem)}')
                context.attempt(
                    dict(kind='cudnn', task=task, dtype=dtype, shape=shape_of(problem),
                         layout=layout),
                    lambda t=task, p=problem, x=x, o=other, layout=layout: _timed(
                        context, _pytorch(context, p, t, x, o, layout), 0.5))


def time_ours(context: Context) -> None:
    """The stack of layers, each with its own weights: each family and 'auto', graph and eager."""
    for graph, task in ((True, 'forward'), (False, 'forward'), (False, 'both')):
        for dtype, problem in context.stack():
            allow_tf32(dtype)
            layers, pad = context.scale.layers, problem.padding[::2]
            x, _ = _tensors(context, problem, 'forward')
            weights = [_tensors(context, problem._replace(batch=1), 'forward')[1]
                       for _ in range(layers)]
            if task == 'both':
                x.requires_grad_()
                weights = [weight.requires_grad_() for weight in weights]
            for backend in (*families.FAMILIES, 'auto'):
                context.check_time(f'{task} {dtype} {shape_of(problem)}')

                def stack(x=x, weights=weights, pad=pad, backend=backend):
                    for weight in weights:
                        x = large_kernel_dwconv2d(x, weight, padding=pad, backend=backend)
                    return x

                def both(x=x, weights=weights, stack=stack):
                    out = stack()
                    return torch.autograd.grad(out, (x, *weights), out.detach())

                def timed(run=stack if task == 'forward' else both, graph=graph, task=task):
                    with torch.set_grad_enabled(task == 'both'):
                        run()
                        return _timed(context, context.machine.captured(run) if graph else run)

                context.attempt(dict(kind='stack', family=backend, task=task, dtype=dtype,
                                     shape=shape_of(problem), layers=layers, graph=graph), timed)


def time_small(context: Context) -> None:
    """Small kernels, ours beside PyTorch's: for the constants of ``mmreplk/ops/gpu/backend.py``."""
    s, side = context.scale, context.scale.maps[len(context.scale.maps) // 2]
    for kernel in SMALL_KERNELS:
        for dtype in ('fp16', 'tf32'):
            allow_tf32(dtype)
            problem = context.problem(dtype, s.batch, s.channels, side, side, (kernel, kernel))
            for task in TASKS:
                x, other = _tensors(context, problem, task)
                device = arch_of(context.machine.device)
                runs = {f'pytorch {layout}': _pytorch(context, problem, task, x, other, layout)
                        for layout in FORMATS}
                for family in able(problem, task):
                    variant = family.variants(problem, task, mode_of(dtype), device)[0]
                    runs[family.name] = lambda f=family, v=variant, t=task, p=problem, d=dtype, \
                        x=x, o=other: (f.forward(x, o, None, p, mode_of(d), v) if t == 'forward'
                                       else f.weight_grad(x, o, p, mode_of(d), v))
                for name, run in runs.items():
                    context.check_time(f'{kernel} {dtype} {task}')
                    context.attempt(dict(kind='small', family=name, task=task, dtype=dtype,
                                         shape=shape_of(problem)),
                                    lambda run=run: _timed(context, run, 0.1))
