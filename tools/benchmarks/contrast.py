"""Maps made to keep the FFT's guard against contrast busy: what they take beside ordinary ones.

The promise: on any map at most about the time on an ordinary one and that of the direct sum
together. Printed is the time of each map divided by that sum; all of a shape are timed in turns.

    python tools/benchmarks/contrast.py
    python tools/benchmarks/contrast.py --sizes 512 --kernels 13 --maps half steps --threads 1
"""

import argparse
import time

import torch

from mmreplk.ops import explain, large_kernel_dwconv2d


def _axes(size):
    return torch.arange(size)[:, None], torch.arange(size)[None]


def _powers(size, exponents):
    return (10.0**exponents).expand(size, size)


def _half(size):
    return torch.where(_axes(size)[0] < size // 2, 1e8, 1.0).expand(size, size)


def _board(step):
    def make(size):
        rows, columns = _axes(size)
        return torch.where((rows // step + columns // step) % 2 == 0, 1e8, 1.0)
    return make


def _slope(size):
    return _powers(size, torch.linspace(-8, 8, size)[:, None])


def _slopes(size):
    line = torch.linspace(-8, 8, size)
    return _powers(size, line[:, None] + line)


def _pixel(size):
    out = torch.ones(size, size)
    out[size // 3, size // 5] = 1e8
    return out


def _rows(size):
    return torch.where(_axes(size)[0] % 2 == 0, 1e8, 1.0).expand(size, size)


def _steps(size):
    """Bands, each a little below what the pass before it leaves out: a pass mends one of them."""
    return _powers(size, -4.0 * (_axes(size)[0] * 6 // size))


def _zeros(size):
    out = torch.ones(size, size)
    out[:, size // 2:] = 0
    return out


def _nan(size):
    out = torch.ones(size, size)
    out[size // 2, size // 2] = torch.nan
    return out


MAPS = {
    'half': _half, 'board': _board(1), 'boards': _board(16), 'slope': _slope, 'slopes': _slopes,
    'pixel': _pixel, 'rows': _rows, 'steps': _steps, 'zeros': _zeros, 'nan': _nan,
}


def problem(size, kernel, batch=1, points=1 << 19):
    """Ordinary maps and weights; small maps have more channels."""
    channels = max(16, min(256, points // size**2 // 16 * 16))
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, channels, size, size, generator=generator),
            torch.randn(channels, 1, kernel, kernel, generator=generator) / kernel)


def forward(x, weight, backend):
    """A call, ready to be timed."""
    def call():
        with torch.no_grad():
            return large_kernel_dwconv2d(x, weight, padding=weight.shape[-1] // 2, backend=backend)
    return call


def backward(x, weight, backend):
    """The input's gradient, where the gradient of the output is x."""
    leaf = torch.randn_like(x).requires_grad_()
    out = large_kernel_dwconv2d(leaf, weight, padding=weight.shape[-1] // 2, backend=backend)
    return lambda: torch.autograd.grad(out, leaf, x, retain_graph=True)


def times(calls, seconds):
    """The median of each, timed in turns."""
    samples = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 3:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - begin)
    return {name: sorted(each)[len(each) // 2] for name, each in samples.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='+', default=[14, 32, 56, 128, 512])
    parser.add_argument('--kernels', type=int, nargs='+', default=[7, 13, 31, 51])
    parser.add_argument('--maps', nargs='+', choices=MAPS, default=list(MAPS))
    parser.add_argument('--backends', nargs='+', choices=['fft', 'auto'], default=['fft', 'auto'])
    parser.add_argument('--modes', nargs='+', choices=['forward', 'backward'],
                        default=['forward', 'backward'])
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--seconds', type=float, default=1.0, help='for each shape and backend')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print('| size | kernel | mode | backend | ordinary ms | direct ms |',
          ' | '.join(args.maps), '| worst |')
    print('|' + '---|' * (7 + len(args.maps)))
    for size in args.sizes:
        for kernel in args.kernels:
            x, weight = problem(size, kernel)
            for mode in args.modes:
                make = {'forward': forward, 'backward': backward}[mode]
                for backend in args.backends:
                    chosen = explain(x, weight, padding=kernel // 2).backend
                    if backend == 'auto' and chosen in ('fft', 'torch') and 'fft' in args.backends:
                        continue  # 'fft' is the same call; oneDNN's time depends on no values
                    calls = {'ordinary': make(x, weight, backend),
                             'direct': make(x, weight, 'direct')}
                    for name in args.maps:
                        calls[name] = make(x * MAPS[name](size), weight, backend)
                    each = times(calls, args.seconds)
                    bound = each['ordinary'] + each['direct']
                    ratios = [each[name] / bound for name in args.maps]
                    print(f'| {size} | {kernel} | {mode} | {backend} | '
                          f'{each["ordinary"] * 1e3:.2f} | {each["direct"] * 1e3:.2f} |',
                          ' | '.join(f'{r:.2f}' for r in ratios), f'| {max(ratios):.2f} |',
                          flush=True)


if __name__ == '__main__':
    main()
