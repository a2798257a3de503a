"""The kernel study without its training: settings, folder, processes, scores and figure.

tests/tools/test_kernel_study.py runs it as a whole.
"""

import csv
import io
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmreplk.analysis.erf.models import ModelSpec
from mmreplk.analysis.erf.report import ErfResult
from mmreplk.analysis.kernel_study import plot as kernel_study_plot, train as kernel_study_train
from mmreplk.analysis.kernel_study.far_context import (
    CLASS_IDS,
    DISTANCES,
    NO_DISTANCE,
    write_dataset,
)
from mmreplk.analysis.kernel_study.fields import format_csv, mean_and_spread
from mmreplk.analysis.kernel_study.report import (
    EDGES,
    RunResult,
    accuracy_by_distance,
    blind_miou,
    format_table,
    middle_run,
    read_metrics,
)
from mmreplk.analysis.kernel_study.settings import (
    CONFIG,
    KernelStudy,
    StudySettings,
    backbone_options,
)
from mmreplk.analysis.kernel_study.study import STAMP, Run
from mmreplk.analysis.kernel_study.train import RunFailed, train_all
from mmreplk.config.files import read
from mmreplk.models.arch import parse_arch

TINY = StudySettings(kernels=(3, 7), seeds=(0, 1), iters=4, num_train=1, num_val=1)


# Settings and folder.


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(kernels=(4, )), 'kernels 4: give odd sizes from 3'),
    (dict(kernels=(1, )), 'kernels 1: give odd sizes from 3'),
    (dict(kernels=()), 'kernels'),
    (dict(kernels=(3, 7, 3)), 'kernels 3 7 3: give numbers that differ'),
    (dict(seeds=(1, 1)), 'seeds 1 1: give numbers that differ'),
    (dict(seeds=(-1, )), 'seeds -1: give numbers from 0'),
    (dict(iters=0), '--iters 0: give a positive number'),
    (dict(num_train=0), '--num-train 0'),
    (dict(num_val=-5), '--num-val -5'),
])
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StudySettings(**changes)


@pytest.mark.parametrize('kernel', [3, 5, 7, 13, 31])
def test_the_options_of_a_kernel_size_make_an_architecture(kernel):
    cfg = read(f'mmreplk::{CONFIG}')
    from mmengine.config import DictAction
    cfg.merge_from_dict({key: DictAction._parse_iterable(value)
                         for key, value in backbone_options(kernel).items()})
    arch = parse_arch(cfg.model.backbone.arch)
    assert arch.large_kernel_sizes == (kernel, kernel)
    assert arch.small_kernel == (None if kernel <= 5 else 5)
    assert arch.channels == tuple(cfg.model.decode_head.in_channels)


def test_seed_after_seed(tmp_path):
    study = KernelStudy(tmp_path, TINY)
    assert study.runs == [Run(3, 0), Run(7, 0), Run(3, 1), Run(7, 1)]
    assert len({study.run_folder(run) for run in study.runs}) == 4


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('kept')
    with pytest.raises(FileExistsError, match='no study of kernels.*new or an empty folder'):
        KernelStudy(tmp_path, TINY)
    with pytest.raises(FileExistsError, match='no study of kernels'):
        KernelStudy(tmp_path / 'thesis.txt', TINY)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_a_study_takes_more_kernels_and_seeds_but_no_other_settings(tmp_path):
    KernelStudy(tmp_path, TINY).begin()
    more = StudySettings(kernels=(31, 3), seeds=(5, ), iters=4, num_train=1, num_val=1)
    KernelStudy(tmp_path, more).begin()
    other = StudySettings(kernels=(3, 7), seeds=(0, 1), iters=5, num_train=1, num_val=1)
    with pytest.raises(FileExistsError, match=r'other settings \(iters is 4 there, 5 here\)'):
        KernelStudy(tmp_path, other)
    stamp = json.loads((tmp_path / STAMP).read_text())
    (tmp_path / STAMP).write_text(json.dumps(stamp | dict(config='older')))
    with pytest.raises(FileExistsError, match='config is older there'):
        KernelStudy(tmp_path, TINY)


def tools_of(steps):
    return [tool for tool, _ in steps]


def test_steps_go_on_from_what_is_there(tmp_path):
    study, run = KernelStudy(tmp_path, TINY), Run(7, 1)
    folder = study.run_folder(run)
    folder.mkdir(parents=True)
    (train, arguments), (test, _) = study.steps(run)
    assert (train, test) == ('train', 'test')
    assert '--resume' not in arguments
    assert 'randomness.seed=1' in arguments
    assert 'train_cfg.max_iters=4' in arguments

    # MMEngine's pointer; the study was somewhere else when it was written.
    pointer = folder / 'last_checkpoint'
    pointer.write_text(f'/elsewhere/runs/{run.name}/iter_2.pth')
    assert '--resume' not in study.steps(run)[0][1]  # the file is not there
    (folder / 'iter_2.pth').touch()
    arguments = study.steps(run)[0][1]
    assert arguments[arguments.index('--resume') + 1] == Path('runs', run.name, 'iter_2.pth')

    pointer.write_text(f'/elsewhere/runs/{run.name}/iter_4.pth')
    (folder / 'iter_4.pth').touch()
    assert tools_of(study.steps(run)) == ['test']
    (folder / 'done').touch()
    assert study.steps(run) == []
    assert tools_of(study.steps(Run(7, 0))) == ['train', 'test']


def test_a_folder_is_held_by_one_study(tmp_path):
    study = KernelStudy(tmp_path / 'new', TINY)
    with study.locked(), pytest.raises(BlockingIOError, match='a study still runs'), \
            KernelStudy(tmp_path / 'new', TINY).locked():
        pass
    with study.locked():
        pass


# Processes: tools that pretend.

TRAIN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
with open('calls.txt', 'a') as file:
    print('train', folder.name, '--resume' in sys.argv, os.environ['OMP_NUM_THREADS'], file=file)
if folder.name == os.environ.get('FAILS'):
    sys.exit('out of luck')
if folder.name == os.environ.get('HANGS'):
    pathlib.Path('pid').write_text(str(os.getpid()))
    time.sleep(60)
(folder / 'iter_4.pth').touch()
(folder / 'last_checkpoint').write_text(str((folder / 'iter_4.pth').resolve()))
"""
TEST = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
assert pathlib.Path(sys.argv[2]).is_file()
folder.mkdir()
with open('calls.txt', 'a') as file:
    print('test', folder.parent.name, file=file)
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The calls of tools that pretend, read from the study's folder."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/train.py').write_text(TRAIN)
    (tmp_path / 'tools/test.py').write_text(TEST)
    monkeypatch.setattr(kernel_study_train, 'config_root', lambda: tmp_path / 'configs')
    for name in ('FAILS', 'HANGS'):
        monkeypatch.delenv(name, raising=False)

    def read(study):
        path = study.folder / 'calls.txt'
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return read


def test_every_network_is_trained_and_evaluated_once(tmp_path, calls, monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    study, lines = KernelStudy(tmp_path / 'study', TINY), []
    train_all(study, 1, lines.append)
    assert calls(study) == [
        line for run in study.runs for line in (f'train {run.name} False 4', f'test {run.name}')]
    assert all(study.is_finished(run) for run in study.runs)
    assert lines[-1] == 'k07_seed1 finished: 4 of 4 runs'
    train_all(study, 1)
    assert calls(study) == []

    more = StudySettings(kernels=(3, 7, 31), seeds=(0, ), iters=4, num_train=1, num_val=1)
    train_all(KernelStudy(tmp_path / 'study', more), 2, lines.append)
    assert calls(study) == ['train k31_seed0 False 2', 'test k31_seed0']
    assert '2 of 3 runs were finished before' in lines


def test_a_stopped_run_goes_on_and_one_without_a_checkpoint_starts_anew(tmp_path, calls):
    study = KernelStudy(tmp_path / 'study', TINY)
    first, second, third, last = map(study.run_folder, study.runs)
    for folder in (first, second, third, last):
        (folder / 'predictions').mkdir(parents=True)  # of an evaluation that was stopped
        (folder / 'predictions/half.png').touch()
    study.begin()
    (first / 'iter_2.pth').touch()
    (first / 'last_checkpoint').write_text(str(first / 'iter_2.pth'))
    (second / 'iter_2.pth').touch()  # stopped before the pointer was written
    (third / 'iter_4.pth').touch()
    (third / 'last_checkpoint').write_text(str(third / 'iter_4.pth'))
    (last / 'done').touch()
    (last / 'last_checkpoint').write_text('gone.pth')
    train_all(study, 1)
    found = [line.split()[:3] for line in calls(study)]
    assert found == [['train', 'k03_seed0', 'True'], ['test', 'k03_seed0'],
                     ['train', 'k07_seed0', 'False'], ['test', 'k07_seed0'],
                     ['test', 'k03_seed1']]
    assert not (second / 'iter_2.pth').exists()
    assert not (third / 'predictions/half.png').exists()
    assert (last / 'predictions/half.png').exists()


def test_a_failure_says_what_the_tool_said_and_ends_the_others(tmp_path, calls, monkeypatch):
    monkeypatch.setenv('FAILS', 'k07_seed0')
    monkeypatch.setenv('HANGS', 'k03_seed0')
    study, start = KernelStudy(tmp_path / 'study', TINY), time.monotonic()
    with pytest.raises(RunFailed, match=r'(?s)k07_seed0: tools/train.py ended with exit code 1.*'
                       'out of luck'):
        train_all(study, 2)
    assert time.monotonic() - start < 40  # the other one would have slept longer
    with study.locked():  # which a process that is left over would hold
        pass
    monkeypatch.delenv('FAILS')
    monkeypatch.delenv('HANGS')
    train_all(study, 2)
    assert all(study.is_finished(run) for run in study.runs)


def test_jobs_are_checked(tmp_path):
    with pytest.raises(ValueError, match='jobs 0'):
        train_all(KernelStudy(tmp_path / 'study', TINY), 0)
    assert not (tmp_path / 'study').exists()


# Scores.


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(array, np.uint8))


def test_accuracy_by_distance(tmp_path):
    water, field, rock, sand = (CLASS_IDS[name] for name in ('water', 'field', 'rock', 'sand'))
    away = NO_DISTANCE
    for index, (labels, distances, guess) in enumerate([
        ([[water, field, field, rock]], [[away, 0, 9, 10]], [[2, 2, 3, 3]]),
        ([[sand, sand, sand, water]], [[79, 80, 254, away]], [[4, 1, 4, 4]]),
    ]):
        name = f'ADE_val_{index + 1:08d}.png'
        write(tmp_path / 'annotations/validation' / name, labels)
        write(tmp_path / DISTANCES / 'validation' / name, distances)
        write(tmp_path / 'out' / name, guess)  # 1 water, 2 field, 3 rock, 4 sand
    hits, pixels = accuracy_by_distance(tmp_path, tmp_path / 'out')
    assert dict(zip(EDGES, pixels, strict=True)) == dict.fromkeys(EDGES, 0) | {
        0: 2, 10: 1, 70: 1, 80: 2}
    assert dict(zip(EDGES, hits, strict=True)) == dict.fromkeys(EDGES, 0) | {
        0: 1, 10: 1, 70: 1, 80: 1}


def test_blind_miou_is_that_of_random_names(tmp_path):
    names = np.array(list(CLASS_IDS.values()))
    rng = np.random.default_rng(0)
    labels = rng.choice(names, (600, 600), p=(0.4, 0.1, 0.2, 0.3))
    write(tmp_path / 'annotations/validation/ADE_val_00000001.png', labels)
    guess = np.where(labels == names[0], labels, rng.choice(names[1:], labels.shape))
    ious = [((labels == n) & (guess == n)).sum() / ((labels == n) | (guess == n)).sum()
            for n in names]
    assert blind_miou(tmp_path) == pytest.approx(100 * np.mean(ious), abs=0.3)


def test_metrics_are_read_from_the_last_run(tmp_path):
    for name, values in (('1', '{"mIoU": 10}\n'), ('2', '{"mIoU": 20.5, "x": 1}\n{"x": 2}\n')):
        path = tmp_path / name / f'{name}.json'
        path.parent.mkdir()
        path.write_text(values)
    assert read_metrics(tmp_path, ['mIoU']) == dict(mIoU=20.5)
    with pytest.raises(FileNotFoundError, match='no mDice under'):
        read_metrics(tmp_path, ['mDice'])


def result(run, miou, accuracy=0.5, reach=10, seconds=0.25):
    """A result whose field is a square of 2 * reach + 1 pixels."""
    matrix = np.zeros((192, 192))
    matrix[96 - reach:97 + reach, 96 - reach:97 + reach] = 1
    erf = ErfResult(ModelSpec('mmreplk::a.py', 'a.pth'), 'a.pth', matrix, '3 of 3 pictures', 3)
    pixels = np.arange(len(EDGES), 0, -1) * 100
    return RunResult(run, miou, np.full(len(EDGES), accuracy), pixels, erf, seconds)


def test_spread_and_middle():
    assert mean_and_spread([3.0]) == (3.0, 0.0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    runs = [result(Run(3, seed), miou) for seed, miou in enumerate((50, 90, 60, 70))]
    assert middle_run(runs).miou == 60
    assert middle_run(runs[:3]).miou == 60


def test_accuracy_far_away_weighs_pixels():
    one = result(Run(3, 0), 50)
    one.accuracy[-1] = 1.0  # of 100 pixels, the others of 200 to 900
    assert one.land_accuracy() == pytest.approx((100 + 0.5 * 4400) / 4500)
    assert one.land_accuracy(70) == pytest.approx((100 + 0.5 * 200) / 300)


@pytest.fixture
def finished(tmp_path):
    """A study with drawn pictures and results that were made up; predictions are the truth."""
    settings = StudySettings(kernels=(3, 31), seeds=(0, 1), iters=4, num_train=1, num_val=3)
    study = KernelStudy(tmp_path / 'study', settings)
    write_dataset(study.data, 1, 3)
    table = np.zeros(256, np.uint8)
    table[list(CLASS_IDS.values())] = range(1, 5)
    for run in study.runs:
        for path in (study.data / 'annotations/validation').glob('*.png'):
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            write(study.predictions(run) / path.name, table[labels])
    values = {Run(3, 0): 50.0, Run(31, 0): 81.25, Run(3, 1): 52.0, Run(31, 1): 85.25}
    return study, [result(run, values[run], 0.4 if run.kernel == 3 else 0.9, run.kernel)
                   for run in study.runs]


def test_csv_and_table(finished):
    study, results = finished
    rows = list(csv.DictReader(io.StringIO(format_csv(results))))
    assert [(row['kernel'], row['seed'], row['mIoU']) for row in rows] == [
        ('3', '0', '50.00'), ('31', '0', '81.25'), ('3', '1', '52.00'), ('31', '1', '85.25')]
    assert [row['accuracy_from_80px'] for row in rows] == ['0.4000', '0.9000'] * 2
    assert float(rows[1]['sum_r99']) == pytest.approx(63**2 / 192**2, abs=1e-4)
    lines = format_table(study, results).splitlines()
    small, = (line.split() for line in lines if line.split()[:1] == ['3'])
    large, = (line.split() for line in lines if line.split()[:1] == ['31'])
    assert small[3:6] == ['51.0', '+-', '1.4']
    assert large[3:6] == ['83.2', '+-', '2.8']
    assert large[6:9] == ['90.0', '+-', '0.0']
    assert any(f'mIoU {blind_miou(study.data):.1f}' in line for line in lines)


def test_the_figure_shows_predictions_and_scores(finished, tmp_path):
    study, results = finished
    path = tmp_path / 'figure.png'
    kernel_study_plot.draw_study(study, results, str(path))
    before = cv2.imread(str(path))[..., ::-1]
    assert before.shape[1] > 2000

    def share(image, name):
        return (image == kernel_study_plot._LABELS[name]).all(-1).mean()

    water = share(before, 'water')
    assert water > 0.01
    # The same, but the larger kernels see water only.
    for run in study.runs:
        if run.kernel == 31:
            for file in study.predictions(run).glob('*.png'):
                write(file, np.ones((192, 192)))
    kernel_study_plot.draw_study(study, results, str(path))
    assert share(cv2.imread(str(path))[..., ::-1], 'water') > 1.1 * water


def test_the_axes_show_the_numbers(finished):
    study, results = finished
    groups = kernel_study_plot.by_kernel(results)
    colors = kernel_study_plot._colors(list(groups))
    figure = kernel_study_plot.new_figure(7, 3)
    left, right = figure.subplots(1, 2)
    kernel_study_plot._draw_scores(left, study, groups, colors)
    points = sorted(tuple(point) for line in left.lines if line.get_marker() == 'o'
                    for point in line.get_xydata())
    assert points == [(3, 50), (3, 52), (31, 81.25), (31, 85.25)]
    assert left.get_ylim()[0] < min(50, blind_miou(study.data))
    kernel_study_plot._draw_distances(right, groups, colors)
    curves = [line.get_ydata() for line in right.lines if line.get_marker() == 'o']
    np.testing.assert_allclose(curves, [[40] * len(EDGES), [90] * len(EDGES)])
