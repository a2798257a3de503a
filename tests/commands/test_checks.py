import pytest
import torch
from mmengine.config import Config

from mmreplk import RepLKNet, packages
from mmreplk.commands import checks as preflight, data_checks as datasets
from mmreplk.config import model as config_model


def config(tmp_path, **entries) -> Config:
    path = tmp_path / 'tiny.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in entries.items()))
    return Config.fromfile(str(path))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Makes files below the working directory; a trailing slash makes a folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            (path if name.endswith('/') else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith('/'):
                path.write_text('')

    return make


def missing(dataset) -> dict:
    return dict(datasets.missing_files(dataset, 'd'))


@pytest.mark.parametrize('entries', [{}, dict(default_scope='mmpose'), dict(default_scope=None)])
def test_unknown_scope(tmp_path, entries):
    with pytest.raises(ValueError, match='not one of mmseg, mmdet, mmpretrain'):
        preflight.check_scope(config(tmp_path, **entries))


@pytest.mark.parametrize(('scope', 'module', 'remedy'), [
    ('mmseg', 'mmseg', '`bash tools/install.sh`'),
    ('mmpretrain', 'mmpretrain', '`bash tools/install.sh`'),
    ('mmdet', 'mmdet', '`bash tools/install.sh`'),
    ('mmdet', 'mmcv._ext', 'install.sh --with-ops`'),
])
def test_missing_package(tmp_path, monkeypatch, scope, module, remedy):
    monkeypatch.setattr(config_model, 'importable', lambda name: name != module)
    with pytest.raises(ModuleNotFoundError, match=scope) as error:
        preflight.check_scope(config(tmp_path, default_scope=scope))
    assert remedy in str(error.value)
    monkeypatch.setattr(config_model, 'importable', lambda name: True)
    preflight.check_scope(config(tmp_path, default_scope=scope))


def test_importable():
    assert packages.importable('torch')
    assert not packages.importable('no_such_module')
    assert not packages.importable('no_such_module.child')


def test_mixed_package_sets(monkeypatch):
    installed = {'onedl-mmcv': '2.3.6'}

    def version(name):
        if name not in installed:
            raise packages.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(packages, 'version', version)
    packages.check_package_sets()
    installed['mmsegmentation'] = '1.2.2'
    with pytest.raises(RuntimeError, match='onedl-mmcv 2.3.6 and mmsegmentation 1.2.2'):
        packages.check_package_sets()
    del installed['onedl-mmcv']
    packages.check_package_sets()


def test_data_of_each_codebase(files):
    seg = dict(
        type='ADE20KDataset', data_root='ade',
        data_prefix=dict(img_path='img/train', seg_map_path='ann/train'))
    det = dict(data_root='coco/', ann_file='ann/train.json', data_prefix=dict(img='train/'))
    cls = dict(type='CustomDataset', data_root='cls', data_prefix='train')
    assert missing(seg) == {'d.data_root': 'ade'}
    assert missing(det) == {'d.data_root': 'coco/'}
    assert missing(cls) == {'d.data_root': 'cls'}
    files('ade/img/train/', 'coco/train/', 'cls/val/')
    assert missing(seg) == {'d.data_prefix.seg_map_path': 'ade/ann/train'}
    assert missing(det) == {'d.ann_file': 'coco/ann/train.json'}
    assert missing(cls) == {'d.data_prefix': 'cls/train'}
    files('ade/ann/train/', 'coco/ann/train.json', 'cls/train/')
    assert missing(seg) == missing(det) == missing(cls) == {}


def test_data_behind_wrappers(files):
    inner = dict(data_root='gone')
    assert missing(dict(type='RepeatDataset', dataset=inner)) == {'d.dataset.data_root': 'gone'}
    assert missing(dict(type='ConcatDataset', datasets=[dict(data_root='.'), inner])) == {
        'd.datasets.1.data_root': 'gone'}
    assert missing([inner]) == {'d.0.data_root': 'gone'}


def test_data_that_is_not_looked_for(files, tmp_path):
    assert missing(dict(data_root='s3://bucket/ade')) == {}
    assert missing(dict(data_root='openmmlab:s3/ade')) == {}
    assert missing(dict(data_root='gone', backend_args=dict(backend='petrel'))) == {}
    assert missing(dict(type='CIFAR10', data_root='gone')) == {}
    assert missing(dict(type='CIFAR10', data_root='gone', download=False)) != {}
    # Absolute paths do not use the root, and a test set may come without labels.
    files('img/')
    assert missing(dict(data_root='gone', data_prefix=dict(img=str(tmp_path / 'img')))) == {}
    blind = dict(data_root='.', data_prefix=dict(img_path='img', seg_map_path='gone'))
    assert missing(dict(blind, pipeline=[dict(type='LoadImageFromFile')])) == {}
    assert missing(dict(blind, pipeline=[dict(type='LoadAnnotations')])) != {}


def test_check_data_looks_at_the_phases_in_use(files, tmp_path):
    files('here/')
    cfg = config(
        tmp_path,
        train_dataloader=dict(dataset=dict(data_root='here')),
        val_dataloader=None,
        test_dataloader=dict(dataset=dict(data_root='gone')),
        test_evaluator=[dict(type='CocoMetric', ann_file='gone/test.json'), dict(type='Other')])
    datasets.check_data(cfg, ('train', 'val'))
    with pytest.raises(FileNotFoundError) as error:
        datasets.check_data(cfg, ('test', ))
    text = str(error.value)
    assert f"test_dataloader.dataset.data_root: 'gone' ({tmp_path / 'gone'})" in text
    assert ('--cfg-options test_dataloader.dataset.data_root=PATH '
            'test_evaluator.0.ann_file=PATH') in text


def test_weight_files(files, tmp_path):
    files('here.pth')

    def model(path):
        weights = [dict(type='Kaiming'), dict(type='Pretrained', checkpoint=path)]
        return config(tmp_path, model=dict(
            backbone=dict(init_cfg=weights), neck=dict(pretrained='torchvision://resnet50')))

    preflight.check_pretrained(model('here.pth'))
    preflight.check_pretrained(model('https://host/file.pth'))
    with pytest.raises(FileNotFoundError) as error:
        preflight.check_pretrained(model('gone.pth'))
    assert "model.backbone.init_cfg.1.checkpoint: no such file 'gone.pth'" in str(error.value)
    assert 'by model.backbone.init_cfg.1.checkpoint=FILE' in str(error.value)


@pytest.mark.parametrize('name', ['iter_10.pth', 'best_mIoU.pth', 'last_checkpoint'])
def test_work_dir_with_results(files, tmp_path, name):
    cfg = config(tmp_path, work_dir='run')
    preflight.check_work_dir(cfg)
    files('run/20260101_000000/run.log')
    preflight.check_work_dir(cfg)
    files(f'run/{name}')
    with pytest.raises(FileExistsError, match=f"--work-dir: 'run'.*{name}.*--resume"):
        preflight.check_work_dir(cfg)


def test_work_dir_with_checkpoints_elsewhere(files, tmp_path):
    files('store/run/iter_1.pth')
    cfg = config(tmp_path, work_dir='a/run', default_hooks=dict(checkpoint=dict(out_dir='store')))
    with pytest.raises(FileExistsError, match='store/run'):
        preflight.check_work_dir(cfg)


def test_resume_of_a_run_that_was_moved(files, tmp_path, run_state):
    (tmp_path / 'run').mkdir()
    torch.save(dict(run_state, state_dict={}), tmp_path / 'run/iter_1.pth')
    cfg = config(tmp_path, work_dir='run', resume=True)
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'run/iter_1.pth'))
    preflight.check_work_dir(cfg)
    assert cfg.load_from == str(tmp_path / 'run/iter_1.pth')
    cfg.load_from = None
    (tmp_path / 'run/last_checkpoint').write_text('old/place/iter_2.pth')
    with pytest.raises(FileNotFoundError, match='resume.*old/place.*load_from=FILE and resume=True'):
        preflight.check_work_dir(cfg)
    cfg.load_from = 'run/iter_1.pth'
    preflight.check_work_dir(cfg)


def test_outputs(files):
    files('full/x.png', 'empty/', 'out.pkl')
    preflight.check_output('new', '--out')
    preflight.check_output('empty', '--out')
    with pytest.raises(FileExistsError, match="--out: 'full': the folder is not empty"):
        preflight.check_output('full', '--out')
    with pytest.raises(FileExistsError, match="--out: 'out.pkl': the file exists"):
        preflight.check_output('out.pkl', '--out')


def test_device():
    preflight.check_device(None)
    preflight.check_device('cpu')
    with pytest.raises(ValueError, match='--device nonsense'):
        preflight.check_device('nonsense')


def test_train_and_test_need_their_parts(files, tmp_path):
    cfg = config(tmp_path, default_scope='mmseg', model=dict(), work_dir='run')
    with pytest.raises(ValueError, match='no train_dataloader'):
        preflight.preflight_train(cfg, 'none')
    with pytest.raises(ValueError, match='no test_dataloader'):
        preflight.preflight_test(cfg, 'none')
    cfg.merge_from_dict(dict(train_dataloader=dict(dataset=dict(type='X')), load_from='gone.pth'))
    with pytest.raises(FileNotFoundError, match="load_from: no such file 'gone.pth'"):
        preflight.preflight_train(cfg, 'none')
    cfg.resume = True
    with pytest.raises(FileNotFoundError, match="--resume: no such file 'gone.pth'"):
        preflight.preflight_train(cfg, 'none')
    cfg.merge_from_dict(dict(test_dataloader=dict(), test_evaluator=dict()))
    with pytest.raises(FileNotFoundError, match="CHECKPOINT: no such file 'gone.pth'"):
        preflight.preflight_test(cfg, 'none')


def segmentor(tmp_path, head=None, aux=None, **model):
    """A config with a RepLKNet of channels 8, 16, 32, 64, its head FCN by default."""
    arch = dict(large_kernel_sizes=[5] * 4, layers=[1] * 4, channels=[8, 16, 32, 64])
    backbone = dict(type='mmreplk.RepLKNet', arch=arch, **model.pop('backbone', {}))
    head = head or dict(type='FCNHead', in_channels=64)
    return config(tmp_path, default_scope='mmseg', model=dict(
        type='EncoderDecoder', backbone=backbone, decode_head=head, auxiliary_head=aux, **model))


def refusal(cfg) -> str:
    with pytest.raises(ValueError, match='CONFIG') as error:
        preflight.check_backbone(cfg)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_weights_of_the_backbone_before(tmp_path):
    preflight.check_backbone(segmentor(tmp_path, pretrained=None))
    text = refusal(segmentor(tmp_path, pretrained='open-mmlab://resnet50_v1c'))
    assert "model.pretrained='open-mmlab://resnet50_v1c'" in text
    assert 'Write pretrained=None in model' in text
    text = refusal(segmentor(tmp_path, backbone=dict(pretrained='a.pth')))
    assert "model.backbone: pretrained='a.pth'" in text


def test_the_backbones_own_error_under_other_programs():
    """MMSegmentation hands model.pretrained on to the backbone."""
    with pytest.raises(ValueError, match="pretrained='x'.*write pretrained=None in model"):
        RepLKNet('31B', pretrained='x')
    with pytest.raises(TypeError, match=r"init_cfg='x.pth' is a str. Write init_cfg=dict\(type="):
        RepLKNet('31B', init_cfg='x.pth')
    with pytest.raises(TypeError, match='init_cfg must be a dict or a list of dicts, got 3'):
        RepLKNet('31B', init_cfg=3)


def test_init_cfg_that_is_a_string(tmp_path):
    wanted = "=dict(type='Pretrained', checkpoint='a.pth')"
    text = refusal(segmentor(tmp_path, backbone=dict(init_cfg='a.pth')))
    assert f'model.backbone.init_cfg{wanted}' in text
    head = dict(type='FCNHead', in_channels=64, init_cfg=[dict(type='Normal'), 'a.pth'])
    assert f'model.decode_head.init_cfg{wanted}' in refusal(segmentor(tmp_path, head))


@pytest.mark.parametrize(('head', 'wanted'), [
    (dict(type='FCNHead', in_channels=2048), 'Write model.decode_head.in_channels=64.'),
    (dict(type='FCNHead', in_channels=1024, in_index=2), 'model.decode_head.in_channels=32.'),
    (dict(type='FCNHead', in_channels=64, in_index=4), 'index 4. Write another in_index'),
    (dict(type='UPerHead', in_channels=[96, 192, 384, 768], in_index=[0, 1, 2, 3]),
     'decode_head.in_channels=[96, 192, 384, 768], but RepLKNet returns 4 feature maps of '
     '[8, 16, 32, 64] channels. Write model.decode_head.in_channels=[8, 16, 32, 64].'),
    (dict(type='mmreplk.UPerHead', in_channels=[8, 16, 32, 9], in_index=[0, 1, 2, 3]),
     'Write model.decode_head.in_channels=[8, 16, 32, 64].'),
    (dict(type='DepthwiseSeparableASPPHead', in_channels=64, c1_in_channels=256),
     'Write model.decode_head.c1_in_channels=8.'),
    (dict(type='Mask2FormerHead', in_channels=[256, 512, 1024, 2048]),
     'Write model.decode_head.in_channels=[8, 16, 32, 64].'),
])
def test_heads_of_other_channels(tmp_path, head, wanted):
    assert wanted in refusal(segmentor(tmp_path, head))


def test_auxiliary_heads_and_necks(tmp_path):
    good, bad = (dict(type='FCNHead', in_channels=n, in_index=1) for n in (16, 512))
    preflight.check_backbone(segmentor(tmp_path, aux=[good, good]))
    assert 'model.auxiliary_head.1.in_channels=512' in refusal(
        segmentor(tmp_path, aux=[good, bad]))
    # Behind a neck the heads are its own affair.
    neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=4, num_outs=4)
    preflight.check_backbone(segmentor(tmp_path, aux=bad, neck=neck))
    neck['in_channels'] = [16, 32, 64]
    text = refusal(segmentor(tmp_path, neck=neck))
    assert ('Write model.neck.in_channels=[8, 16, 32, 64], or model.neck.in_channels=[16, 32, 64] '
            'with model.backbone.out_indices=(1, 2, 3).') in text
    preflight.check_backbone(segmentor(tmp_path, neck=neck, backbone=dict(out_indices=(1, 2, 3))))


def test_classifiers(tmp_path):
    gap, head = dict(type='GlobalAveragePooling'), dict(type='LinearClsHead', in_channels=768)
    text = refusal(config(tmp_path, default_scope='mmpretrain', model=dict(
        type='ImageClassifier', neck=gap, head=head, pretrained='of_all.pth',
        backbone=dict(type='mmreplk.RepLKNet', arch='31B'))))
    assert 'Write model.head.in_channels=1024.' in text  # its pretrained is of the whole model
