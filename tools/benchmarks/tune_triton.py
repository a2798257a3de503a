"""Check and time every tile of the Triton kernels on this GPU, against cuDNN.

Every candidate is first compared with a float64 reference on fresh random inputs, then timed
(median of ``triton.testing.do_bench``). Prints for each problem the fastest tile, the tile that the
cost model picks, and cuDNN; writes every row to ``tools/benchmarks/results/``. With ``--write``,
the winners go into ``mmreplk/ops/triton_tiles.json``, which the operator then follows.

Needs torch and Triton only; run from the root of the repository::

    python tools/benchmarks/tune_triton.py                       # everything, within --minutes
    python tools/benchmarks/tune_triton.py --shapes stack --dtypes fp16 --top 8 --write
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import triton  # noqa: E402

from mmreplk.ops import triton_launch as launch  # noqa: E402
from mmreplk.ops import triton_tiles as tiles  # noqa: E402
from mmreplk.ops.problem import Problem  # noqa: E402

# (batch, channels, height, width, kernel)
SHAPES = {
    'stack': [(64, 384, r, r, 31) for r in (16, 32, 64)],
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
    parser.add_argument('--no-cudnn', action='store_true', help='leave the baseline out')
    parser.add_argument('--results', type=Path, default=ROOT / 'tools/benchmarks/results')
    parser.add_argument('--write', action='store_true', help=f'write winners to {tiles.TABLE.name}')
    parser.add_argument('--list', action='store_true', help='print what would be timed, and end')
    return parser.parse_args()


def make_problem(shape, dtype):
    batch, channels, height, width, k = shape
    return Problem(dtype, 'cuda', False, batch, channels, height, width, 1, (k, k), (1, 1),
                   (k // 2, ) * 4, (1, 1), False)


def ranked(problem, task, mode, device):
    """Usable tiles, best estimate first."""
    time_of = tiles.forward_time if task == 'forward' else tiles.grad_time
    options = [(time_of(problem, tile, mode, device), tile)
               for tile in tiles.usable(problem, task, mode, device.capability)]
    return sorted((pair for pair in options if pair[0] < 1), key=lambda pair: pair[0])


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


def cudnn(problem, task, x, other, rep):
    """Milliseconds of the faster memory format, in cuDNN's benchmark mode."""
    pad, times = problem.padding[::2], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
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
        times.append(bench(run, rep))
    return min(times)


def bench(run, rep):
    return triton.testing.do_bench(run, warmup=10, rep=rep, return_mode='median')


def tune(name, task, dtype_name, shape, args, device, baseline_done):
    """Rows of one problem: every tile checked, then timed."""
    problem = make_problem(shape, DTYPES[dtype_name])
    tf32 = dtype_name != 'fp32'
    torch.backends.cudnn.allow_tf32 = tf32
    mode = tiles.mode_of(problem.dtype, tf32)
    options = ranked(problem, task, mode, device)
    options = options[:args.top] if args.top else options
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

    def compile_one(tile):
        try:
            call(tile)
        except Exception as error:  # a tile that this GPU cannot run is a result, too
            return f'{type(error).__name__}: {error}'[:200]
        return None

    start = time.time()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        errors = list(pool.map(compile_one, [tile for _, tile in options]))
    torch.cuda.synchronize()
    compile_seconds = time.time() - start
    rows = []
    for (guess, tile), failure in zip(options, errors, strict=True):
        row = dict(name=name, task=task, dtype=dtype_name, shape=shape, tile=tile,
                   estimate_ms=guess * 1e3, compile_s=round(compile_seconds, 1))
        if failure is None:
            out = call(tile)
            out = out[:, some] if task == 'forward' else out[some]
            row['error'] = float((out.double() - expected).norm() / expected.norm())
            if row['error'] <= TOLERANCE[dtype_name]:
                row['ms'] = bench(lambda tile=tile: call(tile), args.rep)
            else:  # NaN as well
                row['failure'] = 'wrong result'
        else:
            row['failure'] = failure
        rows.append(row)
    size = problem.dtype.itemsize
    rate = device.macs * device.sms * device.clock * 2 / size  # TF32 has half; three TF32 for fp32
    rate /= 3 if dtype_name == 'fp32' else 1
    bound = max(problem.bytes_moved / device.memory, problem.macs / rate) * 1e3
    base = None if baseline_done else cudnn(problem, task, x, other, args.rep)
    for row in rows:
        row.update(cudnn_ms=base, bound_ms=bound)
    return problem, mode, rows


def report(problem, task, mode, device, rows, table):
    """Print the line of one problem and keep its winner."""
    first = rows[0]
    good = [row for row in rows if 'ms' in row]
    size = 'x'.join(map(str, first['shape']))
    label = f'{first["name"]:<6}{task:<12}{first["dtype"]:<5}{size:<20}'
    for row in rows:
        if 'failure' in row:
            print(f'{label} FAILED {tuple(row["tile"])}: {row["failure"]} {row.get("error", "")}')
    if not good:
        return
    best = min(good, key=lambda row: row['ms'])
    chosen = next((row for row in good if row is first), None)
    table[tiles.key(problem, task, mode, device)] = list(best['tile'])
    base, ms = first['cudnn_ms'], best['ms']
    baseline = '-' if base is None else f'{base:9.4f} ({base / ms:.1f}x)'
    model = 'failed' if chosen is None else f'{chosen["ms"] / ms:.2f}x best'
    print(f'{label}{ms:9.4f} ms {ms / best["bound_ms"]:5.1f}x bound  cuDNN {baseline:<18} '
          f'model {model:<11} said {first["estimate_ms"]:.4f}  {tuple(best["tile"])}', flush=True)


def main():
    args = parse_args()
    todo = [(name, task, dtype, shape) for dtype in args.dtypes for name in args.shapes
            for shape in SHAPES[name] for task in args.tasks]
    if args.channels:
        todo = [(n, t, d, (s[0], args.channels, *s[2:])) for n, t, d, s in todo]
    if args.list:
        device = tiles.arch()
        for name, task, dtype, shape in todo:
            mode = tiles.mode_of(DTYPES[dtype], dtype != 'fp32')
            options = ranked(make_problem(shape, DTYPES[dtype]), task, mode, device)
            print(name, task, dtype, shape, [tuple(tile) for _, tile in options[:args.top or None]])
        return
    if not torch.cuda.is_available():
        sys.exit('no CUDA device')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = launch.arch_of('cuda')
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True,
                            text=True, check=False).stdout.strip()
    about = dict(device=torch.cuda.get_device_name(), torch=torch.__version__,
                 triton=triton.__version__, commit=commit)
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f'tune_triton_{about["device"].replace(" ", "_")}.jsonl'
    table, deadline = {}, time.time() + 60 * args.minutes
    with path.open('a') as file:
        for number, (name, task, dtype, shape) in enumerate(todo):
            if time.time() > deadline:
                print(f'out of time: {len(todo) - number} problems left out')
                break
            problem, mode, rows = tune(name, task, dtype, shape, args, device, args.no_cudnn)
            for row in rows:
                file.write(json.dumps({**row, **about}) + '\n')
            file.flush()
            report(problem, task, mode, device, rows, table)
    if args.write and table:
        known = json.loads(tiles.TABLE.read_text()) if tiles.TABLE.exists() else {}
        known.update(table)
        tiles.TABLE.write_text(json.dumps(known, indent=0, sort_keys=True) + '\n')
        print(f'{len(table)} tiles written to {tiles.TABLE.relative_to(ROOT)}')
    print(f'rows in {path}')


if __name__ == '__main__':
    main()
