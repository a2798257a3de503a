"""``tools/benchmarks/dwconv.py``: checks before it times, and keeps what it measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'
FAST = ['--device', 'cpu', '--shape', '1,4,12,12,5', '--max-seconds', '0.01', '--rounds', '3']


@pytest.fixture
def dwconv(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import dwconv
    yield dwconv
    for name in set(sys.modules) - before:  # 'rows', 'task', 'timing': names others might use
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(FOLDER)):
            del sys.modules[name]


def rows_of(path):
    return {row['candidate']: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize('mode', ['forward', 'backward', 'both'])
def test_times_every_candidate(dwconv, mode, tmp_path, capsys):
    out = tmp_path / 'rows.jsonl'
    assert dwconv.main([*FAST, '--mode', mode, '--backends', 'all', '--out', str(out)]) == 0
    rows = rows_of(out)
    for name in ('ours', 'ours channels_last', 'ours:fft', 'ours:torch', 'conv2d',
                 'conv2d channels_last', 'fft'):
        row = rows[name]
        assert row['status'] == 'ok', row
        assert row['p20_ms'] <= row['median_ms'] <= row['p80_ms']
        assert 0 < row['error'] <= row['tolerance'] or row['error'] == 0
        assert row['torch'] == torch.__version__
        assert row['mode'] == mode
    assert rows['ours:triton']['status'] == 'unavailable'
    assert 'the input is on the CPU' in rows['ours:triton']['note']
    assert '1x4x12x12, K 5' in capsys.readouterr().out


def test_a_wrong_candidate_is_not_timed(dwconv, monkeypatch, tmp_path):
    choice = sys.modules['candidates']
    right = choice.fft_product
    monkeypatch.setattr(choice, 'fft_product', lambda *args: right(*args) * 1.001)
    out = tmp_path / 'rows.jsonl'
    assert dwconv.main([*FAST, '--out', str(out)]) == 1
    rows = rows_of(out)
    assert rows['fft']['status'] == 'wrong'
    assert rows['fft']['median_ms'] is None
    assert rows['conv2d']['status'] == 'ok'


def test_existing_rows_are_added_to_only_when_asked(dwconv, tmp_path, capsys):
    out = tmp_path / 'rows.jsonl'
    arguments = [*FAST, '--candidates', 'conv2d', '--out', str(out)]
    assert dwconv.main(arguments) == 0
    first = out.read_text()
    with pytest.raises(SystemExit):
        dwconv.main(arguments)
    assert '--append' in capsys.readouterr().err
    assert out.read_text() == first
    assert dwconv.main([*arguments, '--append']) == 0  # the shape is there already
    assert out.read_text() == first
    assert dwconv.main([*arguments, '--append', '--shape', '1,4,9,9,3']) == 0
    assert out.read_text().startswith(first)
    assert len(out.read_text()) > len(first)


def test_report_and_picture_of_rows(dwconv, tmp_path, capsys):
    rows, picture, table = (tmp_path / name for name in ('rows.jsonl', 'p.png', 't.md'))
    dwconv.main([*FAST, '--shape', '1,4,12,12,9', '--out', str(rows)])
    capsys.readouterr()
    assert dwconv.main(['--plot-from', str(rows), '--plot', str(picture), '--table',
                        str(table)]) == 0
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert '1x4x12x12, K 9' in table.read_text()


def test_shapes_are_those_of_the_networks(dwconv):
    from mmreplk.models.arch import ARCHS
    shapes = sys.modules['shapes']
    for name, (channels, kernels) in shapes.NETWORKS.items():
        arch = ARCHS[name]
        assert tuple(int(c * arch.dw_ratio) for c in arch.channels) == channels
        assert tuple(arch.large_kernel_sizes) == kernels
