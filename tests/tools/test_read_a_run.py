"""plot_run.py and confusion_matrix.py behind train.py and test.py, as a user has it."""

import csv
import json

import cv2
import numpy as np


def test_curves_and_matrix_of_a_run(seg_bench):
    bench = seg_bench
    bench.done('train.py', 'tiny.py', '--work-dir', 'work')
    text = bench.done('plot_run.py', 'work', '--out', 'curves.png', '--metrics', 'mIoU',
                      'aAcc').text
    assert 'work: iteration 2, loss ' in text
    assert cv2.imread(str(bench.folder / 'curves.png')).shape[1] > 1500
    assert 'the file exists' in bench.refused('plot_run.py', 'work', '--out', 'curves.png')
    assert 'no such folder' in bench.refused('plot_run.py', 'nowhere', '--out', 'other.png')
    assert 'ends in .png' in bench.refused('plot_run.py', 'work', '--out', 'curves')

    bench.done('test.py', 'tiny.py', 'work/iter_2.pth', '--work-dir', 'tested', '--out', 'found')
    text = bench.done('confusion_matrix.py', 'tiny.py', 'found', '--out', 'matrix.png').text
    measured = bench.metrics('tested')['mIoU']
    assert f'mIoU: {measured:.2f}' in text
    image = cv2.imread(str(bench.folder / 'matrix.png'))
    assert image is not None
    with open(bench.folder / 'matrix.csv', newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0] == ['label', 'dark', 'bright']
    assert np.array([row[1:] for row in rows[1:]], int).sum() == 5 * 32 * 48
    assert 'the file exists' in bench.refused(
        'confusion_matrix.py', 'tiny.py', 'found', '--out', 'matrix.png')
    assert "no image '0.png'" in bench.refused(
        'confusion_matrix.py', 'tiny.py', 'nothing', '--out', 'other.png')


def test_more_backends_take_the_same_values(seg_bench):
    """What a config's vis_backends name is written beside the local log, as for W&B."""
    (seg_bench.folder / 'backend.py').write_text(
        'import json\n'
        'from mmengine.registry import VISBACKENDS\n'
        'from mmengine.visualization import LocalVisBackend\n\n'
        '@VISBACKENDS.register_module()\n'
        'class OtherBackend(LocalVisBackend):\n'
        '    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):\n'
        "        with open('other.txt', 'a') as file:\n"
        '            print(json.dumps(dict(scalar_dict, step=step)), file=file)\n')
    name = seg_bench.write(
        custom_imports=dict(imports=['backend']),
        vis_backends=(backends := [dict(type='LocalVisBackend'), dict(type='OtherBackend')]),
        visualizer=dict(type='SegLocalVisualizer', vis_backends=backends, name='visualizer'))
    seg_bench.done('train.py', name, '--work-dir', 'work', PYTHONPATH=str(seg_bench.folder))
    lines = [json.loads(line) for line in
             (seg_bench.folder / 'other.txt').read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss' in line] == [1, 2]
    assert any('mIoU' in line for line in lines)
