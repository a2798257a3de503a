"""Results of the kernel study on CamVid: scores by class, fields, speed; CSV and table."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from mmengine.config import Config

from ...config.files import config_root
from ...files import write_stream
from ..confusion.matrix import confusion_of
from ..cost.latency import latency_of
from ..erf.field import THRESHOLDS
from ..erf.images import FolderImages
from ..erf.report import ErfResult
from .camvid import CamVidRun, CamVidStudy
from .fields import (
    align,
    align_spread,
    field_of,
    mean_and_spread,
    parsed_options,
    seconds_per_iteration,
)
from .report import read_metrics

ERF_IMAGES, ERF_SIZE = 50, 256
LATENCY = 'latency.json'
ROUNDS = 9


@dataclass(frozen=True)
class CamVidResult:
    """What came out for one network.

    Attributes:
        run (CamVidRun): Which.
        miou (float): On the test split, in per cent, as ``tools/test.py`` reports it.
        ious (dict[str, float]): The same by class.
        erf (ErfResult): The effective receptive field of the trained backbone.
        seconds (float): Of one iteration of training, median.
        latency (float): Seconds for an image of 480 x 360 in the merged network, median.
    """
    run: CamVidRun
    miou: float
    ious: dict[str, float]
    erf: ErfResult
    seconds: float
    latency: float

    def row(self) -> dict:
        """The result as a row of the CSV."""
        row = dict(kernel=self.run.kernel, small_kernel=int('without' not in self.run.kind),
                   seed=self.run.seed, mIoU=f'{self.miou:.2f}')
        if self.run.kind == f'k{self.run.kernel:02d}':  # no room for one
            row['small_kernel'] = 0
        row |= {f'IoU_{name}': f'{iou:.2f}' for name, iou in self.ious.items()}
        for prefix, squares in (('', self.erf.of_scores()), ('sum_', self.erf.of_sum())):
            for threshold, square in zip(THRESHOLDS, squares, strict=True):
                row[f'{prefix}r{round(100 * threshold)}'] = f'{square.ratio:.4f}'
        return row | dict(seconds_per_iter=f'{self.seconds:.4f}',
                          seconds_per_image=f'{self.latency:.4f}')


def collect(study: CamVidStudy, report: Callable[[str], None] = lambda line: None
            ) -> list[CamVidResult]:
    """Score every network of a finished study, measure its receptive field and its speed.

    Args:
        study (CamVidStudy): All of its networks are trained and evaluated.
        report (Callable): Called with a line on the progress. Defaults to nothing.

    Returns:
        list[CamVidResult]: In the order of the study's runs.
    """
    results = []
    pictures = FolderImages(str(study.data / 'images' / 'test'), ERF_IMAGES, ERF_SIZE)
    report(f'receptive fields on {len(pictures)} pictures of the test split')
    latencies = _latencies(study, report)
    for run in study.runs:
        cfg = _config(study, run)
        cfg.test_dataloader.dataset.data_root = str(study.data)
        found = confusion_of(cfg, study.predictions(run))
        ious = dict(zip(found.classes, found.ious.tolist(), strict=True))
        miou = read_metrics(study.run_folder(run) / 'test', ['mIoU'])['mIoU']
        results.append(CamVidResult(
            run, miou, ious, field_of(study, run, pictures, ERF_SIZE),
            seconds_per_iteration(study.run_folder(run)), latencies[run.kind]))
    return results


def _config(study: CamVidStudy, run: CamVidRun) -> Config:
    cfg = Config.fromfile(config_root() / study.config)
    cfg.merge_from_dict(parsed_options(study, run))
    return cfg


def _latencies(study: CamVidStudy, report: Callable[[str], None]) -> dict[str, float]:
    """By kind of network; measured once, on random weights, and kept in the folder."""
    kept = study.folder / LATENCY
    known = json.loads(kept.read_text(encoding='utf-8')) if kept.is_file() else {}
    for run in study.runs:
        if run.kind not in known:
            cfg = _config(study, run)
            known[run.kind] = latency_of(
                cfg, deploy=cfg.model.backbone.arch.small_kernel is not None,
                rounds=ROUNDS).seconds
            report(f'{run.kind}: {1000 * known[run.kind]:.0f} ms for an image')
    text = json.dumps(known, indent=2) + '\n'
    write_stream(kept, lambda file: file.write(text.encode()))
    return known


def by_kind(results: list[CamVidResult]) -> dict[str, list[CamVidResult]]:
    """Group results by kind, the smallest kernel first, that with a small one beside it first."""
    kinds = {result.run.kind: result.run for result in results}
    order = sorted(kinds, key=lambda kind: (kinds[kind].kernel, not kinds[kind].small))
    return {kind: [r for r in results if r.run.kind == kind] for kind in order}


def format_table(study: CamVidStudy, results: list[CamVidResult]) -> str:
    """Mean and standard deviation over the seeds, one line for each kind of network.

    Args:
        study (CamVidStudy): The study.
        results (list[CamVidResult]): All of its results.

    Returns:
        str: Several lines.
    """
    columns = [
        ('mIoU', 1, lambda r: r.miou),
        ('r(50%), %', 1, lambda r: 100 * r.erf.of_scores()[2].ratio),
        ('r(99%), %', 1, lambda r: 100 * r.erf.of_scores()[3].ratio),
        ('ms/image', 0, lambda r: 1000 * r.latency),
        ('s/iteration', 3, lambda r: r.seconds),
    ]
    groups = by_kind(results)
    classes = list(results[0].ious)
    per_class = [[kind, *(f'{mean_and_spread(r.ious[name] for r in group)[0]:.1f}'
                          for name in classes)] for kind, group in groups.items()]
    seeds = len(study.settings.seeds)
    return '\n'.join([
        f'CamVid, {seeds} seed{"s" * (seeds > 1)}, {study.settings.iters} iterations of 8 crops; '
        'mIoU on the test split; mean +- standard deviation',
        '', *align_spread('network', columns, groups), '',
        'IoU by class, mean over the seeds', '',
        *align(['network', *classes], per_class), '',
        'k31: kernels of 31, 29, 27 and 13, as in the paper. r(t): high-contribution area of the '
        f'trained backbone, scores A, of {results[0].erf.pictures.split(" in ")[0]}.',
        'ms/image: of the merged network, whole, 480 x 360, on this machine.'])
