"""Parameters and multiply-adds against what the authors and the field print, and against hooks."""

from copy import deepcopy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from torch import nn

from mmreplk import RepLKNet
from mmreplk.analysis import (
    ModelCost,
    ModelLatency,
    cost_of,
    draw_costs,
    format_cost,
    format_shares,
    shares_of,
)
from mmreplk.analysis.cost import plot as cost_plot
from mmreplk.analysis.cost.count import KINDS, PartCost, _Counter
from mmreplk.analysis.cost.models import build_on_meta, default_shape

ROOT = Path(__file__).resolve().parents[3]
needs_ops = pytest.mark.needs_mmcv_ops

# facts.md 2: merged networks. Config, parameters in millions, multiply-adds in billions, pixels.
CLASSIFIERS = [
    ('replknet31b_imagenet_224', 79, 15.3, 224),
    ('replknet31b_imagenet_384_finetune', 79, 45.1, 384),
    ('replknet31b_in22k_imagenet_224_finetune', 79, 15.3, 224),
    ('replknet31b_in22k_imagenet_384_finetune', 79, 45.1, 384),
    ('replknet31l_in22k_imagenet_384_finetune', 172, 96.0, 384),
    ('replknetxl_meg73m_imagenet_320_finetune', 335, 128.7, 320),
    ('replknetxl_meg73m_imagenet_320_finetune_fsdp', 335, 128.7, 320),
    ('replknet_kernels_3_3_3_3_imagenet_120e', 71.8, 12.9, 224),
    ('replknet_kernels_7_7_7_7_imagenet_120e', 72.2, 13.1, 224),
    ('replknet_kernels_13_13_13_13_imagenet_120e', 73.7, 13.4, 224),
    ('replknet_kernels_25_25_25_13_imagenet_120e', 78.1, 14.8, 224),
    ('replknet_kernels_31_29_27_13_imagenet_120e', 79, 15.3, 224),
]
# facts.md 2 and 4. The figures fit the training networks, and heads that run in evaluation: that of
# Cascade with 5x5 kernels is 965.1, without 963.5; UperNet has 112.2M without its auxiliary head.
SEGMENTORS = [
    ('upernet_replknet31b_ade20k', 112, 1170, (512, 2048)),
    ('upernet_replknet31b_in22k_ade20k_640', 112, 1829, (640, 2560)),
    ('upernet_replknet31l_in22k_ade20k_640', 207, 2404, (640, 2560)),
    ('upernet_replknetxl_meg73m_ade20k_640', 374, 3431, (640, 2560)),
    ('upernet_replknetxl_meg73m_ade20k_640_fsdp', 374, 3431, (640, 2560)),
    ('upernet_kernels_3_3_3_3_ade20k_80k', 104.1, 1119, (512, 2048)),
    ('upernet_kernels_7_7_7_7_ade20k_80k', 104.6, 1123, (512, 2048)),
    ('upernet_kernels_13_13_13_13_ade20k_80k', 106.0, 1130, (512, 2048)),
    ('upernet_kernels_25_25_25_13_ade20k_80k', 110.6, 1158, (512, 2048)),
    ('upernet_kernels_31_29_27_13_ade20k_80k', 112, 1170, (512, 2048)),
]
DETECTORS = [
    ('fcos_replknet31b_coco', 87, 437),
    ('cascade_mask_rcnn_replknet31b_coco', 137, 965),
    ('cascade_mask_rcnn_replknet31b_in22k_coco', 137, 965),
    ('cascade_mask_rcnn_replknet31l_in22k_coco', 229, 1321),
    ('cascade_mask_rcnn_replknetxl_meg73m_coco', 392, 1958),
    ('cascade_mask_rcnn_replknetxl_meg73m_coco_fsdp', 392, 1958),
]


def config(name: str) -> Config:
    return Config.fromfile(ROOT / f'configs/{name}.py')


def stock_config(module: str, name: str) -> Config:
    """A config that an mm package brings along."""
    return Config.fromfile(Path(import_module(module).__file__).parent / '.mim/configs' / name)


def params_of(cost, *parts) -> int:
    return sum(sum(cost.parts[part].params.values()) for part in parts)


@pytest.mark.parametrize(('name', 'params', 'macs', 'side'), CLASSIFIERS)
def test_classifiers_as_published(name, params, macs, side):
    cfg = config(name)
    cost = cost_of(cfg, deploy=True)
    assert cost.shape == (side, side)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.01)


def test_replknet31b_to_the_last_printed_digit():
    """facts.md 2: 79.86M with the 5x5 branches."""
    cost = cost_of(config('replknet31b_imagenet_224'))
    assert round(cost.params / 1e6, 2) == 79.86


@pytest.mark.parametrize(('name', 'params', 'macs', 'shape'), SEGMENTORS)
def test_segmentors_as_published(name, params, macs, shape):
    cost = cost_of(config(name), shape)
    assert params_of(cost, 'backbone', 'decode_head') / 1e6 == pytest.approx(params, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.01)
    assert params_of(cost, 'auxiliary_head') > 0
    assert not any(cost.parts['auxiliary_head'].macs.values())
    assert 'Not run in evaluation: auxiliary_head.' in format_cost(cost)


def test_cityscapes_is_ade20k_with_fewer_classes():
    """The authors print 110M: 2M below their 112M for ADE20K, where 131 classes make 0.07M."""
    ade, cityscapes = (cost_of(config(f'upernet_replknet31b_{data}'), (1024, 2048))
                       for data in ('ade20k', 'cityscapes'))
    running = ('backbone', 'decode_head')
    fewer = (150 - 19) * (512 + 1)  # a row of weights and a bias of the last layer for each class
    assert params_of(ade, *running) - params_of(cityscapes, *running) == fewer
    assert params_of(cityscapes, *running) / 1e6 == pytest.approx(110, rel=0.02)
    assert cityscapes.macs / 1e9 == pytest.approx(2315, rel=0.01)


@needs_ops
@pytest.mark.parametrize(('name', 'params', 'macs'), DETECTORS)
def test_detectors_as_published(name, params, macs):
    cost = cost_of(config(name))
    assert cost.shape == (800, 1280)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.01)


def test_the_metafile_has_the_published_figures():
    """Those of facts.md 2 and 4, in the tables above; what was only computed is left out."""
    computed = '25_25_25_13'
    published = {row[0]: row[1:3] for row in (*CLASSIFIERS, *SEGMENTORS, *DETECTORS)
                 if not row[0].endswith('_fsdp') and computed not in row[0]}
    published['upernet_replknet31b_cityscapes'] = (110, 2315)
    entries = {entry['Name']: entry['Metadata']
               for entry in load(ROOT / 'configs/metafile.yml')['Models']}
    assert published == {
        name: (entry['Parameters (M)'], entry['FLOPs (G)']) for name, entry in entries.items()
        if computed not in name and 'mobilenetv2' not in name}
    assert not any('FLOPs (G)' in entry for name, entry in entries.items() if computed in name)


def test_attention_counts_its_matrix_products():
    """Swin-B: 88M and 15.4G (facts.md 3)."""
    cost = cost_of(stock_config('mmpretrain', 'swin_transformer/swin-base_16xb64_in1k.py'))
    assert cost.params / 1e6 == pytest.approx(88, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(15.4, rel=0.01)
    assert cost.merged is None


@needs_ops
def test_single_roi_heads_count_too():
    """Mask R-CNN with ResNet-50: 44M and 260G in the tables of the field (Swin, table 2)."""
    cost = cost_of(stock_config('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'))
    assert cost.params / 1e6 == pytest.approx(44, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(260, rel=0.01)
    assert {'roi_head.bbox_head', 'roi_head.mask_head'} <= cost.parts.keys()
    assert 'each mask head 100 instances' in format_cost(cost)


def counted_by_hooks(model: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Multiply-adds of the convolutions, from the shapes that hooks on them see."""
    macs = dict.fromkeys(KINDS, 0)

    def add(conv, inputs, out):
        taps = conv.weight[0].numel()  # input channels of a group times the kernel's area
        depthwise = conv.groups == conv.in_channels > 1
        kind = 'depth-wise' if depthwise else '1x1' if conv.kernel_size == (1, 1) else 'other'
        macs[kind] += out.numel() * taps

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        model(image)
    return macs


@pytest.mark.parametrize('deploy', [False, True])
def test_kinds_agree_with_hooks_on_every_convolution(tiny_arch, deploy):
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='mmreplk.RepLKNet', arch=tiny_arch, out_indices=(3, )),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=20))
    cost = cost_of(Config(dict(default_scope='mmpretrain', model=model)), (50, 71), deploy)
    backbone = RepLKNet(tiny_arch, out_indices=(3, ), deploy=deploy).eval()
    assert cost.parts['backbone'].macs == counted_by_hooks(backbone, torch.rand(1, 3, 50, 71))
    assert cost.parts['head'].macs == {'depth-wise': 0, '1x1': 0, 'other': 7 * 20}
    assert params_of(cost, 'backbone') == sum(p.numel() for p in backbone.parameters())
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    depthwise = sum(p.numel() for conv in convs for p in conv.parameters())
    assert cost.parts['backbone'].params['depth-wise'] == depthwise
    assert cost.merged is deploy
    assert cost.params == sum(cost.by_kind('params').values())
    assert cost.macs == sum(cost.by_kind('macs').values())


def test_the_operator_counts_as_its_convolution():
    """On the meta device nn.Conv2d's own operation runs; elsewhere that of mmreplk.ops does."""
    part = PartCost()
    x, weight = torch.empty(2, 8, 20, 21, device='meta'), torch.empty(8, 1, 7, 5, device='meta')
    small = torch.empty(8, 1, 3, 3, device='meta')
    with _Counter({'': part}):
        torch.ops.mmreplk.dwconv2d(x, weight, None, [3, 3, 2, 2], [1, 1], 'auto')
    assert part.macs == {'depth-wise': x.numel() * 7 * 5, '1x1': 0, 'other': 0}
    with _Counter({'': part}):
        torch.ops.mmreplk.dwconv2d_pair(
            x, weight, small, [3, 3, 2, 2], [1, 1, 1, 1], [1, 1], 'auto')
    assert part.macs['depth-wise'] == x.numel() * (2 * 7 * 5 + 3 * 3)


def test_no_memory_no_download_and_the_config_stays(tmp_path):
    cfg = config('upernet_replknetxl_meg73m_ade20k_640')
    before = cfg.model.to_dict()
    model = build_on_meta(cfg)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert cfg.model.to_dict() == before
    assert before['backbone']['init_cfg']['type'] == 'Pretrained'


def test_default_shapes():
    def shape(scope, *steps):
        return default_shape(Config(dict(
            default_scope=scope,
            test_dataloader=dict(dataset=dict(dataset=dict(pipeline=list(steps)))))))

    assert shape('mmseg', dict(type='Resize', scale=(640, 320))) == (320, 640)
    crop = dict(type='CenterCrop', crop_size=224)
    assert shape('mmpretrain', dict(type='Resize', scale=256), crop) == (224, 224)
    assert shape('mmdet') == (800, 1280)
    with pytest.raises(ValueError, match='shape H W'):
        shape('mmseg', dict(type='LoadImageFromFile'))


def test_what_cannot_be_counted():
    cfg = config('upernet_replknet31b_ade20k')
    with pytest.raises(ValueError, match='shape 0 512'):
        cost_of(cfg, (0, 512))
    fcn = stock_config('mmseg', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    with pytest.raises(ValueError, match='deploy: .* has nothing to merge'):
        cost_of(fcn, deploy=True)
    no_head = deepcopy(cfg)
    no_head.model.decode_head.type = 'NoSuchHead'
    with pytest.raises(ValueError, match='CONFIG .* model cannot be built: .*NoSuchHead'):
        cost_of(no_head)
    cfg.model.decode_head.in_channels[0] = 5
    with pytest.raises(RuntimeError, match='cannot be counted on an image of 512 x 2048'):
        cost_of(cfg)


def test_shares_are_those_of_the_numbers():
    cost = cost_of(config('upernet_replknet31b_ade20k'), (64, 96))
    shares = shares_of(cost)
    assert shares.keys() == {'parameters', 'multiply-adds'}
    for title, what, total in (('parameters', 'params', cost.params),
                               ('multiply-adds', 'macs', cost.macs)):
        assert shares[title] == {kind: cost.by_kind(what)[kind] / total for kind in KINDS}
        assert sum(shares[title].values()) == pytest.approx(1)
    # Section 3 of the paper, guideline 1: large kernels are cheap if they are depth-wise.
    assert shares['parameters']['depth-wise'] < 0.08
    row = next(line for line in format_shares(cost).splitlines() if line.startswith('depth-wise'))
    assert row.split()[1::2] == [f'{100 * shares[title]["depth-wise"]:.1f}' for title in shares]


def test_the_picture_shows_the_shares(tmp_path, monkeypatch):
    figures = []

    def keep(*args, **kwargs):
        figures.append(figure(*args, **kwargs))
        return figures[-1]

    figure = cost_plot.new_figure
    monkeypatch.setattr(cost_plot, 'new_figure', keep)
    part = PartCost({'depth-wise': 10, '1x1': 70, 'other': 20},
                    {'depth-wise': 1e9, '1x1': 3e9, 'other': 0})
    cost = ModelCost({'backbone': part}, (64, 96), True)
    shares = {'depth-wise': 0.5, '1x1': 0.2, 'other': 0.1, 'rest': 0.2}
    latency = ModelLatency(0.25, shares, (64, 96), 2, 'an abacus', 5)
    draw_costs({'timed': (cost, latency), 'counted': (cost, None)}, str(tmp_path / 'costs.png'))
    assert (tmp_path / 'costs.png').read_bytes().startswith(b'\x89PNG')
    ax = figures[0].axes[0]
    rows = ['parameters', 'multiply-adds', 'latency', 'parameters', 'multiply-adds']
    assert [label.get_text() for label in ax.get_yticklabels()] == rows
    widths = np.array([[bar.get_width() for bar in kind] for kind in ax.containers])
    counts = [[0.1, 0.7, 0.2, 0], [0.25, 0.75, 0, 0]]
    np.testing.assert_allclose(widths.T, [*counts, list(shares.values()), *counts])
    lefts = np.array([[bar.get_x() for bar in kind] for kind in ax.containers])
    np.testing.assert_allclose(lefts[1:], np.cumsum(widths, 0)[:-1])
    texts = [text.get_text() for text in ax.texts]
    for text in ('timed', 'counted', '4 G', '0.0001 M', '250 ms', '25%',
                 '64 x 96 pixels, merged, batch 2, an abacus', '64 x 96 pixels, merged'):
        assert text in texts
