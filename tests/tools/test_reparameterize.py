"""reparameterize.py on the three codebases: the merged model predicts the same, from its files."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from mmreplk.commands import checks as preflight
from mmreplk.deploy import merge as deploy
from mmreplk.models import branch
from mmreplk.weights import safe_load as reading


@pytest.fixture
def trained(randomize_norms):
    """Writes ``trained.pth``: weights whose norms have an effect, as after training."""

    def write(bench):
        cfg = Config.fromfile(str(bench.folder / 'tiny.py'))
        model, _ = deploy.load_model(cfg, None)
        randomize_norms(model)
        meta = dict(dataset_meta=dict(classes=('dark', 'bright')))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), bench.folder / 'trained.pth')
        return cfg, model

    return write


@pytest.mark.parametrize('kind', ['seg', 'cls', 'det'])
def test_same_predictions(request, trained, kind):
    bench = request.getfixturevalue(f'{kind}_bench')
    cfg, model = trained(bench)
    run = bench.done('reparameterize.py', 'tiny.py', 'trained.pth', 'out/merged.pth')
    assert 'labels: ' + ('the same' if kind == 'cls' else 'the same on all') in run.text
    assert bench.files('out') == {'merged.pth', 'merged.py'}
    path = str(bench.folder / 'out/merged.pth')
    content = reading.read_checkpoint(path)
    names = content['state_dict'].keys()
    assert any('lkb_reparam' in name for name in names)
    assert not any('lkb_origin' in name or 'small_conv' in name for name in names)
    assert content['meta']['dataset_meta']['classes'] == ('dark', 'bright')

    merged_cfg = Config.fromfile(str(bench.folder / 'out/merged.py'))
    merged, _ = deploy.load_model(merged_cfg, path)
    image = str(next((bench.folder / 'data').rglob('*.png')))
    results = [deploy.run_model(one, deploy.prepare_image(config, one, image))
               for config, one in ((cfg, model), (merged_cfg, merged))]
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    if kind == 'seg':
        bench.done('test.py', 'tiny.py', 'trained.pth', '--work-dir', 'one')
        bench.done('test.py', 'out/merged.py', 'out/merged.pth', '--work-dir', 'two')
        assert bench.metrics('two') == pytest.approx(bench.metrics('one'), abs=1e-3)


HEAD = dict(type='UPerHead', in_channels=[4, 8], in_index=[0, 1], pool_scales=(1, 2), channels=4,
            num_classes=2, norm_cfg=dict(type='SyncBN'), align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss'))
LOAD = """
import sys
import torch
from mmseg.apis import inference_model, init_model
model = init_model(*sys.argv[1:3], device='cpu')
model.cfg.test_pipeline = model.cfg.test_dataloader.dataset.pipeline
label = inference_model(model, sys.argv[3]).pred_sem_seg.data
print(type(model.decode_head).__module__)
torch.save(label, sys.argv[4])
"""


def test_uper_head(seg_bench, trained):
    """MMSegmentation's is replaced by the faster one; its own functions load and run the result."""
    bench = seg_bench
    bench.write(model=dict(bench.config['model'], decode_head=HEAD))
    cfg, model = trained(bench)
    assert type(model.decode_head).__module__ == 'mmseg.models.decode_heads.uper_head'
    bench.done('reparameterize.py', 'tiny.py', 'trained.pth', 'merged.pth')
    merged = Config.fromfile(str(bench.folder / 'merged.py'))
    assert merged.model.decode_head == dict(cfg.model.decode_head, type='mmreplk.UPerHead')
    image = str(next((bench.folder / 'data').rglob('*.png')))
    run = subprocess.run([sys.executable, '-c', LOAD, 'merged.py', 'merged.pth', image, 'label.pt'],
                         cwd=bench.folder, capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith('mmreplk.models.cpu_inference.uper_head'), run.stderr
    expected = deploy.run_model(model, deploy.prepare_image(cfg, model, image))['labels']
    label = torch.load(bench.folder / 'label.pt', weights_only=True)
    assert (label != expected).float().mean() < 1e-3


@pytest.mark.parametrize(('head', 'replaced'), [
    (dict(type='UPerHead'), True), (dict(type='mmseg.UPerHead'), True),
    (dict(type='mmreplk.UPerHead'), False), (dict(type='FCNHead'), False), (None, False),
    ([dict(type='UPerHead')], False)])
def test_which_heads_are_replaced(head, replaced):
    cfg = Config(dict(default_scope='mmseg', model=dict(backbone=dict(), decode_head=head)))
    after = deploy.deploy_config(cfg).model.decode_head
    assert after == (dict(type='mmreplk.UPerHead') if replaced else head)


def test_refusals(seg_bench, trained):
    bench = seg_bench
    cfg, _ = trained(bench)
    bench.done('reparameterize.py', 'tiny.py', 'trained.pth', 'merged.pth', '--image',
               'data/img/val/0.png')
    message = bench.refused('reparameterize.py', 'tiny.py', 'merged.pth', 'again.pth')
    assert "CHECKPOINT: 'merged.pth' is merged already" in message
    message = bench.refused('reparameterize.py', 'merged.py', 'merged.pth', 'again.pth')
    assert 'deploy is True: this is the config of a merged model' in message
    assert "'tiny.py': the file exists" in bench.refused(
        'reparameterize.py', 'tiny.py', 'trained.pth', 'tiny.pth')
    # What the other tools say of them.
    with pytest.raises(ValueError, match='CHECKPOINT: .* is merged already'):
        preflight.check_weights(cfg, str(bench.folder / 'merged.pth'), 'CHECKPOINT')
    cfg.model.backbone.deploy = True
    with pytest.raises(ValueError, match='CHECKPOINT: .* is not merged'):
        preflight.check_weights(cfg, str(bench.folder / 'trained.pth'), 'CHECKPOINT')
    preflight.check_weights(cfg, str(bench.folder / 'merged.pth'), 'CHECKPOINT')


def call(bench, cfg, **options):
    return deploy.reparameterize(cfg, str(bench.folder / 'trained.pth'),
                                 str(bench.folder / 'm.pth'), str(bench.folder / 'm.py'), **options)


def test_a_wrong_merge_is_noticed(seg_bench, trained, monkeypatch):
    cfg, _ = trained(seg_bench)
    right = branch.Branch.fused

    def wrong(self):
        self.bn.eps = 1e-3  # instead of 1e-5
        return right(self)

    monkeypatch.setattr(branch.Branch, 'fused', wrong)
    lines, ok = call(seg_bench, cfg)
    assert not ok
    assert 'more than rounding' in lines[-1]
    assert not list(seg_bench.folder.glob('m.*'))
    monkeypatch.undo()
    assert call(seg_bench, cfg)[1]


def test_config_and_weights_that_do_not_go_together(seg_bench, trained):
    cfg, model = trained(seg_bench)
    file = seg_bench.folder / 'trained.pth'
    cfg.model.decode_head.num_classes = 3
    with pytest.raises(ValueError, match='CHECKPOINT: .*has 2 classes, but the model 3'):
        call(seg_bench, cfg)
    cfg.model.decode_head.num_classes = 2
    cfg.model.backbone.arch.large_kernel_sizes = [9, 5]
    with pytest.raises(ValueError, match='large_kernel_sizes 7-5.*but the backbone of.*9-5'):
        call(seg_bench, cfg)
    cfg.model.backbone.arch.large_kernel_sizes = [7, 5]
    state = model.state_dict()
    del state['decode_head.convs.0.conv.weight']
    torch.save(dict(state_dict=state), file)
    with pytest.raises(ValueError, match=r'1 missing \(decode_head\.convs\.0\.conv\.weight'):
        call(seg_bench, cfg)
    cfg.model.backbone.norm_cfg = dict(type='GN', num_groups=1)
    torch.save(dict(state_dict=deploy.load_model(cfg, None)[0].state_dict()), file)
    with pytest.raises(ValueError, match='cannot merge a convolution with GroupNorm'):
        call(seg_bench, cfg)


def test_configs_that_cannot_be_merged(seg_bench):
    cfg = Config.fromfile(str(seg_bench.folder / 'tiny.py'))
    preflight.check_mergeable(cfg)
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match='has no test_dataloader'):
        preflight.check_mergeable(cfg)
    cfg.model.backbone.arch = '31M'
    with pytest.raises(ValueError, match="arch='31M' is unknown"):
        preflight.check_mergeable(cfg)
    cfg.model.backbone = dict(type='ResNet', depth=18)
    with pytest.raises(ValueError, match="model.backbone is 'ResNet', not mmreplk.RepLKNet"):
        preflight.check_mergeable(cfg)


def test_deploy_config_starts_from_nothing(seg_bench):
    cfg = Config.fromfile(str(seg_bench.folder / 'tiny.py'))
    pretrained = dict(type='Pretrained', checkpoint='https://host/file.pth')
    cfg.model.backbone.init_cfg = pretrained
    cfg.model.decode_head.init_cfg = [dict(type='Normal', layer='Conv2d'), pretrained]
    cfg.model.pretrained = 'https://host/file.pth'
    cfg.load_from, cfg.resume = 'old.pth', True
    merged = deploy.deploy_config(cfg)
    assert 'https' not in merged.pretty_text
    assert merged.model.backbone.deploy is True
    assert merged.load_from is None
    assert merged.resume is False
    assert cfg.model.backbone.init_cfg == pretrained, 'the config of the caller was changed'


def test_compare():
    before = {'features 0': torch.tensor([1.0, -4.0]), 'scores': torch.tensor([0.5]),
              'labels': torch.tensor([1])}
    moved = dict(before, scores=torch.tensor([0.5 + 1e-3]))
    (first, second), line = deploy.compare(before, moved)
    assert (first.largest, first.scale, first.ok) == (0.0, 4.0, True)
    assert second.largest == pytest.approx(1e-3, rel=1e-3)
    assert not second.ok
    assert line == 'labels: the same'
    assert deploy.compare(before, dict(before, labels=torch.tensor([2])))[1] == (
        'labels: another one')
    assert not deploy.Difference.of('x', torch.ones(2), torch.full((2, ), float('nan'))).ok
    assert not deploy.Difference.of('x', torch.ones(2), torch.ones(3)).ok
    maps = {'features 0': torch.ones(1), 'labels': torch.tensor([[1, 2], [3, 4]])}
    other = dict(maps, labels=torch.tensor([[1, 2], [0, 4]]))
    assert deploy.compare(maps, other)[1] == 'labels: 1 of 4 pixels differ'


def test_the_drawn_picture_is_a_picture():
    one, two = deploy.example_image(), deploy.example_image()
    assert one.shape == (256, 320, 3)
    assert one.std() > 30
    assert (one == two).all()
