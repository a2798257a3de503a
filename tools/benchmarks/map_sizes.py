"""The operator on maps of 7 to 256 pixels a side, by kernel, against the best of PyTorch.

Rows are those of `dwconv.py`, which measures them: all candidates of a shape in turns, medians. A
run that is broken off goes on where it was when it is called again with the same file. Prints a
table of ratios (how many times as long PyTorch's faster memory format takes as ours; above 1, ours
is faster) for each batch size, pass and format of ours, and draws them with ``--plot``. On a GPU,
PyTorch's convolution is cuDNN's in benchmark mode, and other maps, batches and dtypes are the
defaults.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

# Run from a checkout, whether or not the project is installed.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import dwconv  # noqa: E402
import rows as results  # noqa: E402
import summary  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402
from plots import LABELS  # noqa: E402

from mmreplk.analysis.figures import new_figure  # noqa: E402

MAPS = (7, 14, 16, 28, 32, 56, 64, 112, 128, 256)
KERNELS = ('5', '7', '9', '13', '17', '21', '31', '51', '1x31', '31x1', '5x51', '51x5')
# What is measured unless the options say otherwise: maps, kernels, batches and dtype.
DEFAULTS = {
    'cpu': dict(maps=MAPS, kernels=KERNELS, batch=(1, 16), dtype='fp32'),
    'cuda': dict(maps=(14, 28, 32, 50, 64, 128, 256),
                 kernels=('7', '9', '13', '17', '21', '31', '51', '5x51', '51x5'), batch=(1, 64),
                 dtype='fp16')}
# Pixels times channels of an image: as many channels as networks have on such maps.
BUDGET, FEWEST, MOST = 1 << 18, 16, 512
LOST = {'cpu': 0.9, 'cuda': 0.95}  # ratios below are listed


def channels_of(side: int) -> int:
    """Channels of a map: 512 up to 22 pixels a side, 16 from 128 on."""
    return max(FEWEST, min(MOST, BUDGET // side ** 2 // 16 * 16))


def shapes_of(args) -> list[str]:
    """The shapes in the form of ``dwconv.py --shape``, small maps first."""
    return [f'{batch},{channels_of(side)},{side},{side},{kernel.replace("x", ",")}'
            for side in sorted(args.maps) for batch in args.batch for kernel in args.kernels]


def measure(args) -> list[dict]:
    """Time what the file lacks; all its rows."""
    device = timing.prepare(args.device, args.threads)
    path = args.out or results.default_path(device, 'map-sizes')
    argv = [part for shape in shapes_of(args) for part in ('--shape', shape)]
    argv += ['--mode', *args.mode, '--dtype', args.dtype, '--device', str(device),
             '--candidates', 'conv2d', 'conv2d channels_last', '--no-peak', '--append',
             '--out', str(path), '--max-seconds', str(args.max_seconds),
             '--max-call', str(args.max_call)]
    if args.minutes:
        argv += ['--minutes', str(args.minutes)]
    return dwconv.run(*dwconv.parse_args(argv))


def ratios(rows: list[dict]) -> dict[tuple[str, int, str], dict[tuple[str, int], float | None]]:
    """``{(condition, batch, candidate): {(kernel, side): ratio}}``; None for what was not timed."""
    found = defaultdict(dict)
    for case in summary.cases(rows):
        shape = case.shape
        kernel = 'x'.join(map(str, dict.fromkeys(shape.kernel)))
        for ours in summary.OURS:
            if ours in case.rows:
                found[case.condition, shape.batch, ours][kernel, shape.height] = case.ratio(ours)
    return dict(found)


def axes_of(cells: dict) -> tuple[list[str], list[int]]:
    """Kernels, in the order of the rows, and sides of a group."""
    return list(dict.fromkeys(kernel for kernel, _ in cells)), sorted({side for _, side in cells})


def report(rows: list[dict]) -> str:
    """A table for each condition, batch size and format, the means, and what is below `LOST`."""
    parts, lost = [], []
    limit = LOST['cuda' if rows and rows[0].get('device_type') == 'cuda' else 'cpu']
    for (condition, batch, ours), cells in ratios(rows).items():
        kernels, sides = axes_of(cells)
        lines = [[kernel, *(_text(cells.get((kernel, side))) for side in sides)]
                 for kernel in kernels]
        known = [value for value in cells.values() if value is not None]
        parts += [f'{condition}, batch {batch}, {LABELS[ours]}: geometric mean '
                  f'{results.geometric_mean(known):.2f}, least {min(known, default=0):.2f}', '',
                  results.markdown(['kernel', *map(str, sides)], lines), '']
        lost += [f'{value:.2f}: kernel {kernel}, map {side}, {condition}, batch {batch}, '
                 f'{LABELS[ours]}' for (kernel, side), value in cells.items()
                 if value is not None and value < limit]
    parts += [f'{len(lost)} below {limit}:', *sorted(lost)]
    failed = [row for row in rows if row['status'] in dwconv.FAILURES]
    parts += [f'{row["candidate"]} {row["status"]}: {row["note"]}' for row in failed]
    return '\n'.join(parts)


def draw(path: Path, rows: list[dict]) -> None:
    """A panel for each condition, batch size and format; a cell is a kernel on a map."""
    from matplotlib.colors import LogNorm
    groups = ratios(rows)
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    figure = new_figure(4.4 * columns, 4.2 * lines, dpi=160)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for ax, ((condition, batch, ours), cells) in zip(axes, groups.items(), strict=False):
        kernels, sides = axes_of(cells)
        values = [[cells.get((kernel, side)) or float('nan') for side in sides]
                  for kernel in kernels]
        ax.imshow(values, cmap='RdBu', norm=LogNorm(1 / 8, 8), aspect='auto')
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value == value:
                    ax.text(x, y, f'{value:.2g}', ha='center', va='center', fontsize=6,
                            color='white' if not 1 / 4 < value < 4 else 'black')
        mode = rows[0]['mode'] if len({row['mode'] for row in rows}) == 1 else condition.split(
            ', ')[-2]
        ax.set(xticks=range(len(sides)), xticklabels=sides, yticks=range(len(kernels)),
               yticklabels=kernels, xlabel='side of the map', ylabel='kernel')
        ax.set_title(f'{LABELS[ours]}, batch {batch}, {mode}', fontsize=9)
    for ax in list(axes)[len(groups):]:
        ax.set_visible(False)
    row = rows[0]
    figure.suptitle(f"Times as fast as the faster of PyTorch's formats: {row['device']}, "
                    f"{row['dtype']}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _text(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def _kernel(text: str) -> str:
    sides = text.split('x')
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'{text!r}: a kernel is K or KhxKw, as 31 or 1x31')
    return text


def _side(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} must be a positive whole number')
    return int(text)


def main(argv=None) -> int:
    """Returns the exit code: 1 if a result was wrong or ours raised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--maps', type=_side, nargs='+', metavar='S')
    parser.add_argument('--kernels', type=_kernel, nargs='+', metavar='K')
    parser.add_argument('--batch', type=_side, nargs='+', metavar='N')
    parser.add_argument('--mode', nargs='+', choices=dwconv.MODES, default=['forward', 'backward'])
    parser.add_argument('--dtype', choices=dwconv.DTYPES, help='default: fp32, on a GPU fp16')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=_side, help="of a CPU (default: PyTorch's own number)")
    parser.add_argument('--max-seconds', type=float, default=0.5, metavar='S',
                        help='time spent on one candidate of one shape (default: 0.5)')
    parser.add_argument('--max-call', type=float, default=10.0, metavar='S',
                        help='skip a candidate of which one call would take longer (default: 10)')
    parser.add_argument('--minutes', type=float, help='start no further shape of a mode after this '
                        'long')
    parser.add_argument('--out', type=Path, help='file of rows, which is added to (default: tools/'
                        'benchmarks/results/<device>-<date>-map-sizes.jsonl)')
    parser.add_argument('--from', type=Path, nargs='+', dest='source', metavar='ROWS.jsonl',
                        help='time nothing: report on and draw these rows')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the ratios')
    args = parser.parse_args(argv)
    device_type = args.device.partition(':')[0]
    if device_type not in DEFAULTS:
        parser.error(f'argument --device: {args.device!r} must be cpu or cuda')
    if device_type == 'cuda' and not args.source and not torch.cuda.is_available():
        parser.error(f'argument --device: {args.device}, but PyTorch sees no GPU here')
    for name, value in DEFAULTS[device_type].items():
        setattr(args, name, getattr(args, name) or value)
    rows = results.read(args.source) if args.source else measure(args)
    print(f'\n{report(rows)}')
    if args.plot:
        draw(args.plot, rows)
    return int(any(row['status'] in dwconv.FAILURES for row in rows))


if __name__ == '__main__':
    sys.exit(main())
