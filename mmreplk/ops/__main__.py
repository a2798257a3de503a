"""``python -m mmreplk.ops``: the folder of the drop-in, the environment, one convolution timed."""

import argparse
import importlib.metadata
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from . import dropin, explain, large_kernel_dwconv2d
from .cpu import kernels

PACKAGES = ('triton', 'timm', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmdet',
            'mmpretrain', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation',
            'onedl-mmdetection', 'onedl-mmpretrain')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16,
          'fp64': torch.float64}
SECONDS = 0.2  # least time of all the repeats of one candidate


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m mmreplk.ops', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('dropin', help='print the folder for LARGE_KERNEL_CONV_IMPL, DWCONV_IMPL '
                        'or PYTHONPATH')
    commands.add_parser('env', help='print what a bug report needs')
    profile = commands.add_parser('profile', help='which backends can serve, and their time')
    profile.add_argument('shape', nargs=4, type=_positive, metavar=('N', 'C', 'H', 'W'))
    profile.add_argument('--kernel', nargs='+', type=_positive, required=True, metavar='K',
                         help='one number, or two: down and right')
    profile.add_argument('--dtype', choices=DTYPES, default='fp32')
    profile.add_argument('--backward', action='store_true', help='with the gradients of input and '
                         'weights')
    profile.add_argument('--device', default='cpu')
    profile.add_argument('--dry-run', action='store_true', help='estimates alone')
    arguments = parser.parse_args(argv)
    if arguments.command == 'dropin':
        print(dropin.folder())
    elif arguments.command == 'env':
        print('\n'.join(f'{name}: {value}' for name, value in environment().items()))
    else:
        if len(arguments.kernel) > 2:
            parser.error(f'--kernel {arguments.kernel}: give one number or two')
        try:
            torch.empty(0, device=arguments.device)
        except (AssertionError, RuntimeError) as error:
            parser.error(f'--device {arguments.device}: {str(error).splitlines()[0]}')
        print(table(arguments))
    return 0


def environment() -> dict[str, str]:
    """Versions and hardware, by name."""
    serves, why = kernels.available()
    found = {'platform': platform.platform(), 'python': sys.version.split()[0],
             'torch': torch.__version__, 'threads': str(torch.get_num_threads()),
             'cpu': torch.backends.cpu.get_cpu_capability(),
             'compiled kernels': 'yes' if serves else f'no ({why}): torch.fft serves instead',
             'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}
    installed = {(name or '').lower(): version for name, version in (
        (each.name, each.version) for each in importlib.metadata.distributions())}
    found['mmreplk'] = installed.get('mmreplk', 'not installed, imported from a folder')
    found.update((name, installed[name]) for name in PACKAGES if name in installed)
    return found


def table(arguments: argparse.Namespace) -> str:
    """Each backend with its estimate and, unless ``--dry-run``, its time, as a Markdown table."""
    kernel = (arguments.kernel * 2)[:2]
    dtype, device = DTYPES[arguments.dtype], arguments.device
    padding = tuple(k // 2 for k in kernel)
    # A dry run needs shapes alone, whatever their size.
    make = torch.empty if arguments.dry_run else torch.randn
    x = make(arguments.shape, dtype=dtype, device=device)
    weight = make(arguments.shape[1], 1, *kernel, dtype=dtype, device=device)
    choice = explain(x, weight, padding=padding)
    rows = [('backend', 'estimate', 'time')]
    for name, estimate in choice.candidates.items():
        can = not isinstance(estimate, str)
        measured = '' if arguments.dry_run or not can else _measured(
            lambda x, w, name=name: large_kernel_dwconv2d(x, w, padding=padding, backend=name),
            x, weight, arguments.backward)
        rows.append((f'{name} (chosen)' if name == choice.backend else name,
                     _milliseconds(estimate) if can else f'cannot: {estimate}', measured))
    if not arguments.dry_run:
        for label, layout in (('F.conv2d, NCHW', torch.contiguous_format),
                              ('F.conv2d, channels-last', torch.channels_last)):
            rows.append((label, '', _measured(
                lambda x, w: F.conv2d(x, w, padding=padding, groups=x.shape[1]),
                x.contiguous(memory_format=layout), weight, arguments.backward)))
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|---|---|---|')
    return '\n'.join([f'{choice.backend}: {choice.reason}', '', *lines])


def _measured(function, x, weight, backward: bool) -> str:
    """Median and spread of a call, after two that are not counted."""
    def run():
        if not backward:
            with torch.no_grad():
                function(x, weight)
        else:
            leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
            out = function(*leaves)
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        if x.device.type == 'cuda':
            torch.cuda.synchronize(x.device)

    run()
    run()
    times, end = [], time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, *_, high = statistics.quantiles(times, n=10, method='inclusive')
    return (f'{_milliseconds(statistics.median(times))} '
            f'({_milliseconds(low)} to {_milliseconds(high)})')


def _milliseconds(seconds: float | None) -> str:
    return 'none' if seconds is None else f'{1e3 * seconds:.3g} ms'


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} must be positive')
    return number


if __name__ == '__main__':
    sys.exit(main())
