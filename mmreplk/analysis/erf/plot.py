"""Images of effective receptive fields: heat maps, and the table of area ratios. Matplotlib."""

import math

from ..figures import COLORS, new_figure
from .field import THRESHOLDS, contribution_scores
from .report import RANDOM_NOTE, ErfResult, caption, percent, table_head, table_rows

_SCORES = r'$A = \log_{10}(S + 1)$, relative to its maximum'


def draw_heat_maps(results: list[ErfResult], path: str) -> None:
    """Draw the scores of one network, or of several side by side with one color bar.

    Args:
        results (list[ErfResult]): At least one.
        path (str): The image to write.
    """
    columns = min(len(results), 4)
    lines = math.ceil(len(results) / columns)
    figure = new_figure(3.2 * columns + 1.0, 3.75 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat[len(results):]:
        ax.set_visible(False)
    for ax, result in zip(axes.flat, results, strict=False):
        height, width = result.matrix.shape
        image = ax.imshow(contribution_scores(result.matrix), cmap=COLORS, vmin=0, vmax=1,
                          extent=(0, width, height, 0), interpolation_stage='data')
        name = result.spec.name
        ax.set_title(name, fontsize=min(11, 330 / len(name)))  # as wide as its map
        ax.set_xlabel(_subtitle(result), fontsize=8)
        ax.set_xticks([0, width / 2, width])
        ax.set_yticks([0, height / 2, height])
        ax.tick_params(labelsize=7, length=2.5, width=0.6)
        for spine in ax.spines.values():
            spine.set_linewidth(0.6)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=28)
    bar.set_label(_SCORES, fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2.5, width=0.6)
    bar.outline.set_linewidth(0.6)
    figure.savefig(path)


def _subtitle(result: ErfResult) -> str:
    first, last = result.of_scores()[0], result.of_scores()[-1]
    ratios = ', '.join(f'r({share:.0%}) = {percent(square.ratio)}%'
                       for share, square in ((THRESHOLDS[0], first), (THRESHOLDS[-1], last)))
    note = '\nrandom weights: not comparable' if result.random else ''
    return f'{ratios}{note}'


def draw_table(results: list[ErfResult], path: str) -> None:
    """Draw the table of :func:`.report.format_table`.

    Args:
        results (list[ErfResult]): As there.
        path (str): The image to write.
    """
    head, rows = table_head(), table_rows(results)
    texts = [0.085 * max(len(row[column]) for row in (head, *rows)) + 0.3 for column in range(3)]
    widths = [*texts, *[0.62] * len(THRESHOLDS), 0.25, *[0.62] * len(THRESHOLDS)]
    edges = [sum(widths[:index]) for index in range(len(widths) + 1)]
    pitch, notes = 0.27, 1 + any(result.random for result in results)
    height = pitch * (len(rows) + 2.6 + 0.8 * notes)
    figure = new_figure(max(edges[-1] + 0.2, 7.2), height + 0.1, layout=None)
    ax = figure.add_axes((0.1 / figure.get_figwidth(), 0, edges[-1] / figure.get_figwidth(), 1))
    ax.set(xlim=(0, edges[-1]), ylim=(height, -0.1))
    ax.axis('off')
    half = 3 + len(THRESHOLDS)
    slots = [*range(half), *range(half + 1, len(widths))]

    def write(y, cells, **style):
        for slot, cell in zip(slots, cells, strict=True):
            x = edges[slot] if slot < 3 else edges[slot + 1]
            ax.text(x, y, cell, ha='left' if slot < 3 else 'right', va='center', fontsize=9,
                    **style)

    groups = (('of scores A, as in the paper', 3, half), ('of contributions S', half + 1, -1))
    for title, start, stop in groups:
        left, right = edges[start] + 0.15, edges[stop]
        ax.text((left + right) / 2, 0.55 * pitch, title, ha='center', va='center', fontsize=9)
        ax.plot([left, right], [1.08 * pitch] * 2, color='black', linewidth=0.5)
    write(1.6 * pitch, head, fontweight='bold')
    for y, weight in ((0, 1.2), (2.15 * pitch, 0.7), ((len(rows) + 2.4) * pitch, 1.2)):
        ax.plot([0, edges[-1]], [y, y], color='black', linewidth=weight)
    for index, row in enumerate(rows):
        write((index + 2.8) * pitch, row)
    lines = [caption(results)] + [f'Note: {RANDOM_NOTE}.'] * (notes - 1)
    for index, line in enumerate(lines):
        ax.text(0, (len(rows) + 3.0 + index * 0.8) * pitch, line, va='center', fontsize=7.5,
                color='#444444')
    figure.savefig(path, bbox_inches='tight', pad_inches=0.08)
