"""export_onnx.py: the file computes what the model does, at sizes that it was not traced at."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from mmreplk.deploy import merge as deploy, onnx as onnx_export

PSP = dict(
    type='mmreplk.UPerHead', in_channels=[4, 8], in_index=[0, 1], pool_scales=(1, 2, 3, 6),
    channels=8, dropout_ratio=0.0, num_classes=2, norm_cfg=dict(type='SyncBN'),
    loss_decode=dict(type='CrossEntropyLoss'))


@pytest.fixture
def trained(randomize_norms):
    """Writes ``trained.pth``, of which every layer matters; returns the model as loaded from it."""

    def write(bench):
        cfg = Config.fromfile(str(bench.folder / 'tiny.py'))
        model, _ = deploy.load_model(cfg, None)
        randomize_norms(model)
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                torch.nn.init.kaiming_normal_(module.weight)
        meta = dict(dataset_meta=dict(classes=('dark', 'bright')))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), bench.folder / 'trained.pth')
        return cfg, deploy.load_model(cfg, str(bench.folder / 'trained.pth'))[0]

    return write


def run(file, image):
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return [torch.from_numpy(value) for value in session.run(None, {'image': image.numpy()})]


def convolutions(file):
    """Kernel sizes of the depth-wise Conv nodes, in order."""
    graph = onnx.load(file).graph
    found = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
             for node in graph.node if node.op_type == 'Conv']
    return [tuple(item['kernel_shape']) for item in found if item['group'] > 1]


def test_segmentor(seg_bench, trained):
    """UperNet with its pyramid pooling, whose bins depend on the size; aligned corners as well."""
    bench = seg_bench
    bench.write(model=dict(bench.config['model'], decode_head=dict(PSP, align_corners=True)))
    _, model = trained(bench)
    text = bench.done('export_onnx.py', 'tiny.py', 'trained.pth', 'new/a.onnx', '--size', 64,
                      80).text
    assert 'image (batch, 3, height, width) to logits' in text
    assert '  1x3x64x80, logits: largest difference' in text
    assert '  2x3x97x49, logits: largest difference' in text
    assert bench.files('new') == {'a.onnx'}
    file = bench.folder / 'new/a.onnx'
    # Stem, stem, stage, transition, stage: the small branches of 3x3 are merged.
    assert convolutions(file) == [(3, 3), (3, 3), (7, 7), (3, 3), (5, 5)]
    for shape in ((3, 3, 33, 70), (1, 3, 128, 96)):
        image = torch.randn(shape)
        with torch.no_grad():
            logits = model.decode_head(model.extract_feat(image))
            expected = F.interpolate(logits, shape[2:], mode='bilinear', align_corners=True)
        assert expected.std() > 0.01
        torch.testing.assert_close(run(file, image)[0], expected, rtol=1e-4, atol=1e-5)
    metadata = {item.key: item.value for item in onnx.load(file).metadata_props}
    assert json.loads(metadata['mean']) == [90.0] * 3
    assert json.loads(metadata['std']) == [70.0] * 3
    assert json.loads(metadata['classes']) == ['dark', 'bright']
    assert metadata['channels'] == 'BGR'
    assert "OUT: 'new/a.onnx': the file exists" in bench.refused(
        'export_onnx.py', 'tiny.py', 'trained.pth', 'new/a.onnx')


def export(bench, cfg, checkpoint='trained.pth', **options):
    file = bench.folder / 'a.onnx'
    lines, ok = onnx_export.export(cfg, checkpoint and str(bench.folder / checkpoint), str(file),
                                   size=(64, 80), **options)
    assert ok, lines
    return file, lines


def test_classifier(cls_bench, trained):
    cfg, model = trained(cls_bench)
    file, _ = export(cls_bench, cfg)
    # Of different brightness: the mean over a map of plain noise would always be the same.
    image = torch.randn(3, 3, 50, 41) + torch.arange(-1, 2).reshape(3, 1, 1, 1) * 20
    with torch.no_grad():
        expected = model(image, mode='tensor').softmax(1)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    torch.testing.assert_close(run(file, image)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['seg', 'det'])
def test_backbone(request, kind, trained):
    bench = request.getfixturevalue(f'{kind}_bench')
    cfg, model = trained(bench)
    file, lines = export(bench, cfg, part='backbone')
    assert 'to stage0, stage1;' in lines[0]
    random = onnx_export.export(cfg, None, str(bench.folder / 'b.onnx'), part='backbone')
    assert 'the weights are random' in random[0][0]
    image = torch.randn(2, 3, 39, 64)
    with torch.no_grad():
        torch.testing.assert_close(tuple(run(file, image)), model.backbone(image), rtol=1e-4,
                                   atol=1e-5)


def test_a_file_that_differs_is_not_kept(cls_bench, trained, monkeypatch):
    cfg, _ = trained(cls_bench)
    right = onnx_export.ClassifierScores.forward

    def forward(self, x):
        return right(self, x if torch.onnx.is_in_onnx_export() else x * 1.1)

    monkeypatch.setattr(onnx_export.ClassifierScores, 'forward', forward)
    file = cls_bench.folder / 'a.onnx'
    lines, ok = onnx_export.export(cfg, str(cls_bench.folder / 'trained.pth'), str(file))
    assert not ok
    assert 'more than rounding' in lines[-1]
    assert not list(cls_bench.folder.glob('*.onnx'))


def test_refusals(det_bench):
    assert 'CONFIG tiny.py: FCOS is a detector' in det_bench.refused(
        'export_onnx.py', 'tiny.py', 'a.onnx')
    cfg = Config(dict(default_scope='mmdet', model=dict(type='FCOS')))
    with pytest.raises(ValueError, match="FCOS is a detector.*part='backbone'"):
        onnx_export.check_exportable(cfg, 'model')
    onnx_export.check_exportable(cfg, 'backbone')
    cfg = Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', head=dict(type='MultiLabelLinearClsHead'))))
    with pytest.raises(ValueError, match='ImageClassifier with MultiLabelLinearClsHead is neither'):
        onnx_export.check_exportable(cfg, 'model')


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(onnx_export, 'find_spec', lambda name: None if name == 'onnxscript' else 1)
    with pytest.raises(ModuleNotFoundError, match='pip install onnxscript'):
        onnx_export.check_exportable(Config(dict(model=dict(type='X'))), 'backbone')


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize('size', [(17, 23), (6, 6), (1, 40), (4, 5)])
def test_pooling_as_a_product(bins, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(onnx_export.BinAveragePool2d(bins)(x),
                               F.adaptive_avg_pool2d(x, bins), rtol=1e-12, atol=1e-12)


def test_resize_is_put_back(seg_bench, trained):
    import mmseg.models.decode_heads.uper_head as uper_head
    bench = seg_bench
    bench.write(model=dict(bench.config['model'], decode_head=dict(PSP, align_corners=False)))
    _, model = trained(bench)
    original = uper_head.resize
    x = torch.from_numpy(np.random.default_rng(0).random((1, 2, 5, 6), np.float32))
    with onnx_export._plain_resize(model):
        assert uper_head.resize is not original
        for align in (False, True):
            options = dict(size=(9, 11), mode='bilinear', align_corners=align)
            assert torch.equal(uper_head.resize(x, **options),
                               original(x, warning=False, **options))
    assert uper_head.resize is original
