"""The image of shape biases, as in Geirhos et al. (ICLR 2019, figure 4). Matplotlib."""

from ..figures import new_figure
from .decisions import Decisions, categories_of

_MARKERS = 'osD^vP*Xph<>'


def draw_shape_bias(found: dict[str, Decisions], path: str) -> None:
    """Draw a marker for each model and category, and a line at each model's bias over all images.

    Args:
        found (dict[str, Decisions]): By the models' names.
        path (str): The image to write.
    """
    from matplotlib import colormaps
    categories = categories_of(found)
    figure = new_figure(5.2, 1.5 + 0.26 * len(categories) + 0.2 * (len(found) + 1) // 2)
    ax = figure.add_subplot()
    palette = colormaps['tab10'].colors
    for index, (name, decisions) in enumerate(found.items()):
        color, marker = palette[index % 10], _MARKERS[index % len(_MARKERS)]
        points = [(counts.bias, categories.index(category))
                  for category, counts in decisions.categories.items() if counts.bias is not None]
        overall = decisions.overall.bias
        label = name if overall is None else f'{name} ({100 * overall:.1f}%)'
        ax.plot(*zip(*points, strict=True) if points else ([], []), marker, color=color,
                markersize=5, markeredgecolor='white', markeredgewidth=0.4, label=label,
                clip_on=False, zorder=3)
        if overall is not None:
            ax.axvline(overall, color=color, linewidth=1.2, alpha=0.8, zorder=2)
    ax.set(xlim=(0, 1), ylim=(len(categories) - 0.5, -0.5))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    ax.set_xticks(ticks, [f'{100 * tick:.0f}' for tick in ticks], fontsize=7)
    ax.set_xlabel('answers that name the shape, % of those that name shape or texture', fontsize=8)
    above = ax.secondary_xaxis('top')
    above.set_xticks(ticks, [f'{100 - 100 * tick:.0f}' for tick in ticks], fontsize=7)
    above.set_xlabel('answers that name the texture, %', fontsize=8)
    ax.set_yticks(range(len(categories)), categories, fontsize=7.5)
    ax.set_ylabel('category of the shape', fontsize=8)
    ax.grid(axis='y', linewidth=0.4, color='#dddddd')
    ax.set_axisbelow(True)
    for item in (ax, above):
        item.tick_params(length=2.5, width=0.6)
        for spine in item.spines.values():
            spine.set_linewidth(0.6)
    ax.tick_params(axis='y', length=0, pad=6)  # markers at 0 need room
    figure.legend(loc='outside lower center', ncols=2, fontsize=7, frameon=False,
                  title='lines: over all pictures', title_fontsize=7)
    figure.savefig(path)
