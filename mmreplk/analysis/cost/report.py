"""Costs as text: by part, by kind of layer, and what share each kind has."""

from .count import KINDS, ModelCost
from .latency import ModelLatency
from .models import INSTANCES, PROPOSALS
from .profiling import REST, TIME_KINDS


def format_cost(cost: ModelCost) -> str:
    """Write a cost as a table of parts and one of kinds of layers, with what is counted.

    Args:
        cost (ModelCost): The cost.

    Returns:
        str: Several lines.
    """
    rows = [(name or 'model itself', sum(part.params.values()), sum(part.macs.values()))
            for name, part in cost.parts.items()]
    kinds = [(kind, cost.by_kind('params')[kind], cost.by_kind('macs')[kind]) for kind in KINDS]
    width = max(len(row[0]) for row in (*rows, *kinds, ('parameters', )))

    def line(name, params, macs):
        return f'{name:<{width}}  {params / 1e6:>10.2f} M  {macs / 1e9:>11.2f} G'

    head = f'{"":<{width}}  {"parameters":>12}  {"multiply-adds":>13}'
    rule = '-' * len(head)
    network = {
        True: ', merged network: one kernel in place of each large and small one',
        False: ', training network: small kernels beside the large ones',
        None: '',
    }[cost.merged]
    return '\n'.join([
        f'{cost.shape[0]} x {cost.shape[1]} pixels (height x width){network}', '', head, rule,
        *(line(*row) for row in rows), rule, line('whole model', cost.params, cost.macs), '',
        head, rule, *(line(*row) for row in kinds), '', _counted(cost)])


def _counted(cost: ModelCost) -> str:
    text = ('Counted: multiply-adds of convolutions and matrix products, one image, as evaluation '
            'runs them. Not counted: norms, activations, pooling, resizing.')
    idle = [name for name, part in cost.parts.items() if not any(part.macs.values())]
    if idle:
        text += f'\nNot run in evaluation: {", ".join(idle)}.'
    if any(name.startswith('roi_head') for name in cost.parts):
        text += (f'\nEach box head sees {PROPOSALS} proposals, each mask head {INSTANCES} '
                 'instances.')
    return text


def shares_of(cost: ModelCost, latency: ModelLatency | None = None) -> dict[str, dict[str, float]]:
    """What share each kind of layer has of a model's cost.

    Args:
        cost (ModelCost): The cost.
        latency (ModelLatency, optional): The latency, if measured. Defaults to None.

    Returns:
        dict[str, dict[str, float]]: For ``'parameters'``, ``'multiply-adds'`` and, if there is one,
        ``'latency'``, shares from 0 to 1 by kind. Latency alone has the kind ``'rest'``: what has
        no multiply-adds that are counted.
    """
    shares = {}
    for title, what in (('parameters', 'params'), ('multiply-adds', 'macs')):
        values = cost.by_kind(what)
        shares[title] = {kind: value / max(sum(values.values()), 1)
                         for kind, value in values.items()}
    if latency is not None:
        shares['latency'] = latency.shares
    return shares


def format_shares(cost: ModelCost, latency: ModelLatency | None = None) -> str:
    """Write :func:`shares_of` as a table, with what the latency is of.

    Args:
        cost (ModelCost): The cost.
        latency (ModelLatency, optional): The latency, if measured. Defaults to None.

    Returns:
        str: Several lines.
    """
    shares = shares_of(cost, latency)
    kinds = TIME_KINDS if latency else KINDS
    head = f'{"share of":<10}' + ''.join(f'  {title:>14}' for title in shares)
    lines = [head, '-' * len(head)]
    for kind in kinds:
        cells = (f'{100 * values[kind]:.1f} %' if kind in values else '' for values in
                 shares.values())
        lines.append(f'{kind:<10}' + ''.join(f'  {cell:>14}' for cell in cells))
    if latency:
        images = 'one image' if latency.batch == 1 else f'{latency.batch} images'
        lines += ['', f'Latency: {1000 * latency.seconds:.1f} ms for {images}, float32, '
                  f'{latency.device}; median of {latency.rounds}. Its shares are by the profiler; '
                  f'the {REST} is norms, activations, resizing and all else that is not counted.']
    return '\n'.join(lines)
