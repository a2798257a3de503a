"""``tools/benchmarks/network.py``: whole networks, compared before they are timed."""

import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'
QUICK = ['--device', 'cpu', '--rounds', '1', '--seconds', '0']


@pytest.fixture
def network(monkeypatch, tiny_arch):
    """The program, with a tiny network in place of RepLKNet-31B."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import network
    import network_models
    right = network_models.replknet
    tiny_arch.pop('ffn_ratio')
    monkeypatch.setattr(network_models, 'replknet', lambda arch, **options: right(
        tiny_arch if arch == '31B' else arch, **options))
    yield network
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(FOLDER)):
            del sys.modules[name]


def run(network, tmp_path, *arguments):
    out = tmp_path / 'rows.jsonl'
    assert network.main([*map(str, arguments), *QUICK, '--out', str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_classifiers(network, tmp_path, capsys):
    picture = tmp_path / 'networks.png'
    names = ['ours channels_last', 'ours not deployed', 'conv2d', 'mmpretrain merged']
    rows = run(network, tmp_path, '--networks', 'RepLKNet-31B', '--sizes', 64, '--batch', 1, 2,
               '--candidates', *names, '--plot', picture)
    assert [(row['batch'], row['candidate']) for row in rows] == [
        (batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        assert row['status'] == 'ok', row
        assert row['error'] < 1e-4
        assert row['images_per_second'] == pytest.approx(1e3 * row['batch'] / row['median_ms'])
        assert 0 < row['depthwise_share'] < 1
    assert picture.read_bytes().startswith(b'\x89PNG')
    text = capsys.readouterr().out
    assert 'time / best of ours' in text
    with pytest.raises(SystemExit):
        network.main([*QUICK, '--out', str(tmp_path / 'rows.jsonl')])  # it exists
    assert network.main(['--plot-from', str(tmp_path / 'rows.jsonl')]) == 0
    assert 'RepLKNet-31B, inference, fp32, 2 x 64 x 64' in capsys.readouterr().out


def test_of_repeated_rows_the_last_counts(network, tmp_path, monkeypatch):
    report = sys.modules['network_report']
    row = dict(device='cpu', network='net', mode='inference', dtype='fp32', batch=1, height=8,
               width=8, suite='network', candidate='ours', status='ok', median_ms=1000.0,
               p20_ms=900.0, p80_ms=1100.0, images_per_second=1.0, peak_bytes=0,
               depthwise_share=0.1)
    rows = [row, row | dict(median_ms=500.0, images_per_second=2.0)]
    assert '500.0' in report.table(rows)
    assert '1000.0' not in report.table(rows)
    drawn = []
    monkeypatch.setattr(report, '_draw_bars', lambda path, rows: drawn.extend(rows))
    report.draw(tmp_path / 'p.png', rows)
    assert drawn == rows[1:]


def test_training(network, tmp_path):
    rows = run(network, tmp_path, '--networks', 'RepLKNet-31B', '--sizes', 32, '--batch', 2,
               '--mode', 'training')
    names = {'ours', 'ours channels_last', 'ours with_cp=large_kernel', 'ours with_cp=ffn',
             'ours with_cp=True', 'conv2d', 'conv2d channels_last', 'mmpretrain'}
    assert {row['candidate'] for row in rows} == names
    assert all(row['status'] == 'ok' for row in rows), rows


def test_growth(network, tmp_path, monkeypatch):
    growth = sys.modules['network_growth']
    monkeypatch.setattr(growth, 'replknet', sys.modules['network_models'].replknet)
    monkeypatch.setattr(growth, 'asdict', lambda arch: '31B')
    monkeypatch.setattr(growth, 'with_kernels', lambda arch, kernel: '31B')
    for name, values in (('SIDES', (32, 64)), ('BATCHES', (2, )), ('KERNELS', (13, ))):
        monkeypatch.setattr(growth, name, values)
    rates = sys.modules['ceilings'].Ceilings(1e10, 1e11)
    monkeypatch.setattr(sys.modules['ceilings'], 'measure', lambda *_: rates)
    picture = tmp_path / 'growth.png'
    rows = run(network, tmp_path, '--suite', 'growth', '--plot', picture)
    assert {(row['axis'], row['value']) for row in rows} == {
        ('side', 32), ('side', 64), ('batch', 2), ('kernel', 13)}
    ours = [row for row in rows if row['candidate'] == 'ours']
    assert all(row['depthwise_macs'] > 0 and row['memory_bound_ms'] > 0 for row in ours)
    assert ours[1]['depthwise_macs'] > ours[0]['depthwise_macs']
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_no_prediction_is_not_timed(network, tmp_path, monkeypatch):
    monkeypatch.setattr(network.Inference, 'result', lambda self: torch.zeros(1, 100))
    row, = run(network, tmp_path, '--networks', 'RepLKNet-31B', '--sizes', 32, '--batch', 1,
               '--candidates', 'ours')
    assert (row['status'], row['candidate']) == ('failed', 'ours')
    assert 'nothing was predicted' in row['note']


def test_a_wrong_candidate_is_not_timed(network, tmp_path, monkeypatch):
    models = sys.modules['network_models']
    right = models.with_plain_convolutions

    def wrong(model):
        model = right(model)
        with torch.no_grad():
            model.fc.bias[0] += 10
        return model

    monkeypatch.setattr(models, 'with_plain_convolutions', wrong)
    rows = run(network, tmp_path, '--networks', 'RepLKNet-31B', '--sizes', 64, '--batch', 1,
               '--candidates', 'ours', 'conv2d')
    rows = {row['candidate']: row for row in rows}
    assert rows['ours']['status'] == 'ok'
    assert rows['conv2d']['status'] == 'wrong'
    assert 'differs from the first candidate' in rows['conv2d']['note']


def test_segmentors_and_detectors(network, tmp_path, monkeypatch, request):
    dense = sys.modules['network_dense']
    bench = request.getfixturevalue('det_bench')
    monkeypatch.setattr(dense, 'DENSE', {
        'segmentor': ('mmreplk::upernet_replknet_narrow_scenes.py', (64, 96)),
        'detector': (str(bench.folder / 'tiny.py'), (64, 96))})
    rows = run(network, tmp_path, '--suite', 'dense')
    names = {network: {row['candidate'] for row in rows if row['network'] == network}
             for network in ('segmentor', 'detector')}
    assert names['segmentor'] - names['detector'] == {'ours resize first'}
    assert {'ours', 'ours not deployed', 'conv2d'} <= names['detector'] <= names['segmentor']
    assert all(row['status'] == 'ok' for row in rows), rows


def test_a_cascade_finds_something(network, tmp_path, tiny_arch):
    pytest.importorskip('mmcv._ext', reason='mmdet needs MMCV with compiled operators')
    dense, networks = sys.modules['network_dense'], sys.modules['networks']
    config = tmp_path / 'cascade.py'
    few = dict(nms_pre=20, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    config.write_text(f"""
_base_ = 'mmreplk::cascade_mask_rcnn_replknet31b_coco.py'
model = dict(
    backbone=dict(arch={tiny_arch | dict(_delete_=True)!r}),
    neck=dict(in_channels={tiny_arch['channels']!r}),
    test_cfg=dict(rpn={few!r}))
""")
    torch.manual_seed(0)
    _, model = networks.build(str(config), (64, 96))
    predictor = dense.Predictor(model, (64, 96)).eval()
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 96)
        assert not predictor(x).any()
        scores = dense.spread_scores(predictor)(x)
    assert scores.shape == (2, dense.DETECTIONS)
    assert scores[:, 0].min() > 0.05
    assert not predictor.training


def test_timm(network):
    models = sys.modules['network_models']
    pytest.importorskip('timm')
    made = models.classifiers('ConvNeXt-B', 224, False, models.CANDIDATES)
    assert set(made) == {'timm', 'timm channels_last'}
    with pytest.raises(SystemExit):
        network.parse_args(['--networks', 'ResNet-50'])
