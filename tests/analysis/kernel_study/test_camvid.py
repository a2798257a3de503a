"""The kernel study on CamVid without its training: networks, data, results and figure.

tests/tools/test_kernel_study.py runs it as a whole.
"""

import csv
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config, DictAction

from mmreplk.analysis.erf.models import ModelSpec
from mmreplk.analysis.erf.report import ErfResult
from mmreplk.analysis.kernel_study import camvid_plot
from mmreplk.analysis.kernel_study.camvid import (
    CONFIG,
    CamVidSettings,
    CamVidStudy,
)
from mmreplk.analysis.kernel_study.camvid_report import (
    CamVidResult,
    by_kind,
    format_table,
)
from mmreplk.analysis.kernel_study.fields import format_csv
from mmreplk.config.files import config_root
from mmreplk.models.arch import parse_arch


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'somewhere'
    for split in ('train', 'val', 'test'):
        for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
            path = folder / kind / split / f'0.{suffix}'
            path.parent.mkdir(parents=True)
            path.touch()
    return folder


def settings(root, **changes):
    return CamVidSettings(**dict(root=root, seeds=(0, 1), iters=6) | changes)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(kernels=(4, )), 'kernels 4: give odd sizes'),
    (dict(plain=(3, )), 'plain 3: it has no small kernel anyway'),
    (dict(plain=(13, 13)), 'plain 13 13: give numbers that differ'),
    (dict(seeds=(-1, )), 'seeds -1: give numbers from 0'),
    (dict(iters=0), '--iters 0'),
])
def test_impossible_settings_are_refused(root, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(root, **changes)


def test_missing_data_are_named(root):
    (root / 'annotations/val/0.png').unlink()
    with pytest.raises(FileNotFoundError, match='data-root: .*annotations/val.* Put CamVid there'):
        settings(root)


def test_runs_and_their_networks(tmp_path, root):
    study = CamVidStudy(tmp_path / 'out', settings(root))
    found = {}
    for run in study.runs:
        cfg = Config.fromfile(config_root() / CONFIG)
        cfg.merge_from_dict({key: DictAction._parse_iterable(value)
                             for key, value in study.network_options(run).items()})
        arch = parse_arch(cfg.model.backbone.arch)
        found[run.name] = arch.large_kernel_sizes, arch.small_kernel
        assert f'randomness.seed={run.seed}' in study.steps(run)[0][1]
    one = {
        'k03': ((3, ) * 4, None), 'k07_with_small': ((7, ) * 4, 5),
        'k13_with_small': ((13, ) * 4, 5), 'k31_with_small': ((31, 29, 27, 13), 5),
        'k13_without_small': ((13, ) * 4, None), 'k31_without_small': ((31, 29, 27, 13), None),
    }
    assert found == {f'{kind}_seed{seed}': what for seed in (0, 1) for kind, what in one.items()}
    # Whole comparisons first.
    assert [run.seed for run in study.runs] == [0] * 6 + [1] * 6


def test_the_data_are_linked_and_belong_to_the_folder(tmp_path, root):
    study = CamVidStudy(tmp_path / 'out', settings(root))
    study.begin()
    assert study.data.resolve() == root.resolve()
    assert study.data == tmp_path / 'out/data/camvid'
    moved = root.rename(tmp_path / 'elsewhere')
    CamVidStudy(tmp_path / 'out', settings(moved, kernels=(5, ), plain=())).begin()
    assert study.data.resolve() == moved.resolve()
    (moved / 'images/train/1.jpg').touch()
    with pytest.raises(FileExistsError, match='files is 6 there, 7 here'):
        CamVidStudy(tmp_path / 'out', settings(moved))


def result(run, miou, reach=10):
    matrix = np.zeros((256, 256))
    matrix[128 - reach:129 + reach, 128 - reach:129 + reach] = 1
    erf = ErfResult(ModelSpec('mmreplk::a.py', 'a.pth'), 'a.pth', matrix, '3 of 3 pictures', 3)
    return CamVidResult(run, miou, dict(road=miou + 30, pole=miou - 30), erf, 0.5, run.kernel / 100)


@pytest.fixture
def finished(tmp_path, root):
    study = CamVidStudy(tmp_path / 'out', settings(root, kernels=(3, 31), plain=(31, )))
    return study, [result(run, 40 + run.kernel / 10 + 2 * run.seed - 3 * (not run.small),
                          run.kernel) for run in study.runs]


def test_table_and_csv(finished):
    study, results = finished
    assert list(by_kind(results)) == ['k03', 'k31_with_small', 'k31_without_small']
    rows = list(csv.DictReader(io.StringIO(format_csv(results))))
    assert [(row['kernel'], row['small_kernel'], row['seed'], row['mIoU']) for row in rows] == [
        ('3', '0', '0', '40.30'), ('31', '1', '0', '43.10'), ('31', '0', '0', '40.10'),
        ('3', '0', '1', '42.30'), ('31', '1', '1', '45.10'), ('31', '0', '1', '42.10')]
    assert float(rows[1]['sum_r99']) == pytest.approx(63**2 / 256**2, abs=1e-4)
    assert rows[0]['IoU_road'] == '70.30'
    lines = format_table(study, results).splitlines()
    large = next(line.split() for line in lines if line.split()[:1] == ['k31_with_small'])
    assert large[1:4] == ['44.1', '+-', '1.4']
    assert '310' in large


def test_the_figure_has_a_field_for_each_kind(finished, tmp_path):
    study, results = finished
    groups = by_kind(results)
    figure = camvid_plot.new_figure(4, 3)
    ax = figure.add_subplot()
    camvid_plot._draw_series(ax, groups, lambda r: r.miou, 'mIoU')
    points = sorted((round(x), y) for line in ax.lines if line.get_marker() in ('o', 's')
                    for x, y in line.get_xydata())
    np.testing.assert_allclose(points, [
        (3, 40.3), (3, 42.3), (31, 43.1), (31, 45.1), (33, 40.1), (33, 42.1)])
    path = tmp_path / 'figure.png'
    camvid_plot.draw_study(study, results, str(path))
    image = cv2.imread(str(path))
    assert image.shape[1] > 1400


def test_config_and_settings_agree():
    cfg = Config.fromfile(config_root() / CONFIG)
    assert Path(cfg.data_root) == CamVidStudy.place
    assert cfg.param_scheduler[0].end == CamVidStudy.warm_up
