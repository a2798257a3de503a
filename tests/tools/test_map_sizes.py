"""tools/benchmarks/map_sizes.py on a few small maps."""

import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'tools/benchmarks'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(BENCHMARKS), *sys.path])
    import map_sizes
    return map_sizes


def test_measures_goes_on_and_draws(tool, tmp_path, capsys):
    out, picture = tmp_path / 'rows.jsonl', tmp_path / 'maps.png'
    argv = ['--kernels', '5', '1x9', '--batch', '1', '--max-seconds', '0.001', '--out', str(out)]
    assert tool.main([*argv, '--maps', '7', '--mode', 'forward']) == 0
    first = out.read_text().splitlines()
    assert len(first) == 8  # two kernels, both formats of ours and of PyTorch's
    capsys.readouterr()
    assert tool.main([*argv, '--maps', '9', '7', '--plot', str(picture)]) == 0
    lines = out.read_text().splitlines()
    assert lines[:8] == first, 'what was there is not measured again'
    assert len(lines) == 32
    text = capsys.readouterr().out
    assert re.search(r'^\| kernel +\| +7 \| +9 \|$', text, re.M)
    assert len(re.findall(r'^\| 1x9 +\| +[\d.]+ \| +[\d.]+ \|$', text, re.M)) == 4
    assert re.search(r'^\d+ below 0.9:$', text, re.M)
    assert picture.stat().st_size > 10000
    assert tool.main(['--from', str(out)]) == 0


def test_lists_what_is_slower(tool):
    common = dict(batch=1, channels=16, height=7, width=7, kernel=[1, 31], layers=1, label='',
                  device='a CPU', dtype='fp32', mode='forward', weights='kept', bias=False,
                  graph=False, status='ok', note='', backend='fft')
    rows = [common | dict(candidate=name, median_ms=time) for name, time in
            (('ours', 4.0), ('ours channels_last', 1.0), ('conv2d', 2.0),
             ('conv2d channels_last', 3.0))]
    text = tool.report(rows)
    assert '1 below 0.9:\n0.50: kernel 1x31, map 7' in text
    assert '2.00' in text


def test_channels_and_bad_values(tool, capsys):
    assert [tool.channels_of(side) for side in (7, 22, 56, 128, 256)] == [512, 512, 80, 16, 16]
    for bad in (['--kernels', '3x'], ['--kernels', '0'], ['--maps', '-7']):
        with pytest.raises(SystemExit):
            tool.main(bad)
    assert 'a kernel is K or KhxKw' in capsys.readouterr().err


def test_on_a_gpu(tool, monkeypatch, capsys, tmp_path):
    """Maps of 14 to 256, kernels of 7 to 51, one image and 64, both passes, in 16 bits."""
    import torch
    seen = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(tool.timing, 'prepare', lambda name, threads: torch.device(name))
    monkeypatch.setattr(tool.dwconv, 'run', lambda parser, args: seen.append(args) or [])
    assert tool.main(['--device', 'cuda', '--out', str(tmp_path / 'rows.jsonl')]) == 0
    args, = seen
    assert args.device == 'cuda'
    assert args.dtype == ['fp16']
    assert args.mode == ['forward', 'backward']
    shapes = args.shape
    assert {s.batch for s in shapes} == {1, 64}
    assert {s.height for s in shapes} >= {14, 256}
    assert {max(s.kernel) for s in shapes} >= {7, 51}
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for device, text in (('cuda', 'PyTorch sees no GPU here'), ('tpu', 'must be cpu or cuda')):
        with pytest.raises(SystemExit):
            tool.main(['--device', device])
        assert text in capsys.readouterr().err
