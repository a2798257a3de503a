"""Check and time the tiles of the Triton kernels on this GPU, against PyTorch's own kernels.

Every candidate is first compared with a float64 reference on fresh random inputs, then timed: the
median, p20 and p80 of replays of a CUDA graph, the L2 cache flushed in between, so that neither the
host nor a warm cache counts. Prints for each problem the fastest tile, the tile that the cost model
picks, and the faster of PyTorch's two memory formats in cuDNN's benchmark mode. Every row goes into
``tools/benchmarks/results/``; the constants of ``backend.py`` and ``tiles.py`` in
``mmreplk/ops/gpu`` are to be fitted to them. With ``--write``, the winners go into
``mmreplk/ops/gpu/tiles.json``, which the operator then follows.

Needs torch and Triton only; run from the root of the repository::

    python tools/benchmarks/tune_triton.py                       # everything, within --minutes
    python tools/benchmarks/tune_triton.py --shapes stack --dtypes fp16 --top 8 --write
    python tools/benchmarks/tune_triton.py --compile 8.0 9.0     # no GPU: what the compiler makes
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rows as result_rows
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from compile_only import nothing_runs  # noqa: E402

from mmreplk.ops.gpu import (  # noqa: E402
    backend as gpu,  # noqa: E402
    kernels,
    launch,
    tiles,
)
from mmreplk.ops.problem import Problem  # noqa: E402

# (batch, channels, height, width, kernel)
SHAPES = {
    'stack': [(64, 384, r, r, 31) for r in (16, 32, 64)],
    'small': [(64, 384, 32, 32, k) for k in (3, 5, 7, 13)],
    'cls': [(64, 128, 56, 56, 31), (64, 256, 28, 28, 29), (64, 512, 14, 14, 27),
            (64, 1024, 7, 7, 13)],
    'seg': [(2, 128, 128, 128, 31), (2, 256, 64, 64, 29), (2, 512, 32, 32, 27),
            (2, 1024, 16, 16, 13)],
    'det': [(1, 128, 200, 320, 31), (1, 256, 100, 160, 29), (1, 512, 50, 80, 27),
            (1, 1024, 25, 40, 13)],
}
DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'tf32': torch.float32,
          'fp32': torch.float32}
# Error allowed, as norm of the difference over norm of the reference.
TOLERANCE = {'fp16': 1e-3, 'bf16': 8e-3, 'tf32': 2e-3, 'fp32': 5e-6}
TASKS = ('forward', 'weight_grad')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['fp16', 'tf32'])
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--top', type=int, default=6,
                        help='time only this many tiles, best estimates first; 0 for all')
    parser.add_argument('--rep', type=int, default=30, help='milliseconds of timing a tile')
    parser.add_argument('--minutes', type=float, default=9.0, help='stop after this long')
    parser.add_argument('--channels', type=int, help='instead of the channels of the shapes')
    parser.add_argument('--no-baseline', action='store_true', help="leave PyTorch's kernels out")
    parser.add_argument('--out', type=Path, help='rows; added to it if it exists')
    parser.add_argument('--commit', help='the revision, where git cannot tell it')
    parser.add_argument('--write', action='store_true', help=f'write winners to {tiles.TABLE.name}')
    parser.add_argument('--list', action='store_true', help='print what would be timed, and end')
    parser.add_argument('--compile', nargs='+', metavar='CAPABILITY', type=capability,
                        help='compile for these, as 9.0, without a GPU; report, and end')
    return parser.parse_args()


def capability(text):
    major, minor = text.split('.')
    return int(major), int(minor)


def make_problem(shape, dtype):
    batch, channels, height, width, k = shape
    return Problem(dtype, 'cuda', False, batch, channels, height, width, 1, (k, k), (1, 1),
                   (k // 2, ) * 4, (1, 1), False)


def ranked(problem, task, mode, device, top):
    """Usable tiles, best estimate first."""
    time_of = tiles.forward_time if task == 'forward' else tiles.grad_time
    options = [(time_of(problem, tile, mode, device), tile)
               for tile in tiles.usable(problem, task, mode, device.capability)]
    options = sorted((pair for pair in options if pair[0] < 1), key=lambda pair: pair[0])
    return options[:top] if top else options


def reference(problem, task, x, other):
    """In float64, of the first and the last channel only."""
    some = sorted({0, problem.channels - 1})
    x, k = x[:, some].double(), problem.kernel
    pad = (problem.padding[0], problem.padding[2])
    if task == 'forward':
        return some, F.conv2d(x, other[some].double(), padding=pad, groups=len(some))
    grad = other[:, some].double()
    columns = []
    for u in range(k[0]):  # one kernel row at a time, as sums over pixels
        rows = F.pad(x, (pad[1], pad[1], pad[0], pad[0]))[:, :, u:u + problem.out_size[0]]
        columns.append(torch.stack([
            (rows[..., v:v + problem.out_size[1]] * grad).sum((0, 2, 3)) for v in range(k[1])], 1))
    return some, torch.stack(columns, 1).unsqueeze(1)


# -- timing ----------------------------------------------------------------------------------------

def bench(run, rep):
    """Milliseconds: median, p20, p80."""
    run()  # whatever is compiled or chosen at first use
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return triton.testing.do_bench(graph.replay, warmup=10, rep=rep, quantiles=[0.5, 0.2, 0.8])


def pytorch(problem, task, x, other, rep):
    """Milliseconds of PyTorch's kernels by memory format, in cuDNN's benchmark mode."""
    pad, times = problem.padding[::2], {}
    for name, memory_format in (('nchw', torch.contiguous_format), ('nhwc', torch.channels_last)):
        a, b = x.contiguous(memory_format=memory_format), other
        if task == 'forward':
            def run(a=a, b=b):
                F.conv2d(a, b, padding=pad, groups=problem.channels)
        else:
            b = b.contiguous(memory_format=memory_format)
            weight = x.new_empty(problem.channels, 1, *problem.kernel)

            def run(a=a, b=b, weight=weight):
                torch.ops.aten.convolution_backward(
                    b, a, weight, None, (1, 1), pad, (1, 1), False, (0, 0), problem.channels,
                    (False, True, False))
        times[f'torch_{name}_ms'] = bench(run, rep)[0]
    return times


def tune(name, task, dtype_name, shape, args, device):
    """Rows of one problem: every tile checked, then timed."""
    problem = make_problem(shape, DTYPES[dtype_name])
    tf32 = dtype_name != 'fp32'
    torch.backends.cudnn.allow_tf32 = tf32
    mode = tiles.mode_of(problem.dtype, tf32)
    options = ranked(problem, task, mode, device, args.top)
    x = torch.randn(shape[:4], device='cuda').to(problem.dtype)
    if task == 'forward':
        other = torch.randn(shape[1], 1, shape[4], shape[4], device='cuda').to(problem.dtype)
    else:
        other = torch.randn(problem.out_shape, device='cuda').to(problem.dtype)
    some, expected = reference(problem, task, x, other)

    def call(tile):
        if task == 'forward':
            return launch.forward(x, other, None, problem, tf32, tile)
        return launch.weight_grad(x, other, problem, tf32, tile)

    def attempt(tile, run):
        try:
            return None, run(tile)
        except Exception as error:  # a tile that this GPU cannot run is a result, too
            return f'{type(error).__name__}: {error}'[:200], None

    start = time.time()
    with nothing_runs(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        failures = list(pool.map(lambda tile: attempt(tile, call)[0], [t for _, t in options]))
    compile_seconds = round(time.time() - start, 1)

    def checked(tile):
        out = call(tile)
        out = (out[:, some] if task == 'forward' else out[some]).double()
        return float((out - expected).norm() / expected.norm())

    rows = []
    for (guess, tile), failure in zip(options, failures, strict=True):
        row = dict(name=name, task=task, dtype=dtype_name, shape=shape, tile=tile,
                   estimate_ms=guess * 1e3, compile_s=compile_seconds)
        if failure is None:
            failure, row['error'] = attempt(tile, checked)
        if failure is None and not row['error'] <= TOLERANCE[dtype_name]:  # NaN as well
            failure = 'wrong result'
        if failure is None:
            failure, times = attempt(tile, lambda tile: bench(lambda: call(tile), args.rep))
        if failure is None:
            row.update(zip(('ms', 'p20_ms', 'p80_ms'), times, strict=True))
        else:
            row['failure'] = failure
            with contextlib.suppress(Exception):
                torch.cuda.synchronize()
        rows.append(row)
    about = dict(bound_ms=bound(problem, mode, device) * 1e3,
                 torch_estimate_ms=gpu.pytorch(problem, task, device) * 1e3)
    if not args.no_baseline:
        about |= pytorch(problem, task, x, other, args.rep)
    return problem, mode, [{**row, **about} for row in rows]


def bound(problem, mode, device):
    """Seconds below which nothing can be: bytes moved once, multiply-adds inside the map."""
    macs = device.macs / {'half': 1, 'tf32': 2, 'exact': 6}[mode]
    return max(problem.bytes_moved / device.memory,
               problem.macs / (macs * device.sms * device.clock))


def report(problem, task, mode, device, rows, table):
    """Print the line of one problem and keep its winner."""
    first = rows[0]
    good = [row for row in rows if 'ms' in row]
    size = 'x'.join(map(str, first['shape']))
    label = f'{first["name"]:<6}{task:<12}{first["dtype"]:<5}{size:<20}'
    for row in rows:
        if 'failure' in row:
            print(f'{label} FAILED {tuple(row["tile"])}: {row["failure"]} {row.get("error", "")}',
                  flush=True)
    if not good:
        return
    best = min(good, key=lambda row: row['ms'])
    table[tiles.key(problem, task, mode, device)] = list(best['tile'])
    ms = best['ms']
    base = min((first[k] for k in ('torch_nchw_ms', 'torch_nhwc_ms') if k in first), default=None)
    baseline = '-' if base is None else f'{base:9.4f} ({base / ms:.1f}x)'
    model = f'{first["ms"] / ms:.2f}x best' if 'ms' in first else 'failed'
    print(f'{label}{ms:9.4f} ms {ms / best["bound_ms"]:5.1f}x bound  PyTorch {baseline:<18} '
          f'model {model:<11} said {first["estimate_ms"]:.4f}  {tuple(best["tile"])}', flush=True)


# -- without a GPU ---------------------------------------------------------------------------------

def aot(kernel, plan, dtypes, capability):
    """What Triton would compile: tensors at multiples of 16 bytes, sizes not specialised on."""
    constants = {k: v for k, v in plan.constants.items() if k in kernel.arg_names}
    options = {k: v for k, v in plan.constants.items() if k not in constants}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = 'constexpr'
        elif name.endswith('_ptr'):
            signature[name] = '*' + dtypes.get(name, dtypes['x_ptr'])
            attributes[(index, )] = [['tt.divisibility', 16]]
        else:
            signature[name] = 'i32'
    target = GPUTarget('cuda', capability[0] * 10 + capability[1], 32)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target,
                          options=options)


def machine_code(cubin):
    """Registers, and counts of instructions, of the main loop where there is one."""
    tools = Path(triton.__file__).parent / 'backends/nvidia/bin'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'kernel.cubin'
        path.write_bytes(cubin)
        try:
            usage, code = (subprocess.run([str(tools / tool), option, str(path)], text=True,
                                          capture_output=True, check=True).stdout
                           for tool, option in (('cuobjdump', '-res-usage'), ('nvdisasm', '-c')))
        except (OSError, subprocess.CalledProcessError):
            return {}
    return dict(registers=int(re.search(r'REG:(\d+)', usage)[1]), **main_loop(code))


def main_loop(code):
    """The backward branch that spans the most matrix products: its instructions by kind."""
    lines, labels, loops = [], {}, []
    for line in code.splitlines():
        if label := re.match(r'\s*(\.L_x?_?\d+):', line):
            labels[label[1]] = len(lines)
        elif found := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(.*?);', line):
            lines.append(re.sub(r'^@!?U?P\d+\s+', '', found[1]))
    for end, line in enumerate(lines):
        target = re.match(r'BRA.*`\((\.L_x?_?\d+)\)', line)
        if target and labels.get(target[1], end + 1) <= end:
            loops.append(lines[labels[target[1]]:end + 1])

    def count(pattern, among):
        return sum(bool(re.match(pattern, line)) for line in among)

    products = r'HMMA|HGMMA|UTCHMMA|UTCQMMA|UTC\w*MMA'
    with_products = [loop for loop in loops if count(products, loop)]
    loop = min(with_products, key=len, default=lines)
    kinds = dict(products=products, ldmatrix='LDSM', async_copies='LDGSTS|UBLKCP|UTMALDG',
                 loads='LDG', shared_loads='LDS', shared_stores='STS', barriers='BAR')
    return dict(spills=count('LDL|STL', lines), instructions=len(loop),
                **{name: count(pattern + r'\b', loop) if name != 'products' else
                   count(pattern, loop) for name, pattern in kinds.items()})


def compile_all(todo, args):
    """Compile ahead of time, report each tile's registers, memory and main loop."""
    names = {torch.float16: 'fp16', torch.bfloat16: 'bf16', torch.float32: 'fp32'}

    def one(job):
        capability, name, task, dtype, shape, guess, tile = job
        problem = make_problem(shape, DTYPES[dtype])
        mode = tiles.mode_of(problem.dtype, dtype != 'fp32')
        kinds = {'x_ptr': names[problem.dtype], 'sums_ptr': 'fp32'}
        start = time.time()
        if task == 'forward':
            plan = launch.plan_forward(problem, mode, tile).main
            kernel = kernels.forward_kernel
        else:
            plan = launch.plan_weight_grad(problem, mode, tile, tiles.arch(capability)).main
            kernel = kernels.weight_grad_kernel
        binary = aot(kernel, plan, kinds, capability)
        return dict(name=name, task=task, dtype=dtype, shape=shape, tile=tile,
                    estimate_ms=guess * 1e3, capability=f'{capability[0]}.{capability[1]}',
                    compile_s=round(time.time() - start, 1), shared=binary.metadata.shared,
                    **machine_code(binary.asm['cubin']))

    jobs = []
    for capability in args.compile:
        device = tiles.arch(capability)
        for name, task, dtype, shape in todo:
            problem = make_problem(shape, DTYPES[dtype])
            mode = tiles.mode_of(problem.dtype, dtype != 'fp32')
            jobs += [(capability, name, task, dtype, shape, *pair)
                     for pair in ranked(problem, task, mode, device, args.top)]
    deadline = time.time() + 60 * args.minutes
    for job in jobs:
        if time.time() > deadline:
            print('out of time')
            break
        row = one(job)
        print(json.dumps(row), flush=True)
        if args.out:
            result_rows.RowFile(args.out, append=True).write({**row, 'triton': triton.__version__})


def main():
    args = parse_args()
    todo = [(name, task, dtype, shape) for dtype in args.dtypes for name in args.shapes
            for shape in SHAPES[name] for task in args.tasks]
    if args.channels:
        todo = [(n, t, d, (s[0], args.channels, *s[2:])) for n, t, d, s in todo]
    if args.list:
        for name, task, dtype, shape in todo:
            mode = tiles.mode_of(DTYPES[dtype], dtype != 'fp32')
            options = ranked(make_problem(shape, DTYPES[dtype]), task, mode, tiles.arch(), args.top)
            print(name, task, dtype, shape, [tuple(tile) for _, tile in options])
        return
    if args.compile:
        compile_all(todo, args)
        return
    if not torch.cuda.is_available():
        sys.exit('no CUDA device: nothing can be timed. --compile works without one')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = launch.arch_of('cuda')
    here = torch.device('cuda', torch.cuda.current_device())
    about = result_rows.environment(here, args.commit)
    print(f'{about["device"]}, torch {about["torch"]}, Triton {about["triton"]}, {device}')
    file = result_rows.RowFile(args.out or result_rows.default_path(here, 'tiles'), append=True)
    table, deadline = {}, time.time() + 60 * args.minutes
    for number, (name, task, dtype, shape) in enumerate(todo):
        if time.time() > deadline:
            print(f'out of time: {len(todo) - number} problems left out')
            break
        problem, mode, rows = tune(name, task, dtype, shape, args, device)
        for row in rows:
            file.write({**row, **about})
        report(problem, task, mode, device, rows, table)
    if args.write and table:
        known = json.loads(tiles.TABLE.read_text()) if tiles.TABLE.exists() else {}
        known.update(table)
        tiles.TABLE.write_text(json.dumps(known, indent=0, sort_keys=True) + '\n')
        print(f'{len(table)} tiles written to {tiles.TABLE.relative_to(ROOT)}')
    print(f'rows in {file.path}')


if __name__ == '__main__':
    main()
