"""``python -m mmreplk.ops``: the folder of the drop-in, the environment, one convolution timed."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from . import dispatch, dropin, large_kernel_dwconv2d
from .arguments import LONGEST, WIDEST
from .cpu import costs, kernels
from .gpu import cache, versions
from .problem import Problem

PACKAGES = ('triton', 'timm', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmdet',
            'mmpretrain', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation',
            'onedl-mmdetection', 'onedl-mmpretrain')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16,
          'fp64': torch.float64}
FORMATS = {'NCHW': torch.contiguous_format, 'channels-last': torch.channels_last}
SECONDS = 0.2  # least time of all the repeats of one candidate
SLOW = 1.0  # seconds of a call from which on two more are enough
COLUMNS = ('backend', 'format', 'estimate', 'median (10% to 90%)', 'speed-up')
WIDTHS = (7, 13, 9, 34, 8)


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m mmreplk.ops', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('dropin', help='print the folder for LARGE_KERNEL_CONV_IMPL, DWCONV_IMPL '
                        'or PYTHONPATH')
    commands.add_parser('env', help='print what a bug report needs')
    profile = commands.add_parser('profile', help='which backends can serve, and their time')
    for side in 'NCHW':  # one by one, so that an error says which
        profile.add_argument(side, type=_positive)
    profile.add_argument('--kernel', nargs='+', type=_sides, required=True, metavar='K',
                         help='31, or two sides, down and right: 5x51, 5,51 or 5 51')
    profile.add_argument('--dtype', choices=DTYPES, default='fp32')
    profile.add_argument('--backward', action='store_true', help='with the gradients of input and '
                         'weights')
    profile.add_argument('--device', default='cpu')
    profile.add_argument('--dry-run', action='store_true', help='estimates alone')
    arguments = parser.parse_args(argv)
    if arguments.command == 'dropin':
        print(dropin.folder())
    elif arguments.command == 'env':
        found = environment()
        width = max(map(len, found))
        print('\n'.join(f'{name + ":":<{width + 1}} {value}' for name, value in found.items()))
    else:
        sides = [side for given in arguments.kernel for side in given]
        if len(sides) > 2:
            profile.error(f'argument --kernel: {sides} are {len(sides)} sides: give one or two')
        kernel = tuple((sides * 2)[:2])
        shape = arguments.N, arguments.C, arguments.H, arguments.W
        if max(kernel) > WIDEST or max(shape) > LONGEST:
            profile.error(f'{shape} by {kernel} is beyond what the operator takes: sides of maps '
                          f'up to {LONGEST}, of kernels up to {WIDEST}')
        if not re.fullmatch(r'(cpu|cuda)(:\d+)?', arguments.device):
            profile.error(f'argument --device: {arguments.device!r} must be cpu or cuda')
        try:
            torch.empty(0, device=arguments.device)
        except (AssertionError, RuntimeError) as error:
            profile.error(f'argument --device: PyTorch has no {arguments.device!r} here: '
                          f'{str(error).splitlines()[0]}')
        try:
            for line in table(shape, kernel, arguments.dtype, arguments.device,
                              arguments.backward, arguments.dry_run):
                print(line, flush=True)
        except (MemoryError, RuntimeError) as error:
            profile.exit(1, f'{profile.prog}: {str(error).splitlines()[0]}\nA smaller shape or '
                         '--dry-run, which needs no memory, may do.\n')
    return 0


def environment() -> dict[str, str]:
    """Versions and hardware, by name."""
    serves, why = kernels.available()
    found = {'platform': platform.platform(), 'python': sys.version.split()[0],
             'torch': torch.__version__, 'threads': str(torch.get_num_threads()),
             'cpu': f'{_processor()}, PyTorch uses {torch.backends.cpu.get_cpu_capability()}',
             'compiled kernels': ', '.join(kernels.isas()) if serves else f'none; {why}',
             'gpu': 'none that PyTorch sees'}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found['gpu'] = (f'{torch.cuda.get_device_name()}, capability {major}.{minor}, CUDA '
                        f'{torch.version.cuda or torch.version.hip}, driver {versions.driver()}')
        found['gpu cache'] = str(cache.folder())
    spec = importlib.util.find_spec(dropin.NAMES[0])
    found[dropin.NAMES[0]] = 'not on the path' if spec is None else str(spec.origin)
    installed = {(name or '').lower(): version for name, version in (
        (each.name, each.version) for each in importlib.metadata.distributions())}
    found['mmreplk'] = installed.get('mmreplk', 'not installed, imported from a folder')
    found.update((name, installed[name]) for name in PACKAGES if name in installed)
    return found


def table(shape: tuple[int, ...], kernel: tuple[int, int], dtype: str, device: str, backward: bool,
          dry_run: bool) -> Iterator[str]:
    """The choice of 'auto' and why, then a line for each backend and memory format, as it is ready.

    Args:
        shape (tuple[int, ...]): Of the input, ``(N, C, H, W)``.
        kernel (tuple[int, int]): Down and right; padded by half of it.
        dtype (str): A key of `DTYPES`.
        device (str): Where.
        backward (bool): Whether with the gradients of input and weights.
        dry_run (bool): Whether to run nothing.

    Raises:
        MemoryError: If the maps would not fit. Nothing is run then.
    """
    named, dtype, device = dtype, DTYPES[dtype], torch.device(device)
    padding = kernel[0] // 2, kernel[1] // 2
    problems = {
        name: Problem(dtype, device.type, name != 'NCHW', *shape, 1, kernel, (1, 1),
                      (padding[0], padding[0], padding[1], padding[1]), (1, 1), False)
        for name in FORMATS}
    out = problems['NCHW'].out_size
    if not dry_run:
        _check_memory(problems['NCHW'], backward)
    yield (f'{shape} by {kernel[0]}x{kernel[1]}, padding {padding[0]}x'
           f'{padding[1]}, to {out[0]}x{out[1]}; {named}, '
           f'{"forward and backward" if backward else "forward"}, '
           + (f'CPU, {torch.get_num_threads()} threads' if device.type == 'cpu' else str(device)))
    yield ''
    for format_name, problem in problems.items():
        choices = {'forward': dispatch.choose(problem, device=device)}
        if backward and dispatch.one_backward((problem, ), 'auto'):
            yield f"{format_name}, both gradients: 'auto' takes one pass of fft, faster than apart"
        elif backward:
            choices |= {
                'input gradient': dispatch.choose(problem.of_input_grad(), device=device),
                'weight gradient': dispatch.choose_weight_grad(problem, device=device)}
        for task, choice in choices.items():
            yield f"{format_name}, {task}: 'auto' takes {choice.backend}: {choice.reason}"
    yield ''
    yield _line(COLUMNS)
    yield _line(['-' * width for width in WIDTHS])
    able = dispatch.choose(problems['NCHW']).candidates
    timed = {}
    if not dry_run:
        x = torch.randn(shape, dtype=dtype, device=device)
        weight = torch.randn(shape[1], 1, *kernel, dtype=dtype, device=device)
        maps = {name: x.contiguous(memory_format=layout) for name, layout in FORMATS.items()}
        for format_name, image in maps.items():  # first, as all others are compared with it
            timed['torch', format_name] = _measured(
                lambda x, w: F.conv2d(x, w, padding=padding, groups=x.shape[1]), image, weight,
                backward)
        best = min(times[0] for times in timed.values())
    names = ['torch', 'auto', *(name for name, why in able.items()
                                if name != 'torch' and not isinstance(why, str))]
    for name in names:
        for format_name, problem in problems.items():
            cells = [name, format_name, _milliseconds(_estimate(problem, name, backward)), '', '']
            if not dry_run:
                if (name, format_name) not in timed:
                    timed[name, format_name] = _measured(
                        lambda x, w, name=name: large_kernel_dwconv2d(
                            x, w, padding=padding, backend=name),
                        maps[format_name], weight, backward)
                median, low, high = timed[name, format_name]
                cells[3] = (f'{_milliseconds(median)} ({_milliseconds(low)} to '
                            f'{_milliseconds(high)})')
                cells[4] = f'{best / median:.2f}'
            yield _line(cells)
    yield ''
    yield ("torch is F.conv2d, PyTorch's own. The speed-up is over the faster of its two formats."
           if not dry_run else "torch is F.conv2d, PyTorch's own.")
    for name, why in able.items():
        if isinstance(why, str):
            yield f'{name} cannot serve: {why}'


def _check_memory(problem: Problem, backward: bool) -> None:
    if problem.device != 'cpu':
        return  # an allocation that fails there raises, and ends nothing
    needed = (6 if backward else 3) * problem.bytes_moved // 2
    held = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(
        os, 'sysconf') else needed
    if needed > held:
        raise MemoryError(f'maps of {needed / 2**30:.1f} GiB do not fit into the {held / 2**30:.1f}'
                          ' GiB of this machine')


def _estimate(problem: Problem, name: str, backward: bool) -> float | None:
    """Seconds that a backend takes by its model, with the gradients if asked for."""
    choices = [dispatch.choose(problem, name)]
    total = 0.0
    if backward:
        if dispatch.one_backward((problem, ), name):
            total = costs.fft_backward((problem, ))
        else:
            choices += [dispatch.choose(problem.of_input_grad(), name, strict=False),
                        dispatch.choose_weight_grad(problem, name, strict=False)]
    for choice in choices:
        seconds = choice.candidates[choice.backend]
        if seconds is None:
            return None
        total += seconds
    return total


def _measured(function, x, weight, backward: bool) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of the seconds of a call, but for the first."""
    def run() -> float:
        start = time.perf_counter()
        if not backward:
            with torch.no_grad():
                function(x, weight)
        else:
            leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
            out = function(*leaves)
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        if x.device.type == 'cuda':
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    if run() > SLOW:
        times = [run(), run()]
    else:
        run()
        times, end = [], time.perf_counter() + SECONDS
        while len(times) < 5 or time.perf_counter() < end:
            times.append(run())
    low, *_, high = statistics.quantiles(times, n=10, method='inclusive')
    return statistics.median(times), low, high


def _line(cells) -> str:
    first, second, *others = (f'{cell:<{width}}' if i < 2 else f'{cell:>{width}}'
                              for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True)))
    return '| ' + ' | '.join([first, second, *others]) + ' |'


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return 'none'
    return f'{1e3 * seconds:.0f} ms' if seconds >= 0.1 else f'{1e3 * seconds:.3g} ms'


def _positive(text: str) -> int:
    if not re.fullmatch(r'\d+', text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a positive whole number')
    return int(text)


def _sides(text: str) -> list[int]:
    """'31', '5x51' or '5,51'."""
    try:
        return [_positive(side) for side in re.split('[x,]', text)]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be positive whole numbers: 31, or down and right, as 5x51') from None


def _processor() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
        return re.search(r'^model name\s*: *(.*\S)', text, re.MULTILINE)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


if __name__ == '__main__':
    sys.exit(main())
