"""The tools with ``EnlargedBackbone``: train, resume, merge, evaluate, and what they refuse."""

import pytest
import torch
from mmengine.config import Config

from mmreplk.commands import checks as preflight
from mmreplk.config import model as weights
from mmreplk.models.enlarge.conv import EnlargedConv
from mmreplk.weights import safe_load as reading

BACKBONE = dict(
    type='mmreplk.EnlargedBackbone',
    backbone=dict(
        type='MobileNetV2',
        widen_factor=0.1,
        strides=(1, 2, 1, 1, 1, 1, 1),
        out_indices=(1, 6),
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    kernel_size=9,
    stages=['layer2', 'layer7'])


@pytest.fixture
def bench(seg_bench):
    """A segmentor on a narrow MobileNetV2 of MMSegmentation with 9x9 kernels."""
    model = dict(seg_bench.config['model'], backbone=BACKBONE)
    channels = {}
    for name, head in model.items():
        if name.endswith('_head'):
            channels[name] = dict(head, in_channels=32, in_index=1)
    seg_bench.config['model'] = {**model, **channels}
    seg_bench.write()
    return seg_bench


@pytest.mark.slow
def test_train_resume_merge_and_evaluate(bench):
    bench.done('train.py', 'tiny.py', '--work-dir', 'work')
    resumed = bench.done('train.py', 'tiny.py', '--work-dir', 'work', '--resume', '--cfg-options',
                         'train_cfg.max_iters=4')
    assert 'iter: 2' in resumed.text
    first, last = (torch.load(bench.folder / f'work/iter_{count}.pth', weights_only=False)
                   for count in (2, 4))
    old, new = first['state_dict'], last['state_dict']
    assert old.keys() == new.keys()
    for part in ('lkb_origin', 'small_conv'):
        names = [name for name in old if f'.{part}.conv.weight' in name]
        assert len(names) == 3  # layer2 has two blocks, layer7 one
        assert all(not torch.equal(old[name], new[name]) for name in names)

    run = bench.done('reparameterize.py', 'work/tiny.py', 'work/iter_4.pth', 'out/merged.pth')
    assert 'labels: the same on all' in run.text
    names = reading.read_checkpoint(str(bench.folder / 'out/merged.pth'))['state_dict']
    assert sum('.lkb_reparam.weight' in name for name in names) == 3
    assert not any('.lkb_origin.' in name or '.small_conv.' in name for name in names)
    tested = bench.done('test.py', 'out/merged.py', 'out/merged.pth', '--work-dir', 'tested')
    assert tested.metric('mIoU') == pytest.approx(resumed.metric('mIoU'), abs=0.02)


def test_checks_before_a_run(bench):
    cfg = Config.fromfile(str(bench.folder / 'tiny.py'))
    preflight.check_mergeable(cfg)
    preflight.check_backbone(cfg)
    model = weights.build_model(cfg)
    assert sum(isinstance(module, EnlargedConv) for module in model.modules()) == 3
    file = bench.folder / 'trained.pth'
    torch.save(dict(state_dict=weights.build_model(cfg, 'cpu').state_dict()), file)
    preflight.check_weights(cfg, str(file), 'CHECKPOINT')
    backbone = preflight.check_backbone(cfg)
    assert len(backbone.enlarged) == 3
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    preflight.check_pretrained(cfg, backbone)
    cfg.model.backbone.init_cfg.prefix = 'teacher.'
    message = r'model\.backbone\.init_cfg\.checkpoint: .* does not match the backbone: .* missing'
    with pytest.raises(ValueError, match=message):
        preflight.check_pretrained(cfg, backbone)
    cfg.model.backbone.init_cfg = None
    with pytest.raises(ValueError, match='is .mmreplk.EnlargedBackbone., not mmreplk.RepLKNet'):
        preflight.check_replknet(cfg)
    cfg.model.backbone.kernel_size = 13
    with pytest.raises(ValueError, match=r'CHECKPOINT: .*\(\d+, 1, 9, 9\) instead of'):
        preflight.check_weights(cfg, str(file), 'CHECKPOINT')
    cfg.model.backbone.kernel_size = 8
    with pytest.raises(ValueError, match='small_kernel=3 must be at most kernel_size=8'):
        preflight.check_backbone(cfg)
    cfg.model.backbone.update(kernel_size=9, deploy=True)
    with pytest.raises(ValueError, match='deploy is True: this is the config of a merged model'):
        preflight.check_mergeable(cfg)
    with pytest.raises(ValueError, match='CHECKPOINT: .* does not match the model'):
        preflight.check_weights(cfg, str(file), 'CHECKPOINT')
