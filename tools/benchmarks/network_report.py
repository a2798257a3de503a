"""Table, goals and images of the rows of network.py."""

from pathlib import Path

from plots import LABELS, STYLES, Panel, Point, draw_curves, save_figure
from rows import markdown

from mmreplk.analysis.figures import new_figure

_COLORS = {name: color for name, (color, _) in STYLES.items()} | {
    'ours compiled': '#882255', 'ours not deployed': '#CC79A7',
    'ours resize first': '#999933', 'mmpretrain': '#555555',
    'mmpretrain merged': '#888888', 'timm': '#009E73', 'timm channels_last': '#44AA99'}


def case_of(row: dict) -> tuple:
    """What candidates have to share to be compared."""
    return (row['device'], row['network'], row['mode'], row['dtype'], row['batch'], row['height'],
            row['width'], row.get('axis'), row.get('value'))


def cases(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    """Rows by case and candidate; of repeated ones the last counts."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        found.setdefault(case_of(row), {})[row['candidate']] = row
    return found


def table(rows: list[dict]) -> str:
    """A line for each timed candidate, and the ratio to the best of ours of the same case."""
    lines = []
    for (_, network, mode, dtype, batch, height, width, *_), group in cases(rows).items():
        timed = {name: row for name, row in group.items() if row['status'] == 'ok'}
        ours = min((row['median_ms'] for name, row in timed.items() if name.startswith('ours')),
                   default=None)
        for name, row in group.items():
            head = [f'{network}, {mode}, {dtype}, {batch} x {height} x {width}', name]
            if row['status'] != 'ok':
                lines.append([*head, row['status'], '', '', '', ''])
                continue
            ratio = '' if ours is None else f'{row["median_ms"] / ours:.2f}'
            peak = row['peak_bytes']
            lines.append([*head, f'{row["median_ms"]:.1f}', f'{row["images_per_second"]:.3g}',
                          ratio, f'{peak / 2**20:.0f}' if peak else '-',
                          f'{100 * row["depthwise_share"]:.1f}%'])
    return markdown(['case', 'candidate', 'ms', 'images/s', 'time / best of ours', 'peak, MiB',
                     'depth-wise'], lines)


def draw(path: Path, rows: list[dict]) -> None:
    """Bars of images a second, or, of the suite 'growth', curves. Raises OSError."""
    rows = [row for group in cases(rows).values() for row in group.values()
            if row['status'] == 'ok']
    if not rows:
        raise ValueError('--plot: no row was timed')
    if all(row['suite'] == 'growth' for row in rows):
        _draw_growth(path, rows)
    else:
        _draw_bars(path, rows)


def _draw_bars(path: Path, rows: list[dict]) -> None:
    """A panel for each size, mode, dtype and batch; bars of a network together, p20 to p80."""
    panels: dict[tuple, dict[str, list[dict]]] = {}
    for row in rows:
        key = row['mode'], row['dtype'], row['batch'], row['height'], row['width']
        panels.setdefault(key, {}).setdefault(row['network'], []).append(row)
    heights = [sum(len(group) + 0.8 for group in networks.values())
               for networks in panels.values()]
    figure = new_figure(8.5, 1.0 + 0.24 * sum(heights) + 0.5 * len(panels), dpi=160)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for ax, ((mode, dtype, batch, height, width), networks) in zip(
            axes.flat, panels.items(), strict=True):
        y, ticks = 0.0, {}
        for network, group in networks.items():
            ticks[network] = y + (len(group) - 1) / 2
            for row in group:
                name = row['candidate']
                rate, low, high = (1e3 * row['batch'] / row[key]
                                   for key in ('median_ms', 'p80_ms', 'p20_ms'))
                ax.barh(y, rate, color=_COLORS.get(name, '#BBBBBB'), height=0.86,
                        label=LABELS.get(name, name), xerr=[[rate - low], [high - rate]],
                        error_kw=dict(elinewidth=0.8, ecolor='#444444', capsize=1.5))
                ax.text(high, y, f' {rate:.3g}', va='center', fontsize=7)
                y += 1
            y += 0.8
        ax.set_yticks(list(ticks.values()), list(ticks), fontsize=8)
        ax.invert_yaxis()
        ax.set_title(f'{mode}, {dtype}, {batch} x {height} x {width}', fontsize=9, loc='left')
        ax.set_xlabel('images a second', fontsize=8)
        ax.tick_params(axis='y', length=0)
        for side in ('top', 'right'):
            ax.spines[side].set_visible(False)
    save_figure(figure, axes, f'Whole networks, {rows[0]["device"]}', path)


def _draw_growth(path: Path, rows: list[dict]) -> None:
    """Time against side, batch and kernel: whole network and its depth-wise part, with bounds."""
    panels = []
    titles = dict(side='one image, kernels 31-29-27-13', batch='224 x 224, kernels 31-29-27-13',
                  kernel='one image of 224 x 224')
    for axis, title in titles.items():
        curves: dict[str, list[Point]] = {}
        bounds: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row['axis'] == axis):
            name, share = row['candidate'], row['depthwise_share']
            times = [row[key] for key in ('median_ms', 'p20_ms', 'p80_ms')]
            curves.setdefault(f'{name}: network', []).append(Point(row['value'], *times))
            curves.setdefault(f'{name}: depth-wise', []).append(
                Point(row['value'], *(share * time for time in times)))
            if 'memory_bound_ms' in row:
                for key, label in (('memory_bound_ms', 'depth-wise: bytes moved once'),
                                   ('direct_bound_ms', 'depth-wise: multiply-adds at peak')):
                    bounds.setdefault(label, []).append((row['value'], row[key]))
        if curves:
            panels.append(Panel(title, curves, bounds))
    draw_curves(path, f'Growth of the cost of RepLKNet-31B, {rows[0]["device"]}, '
                f'{rows[0]["dtype"]}', panels, 'side of the image | batch | kernel size',
                'time (ms)')
