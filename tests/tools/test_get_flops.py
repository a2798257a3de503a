"""get_flops.py, run as a user runs it."""

import os
import re
import runpy
from pathlib import Path

import cv2
import pytest

TOOL = Path(__file__).resolve().parents[2] / 'tools/get_flops.py'


def numbers(text: str, row: str) -> list[float]:
    """Parameters in millions and multiply-adds in billions of a row of its tables."""
    return [float(value) for value in re.search(
        rf'^{row} +([\d.]+) M +([\d.]+) G$', text, re.MULTILINE).groups()]


def test_table_of_a_published_config(seg_bench):
    run = seg_bench.done(
        'get_flops.py', 'mmreplk::upernet_replknet31b_ade20k.py', '--deploy', '--shape', 256, 512,
        '--cfg-options', 'model.auxiliary_head=None')
    text = run.text
    assert '256 x 512 pixels (height x width), merged network' in text
    parts = [numbers(text, row) for row in ('backbone', 'decode_head')]
    kinds = [numbers(text, row) for row in ('depth-wise', '1x1', 'other')]
    whole = numbers(text, 'whole model')
    for rows in (parts, kinds):
        for column, total in enumerate(whole):
            assert abs(sum(row[column] for row in rows) - total) < 0.02  # two decimals a row
    # 1169.3 G on the 512 x 2048 pixels of the published figure.
    assert abs(whole[1] - 1169.3 / 8) < 1.5
    assert 'Not run in evaluation' not in text  # no head is left that only training uses
    assert not run.warns


def test_errors(seg_bench):
    bench = seg_bench
    assert 'training network' in bench.done('get_flops.py', 'tiny.py', '--shape', 32, 48).text
    assert 'its test pipeline has neither' in bench.refused('get_flops.py', 'tiny.py')
    assert 'no such file' in bench.refused('get_flops.py', 'gone.py')


def test_several_models_timed_and_drawn(seg_bench):
    bench = seg_bench
    model = dict(bench.config['model'], backbone=dict(type='MobileNetV2', out_indices=(0, 1)))
    model['decode_head'] = dict(model['decode_head'], in_channels=24)
    bench.write('plain.py', model=model)
    text = bench.done('get_flops.py', 'tiny.py', 'plain.py', '--shape', 32, 48, '--latency',
                      '--batch', 2, '--rounds', 1, '--plot', 'new/costs.png').text
    ours, plain = text.split('plain.py: ')
    assert 'tiny.py: 32 x 48 pixels (height x width), training network' in ours
    assert plain.startswith('32 x 48 pixels (height x width)\n')  # it has nothing to merge
    for table in (ours, plain):
        assert re.search(r'Latency: [\d.]+ ms for 2 images, float32, CPU, 1 thread; median of 1\.',
                         table)
        columns = [[float(cell) for cell in re.findall(r'([\d.]+) %', row)] for row in
                   re.findall(r'^(?:depth-wise|1x1|other|rest) .*%$', table, re.MULTILINE)]
        assert [len(row) for row in columns] == [3, 3, 3, 1]
        for place in range(3):
            assert abs(sum(row[place] for row in columns[:3]) - 100) <= 0.2 + (place == 2) * (
                columns[3][0])
        assert sum(row[-1] for row in columns) == pytest.approx(100, abs=0.3)
    assert 'profiler_start' not in text
    picture = cv2.imread(str(bench.folder / 'new/costs.png'))
    assert min(picture.shape[:2]) > 500
    assert picture.std() > 20


@pytest.mark.parametrize(('arguments', 'message'), [
    (('a.py', '--batch', '2'), '--batch: it is for --latency; add that, or leave it out.'),
    (('a.py', '--rounds', '2'), '--rounds: it is for --latency'),
    (('a.py', '--device', 'cpu'), '--device: it is for --latency'),
    (('a.py', '--latency', '--batch', '0'), '--batch 0: give a positive number.'),
    (('a.py', '--latency', '--rounds', '-1'), '--rounds -1: give a positive number.'),
    (('a.py', '--latency', '--device', 'abacus'), '--device abacus: '),
    (('a.py', '--plot', 'costs.docx'), '--plot costs.docx: name a file that ends in .png'),
    (('a.py', '--plot', 'kept.png'), "--plot: 'kept.png': the file exists"),
    (('a.py', 'a.py'), 'CONFIG: one of them is given twice.'),
    (('a.py', 'gone.py', '--shape', '32', '32'), "CONFIG: no such file 'gone.py'"),
])
def test_mistakes_are_refused_before_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'kept.png').write_text('kept')
    (tmp_path / 'a.py').write_text("default_scope = 'mmpretrain'\nmodel = dict()\n")
    monkeypatch.setattr('sys.argv', ['get_flops.py', *arguments])
    for name in ('OMP_WAIT_POLICY', 'KINETO_LOG_LEVEL'):  # which the tool sets if nobody has
        monkeypatch.setenv(name, os.environ.get(name, ''))
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert raised.value.code == 2
    written = capsys.readouterr()
    assert f'get_flops.py: error: {message}' in written.err
    assert 'pixels' not in written.out
    assert (tmp_path / 'kept.png').read_text() == 'kept'
    assert {path.name for path in tmp_path.iterdir()} == {'a.py', 'kept.png'}


def test_reduce_is_checked_before_anything_is_written(seg_bench):
    message = seg_bench.refused('train.py', 'tiny.py', '--reduce', 3)
    assert '--reduce 3: give a power of two' in message
