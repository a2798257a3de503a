"""The short table of a run and the project's goals, from rows of `dwconv.py`."""

from collections.abc import Callable
from typing import NamedTuple

from rows import geometric_mean, markdown
from shapes import Shape

OURS = ('ours', 'ours channels_last')
CUDNN = ('conv2d', 'conv2d channels_last', 'cudnn', 'cudnn channels_last')
# A shape of a sweep is listed if its best other is faster than this share of ours.
LISTED_BELOW = 0.9


class Case(NamedTuple):
    """All candidates of one shape under one condition.

    Attributes:
        condition (str): Device, dtype, mode and what else the times depend on.
        shape (Shape): What was timed.
        rows (dict[str, dict]): Rows by candidate.
    """
    condition: str
    shape: Shape
    rows: dict[str, dict]

    def time(self, name: str) -> float | None:
        """Median in ms; None if it was not timed."""
        row = self.rows.get(name, {})
        return row['median_ms'] if row.get('status') == 'ok' else None

    def best(self, names=None) -> tuple[float, str] | None:
        """The fastest of some candidates, by default of all that are not ours."""
        names = [n for n in self.rows if not self.is_ours(n)] if names is None else names
        return min(((self.time(n), n) for n in names if self.time(n) is not None), default=None)

    def ratio(self, ours: str, names=None) -> float | None:
        """How many times as long as ours the best of the others takes."""
        best, time = self.best(names), self.time(ours)
        return None if best is None or time is None else best[0] / time

    @staticmethod
    def is_ours(name: str) -> bool:
        return name.split()[0].split(':')[0] == 'ours'


def cases(rows: list[dict]) -> list[Case]:
    """Rows grouped by shape and condition, in their order; of repeated rows the last counts."""
    groups: dict[tuple, Case] = {}
    for row in rows:
        shape = Shape(row['batch'], row['channels'], row['height'], row['width'],
                      tuple(row['kernel']), row['layers'], row['label'])
        key = condition_of(row), shape
        groups.setdefault(key, Case(*key, {})).rows[row['candidate']] = row
    return list(groups.values())


def condition_of(row: dict) -> str:
    """In words, what but the shape a time depends on."""
    parts = [row['device'], row['dtype'], row['mode'], f"{row['weights']} weights"]
    parts += ['bias'] * row['bias'] + ['CUDA graph'] * row['graph']
    return ', '.join(parts)


def table(group: list[Case]) -> str:
    """Markdown, one line a shape."""
    header = ['shape (N x C x H x W)', 'ours, ms', 'ours channels-last, ms', 'backend',
              'NCHW conv2d, ms', 'best other, ms', 'which', 'conv2d / ours', 'best other / ours',
              'bound, ms']
    lines = []
    for case in group:
        best = case.best() or (None, '-')
        row = next(iter(case.rows.values()))
        backend = next((case.rows[n]['backend'] for n in OURS if case.time(n) is not None), '-')
        lines.append([
            f'{case.shape.label}: {case.shape.text}' if case.shape.label else case.shape.text,
            *(_number(case.time(name)) for name in OURS), backend or '-',
            _number(case.time('conv2d')), _number(best[0]), best[1],
            _number(case.ratio('ours', ['conv2d'])), _number(case.ratio('ours')),
            _number(row['bound_ms'])])
    return markdown(header, lines)


class Goal(NamedTuple):
    """A figure that the project wants to reach.

    Attributes:
        text (str): What it is.
        suite, device_type, modes (str): Where it is asked for.
        threshold (float): At least this.
        ratio (Callable): ``(case, ours) -> float | None``.
        mean (Callable): Over the shapes: `geometric_mean` or ``min``. Defaults to the first.
        dtypes (tuple[str]): Where it is asked for. Defaults to float32.
        kernel (int, optional): Only of this size.
    """
    text: str
    suite: str
    device_type: str
    modes: tuple[str, ...]
    threshold: float
    ratio: Callable[[Case, str], float | None]
    mean: Callable = geometric_mean
    dtypes: tuple[str, ...] = ('fp32', )
    kernel: int | None = None


def _over(*names: str):
    return lambda case, ours: case.ratio(ours, names or None)


def _bound_share(case: Case, ours: str) -> float | None:
    time = case.time(ours)
    return None if time is None else case.rows[ours]['bound_ms'] / time


_HALF, _EVERY = ('fp16', 'bf16'), ('fp16', 'bf16', 'tf32', 'fp32')
GOALS = (
    Goal('NCHW conv2d / ours', 'facts', 'cpu', ('forward', 'both'), 20, _over('conv2d')),
    Goal('best other / ours', 'facts', 'cpu', ('forward', ), 1.5, _over()),
    Goal('best of channels-last conv2d and torch-fftconv / ours', 'facts', 'cpu', ('both', ), 1.5,
         _over('conv2d channels_last', 'torch-fftconv')),
    Goal('best other / ours, the worst', 'sweep', 'cpu', ('forward', ), 0.9, _over(), min),
    Goal('cuDNN / ours at K 31, the worst', 'authors', 'cuda', ('forward', ), 20, _over(*CUDNN),
         min, _HALF, 31),
    Goal('cuDNN / ours at K 31, the worst', 'authors', 'cuda', ('forward', ), 8, _over(*CUDNN),
         min, ('tf32', ), 31),
    Goal('cuDNN / ours at K 31, the worst', 'authors', 'cuda', ('both', ), 15, _over(*CUDNN), min,
         _HALF, 31),
    Goal('cuDNN / ours at K 31, the worst', 'authors', 'cuda', ('both', ), 6, _over(*CUDNN), min,
         ('tf32', ), 31),
    Goal('bound / ours at K 31, the worst', 'authors', 'cuda', ('forward', ), 0.25, _bound_share,
         min, (*_HALF, 'tf32'), 31),
    Goal('cuDNN / ours, the worst', 'sweep', 'cuda', ('forward', 'both'), 1, _over(*CUDNN), min,
         _EVERY),
    Goal('cuDNN / ours, the worst', 'network', 'cuda', ('forward', 'both'), 1, _over(*CUDNN), min,
         _EVERY),
)


def report(rows: list[dict]) -> str:
    """Per suite and condition: the table, means and minimum, and the goals; then what failed."""
    parts = []
    for suite in dict.fromkeys(row['suite'] for row in rows):
        grouped: dict[str, list[Case]] = {}
        for case in cases([row for row in rows if row['suite'] == suite]):
            grouped.setdefault(case.condition, []).append(case)
        for condition, group in grouped.items():
            parts.append(f'### {suite}: {condition}\n\n{table(group)}\n\n'
                         + '\n'.join(ratio_lines(suite, group)))
        parts += _backward_share(suite, grouped)
    parts += _failures(rows)
    return '\n\n'.join(parts)


def ratio_lines(suite: str, group: list[Case]) -> list[str]:
    """The figures of one suite under one condition, with the goals that apply."""
    lines = []
    for ours in OURS:
        for text, names in (('NCHW conv2d / ours', ['conv2d']), ('best other / ours', None)):
            found = [(case.ratio(ours, names), case) for case in group]
            found = [pair for pair in found if pair[0] is not None]
            if not found:
                continue
            least, worst = min(found, key=lambda pair: pair[0])
            lines.append(f'- {_label(ours)}: {text}, geometric mean '
                         f'{geometric_mean(r for r, _ in found):.3g} over {len(found)} of '
                         f'{len(group)} shapes, minimum {least:.3g} ({worst.shape.text})')
        below = [(case.ratio(ours), case) for case in group]
        below = [pair for pair in below if pair[0] is not None and pair[0] < LISTED_BELOW]
        for ratio, case in sorted(below, key=lambda pair: pair[0]):
            time, name = case.best()
            lines.append(f'  - below {LISTED_BELOW}: {case.shape.text}: {name} {_number(time)} ms, '
                         f'ours {_number(case.time(ours))} ms ({case.rows[ours]["backend"]}), '
                         f'{ratio:.2f}')
    row = next(iter(group[0].rows.values()))
    for goal in GOALS:
        if (goal.suite != suite or goal.device_type != row['device_type']
                or row['mode'] not in goal.modes or row['dtype'] not in goal.dtypes):
            continue
        for ours in OURS:
            values = [goal.ratio(case, ours) for case in group
                      if goal.kernel in (None, *set(case.shape.kernel))]
            values = [value for value in values if value is not None]
            if values:
                value = goal.mean(values)
                verdict = 'met' if value >= goal.threshold else 'MISSED'
                lines.append(f'- goal, {_label(ours)}: {goal.text}: {value:.3g}, at least '
                             f'{goal.threshold:g} wanted: {verdict}')
    return lines


def _backward_share(suite: str, grouped: dict[str, list[Case]]) -> list[str]:
    """How many times as long as the forward pass the backward pass takes, where both are there."""
    times: dict[tuple, dict[str, float]] = {}
    for group in grouped.values():
        for case in group:
            for name in OURS:
                if case.time(name) is not None:
                    row = case.rows[name]
                    key = row['device'], row['dtype'], row['bias'], row['graph'], case.shape, name
                    times.setdefault(key, {}).setdefault(row['mode'], case.time(name))
    ratios = {key: t['backward'] / t['forward'] for key, t in times.items()
              if {'backward', 'forward'} <= set(t)}
    if not ratios:
        return []
    worst = max(ratios, key=ratios.get)
    return [f'{suite}: backward / forward of ours: geometric mean '
            f'{geometric_mean(ratios.values()):.3g}, largest {ratios[worst]:.3g} '
            f'({worst[-1]}, {worst[1]}, {worst[-2].text}); at most 2.5 wanted on a GPU']


def _failures(rows: list[dict]) -> list[str]:
    lines = dict.fromkeys(f"- {row['status']}: {row['candidate']}, {row['dtype']}, {row['mode']}: "
                          f"{row['note']}" for row in rows if row['status'] != 'ok')
    return ['Not timed:\n' + '\n'.join(lines)] if lines else []


def _label(ours: str) -> str:
    return 'NCHW input' if ours == 'ours' else 'channels-last input'


def _number(value: float | None) -> str:
    if value is None:
        return '-'
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
