"""The last part of `first_gpu.py`: what is wrong, the goals, and what was not reached in time."""

import ceilings
from gpu_parts import DTYPES
from gpu_time import rates_of
from rows import markdown

from mmreplk.ops.problem import Problem

# Times as fast as PyTorch's best: forward by dtype, forward and backward; times the bound.
GOALS = {'fp16': 20.0, 'tf32': 8.0}
TRAINING_GOAL, BOUND_GOAL = 15.0, 2.0


def report(context) -> str:
    """Markdown."""
    return '\n\n'.join(part for part in (
        _about(context), _wrong(context.rows), _goals(context), _tiles(context.rows),
        _unfinished(context.rows)) if part)


def _about(context) -> str:
    row = context.rows[0] if context.rows else context.common
    return '{}, torch {}, Triton {}, CUDA {}, cuDNN {}, commit {}'.format(
        *(row.get(name) for name in ('device', 'torch', 'triton', 'cuda', 'cudnn', 'commit')))


def _wrong(rows: list[dict]) -> str:
    checked = [row for row in rows if row.get('part') == 'correct' and 'kind' in row]
    bad = [row for row in rows if row.get('status') in ('wrong', 'failed')]
    lines = [f'{len(checked)} checks of correctness, {len(bad)} rows of all parts wrong or failed.']
    return '\n'.join(lines + [
        f"- {row['part']}: {row.get('kind')} {row.get('family', '')} {row.get('task', '')} "
        f"{row.get('dtype', '')} {row.get('shape', '')}: {row['status']}, {row.get('note', '')}"
        for row in bad[:40]])


def _goals(context) -> str:
    """A line for each map and dtype; milliseconds of all layers."""
    lines = []
    layers = context.scale.layers
    for dtype, problem in context.stack():
        def least(problem=problem, dtype=dtype, **columns):
            return _least(context.rows, problem, dtype, **columns)

        theirs = _times(least(kind='cudnn', task='forward'), layers)
        theirs_back = _times(least(kind='cudnn', task='backward'), layers)
        graph = least(kind='stack', task='forward', graph=True)
        eager = least(kind='stack', task='forward', graph=False)
        both = least(kind='stack', task='both', graph=False)
        bound = _bound(context, dtype, problem)
        bound = None if bound is None else bound * layers
        training = None if None in (theirs, theirs_back) else theirs + theirs_back
        lines.append([
            f'{dtype}, {problem.height}x{problem.width}', _ms(theirs), _ms(graph), _ms(eager),
            _judged(_ratio(theirs, graph), GOALS[dtype], 1), _judged(
                _ratio(graph, bound), BOUND_GOAL, -1),
            _ms(training), _ms(both), _judged(_ratio(training, both), TRAINING_GOAL, 1)])
    s = context.scale
    head = (f'Milliseconds of {layers} layers of {s.batch} x {s.channels} x R x R at K = '
            f"{s.kernel}. PyTorch: the faster of its formats, a layer timed and multiplied. "
            f'Goals: forward {GOALS["fp16"]:.0f} times as fast in fp16 and {GOALS["tf32"]:.0f} in '
            f'TF32, at most {BOUND_GOAL:.0f} times the bound, forward and backward '
            f'{TRAINING_GOAL:.0f} times as fast.')
    return head + '\n\n' + markdown(
        ['', 'PyTorch', 'ours, graph', 'ours, eager', 'times as fast', 'times the bound',
         'PyTorch, both passes', 'ours, both passes', 'times as fast'], lines)


def _tiles(rows: list[dict]) -> str:
    """The fastest variant of each problem."""
    best = {}
    for row in rows:
        if row.get('kind') == 'tile' and row['status'] == 'ok':
            key = row['task'], row['dtype'], tuple(row['shape']), row['family']
            if key not in best or row['median_ms'] < best[key]['median_ms']:
                best[key] = row
    if not best:
        return ''
    return 'Fastest variants of a layer, from a graph:\n\n' + markdown(
        ['task', 'dtype', 'shape', 'family', 'variant', 'ms'],
        [[task, dtype, 'x'.join(map(str, shape)), family, row['variant'], _ms(row['median_ms'])]
         for (task, dtype, shape, family), row in best.items()])


def _unfinished(rows: list[dict]) -> str:
    late = [f"- {row['part']}: {row['note']}" for row in rows if row.get('status') == 'unfinished']
    return '\n'.join(['Not done:', *late]) if late else ''


def _least(rows, problem: Problem, dtype: str, **columns) -> float | None:
    p = problem
    shape = [p.batch, p.channels, p.height, p.width, *p.kernel]
    return min((row['median_ms'] for row in rows
                if row.get('status') == 'ok' and row.get('dtype') == dtype
                and row.get('shape') == shape
                and all(row.get(name) == value for name, value in columns.items())), default=None)


def _bound(context, dtype: str, problem: Problem) -> float | None:
    rates = rates_of(context, dtype)
    if rates is None:
        return None
    return ceilings.bound(problem._replace(dtype=DTYPES[dtype]).bytes_moved, problem.macs,
                          rates).both


def _times(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if not above or not below else above / below


def _judged(value: float | None, goal: float, sign: int) -> str:
    if value is None:
        return '-'
    return f'{value:.2f} ({"met" if sign * (value - goal) >= 0 else "missed"})'


def _ms(value: float | None) -> str:
    return '-' if value is None else f'{value:.4g}'
