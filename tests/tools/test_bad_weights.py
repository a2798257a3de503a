"""Weights that do not fit: every tool says so before it begins, and leaves everything as it is."""

from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config

from mmreplk.commands import checks as preflight
from mmreplk.config.model import build_model
from mmreplk.training.resume_state import check_resumable
from mmreplk.weights import safe_load as reading
from mmreplk.weights.layouts import unwrap


class Files:
    """A bench with ``random.pth`` and files derived from it.

    Attributes:
        bench (Bench): The bench.
        cfg (Config): Its config.
        state (dict[str, Tensor]): The weights in ``random.pth``.
    """

    def __init__(self, bench):
        self.bench = bench
        self.cfg = Config.fromfile(str(bench.folder / 'tiny.py'))
        self.state = unwrap(reading.read_checkpoint(str(bench.folder / bench.checkpoint())))

    def save(self, name: str, changes: dict | None = None, drop: str = '-', **beside) -> str:
        state = {key: value for key, value in self.state.items() if not key.startswith(drop)}
        torch.save(dict(state_dict={**state, **(changes or {})}, **beside),
                   self.bench.folder / name)
        return str(self.bench.folder / name)

    def check(self, name: str, **options) -> str | None:
        return preflight.check_weights(self.cfg, str(self.bench.folder / name), 'CHECKPOINT',
                                       **options)


@pytest.fixture
def files(seg_bench):
    return Files(seg_bench)


OTHER_HEAD = {'decode_head.conv_seg.weight': torch.rand(5, 8, 1, 1),
              'decode_head.conv_seg.bias': torch.rand(5)}
STEM = 'backbone.stem.0.conv.weight'


def test_what_fits(files):
    assert files.check('random.pth') is None
    files.save('more.pth', {'auxiliary_head.conv_seg.weight': torch.rand(2, 4, 1, 1)})
    assert files.check('more.pth') is None
    kept = {key: value for key, value in files.state.items() if 'num_batches' not in key}
    torch.save({f'module.{key}': value for key, value in kept.items()},
               files.bench.folder / 'parallel.pth')
    assert files.check('parallel.pth') is None


@pytest.mark.parametrize(('changes', 'drop', 'message'), [
    ({}, 'decode_head.convs.0.bn.bias', r'1 missing \(decode_head\.convs\.0\.bn\.bias\)'),
    ({}, 'backbone.stages.1.blocks.1.pw1.bn', 'missing'),
    ({STEM: torch.rand(4, 5, 3, 3)}, '-', r'stem\.0\.conv\.weight \(4, 5, 3, 3\) instead'),
    ({'backbone.stages.0.norm.weight': torch.rand(4)}, '-', r'1 unexpected \(backbone\.stages\.0'),
    (OTHER_HEAD, '-', 'has 5 classes, but the model 2'),
    ({}, 'backbone.', 'holds no RepLKNet'),
])
def test_what_does_not_fit(files, changes, drop, message):
    files.save('bad.pth', changes, drop)
    with pytest.raises(ValueError, match=f"CHECKPOINT: .*bad.pth' .*{message}") as error:
        files.check('bad.pth')
    remedy = '. Name the weights of this config, or the config of these weights.'
    assert str(error.value).endswith(remedy) is ('no RepLKNet' not in message)


def test_start_of_a_fine_tuning(files):
    """load_from: heads may differ, which is said; the backbone may not."""
    files.save('head.pth', OTHER_HEAD)
    note = files.check('head.pth', heads_may_differ=True)
    assert '2 of other shape (decode_head.conv_seg.weight (5, 8, 1, 1)' in note
    assert 'init_weights' in note
    files.save('bare.pth', drop='decode_head.')
    assert '7 missing' in files.check('bare.pth', heads_may_differ=True)
    files.save('bad.pth', drop='backbone.stages.0.blocks.0.pw2')
    with pytest.raises(ValueError, match='missing'):
        files.check('bad.pth', heads_may_differ=True)
    torch.save(dict(state_dict={'conv1.weight': torch.rand(1)}), files.bench.folder / 'resnet.pth')
    with pytest.raises(ValueError, match='holds no RepLKNet'):
        files.check('resnet.pth', heads_may_differ=True)


def test_other_networks_of_the_codebase(files):
    """A config without RepLKNet is checked by names and shapes alone."""
    files.cfg.model.backbone = dict(
        type='ResNet', depth=18, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1),
        out_indices=(0, 1))
    state = build_model(files.cfg, 'cpu').state_dict()
    torch.save(dict(state_dict=state), files.bench.folder / 'resnet.pth')
    assert files.check('resnet.pth') is None
    with pytest.raises(ValueError, match='does not match the model: .* missing'):
        files.check('random.pth')


def test_models_that_cannot_be_built_without_numbers(files):
    files.cfg.model.backbone = dict(
        type='SwinTransformer', embed_dims=8, depths=(1, 1), num_heads=(1, 1), strides=(4, 2),
        out_indices=(0, 1), drop_path_rate=0.1)
    files.cfg.model.decode_head.in_channels = 16
    torch.save(dict(state_dict=build_model(files.cfg, 'cpu').state_dict()),
               files.bench.folder / 'swin.pth')
    assert files.check('swin.pth') is None
    files.cfg.model.backbone.depths = 'no'
    with pytest.raises(ValueError, match='model cannot be built'):
        files.check('swin.pth')


def test_addresses(files, monkeypatch):
    """Fetched and looked at by the first process of a machine, before any work."""
    asked = []

    def load(path, *args, **kwargs):
        asked.append(path)
        if 'gone' in path:
            raise URLError('no route')
        return dict(state_dict={**files.state, **OTHER_HEAD})

    monkeypatch.setattr(reading.CheckpointLoader, 'load_checkpoint', load)
    check = preflight.check_weights
    with pytest.raises(ValueError, match=r"CHECKPOINT: 'https://h/a\.pth' has 5 classes"):
        check(files.cfg, 'https://h/a.pth', 'CHECKPOINT')
    with pytest.raises(ValueError, match='cannot be fetched .*no route.*name a local copy'):
        check(files.cfg, 'https://h/gone.pth', 'CHECKPOINT')
    assert asked == ['https://h/a.pth', 'https://h/gone.pth']
    assert check(files.cfg, 'https://h/gone.pth', 'CHECKPOINT', first=False) is None
    backbone = preflight.check_backbone(files.cfg)
    files.cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='https://h/gone.pth')
    with pytest.raises(ValueError, match=r'init_cfg\.checkpoint=FILE'):
        preflight.check_pretrained(files.cfg, backbone)
    assert preflight.check_pretrained(files.cfg, backbone, first=False) is None
    assert len(asked) == 3


def test_weights_for_images_of_other_channels(files):
    """The check before a run knows the way out, names it, and takes what the run takes."""
    cfg = files.cfg
    start = dict(type='Pretrained', checkpoint=files.save('rgb.pth'), prefix='backbone.')
    cfg.model.backbone.update(in_channels=6, init_cfg=start)
    backbone = preflight.check_backbone(cfg)
    with pytest.raises(ValueError, match=r"model\.backbone\.init_cfg\.checkpoint: .*the network "
                       r"for 6: in_channels='adapt'"):
        preflight.check_pretrained(cfg, backbone)
    with pytest.raises(ValueError, match="load_from: .*in_channels='adapt'"):
        preflight.check_weights(cfg, start['checkpoint'], 'load_from', heads_may_differ=True)
    start['in_channels'] = 'adapt'
    cfg.model.backbone.init_cfg = start
    assert preflight.check_pretrained(cfg, backbone) is None
    build_model(cfg, 'cpu').init_weights()
    cfg.model.backbone.init_cfg.in_channels = 'mean'
    with pytest.raises(ValueError, match="in_channels='mean' in init_cfg must be 'adapt'"):
        preflight.check_pretrained(cfg, backbone)


def test_weights_to_start_from(files):
    cfg = files.cfg
    backbone = preflight.check_backbone(cfg)
    owner = dict(type='Pretrained', checkpoint=files.save('w.pth'), prefix='backbone.')
    cfg.model.backbone.init_cfg = [dict(type='Kaiming', layer='Conv2d'), owner]
    preflight.check_pretrained(cfg, backbone)
    owner['checkpoint'] = files.save('cut.pth', drop='backbone.stages.0.blocks.0.pw1.bn')
    cfg.model.backbone.init_cfg = [owner]
    with pytest.raises(ValueError, match=r'model\.backbone\.init_cfg\.0\.checkpoint: .*missing.*'
                       r'by model\.backbone\.init_cfg\.0\.checkpoint=FILE'):
        preflight.check_pretrained(cfg, backbone)
    # For the whole model: the same rules as load_from.
    cfg.model.backbone.init_cfg = None
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=files.save('head.pth', OTHER_HEAD))
    assert 'model.init_cfg.checkpoint' in preflight.check_pretrained(cfg, backbone)
    cfg.model.init_cfg.checkpoint = files.save('bad.pth', drop='backbone.stem.1.conv')
    with pytest.raises(ValueError, match=r'model\.init_cfg\.checkpoint: .*missing'):
        preflight.check_pretrained(cfg, backbone)


def test_resuming(files, monkeypatch, run_state):
    monkeypatch.chdir(files.bench.folder)
    (files.bench.folder / 'run').mkdir()
    files.save('run/whole.pth', **run_state)
    assert files.check('run/whole.pth', check_more=check_resumable) is None
    with pytest.raises(ValueError, match='no state of a training run.*load_from=FILE'):
        files.check('random.pth', check_more=check_resumable)
    files.save('run/other.pth', OTHER_HEAD, **run_state)
    cfg = files.cfg
    cfg.work_dir, cfg.launcher, cfg.resume = 'run', 'none', True
    (files.bench.folder / 'run/last_checkpoint').write_text('run/other.pth')
    with pytest.raises(ValueError, match="resume: 'run/other.pth' has 5 classes"):
        preflight.preflight_train(cfg, 'none')
    cfg.load_from = None
    (files.bench.folder / 'run/last_checkpoint').write_text('run/whole.pth')
    assert preflight.preflight_train(cfg, 'none') is None
    cfg.resume, cfg.work_dir, cfg.load_from = False, 'new', 'run/other.pth'
    assert "load_from: 'run/other.pth'" in preflight.preflight_train(cfg, 'none')


def test_tools_refuse(files, run_state):
    bench = files.bench
    files.save('classes.pth', OTHER_HEAD, **run_state)
    picture = ('data/img/val/0.png', 'tiny.py', 'classes.pth', '--out', 'x.png')
    for tool, *args in (('test.py', 'tiny.py', 'classes.pth'), ('image_demo.py', *picture),
                        ('train.py', 'tiny.py', '--resume', 'classes.pth')):
        assert 'has 5 classes, but the model 2' in bench.refused(tool, *args)


def test_a_classifier_starts_from_mmpretrain(cls_bench):
    """model.init_cfg with MMPretrain's file, as the fine-tuning configs have it."""
    config = dict(cls_bench.config['model'])
    config['backbone'] = dict(config['backbone'], final_norm=True)
    config['init_cfg'] = dict(type='Pretrained', checkpoint=str(cls_bench.folder / 'w.pth'))
    cls_bench.write(model=config)
    files = Files(cls_bench)
    renamed = {key.replace('backbone.norm.', 'backbone.stages.1.norm.'): torch.rand_like(value)
               if value.is_floating_point() else value for key, value in files.state.items()}
    torch.save(dict(state_dict=renamed), cls_bench.folder / 'w.pth')
    files.cfg.model.backbone.norm_cfg = dict(type='BN')
    preflight.check_pretrained(files.cfg, preflight.check_backbone(files.cfg))
    model = build_model(files.cfg, 'cpu')
    model.init_weights()
    for name, value in model.state_dict().items():
        foreign = name.replace('backbone.norm.', 'backbone.stages.1.norm.')
        assert torch.equal(value, renamed[foreign]), name


def test_bare_weights_and_ema(cls_bench):
    """EMAHook fails on them in the middle of the loading; without it they are fine."""
    files = Files(cls_bench)
    torch.save(files.state, cls_bench.folder / 'bare.pth')
    assert files.check('bare.pth') is None
    cls_bench.write(custom_hooks=[dict(type='EMAHook', momentum=1e-4)])
    message = cls_bench.refused('test.py', 'tiny.py', 'bare.pth')
    assert "CHECKPOINT: 'bare.pth' holds bare weights, but the EMAHook" in message
    cls_bench.done('test.py', 'tiny.py', files.save('wrapped.pth'), '--work-dir', 'run')
