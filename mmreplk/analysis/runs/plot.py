"""The figure of one or several runs: loss, learning rate and metrics. Matplotlib."""

from typing import BinaryIO

from ..figures import new_figure
from .logs import RunCurves, metrics_to_show


def draw_runs(runs: list[RunCurves], path: str | BinaryIO,
              metrics: list[str] | None = None) -> None:
    """Draw a panel for the loss, one for the learning rate and one for each metric.

    Args:
        runs (list[RunCurves]): In one figure, a color for each.
        path (str | BinaryIO): The image file to write, as PNG where it is open.
        metrics (list[str], optional): As of :func:`.logs.metrics_to_show`.

    Raises:
        ValueError: As there.
    """
    shown = metrics_to_show(runs, metrics)
    panels = [('loss', 'loss', False), ('learning rate', 'lr', False)]
    panels += [(key, key, True) for key in shown]
    last = max(step for run in runs for step in run.train['loss'])
    figure = new_figure(3.2 * len(panels), 2.6, dpi=150)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, key, validated) in zip(axes, panels, strict=True):
        for run in runs:
            curve = (run.metrics if validated else run.train).get(key, {})
            # A run without this curve keeps its color.
            ax.plot(list(curve), list(curve.values()), label=run.name,
                    linewidth=1.1, marker='o' if validated else None, markersize=3)
        ax.set_title(title, fontsize=8.5)
        ax.set_xlabel('iteration', fontsize=8)
        ax.set_xlim(0, last)
        ax.tick_params(labelsize=7, length=2.5, width=0.6)
        ax.grid(linewidth=0.4, color='#dddddd')
        for side, spine in ax.spines.items():
            spine.set_visible(side in ('left', 'bottom'))
    axes[0].set_ylim(0, None)
    if len(runs) > 1:
        axes[0].legend(fontsize=6.5, frameon=False)
    else:
        figure.suptitle(runs[0].name, fontsize=8)
    figure.savefig(path)
