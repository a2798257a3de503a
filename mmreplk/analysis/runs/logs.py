"""Curves of a training run, from the logs that MMEngine's visualizer writes into its work dir."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a validation logs beside its metrics.
_NO_METRICS = {'step', 'data_time', 'time', 'memory'}
# The one metric of each codebase that stands for a run.
FIRST_METRICS = ('mIoU', 'coco/bbox_mAP', 'accuracy/top1')


@dataclass
class RunCurves:
    """What a run logged.

    Attributes:
        name (str): Of its work dir.
        train (dict[str, dict[int, float]]): By key, such as ``loss`` and ``lr``: values by
            iteration.
        metrics (dict[str, dict[int, float]]): The same of its validations.
    """
    name: str
    train: dict[str, dict[int, float]] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


def read_run(work_dir: str | os.PathLike) -> RunCurves:
    """Read the curves of a run, those before and after a resumption as one.

    Args:
        work_dir (str | PathLike): Of ``tools/train.py``, or of any Runner of MMEngine with a
            ``LocalVisBackend``.

    Returns:
        RunCurves: What a resumed part did again counts as that part logged it.

    Raises:
        FileNotFoundError: If there is no such folder, or no log of a training in it.
        ValueError: If a line of a log is not JSON.
    """
    folder = Path(work_dir)
    run = RunCurves(folder.resolve().name)
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        _add(run, list(_lines(path)))
    if not run.train:
        reason = 'no such folder' if not folder.is_dir() else (
            'no */vis_data/scalars.json with a loss in it')
        raise FileNotFoundError(
            f'WORK_DIR {str(work_dir)!r}: {reason}. Name the work dir of a training whose '
            'visualizer has a LocalVisBackend; the first line comes after '
            'default_hooks.logger.interval iterations.')
    return run


def _lines(path: Path) -> Iterator[dict]:
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    if lines and not lines[-1].endswith('\n'):
        lines.pop()  # a training that runs, or was killed, is writing it
    for number, line in enumerate(lines, 1):
        yield _parse(line, f'{str(path)!r}, line {number}')


def _parse(line: str, place: str) -> dict:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{place}: it is not JSON ({error.msg}). Remove that line.') from error


def _add(run: RunCurves, lines: list[dict]) -> None:
    """Add a part of a run; what an earlier part has from its first iteration on is dropped."""
    trained = [line for line in lines if 'loss' in line]
    if not trained:  # an evaluation
        return
    ends = {line['epoch']: line['step'] for line in trained if 'epoch' in line}
    start = min(line['step'] for line in trained)
    for curves in (run.train, run.metrics):
        for key, curve in curves.items():
            curves[key] = {step: value for step, value in curve.items() if step < start}
    for line in lines:
        metrics = 'loss' not in line
        # By epochs, MMEngine counts the validations of a run by epochs and its losses not.
        step = ends.get(line['step'], line['step']) if metrics else line['step']
        for key, value in line.items():
            wanted = key not in _NO_METRICS if metrics else key not in ('step', 'iter', 'epoch')
            if wanted and isinstance(value, (int, float)):
                (run.metrics if metrics else run.train).setdefault(key, {})[step] = value


def metrics_to_show(runs: list[RunCurves], wanted: list[str] | None = None) -> list[str]:
    """Choose which metrics are shown.

    Args:
        runs (list[RunCurves]): All of the figure.
        wanted (list[str], optional): Their names. Defaults to None: the first metric of each
            codebase that some run has, otherwise the first one of any.

    Returns:
        list[str]: Names, none if no run was validated yet.

    Raises:
        ValueError: If no run has a wanted one.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.metrics))
    missing = [key for key in wanted or [] if key not in known]
    if missing:
        raise ValueError(f'metrics {" ".join(missing)}: no run logged it. They have: '
                         f'{", ".join(known) or "none yet"}.')
    return wanted or [key for key in FIRST_METRICS if key in known] or known[:1]
