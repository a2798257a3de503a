"""Images of result rows: curves over one quantity, or one line of marks for each case."""

import math
from pathlib import Path
from typing import NamedTuple

from mmreplk.analysis.figures import new_figure

# Okabe and Ito's palette: told apart by color-blind readers, too. Marks differ as well.
STYLES = {
    'ours': ('#D55E00', 'o'),
    'ours channels_last': ('#E69F00', 'D'),
    'conv2d': ('#0072B2', 's'),
    'conv2d channels_last': ('#56B4E9', '^'),
    'cudnn': ('#000000', 'P'),
    'cudnn channels_last': ('#777777', 'X'),
    'fft': ('#009E73', 'v'),
    'torch-fftconv': ('#CC79A7', '<'),
}
LABELS = {
    'ours': 'mmreplk, NCHW',
    'ours channels_last': 'mmreplk, channels-last',
    'conv2d': 'F.conv2d, NCHW',
    'conv2d channels_last': 'F.conv2d, channels-last',
    'cudnn': 'cuDNN, NCHW',
    'cudnn channels_last': 'cuDNN, channels-last',
    'fft': 'torch.fft product',
    'torch-fftconv': 'torch-fftconv',
}
_SPARE = ('#F0E442', '#882255', '#44AA99', '#332288', '#999933')
_BOUNDS = ('--', ':', '-.')
_GRAY = '#444444'


class Point(NamedTuple):
    """x, and the median between two percentiles."""
    x: float
    median: float
    low: float
    high: float


class Panel(NamedTuple):
    """One set of axes.

    Attributes:
        title (str): Above it.
        curves (dict[str, list[Point]]): By candidate.
        bounds (dict[str, list[tuple[float, float]]]): Broken lines, by name.
    """
    title: str
    curves: dict[str, list[Point]]
    bounds: dict[str, list[tuple[float, float]]]


def draw_curves(path: Path, title: str, panels: list[Panel], xlabel: str, ylabel: str) -> None:
    """Panels side by side, both axes logarithmic, one legend below. Raises OSError."""
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = axes_grid(columns, lines, 4.2 * max(columns, 2), 3.9 * lines)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    for number, panel in enumerate(panels):
        ax = axes[number // columns][number % columns]
        xs = sorted({point.x for points in panel.curves.values() for point in points})
        for name, points in panel.curves.items():
            color, mark = _style(name, names)
            points = sorted(points)
            first = name.startswith('ours')
            ax.plot([p.x for p in points], [p.median for p in points], color=color, marker=mark,
                    markersize=5, linewidth=2.2 if first else 1.4, zorder=3 if first else 2,
                    label=LABELS.get(name, name))
            ax.fill_between([p.x for p in points], [p.low for p in points],
                            [p.high for p in points], color=color, alpha=0.2, linewidth=0)
        for (name, points), dash in zip(panel.bounds.items(), _BOUNDS, strict=False):
            ax.plot(*zip(*sorted(points), strict=True), color=_GRAY, linestyle=dash, linewidth=1.4,
                    label=name, zorder=1)
        ax.set(xscale='log', yscale='log', title=panel.title, xlabel=xlabel)
        if number % columns == 0:
            ax.set_ylabel(ylabel)
        ax.set_xticks(_spread(xs), [f'{x:g}' for x in _spread(xs)])
        ax.set_xticks([], minor=True)
        _tidy(ax)
    for number in range(len(panels), columns * lines):
        axes[number // columns][number % columns].set_visible(False)
    save_figure(figure, axes, title, path)


def draw_marks(path: Path, title: str, labels: list[str], series: dict[str, list[float | None]],
               bounds: dict[str, list[float]], xlabel: str) -> None:
    """One line for each label, a mark for each candidate on a logarithmic axis. Raises OSError."""
    figure, axes = axes_grid(1, 1, 9, 1.8 + 0.36 * len(labels))
    ax = axes[0][0]
    for y in range(len(labels)):
        ax.axhline(y, color='#DDDDDD', linewidth=0.8, zorder=0)
    for name, values in series.items():
        color, mark = _style(name, list(series))
        pairs = [(value, y) for y, value in enumerate(values) if value is not None]
        if pairs:
            ax.scatter(*zip(*pairs, strict=True), color=color, marker=mark, s=46,
                       zorder=4 if name.startswith('ours') else 3, label=LABELS.get(name, name),
                       edgecolors='white', linewidths=0.6)
    for (name, values), mark in zip(bounds.items(), ('|', '2', '1'), strict=False):
        ax.scatter(values, range(len(values)), color=_GRAY, marker=mark, s=110, zorder=2,
                   label=name)
    ax.set(xscale='log', xlabel=xlabel, yticks=range(len(labels)), yticklabels=labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis='y', length=0)
    _tidy(ax, 'x')
    save_figure(figure, axes, title, path)


def draw_steps(path: Path, rows: list[dict]) -> None:
    """Bars of `train_step.py`: depth-wise convolutions, and the rest of a step. Raises OSError."""
    figure, axes = axes_grid(1, 1, 8, 1.4 + 0.45 * len(rows))
    ax, ys = axes[0][0], range(len(rows))
    names = [LABELS.get(row['candidate'], row['candidate']) for row in rows]
    times = [row['median_ms'] / 1e3 for row in rows]
    parts = [time * row['depthwise_share'] for time, row in zip(times, rows, strict=True)]
    rest = [time - part for time, part in zip(times, parts, strict=True)]
    ax.barh(ys, parts, color='#D55E00', label='depth-wise convolutions')
    ax.barh(ys, rest, left=parts, color='#BBBBBB', label='everything else')
    for y, time in zip(ys, times, strict=True):
        ax.text(time, y, f' {time:.3g} s', va='center', fontsize=9)
    ax.set(xlabel='seconds a step', yticks=ys, yticklabels=names)
    ax.set_xlim(0, 1.12 * max(times))
    ax.invert_yaxis()
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)
    row = rows[0]
    save_figure(figure, axes, f'Training step, {row["config"].removeprefix("mmreplk::")}, batch '
                f'{row["batch"]}, crop {row["crop"]}, {row["dtype"]}', path)


def draw_rows(path: Path, rows: list[dict], title: str | None = None) -> None:
    """Draw rows of `dwconv.py`: against K where a map was timed with several, else by shape.

    Raises:
        ValueError: If the rows hold no timed case, or several conditions, which would mix.
    """
    from summary import cases
    all_cases = [case for case in cases(rows) if any(case.time(n) is not None for n in case.rows)]
    conditions = list(dict.fromkeys(case.condition for case in all_cases))
    if len(conditions) != 1:
        raise ValueError(
            'an image shows one condition; choose with --dtype, --mode, --weights among: '
            + ('; '.join(conditions) or 'none, as no row was timed'))
    title = title or f'Depth-wise convolution: {conditions[0]}'
    maps: dict[tuple, list] = {}
    for case in all_cases:
        maps.setdefault(case.shape._replace(kernel=(), label=''), []).append(case)
    if all(len(group) > 1 and all(c.shape.kernel[0] == c.shape.kernel[1] for c in group)
           for group in maps.values()):
        panels = [_panel(shape, group) for shape, group in maps.items()]
        draw_curves(path, title, panels, 'kernel size K', 'time (ms)')
        return
    names = list(dict.fromkeys(name for case in all_cases for name in case.rows))
    labels = [case.shape.label or case.shape.text for case in all_cases]
    some = [next(iter(case.rows.values())) for case in all_cases]
    draw_marks(path, title, labels,
               {name: [case.time(name) for case in all_cases] for name in names},
               {'memory bound': [row['memory_bound_ms'] for row in some],
                'direct-sum bound': [row['direct_bound_ms'] for row in some]}, 'time (ms)')


def _panel(shape, group) -> Panel:
    curves: dict[str, list[Point]] = {}
    bounds: dict[str, list[tuple[float, float]]] = {'bound (direct sum)': [], 'memory bound': []}
    for case in group:
        k = case.shape.kernel[0]
        for name, row in case.rows.items():
            if case.time(name) is not None:
                curves.setdefault(name, []).append(
                    Point(k, row['median_ms'], row['p20_ms'], row['p80_ms']))
        row = next(iter(case.rows.values()))
        bounds['bound (direct sum)'].append((k, row['bound_ms']))
        bounds['memory bound'].append((k, row['memory_bound_ms']))
    stack = f', {shape.layers} layers' if shape.layers > 1 else ''
    return Panel(f'{shape.batch} x {shape.channels} x {shape.height} x {shape.width}{stack}',
                 curves, bounds)


def axes_grid(columns: int, lines: int, width: float, height: float):
    """A figure of some inches, and its axes as an array ``(lines, columns)``."""
    figure = new_figure(width, height, dpi=160)
    return figure, figure.subplots(lines, columns, squeeze=False)


def _tidy(ax, axis: str = 'both') -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    for name in ('x', 'y') if axis == 'both' else (axis, ):
        one = getattr(ax, f'{name}axis')
        if axis == 'both' and name == 'x':
            continue
        one.set_major_locator(LogLocator(10, numticks=12))
        low, high = getattr(ax, f'get_{name}lim')()
        one.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        if high / low < 30:  # too few decades to read a value off
            one.set_minor_locator(LogLocator(10, subs=(2, 5), numticks=12))
            one.set_minor_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        else:
            one.set_minor_formatter(NullFormatter())
    ax.grid(True, axis=axis, color='#E6E6E6', linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)


def save_figure(figure, axes, title: str, path: Path) -> None:
    """Add one legend for all axes and a title, and write the file. Raises OSError."""
    entries = {}
    for ax in axes.flat:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    wide = figure.get_figwidth() > 10
    figure.legend(entries.values(), entries.keys(), loc='outside lower center',
                  ncols=min(len(entries), 5 if wide else 3), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _style(name: str, names: list[str]) -> tuple[str, str]:
    if name in STYLES:
        return STYLES[name]
    others = [n for n in names if n not in STYLES]
    return _SPARE[others.index(name) % len(_SPARE)], '>hp*d'[others.index(name) % 5]


def _spread(xs: list[float], gap: float = 1.18) -> list[float]:
    """Those ticks of a logarithmic axis whose labels do not touch; the last one is kept."""
    kept: list[float] = []
    for x in sorted(xs, reverse=True):
        if not kept or kept[-1] / x >= gap:
            kept.append(x)
    return kept[::-1]
