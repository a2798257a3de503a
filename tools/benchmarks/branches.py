"""Time the two branches of a RepLKNet block in training: KxK and 5x5 on the same input.

Forward pass and all gradients, on the shapes of the suite 'facts'. The candidates: our two
convolutions as the backbone calls them (``large_kernel_dwconv2d_pair``, which shares what can be
shared), as two calls of the operator, and as two of ``F.conv2d`` in either memory format. All are
compared with float64 first and timed in turns. Rows go to results/ (see README.md).
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import rows as results  # noqa: E402
import shapes as shape_suites  # noqa: E402
import timing  # noqa: E402
from candidates import LAYOUTS  # noqa: E402

from mmreplk.ops import large_kernel_dwconv2d, large_kernel_dwconv2d_pair  # noqa: E402

TOLERANCE = 1e-4  # norm of the error over norm of the float64 result


def two_calls(x, large, small):
    return [large_kernel_dwconv2d(x, w, padding=w.shape[-1] // 2) for w in (large, small)]


def two_conv2d(x, large, small):
    return [F.conv2d(x, w, padding=w.shape[-1] // 2, groups=x.shape[1]) for w in (large, small)]


CANDIDATES = {
    'ours pair': ('nchw', large_kernel_dwconv2d_pair),
    'ours two calls': ('nchw', two_calls),
    'conv2d': ('nchw', two_conv2d),
    'conv2d channels_last': ('channels_last', two_conv2d),
}


def gradients(call, x, weights, grads):
    """Forward and backward pass; the gradients of x and of the weights."""
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    return torch.autograd.grad(call(*leaves), leaves, grads)


def measure(shape: shape_suites.Shape, small: int, seconds: float) -> list[dict]:
    """The rows of one shape; a candidate with wrong gradients raises ArithmeticError."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator)

    x = normal(*shape[:4])
    weights = [normal(shape.channels, 1, k, k) / k for k in (shape.kernel[0], small)]
    grads = [normal(*shape[:4]) for _ in weights]
    some = slice(0, 4)  # channels are independent: a few of them are compared
    expected = gradients(two_conv2d, x[:, some].double(), [w[some].double() for w in weights],
                         [g[:, some].double() for g in grads])
    jobs, errors = {}, {}
    for name, (layout, call) in CANDIDATES.items():
        to = LAYOUTS[layout]
        inputs = (call, x.contiguous(memory_format=to), weights,
                  [g.contiguous(memory_format=to) for g in grads])
        found = gradients(*inputs)
        parts = zip((found[0][:, some], *(w[some] for w in found[1:])), expected, strict=True)
        errors[name] = max(float((a.double() - b).norm() / b.norm()) for a, b in parts)
        if not errors[name] <= TOLERANCE:
            raise ArithmeticError(f'{name} on {shape.text}: relative error {errors[name]:.2g}')
        jobs[name] = timing.Job(lambda inputs=inputs: gradients(*inputs))
    times = timing.interleaved(jobs, x.device, max_seconds=seconds)
    return [dict(suite='branches', batch=shape.batch, channels=shape.channels, height=shape.height,
                 width=shape.width, kernel=list(shape.kernel), small_kernel=small, dtype='fp32',
                 mode='both', candidate=name, layout=CANDIDATES[name][0], error=errors[name],
                 tolerance=TOLERANCE, median_ms=taken.median, p20_ms=taken.p20, p80_ms=taken.p80,
                 repeats=taken.repeats, calls=taken.calls) for name, taken in times.items()]


def report(rows: list[dict]) -> str:
    """A table, and the geometric means of the ratios to the pair."""
    by_shape = {}
    for row in rows:
        key = row['batch'], row['channels'], row['height'], row['width'], row['kernel'][0]
        by_shape.setdefault(key, {})[row['candidate']] = row['median_ms']
    lines = [['x'.join(map(str, key[:4])) + f', K {key[4]} + 5',
              *(f'{times[name]:.2f}' for name in CANDIDATES)] for key, times in by_shape.items()]
    means = {name: results.geometric_mean(t[name] / t['ours pair'] for t in by_shape.values())
             for name in CANDIDATES}
    text = results.markdown(['forward and backward, ms', *CANDIDATES], lines)
    return text + '\n' + ', '.join(f'{name}: {mean:.2f} times as long as the pair'
                                   for name, mean in means.items() if name != 'ours pair')


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--small-kernel', type=int, default=5)
    parser.add_argument('--max-seconds', type=float, default=3.0, metavar='S',
                        help='time spent on one candidate of one shape (default: 3)')
    parser.add_argument('--threads', type=int, help="default: PyTorch's own number")
    parser.add_argument('--out', type=Path, help='file of rows (default: in results/)')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device('cpu')
    path = args.out or results.default_path(device, 'branches')
    try:
        file = results.RowFile(path, append=False)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    where, rows = results.environment(device), []
    for shape in shape_suites.suite('facts', 'cpu', args.batch):
        for row in measure(shape, args.small_kernel, args.max_seconds):
            rows.append(where | row)
            file.write(rows[-1])
    print(f'{report(rows)}\nrows in {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
