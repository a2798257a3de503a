"""The image of costs: what share each kind of layer has. Matplotlib."""

from ..figures import new_figure
from .count import ModelCost
from .latency import ModelLatency
from .profiling import DEPTHWISE, OTHER, POINTWISE, REST, TIME_KINDS
from .report import shares_of

# Dark to light in the order of the bars, so that they tell apart in gray too.
_COLORS = {DEPTHWISE: '#1f4e79', POINTWISE: '#4f9d9a', OTHER: '#b9d7b1', REST: '#e4e4e4'}
_NAMES = {DEPTHWISE: 'depth-wise convolutions', POINTWISE: '1x1 convolutions',
          OTHER: 'other convolutions and matrix products',
          REST: 'the rest (norms, activations, resizing)'}
_SMALLEST = 0.045  # share that has room for its number
_ROOM = 46  # characters of a name that stand beside the details at full size


def draw_costs(costs: dict[str, tuple[ModelCost, ModelLatency | None]], path: str) -> None:
    """Draw parameters, multiply-adds and latency of models as bars of 100%, by kind of layer.

    Args:
        costs (dict[str, tuple[ModelCost, ModelLatency | None]]): By the models' names; the latency
            is left out where it was not measured.
        path (str): The image to write.
    """
    bars, places, names, place = [], [], [], 0.0
    for name, (cost, latency) in costs.items():
        group = shares_of(cost, latency)
        names.append((place - 0.75, name, _details(cost, latency)))
        for title, shares in group.items():
            bars.append((title, shares, _total(title, cost, latency)))
            places.append(place)
            place += 1
        place += 1.1
    figure = new_figure(7.0, 0.27 * (place + 0.2) + 0.85)
    ax = figure.add_subplot()
    used = [kind for kind in TIME_KINDS if any(kind in shares for _, shares, _ in bars)]
    for kind in used:
        left = [sum(shares.get(other, 0) for other in TIME_KINDS[:TIME_KINDS.index(kind)])
                for _, shares, _ in bars]
        width = [shares.get(kind, 0) for _, shares, _ in bars]
        ax.barh(places, width, 0.8, left, color=_COLORS[kind], label=_NAMES[kind],
                edgecolor='white', linewidth=0.5)
        for y, start, share in zip(places, left, width, strict=True):
            if share >= _SMALLEST:
                ax.text(start + share / 2, y, f'{100 * share:.0f}%' if share >= 0.1 else
                        f'{100 * share:.1f}%', ha='center', va='center', fontsize=6.5,
                        color='white' if kind == DEPTHWISE else 'black')
    for y, (_, _, total) in zip(places, bars, strict=True):
        ax.text(1.015, y, total, ha='left', va='center', fontsize=7)
    for y, name, details in names:
        size = 8 * min(1, _ROOM / len(name))
        ax.text(0, y, name, ha='left', va='center', fontsize=size, fontweight='bold')
        ax.text(1, y, details, ha='right', va='center', fontsize=6.5, color='#444444')
    ax.set_yticks(places, [title for title, _, _ in bars], fontsize=7)
    ax.set(xlim=(0, 1), ylim=(place - 1.5, -1.2))
    ax.set_xticks([])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc='outside lower left', ncols=2, fontsize=7,
                  frameon=False, handlelength=1.2, columnspacing=1.5)
    figure.savefig(path)


def _total(title: str, cost: ModelCost, latency: ModelLatency | None) -> str:
    if title == 'latency':
        return f'{1000 * latency.seconds:.4g} ms'
    amount = cost.params if title == 'parameters' else cost.macs
    return f'{amount / 1e9:.4g} G' if amount >= 1e9 else f'{amount / 1e6:.4g} M'


def _details(cost: ModelCost, latency: ModelLatency | None) -> str:
    details = [f'{cost.shape[0]} x {cost.shape[1]} pixels']
    if cost.merged is not None:
        details.append('merged' if cost.merged else 'not merged')
    if latency is not None:
        details += [f'batch {latency.batch}', latency.device]
    return ', '.join(details)
