import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmreplk
from mmreplk.config.files import read

MMDET = pytest.param('mmdet', marks=pytest.mark.needs_mmcv_ops)


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain', MMDET])
def test_prefixed_name_from_every_scope(scope, tiny_arch):
    registry = pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        for node in (registry, MODELS):
            model = node.build(dict(type='mmreplk.RepLKNet', arch=tiny_arch))
            assert type(model) is mmreplk.RepLKNet


@pytest.mark.parametrize('scope', ['mmseg', MMDET])
def test_bare_name(scope, tiny_arch):
    registry = pytest.importorskip(f'{scope}.registry').MODELS
    assert type(registry.build(dict(type='RepLKNet', arch=tiny_arch))) is mmreplk.RepLKNet


def test_mmpretrain_keeps_its_own_class():
    from mmpretrain.models.backbones import RepLKNet as Theirs
    from mmpretrain.registry import MODELS as registry
    assert registry.get('RepLKNet') is Theirs


def run_python(code, **kwargs):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False, **kwargs)


def test_the_scope_is_found_without_custom_imports():
    """MMEngine imports mmreplk.registry by itself when it meets the prefix."""
    done = run_python('from mmseg.registry import MODELS\n'
                      'print(MODELS.get("mmreplk.RepLKNet").__module__)')
    assert done.stdout.splitlines()[-1:] == ['mmreplk.models.replknet'], done.stderr


def test_found_packages_names_the_distributions():
    found = mmreplk.found_packages()
    assert set(found) == {'mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain'}
    name, version = found['mmengine'].rsplit(' ', 1)
    import mmengine
    assert version == mmengine.__version__
    assert name in ('mmengine', 'onedl-mmengine', 'mmengine-lite')


def test_an_import_replaces_nothing():
    code = '''
import mmengine.hub, mmengine.runner, mmengine.hooks
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader
places = [Config, mmengine.hub, mmengine.hub.hub, mmengine.runner.Runner, CheckpointLoader]
before = [dict(vars(place)) for place in places]
schemes = dict(CheckpointLoader._schemes)
import mmreplk
from mmreplk.config.files import read
read('mmreplk::upernet_replknet31b_ade20k.py')
for place, names in zip(places, before):
    assert vars(place).keys() == names.keys(), place
    for name, value in names.items():
        now = vars(place)[name]
        assert getattr(now, '__func__', now) is getattr(value, '__func__', value), (place, name)
assert CheckpointLoader._schemes == schemes
from mmengine.config.utils import MODULE2PACKAGE
assert MODULE2PACKAGE['mmreplk'] == 'mmreplk'
print('nothing')
'''
    done = run_python(code)
    assert done.stdout.splitlines()[-1:] == ['nothing'], done.stderr


def test_without_mm_packages_it_is_plain_pytorch():
    code = '''
import importlib.util as util, sys
found = util.find_spec
util.find_spec = lambda name, *a: None if name in ("mmengine", "mmcv") else found(name, *a)
import mmreplk
assert "mmreplk.models" not in sys.modules
print(mmreplk.RepLKNet.__module__)
assert not any(name.startswith(("mmengine", "mmcv")) for name in sys.modules)
arch = dict(large_kernel_sizes=[5], layers=[1], channels=[4])
mmreplk.RepLKNet(arch)
for argument in ("norm_cfg", "act_cfg", "ffn_act_cfg"):
    try:
        mmreplk.RepLKNet(arch, **{argument: dict(type="GELU")})
    except ModuleNotFoundError as error:
        print(error)
try:
    mmreplk.something
except AttributeError as error:
    print(error)
'''
    done = run_python(code)
    lines = done.stdout.splitlines()
    assert lines[0] == 'mmreplk.models.network', done.stderr
    assert len(lines) == 5
    assert all('MMCV, which is not installed here' in line for line in lines[1:4])
    assert 'something' in lines[4]


class TestConfigPaths:

    @pytest.mark.parametrize('name', ['upernet_replknet31b_ade20k.py',
                                      'upernet_replknet31b_ade20k'])
    def test_fromfile_from_any_folder(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cfg = read(f'mmreplk::{name}')
        assert cfg.model.backbone.type == 'mmreplk.RepLKNet'
        assert cfg.train_cfg.max_iters == 160000

    def test_as_a_base(self, tmp_path):
        file = tmp_path / 'mine.py'
        file.write_text("_base_ = 'mmreplk::upernet_replknet31b_ade20k.py'\n"
                        "model = dict(backbone=dict(arch='31L'))\n")
        cfg = read(file)
        assert cfg.model.backbone.arch == '31L'
        assert cfg.model.decode_head.num_classes == 150

    @pytest.mark.parametrize('before', ['', 'import mmreplk; '])
    def test_as_a_base_of_any_program(self, before, tmp_path):
        """MMSegmentation's train.py reads the config before anything of ours is imported."""
        (tmp_path / 'mine.py').write_text(
            "_base_ = __import__('mmreplk').config_path('upernet_replknet31b_ade20k')\n"
            "model = dict(backbone=dict(arch='31L'))\n")
        done = run_python(f"{before}from mmengine.config import Config\n"
                          "cfg = Config.fromfile('mine.py')\n"
                          "print(cfg.model.backbone.arch, cfg.model.decode_head.num_classes)",
                          cwd=tmp_path)
        assert done.stdout.splitlines()[-1:] == ['31L 150'], done.stderr

    def test_unknown_config_lists_the_known(self):
        with pytest.raises(FileNotFoundError, match='upernet_replknet31b_ade20k.py'):
            read('mmreplk::upernet_swin.py')

    def test_a_part_of_ours_as_a_base(self):
        assert read('mmreplk::_base_/schedules/sgd_poly_80k.py').train_cfg

    @pytest.mark.parametrize('name', [
        '../{0}', '_base_/../../{0}', '/{0}', '{1}', '..\\{0}', 'C:\\{0}', '{0}\0', '\0', '',
        './upernet_replknet31b_ade20k.py', '_base_', '..', '\n{0}',
        '_base_/../upernet_replknet31b_ade20k'])
    def test_only_names_of_ours(self, name, tmp_path, monkeypatch):
        """Whatever a name leads to, it is no packaged config, as a path and as a base."""
        root = tmp_path / 'configs'
        (root / '_base_').mkdir(parents=True)
        (root / 'upernet_replknet31b_ade20k.py').write_text('a = 1\n')
        (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "pwned")!r}, "w")\n')
        monkeypatch.setattr('mmreplk.config.files.config_root', lambda: root)
        path = 'mmreplk::' + name.format('evil.py', tmp_path / 'evil.py')
        with pytest.raises(FileNotFoundError, match='mmreplk has no config'):
            read(path)
        with pytest.raises(FileNotFoundError, match='mmreplk has no config'):
            mmreplk.config_path(path.removeprefix('mmreplk::'))
        (tmp_path / 'mine.py').write_text(f'_base_ = {path!r}\n')
        with pytest.raises(FileNotFoundError, match='mmreplk has no config'):
            read(tmp_path / 'mine.py')
        assert not (tmp_path / 'pwned').exists()

    def test_other_paths_are_left_to_mmengine(self, tmp_path):
        (tmp_path / 'plain.py').write_text('x = 1\n')
        assert read(tmp_path / 'plain.py').x == 1
        with pytest.raises(FileNotFoundError):
            read('elsewhere.py')

    def test_every_config_is_pure_data_and_loads(self):
        from mmreplk.config.files import config_root
        files = sorted(config_root().glob('*.py'))
        assert files
        for file in files:
            assert Config.fromfile(file).custom_imports.imports == ['mmreplk'], file
        for file in config_root().rglob('*.py'):
            assert 'import ' not in file.read_text().replace('custom_imports', ''), file


class TestAde20kConfig:
    """The recipe of UperNet-RepLKNet-31B on ADE20K, figure by figure."""

    @pytest.fixture(scope='class')
    def cfg(self):
        return read('mmreplk::upernet_replknet31b_ade20k.py')

    def test_recipe(self, cfg):
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 2e-4, 0.05)
        assert optimizer.betas == (0.9, 0.999)
        warmup, poly = cfg.param_scheduler
        assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 1e-6, poly.begin)
        assert (poly.type, poly.power, poly.end) == ('PolyLR', 1.0, 160000)
        assert cfg.train_dataloader.batch_size * 8 * cfg.train_cfg.max_iters == 160000 * 32
        assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size * 8
        assert cfg.crop_size == (512, 512)
        assert cfg.model.backbone.drop_path_rate == 0.5
        assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
        assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
        assert cfg.model.test_cfg.mode == 'whole'

    def test_no_weight_decay_on_norms(self, cfg):
        from mmengine.optim import build_optim_wrapper
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2))
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        assert [group['weight_decay'] for group in groups] == [0.05, 0.05, 0.0, 0.0]

    def test_size(self, cfg):
        """Facts: 112M parameters, counted here with the auxiliary head and the small kernels."""
        from mmseg.registry import MODELS as registry
        with torch.device('meta'), DefaultScope.overwrite_default_scope('mmseg'):
            model = registry.build(cfg.model)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(112, rel=0.015)
