"""The receptive fields of a study's networks, how long their training took, and its tables."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...files import write_stream
from ..erf.images import FolderImages
from ..erf.models import ModelSpec, open_model
from ..erf.report import ErfResult, measure
from .study import Run, Study


def field_of(study: Study, run: Run, pictures: FolderImages, size: int) -> ErfResult:
    """The effective receptive field of a trained backbone's last map.

    Its matrix is kept in the run's folder, and read from there the next time.

    Args:
        study (Study): The network is trained.
        run (Run): Which.
        pictures (FolderImages): To measure it on.
        size (int): Height and width of the images in pixels.

    Returns:
        ErfResult: The field.
    """
    spec = ModelSpec(f'mmreplk::{study.config}', str(study.checkpoint(run)), '-1', run.name)
    kept = study.run_folder(run) / 'erf.npy'
    if kept.is_file():
        return ErfResult(spec, run.name, np.load(kept), str(pictures), len(pictures))
    result = measure(spec, open_model(spec, size, cfg_options=parsed_options(study, run)), pictures)
    write_stream(kept, lambda file: np.save(file, result.matrix))
    return result


def parsed_options(study: Study, run: Run) -> dict:
    """The options that make a network, as ``Config.merge_from_dict`` takes them."""
    return {key: json.loads(value.replace('None', 'null'))
            for key, value in study.network_options(run).items()}


def seconds_per_iteration(folder: Path) -> float:
    """Median over what a training logged; NaN if it logged nothing.

    Args:
        folder (Path): Its work dir.
    """
    times = []
    for path in folder.glob('*/vis_data/scalars.json'):
        for line in path.read_text(encoding='utf-8').splitlines():
            values = json.loads(line)
            if 'loss' in values:
                times.append(values['time'])
    return statistics.median(times) if times else float('nan')


def mean_and_spread(values) -> tuple[float, float]:
    """Mean and standard deviation of a sample (n - 1); 0 for a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def align(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose columns stand on the right.

    Args:
        head (list[str]): The names of the columns.
        rows (list[list[str]]): The cells.

    Returns:
        list[str]: The head, a rule and a line for each row.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ['  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
             for row in (head, *rows)]
    return [lines[0], '-' * len(lines[0]), *lines[1:]]


def align_spread(title: str, columns: Sequence[tuple[str, int, Callable]],
                 groups: Mapping[str, Sequence]) -> list[str]:
    """A table of means and standard deviations over the results of each group.

    Args:
        title (str): Of the groups.
        columns (Sequence[tuple]): Name, digits behind the point, and the number of a result.
        groups (Mapping[str, Sequence]): The results by name of their group.

    Returns:
        list[str]: Lines that line up.
    """
    rows = []
    for name, group in groups.items():
        cells = []
        for _, digits, value in columns:
            mean, deviation = mean_and_spread(map(value, group))
            cells.append(f'{mean:.{digits}f} +- {deviation:.{digits}f}')
        rows.append([name, *cells])
    return align([title, *(name for name, _, _ in columns)], rows)


def format_csv(results: Sequence) -> str:
    """All results of a study as CSV with a header, one row for each network.

    Args:
        results (Sequence): At least one, each with a method ``row`` that gives a dict.

    Returns:
        str: The lines.
    """
    text = io.StringIO()
    rows = [result.row() for result in results]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
