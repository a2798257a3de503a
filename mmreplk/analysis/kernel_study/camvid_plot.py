"""The figure of the kernel study on CamVid: scores, speed and receptive fields. Matplotlib."""

from typing import BinaryIO

from ..figures import new_figure
from .camvid import CamVidStudy
from .camvid_report import CamVidResult, by_kind
from .fields import mean_and_spread
from .plot import draw_field, field_bar, style
from .report import middle_run

_SMALL, _PLAIN = '#21618c', '#c0652a'


def draw_study(study: CamVidStudy, results: list[CamVidResult], path: str | BinaryIO) -> None:
    """Draw the result of a study on one page.

    a: mIoU on the test split against kernel size, a point for each network, mean and standard
    deviation as a bar. b: time for an image in the merged network. c: the effective receptive
    fields of the networks of the median mIoU of each kind.

    Args:
        study (CamVidStudy): The study.
        results (list[CamVidResult]): All of its results.
        path (str | BinaryIO): The image file to write, as PNG where it is open.
    """
    groups = by_kind(results)
    columns = max(len(groups), 2)
    heights = (2.6, 7.0 / columns + 0.45)  # inches
    figure = new_figure(7.2, sum(heights), dpi=200)
    rows = figure.subfigures(2, 1, height_ratios=heights, hspace=0.02)
    left, right = rows[0].subplots(1, 2)
    _draw_series(left, groups, lambda r: r.miou, 'mIoU, test split, %')
    _draw_series(right, groups, lambda r: 1000 * r.latency, 'ms for an image, merged')
    right.set_ylim(0, None)
    axes = rows[1].subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for ax, (kind, group) in zip(axes, groups.items(), strict=True):
        image = draw_field(ax, kind.replace('_', ' '), middle_run(group).erf)
    field_bar(rows[1], image, axes)
    for row, x, letter in ((0, 0, 'a'), (0, 0.5, 'b'), (1, 0, 'c')):
        rows[row].text(x + 0.002, 0.995, letter, ha='left', va='top', fontsize=10,
                       fontweight='bold')
    figure.savefig(path)


def _draw_series(ax, groups: dict[str, list[CamVidResult]], value, title: str) -> None:
    for plain, color, marker, label in ((False, _SMALL, 'o', 'small kernel beside it (above 5)'),
                                        (True, _PLAIN, 's', 'without a small kernel')):
        chosen = [group for kind, group in groups.items() if ('without' in kind) is plain]
        if not chosen:
            continue
        kernels = [group[0].run.kernel for group in chosen]
        spreads = [mean_and_spread(map(value, group)) for group in chosen]
        # Side by side where both have a point at one kernel size.
        places = [kernel * (1.06 if plain else 1) for kernel in kernels]
        ax.errorbar(places, [mean for mean, _ in spreads], [spread for _, spread in spreads],
                    color=color, linewidth=1, capsize=2.5, label=label)
        for place, group in zip(places, chosen, strict=True):
            ax.plot([place] * len(group), list(map(value, group)), marker, color=color,
                    markersize=4, markeredgecolor='white', markeredgewidth=0.4, zorder=3)
    kernels = sorted({group[0].run.kernel for group in groups.values()})
    ax.set_xscale('log')
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlabel('kernel size', fontsize=8)
    ax.set_ylabel(title, fontsize=8)
    ax.legend(fontsize=6.5, frameon=False, loc='best')
    style(ax)
