"""From settings to the figure of a kernel study: what ``tools/kernel_study.py`` does."""

import time
from collections.abc import Callable

from ...files import write_stream
from . import camvid_plot, camvid_report, plot, report as far_report
from .camvid import CamVidStudy
from .fields import format_csv
from .settings import KernelStudy
from .study import Study
from .train import train_all

# What scores and draws which study.
SHOWN_BY = {KernelStudy: (far_report, plot), CamVidStudy: (camvid_report, camvid_plot)}
FIGURE, ROWS, SUMMARY = 'kernel_study.png', 'runs.csv', 'summary.txt'


def run_study(study: Study, jobs: int = 1,
              report: Callable[[str], None] = lambda line: None) -> str:
    """Do what is left of a study, and write its results.

    The results are made anew each time, from what is kept of the networks.

    Args:
        study (Study): The study.
        jobs (int): Networks at a time. Defaults to 1.
        report (Callable): Called with lines on the progress, with the time since the start.
            Defaults to nothing.

    Returns:
        str: The table, and where the files are.

    Raises:
        BlockingIOError, RunFailed, ValueError: As of :func:`.train.train_all`.
    """
    start = time.monotonic()

    def timed(line):
        seconds = int(time.monotonic() - start)
        report(f'[{seconds // 60:2d}:{seconds % 60:02d}] {line}')

    train_all(study, jobs, timed)
    scores, figure = SHOWN_BY[type(study)]
    results = scores.collect(study, timed)
    table = scores.format_table(study, results)
    for name, content in ((ROWS, format_csv(results)), (SUMMARY, f'{table}\n')):
        write_stream(study.folder / name,
                     lambda file, content=content: file.write(content.encode()))
    write_stream(study.folder / FIGURE, lambda file: figure.draw_study(study, results, file))
    return f'\n{table}\n\nFigure, rows and table: {study.folder}'
