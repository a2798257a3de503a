"""kernel_study.py, run as a user runs it: real training, evaluation, receptive fields, figure."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmreplk.analysis import contribution_scores, high_contribution_area

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'kernel_study.py'
TINY = ('--out', 'study', '--seeds', 0, '--iters', 3, '--num-train', 8, '--num-val', 2)


def rows(folder):
    with open(folder / 'runs.csv', newline='') as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_study_in_one_command_and_again(seg_bench):
    bench, study = seg_bench, seg_bench.folder / 'study'
    run = bench.done('kernel_study.py', *TINY, '--kernels', 7, '--jobs', 1)
    assert '1 of 1 runs' in run.text
    row, = rows(study)
    assert (row['kernel'], row['seed']) == ('7', '0')
    folder = study / 'runs/k07_seed0'
    metrics, = (json.loads(path.read_text()) for path in (folder / 'test').glob('2*/2*.json'))
    assert float(row['mIoU']) == pytest.approx(metrics['mIoU'], abs=0.006)
    matrix = np.load(folder / 'erf.npy')
    assert matrix.shape == (192, 192)
    ratio = high_contribution_area(contribution_scores(matrix), 0.5).ratio
    assert float(row['r50']) == pytest.approx(ratio, abs=1e-4)
    assert f'{100 * ratio:.1f} +- 0.0' in run.text
    assert (study / 'summary.txt').read_text().strip() in run.text
    assert min(cv2.imread(str(study / 'kernel_study.png')).shape[:2]) > 1000
    # The small kernel stands beside the large one, in what was really trained.
    log = ''.join(path.read_text() for path in sorted(folder.glob('2*/2*.log')))
    assert 'large_kernel_sizes=[' in log
    assert 'Iter(train) [3/3]' in log.replace('[ ', '[') or 'iter_3.pth' in {
        path.name for path in folder.iterdir()}

    before = contents(folder)
    again = bench.done('kernel_study.py', *TINY, '--kernels', 7)
    assert '1 of 1 runs were finished before' in again.text
    assert 'is being trained' not in again.text
    assert rows(study) == [row]
    assert contents(folder) == before

    before = contents(study)
    text = bench.refused('kernel_study.py', *TINY, '--kernels', 7, '--iters', 4)
    assert 'iters is 3 there, 4 here' in text
    assert contents(study) == before


def test_mistakes_are_named_before_anything_is_written(seg_bench):
    assert "kernels 6: give odd sizes" in seg_bench.refused(
        'kernel_study.py', '--out', 'study', '--kernels', 6)
    assert "'data' exists and is no study" in seg_bench.refused(
        'kernel_study.py', '--out', 'data')


@pytest.mark.slow
def test_a_stopped_study_goes_on(seg_bench):
    """Stopped by a signal in the middle of training, it resumes from the last checkpoint."""
    bench = seg_bench
    arguments = ('--out', 'study', '--kernels', 3, '--seeds', 0, '--iters', 36, '--num-train', 8,
                 '--num-val', 1, '--jobs', 1)
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=bench.folder, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    pointer = bench.folder / 'study/runs/k03_seed0/last_checkpoint'
    until = time.monotonic() + 200
    while not pointer.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert pointer.is_file()
    assert not (pointer.parent / 'iter_36.pth').exists()

    run = bench.done('kernel_study.py', *arguments)
    assert 'k03_seed0 is being resumed' in run.text
    log = (pointer.parent / 'train.txt').read_text()
    assert 'resumed epoch: 0, iter: ' in log
    assert (pointer.parent / 'iter_36.pth').is_file()
    assert len(rows(bench.folder / 'study')) == 1


def draw_camvid(root):
    """Three images a split in CamVid's layout."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for index in range(3):
            labels = np.kron(rng.integers(0, 12, (6, 8)), np.ones((10, 10))).astype(np.uint8)
            image = np.stack([labels * 20] * 3, 2) + rng.integers(0, 9, (60, 80, 3))
            for kind, suffix, array in (('images', 'jpg', image), ('annotations', 'png', labels)):
                path = root / kind / split / f'{index}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), array.astype(np.uint8))


@pytest.mark.slow
def test_a_study_on_camvid(seg_bench):
    bench, study = seg_bench, seg_bench.folder / 'real'
    draw_camvid(bench.folder / 'data/camvid')
    arguments = ('--data', 'camvid', '--out', 'real', '--kernels', 7, '--plain', 7, '--seeds', 0,
                 '--iters', 2, '--jobs', 1)
    run = bench.done('kernel_study.py', *arguments)
    found = rows(study)
    assert [(row['kernel'], row['small_kernel']) for row in found] == [('7', '1'), ('7', '0')]
    folder = study / 'runs/k07_without_small_seed0'
    metrics, = (json.loads(path.read_text()) for path in (folder / 'test').glob('2*/2*.json'))
    assert float(found[1]['mIoU']) == pytest.approx(metrics['mIoU'], abs=0.006)
    ious = [float(value) for key, value in found[1].items() if key.startswith('IoU_')]
    assert len(ious) == 11
    assert np.mean(ious) == pytest.approx(metrics['mIoU'], abs=0.02)
    assert np.load(folder / 'erf.npy').shape == (256, 256)
    assert (study / 'summary.txt').read_text().strip() in run.text
    assert min(cv2.imread(str(study / 'kernel_study.png')).shape[:2]) > 500
    again = bench.done('kernel_study.py', *arguments)
    assert '2 of 2 runs were finished before' in again.text
    assert rows(study) == found


def test_options_of_the_other_data_are_refused(seg_bench):
    assert '--data-root: it is for --data camvid' in seg_bench.refused(
        'kernel_study.py', '--data-root', 'data')
    assert '--num-val: it is for --data far_context' in seg_bench.refused(
        'kernel_study.py', '--data', 'camvid', '--num-val', 3)
    assert 'Put CamVid there' in seg_bench.refused('kernel_study.py', '--data', 'camvid')
