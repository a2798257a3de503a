"""``tools/benchmarks/train_step.py``: whole steps, compared before they are timed."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'
SMALL = ['mmreplk::upernet_replknet_narrow_scenes.py', '--device', 'cpu', '--crop', '72',
         '--rounds', '1']


@pytest.fixture
def train_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import train_step
    yield train_step
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize('precision', [[], ['--no-amp']], ids=['amp', 'fp32'])
def test_times_a_step_of_each(train_step, precision, tmp_path, capsys):
    out = tmp_path / 'rows.jsonl'
    picture = tmp_path / 'steps.png'
    arguments = [*SMALL, *precision, '--out', str(out), '--plot', str(picture)]
    assert train_step.main(arguments) == 0
    assert picture.read_bytes().startswith(b'\x89PNG')
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row['candidate'] for row in rows] == list(train_step.CANDIDATES)
    for row in rows:
        assert row['median_ms'] > 0
        assert 0 < row['depthwise_share'] < 1
        assert row['peak_bytes'] is None or row['peak_bytes'] > 0
    assert 'best nn.Conv2d / this' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train_step.main([*SMALL, '--out', str(out)])  # it exists


def test_another_loss_is_not_timed(train_step, monkeypatch, tmp_path):
    networks = sys.modules['networks']
    right = networks.with_plain_convolutions

    def wrong(model):
        model = right(model)
        with torch.no_grad():
            model.decode_head.conv_seg.bias[0] += 10
        return model

    monkeypatch.setattr(networks, 'with_plain_convolutions', wrong)
    with pytest.raises(ArithmeticError, match='first losses differ'):
        train_step.main([*SMALL, '--candidates', 'ours', 'conv2d', '--out',
                         str(tmp_path / 'rows.jsonl')])


def test_plain_convolutions(train_step):
    networks = sys.modules['networks']
    model = nn.Sequential(LargeKernelDWConv2d(4, 4, 7, padding=3, groups=4), nn.ReLU())
    plain = networks.with_plain_convolutions(model)
    assert type(plain[0]) is nn.Conv2d
    assert type(model[0]) is LargeKernelDWConv2d
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(plain(x), model(x))
