"""The figure of a kernel study: an example, scores, and receptive fields. Matplotlib."""

from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ..erf.field import contribution_scores
from ..erf.report import ErfResult, percent
from ..figures import COLORS, new_figure
from .far_context import CLASS_IDS, LANDS, SPLITS
from .fields import mean_and_spread
from .report import BIN, EDGES, RunResult, blind_miou, by_kernel, middle_run
from .settings import KernelStudy

_LABELS = {'water': (44, 108, 168), 'field': (96, 158, 76), 'rock': (196, 92, 76),
           'sand': (238, 226, 186)}
_SIZES = dict(label=8, tick=7, title=8.5)


def draw_study(study: KernelStudy, results: list[RunResult],
               path: str | BinaryIO) -> None:
    """Draw the result of a study on one page.

    a: the first image of the validation split with every kind of land, its labels, and what the
    network of the median mIoU of each kernel size predicts. b: mIoU against kernel size, a point
    for each network. c: the share of the land that is named rightly against the distance from the
    landmark, mean and standard deviation over the seeds. d: the effective receptive fields of the
    networks of a.

    Args:
        study (KernelStudy): The study.
        results (list[RunResult]): All of its results.
        path (str | BinaryIO): The image file to write, as PNG where it is open.
    """
    groups = by_kernel(results)
    middle = {kernel: middle_run(group) for kernel, group in groups.items()}
    colors = _colors(list(groups))
    columns = max(len(groups), 2)
    heights = (7.2 / (columns + 2) + 0.15, 2.5, 7.0 / columns + 0.25)  # inches
    figure = new_figure(7.2, sum(heights))
    rows = figure.subfigures(3, 1, height_ratios=heights, hspace=0.02)
    _draw_example(rows[0], study, middle)
    left, right = rows[1].subplots(1, 2)
    _draw_scores(left, study, groups, colors)
    _draw_distances(right, groups, colors)
    _draw_fields(rows[2], middle)
    for row, x, letter in ((0, 0, 'a'), (1, 0, 'b'), (1, 0.5, 'c'), (2, 0, 'd')):
        rows[row].text(x + 0.002, 0.995, letter, ha='left', va='top', fontsize=10,
                       fontweight='bold')
    figure.savefig(path)


def _colors(kernels: list[int]) -> dict:
    from matplotlib import colormaps
    shades = np.linspace(0.08, 0.85, len(kernels)) if len(kernels) > 1 else [0.4]
    return dict(zip(kernels, colormaps['viridis'](shades), strict=True))


def _size(kernel: int) -> str:
    return rf'{kernel}$\times${kernel}'


def _draw_example(figure, study: KernelStudy, middle: dict[int, RunResult]) -> None:
    stem = _example(study.data)
    palette = np.zeros((256, 3), np.uint8)
    for name, number in CLASS_IDS.items():
        palette[number] = _LABELS[name]
    numbers = np.array([0, *CLASS_IDS.values()])
    picture = cv2.imread(str(study.data / 'images' / SPLITS[1] / f'{stem}.jpg'))[..., ::-1]
    label = _read(study.data / 'annotations' / SPLITS[1] / f'{stem}.png')
    panels = [('picture', picture), ('labels', palette[label])]
    panels += [(_size(kernel), palette[numbers[_read(study.predictions(r.run) / f'{stem}.png')]])
               for kernel, r in middle.items()]
    for ax, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        ax.imshow(image, interpolation='nearest')
        ax.set_title(title, fontsize=_SIZES['title'], pad=3)
        ax.axis('off')


def _example(data: Path) -> str:
    wanted = {CLASS_IDS[land] for land in LANDS}
    paths = sorted((data / 'annotations' / SPLITS[1]).glob('*.png'))
    full = [path for path in paths if wanted <= set(np.unique(_read(path)))]
    return (full or paths)[0].stem


def _read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def style(ax) -> None:
    """Thin axes with a light grid."""
    ax.tick_params(labelsize=_SIZES['tick'], length=2.5, width=0.6)
    for side, spine in ax.spines.items():
        spine.set_linewidth(0.6)
        spine.set_visible(side in ('left', 'bottom'))
    ax.grid(axis='y', linewidth=0.4, color='#dddddd')
    ax.set_axisbelow(True)


def _level(ax, value: float, text: str) -> None:
    ax.axhline(value, color='#888888', linewidth=0.8, linestyle='--', zorder=1)
    ax.annotate(text, (0.01, value), xycoords=ax.get_yaxis_transform(), xytext=(0, 2),
                textcoords='offset points', fontsize=6.5, color='#666666', va='bottom')


def _draw_scores(ax, study: KernelStudy, groups: dict, colors: dict) -> None:
    kernels = list(groups)
    means, deviations = np.array([mean_and_spread(r.miou for r in group)
                                  for group in groups.values()]).T
    ax.fill_between(kernels, means - deviations, means + deviations, color='#444444', alpha=0.15,
                    linewidth=0)
    ax.plot(kernels, means, color='#444444', linewidth=1, label='mean, standard deviation')
    for kernel, group in groups.items():
        ax.plot([kernel] * len(group), [r.miou for r in group], 'o', color=colors[kernel],
                markersize=4.5, markeredgecolor='white', markeredgewidth=0.4, zorder=3,
                label='one network' if kernel == kernels[-1] else None)
    chance = blind_miou(study.data)
    _level(ax, chance, 'exact shores, land named by chance')
    ax.set_xscale('log')
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlabel('kernel size', fontsize=_SIZES['label'])
    ax.set_ylabel('mIoU, %', fontsize=_SIZES['label'])
    ax.set_ylim(min(chance, means.min()) - 4, None)
    ax.legend(fontsize=6.5, frameon=False, loc='best')
    style(ax)


def _draw_distances(ax, groups: dict, colors: dict) -> None:
    at = np.asarray(EDGES) + BIN / 2
    for kernel, group in groups.items():
        values = 100 * np.array([result.accuracy for result in group])
        values[:, group[0].pixels == 0] = np.nan
        mean = values.mean(0)
        deviation = values.std(0, ddof=1) if len(group) > 1 else 0 * mean
        ax.fill_between(at, mean - deviation, mean + deviation, color=colors[kernel], alpha=0.2,
                        linewidth=0)
        ax.plot(at, mean, 'o-', color=colors[kernel], markersize=3, linewidth=1.2,
                label=_size(kernel))
    _level(ax, 100 / len(LANDS), 'by chance')
    ax.set_ylim(25, 102)
    labels = [f'{edge}–{edge + BIN}' for edge in EDGES[:-1]] + [f'>{EDGES[-1]}']
    ax.set_xticks(at, labels)
    ax.set_xlabel('distance from the landmark, pixels', fontsize=_SIZES['label'])
    ax.set_ylabel('land named rightly, % of pixels', fontsize=_SIZES['label'])
    ax.legend(fontsize=6.5, frameon=False, loc='best', ncols=2)
    style(ax)


def _draw_fields(figure, middle: dict[int, RunResult]) -> None:
    axes = figure.subplots(1, len(middle), squeeze=False, sharey=True)[0]
    for ax, (kernel, result) in zip(axes, middle.items(), strict=True):
        image = draw_field(ax, _size(kernel), result.erf)
    field_bar(figure, image, axes)


def draw_field(ax, title: str, erf: ErfResult):
    """Draw the scores of a receptive field; returns what a color bar is made of."""
    height, width = erf.matrix.shape
    image = ax.imshow(contribution_scores(erf.matrix), cmap=COLORS, vmin=0, vmax=1,
                      extent=(0, width, height, 0), interpolation_stage='data')
    half, most = erf.of_scores()[2:]
    ax.set_title(title, fontsize=_SIZES['title'], pad=3)
    ax.set_xlabel(f'r(50%) = {percent(half.ratio)}%\nr(99%) = {percent(most.ratio)}%',
                  fontsize=_SIZES['tick'])
    ax.set_xticks([0, width / 2, width])
    ax.set_yticks([0, height / 2, height])
    ax.tick_params(labelsize=6.5, length=2, width=0.5)
    ax.label_outer()
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)
    return image


def field_bar(figure, image, axes) -> None:
    """The color bar of several fields."""
    bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.015, aspect=22)
    bar.set_label('contribution score $A$', fontsize=_SIZES['tick'])
    bar.ax.tick_params(labelsize=6.5, length=2, width=0.5)
    bar.outline.set_linewidth(0.5)
