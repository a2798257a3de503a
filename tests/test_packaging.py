"""A plain wheel, installed away from the checkout, finds its configs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_plain_install_finds_the_packaged_configs(tmp_path):
    source, site = tmp_path / 'source', tmp_path / 'site'
    source.mkdir()
    for name in ('mmreplk', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation',
         '--no-index', '--target', str(site), str(source)], check=True)
    code = '''
import mmreplk
from mmengine.config import Config
cfg = Config.fromfile(mmreplk.config_path('upernet_replknet31b_ade20k'))
from mmengine.config.utils import _get_cfg_metainfo  # how MMEngine's hub reads the metafiles
from mmengine.hub import get_config
from mmengine.utils import get_installed_path
name = 'configs/replknet31b_imagenet_224.py'
weights = _get_cfg_metainfo(get_installed_path('mmreplk'), name)['Weights']
assert get_config(f'mmreplk::{name}', pretrained=True).model_path == weights
print(weights, mmreplk.__file__, cfg.filename, cfg.model.backbone.arch)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(site)})
    weights, package, config, arch = done.stdout.split()[-4:]
    assert weights.endswith('replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
    assert Path(package).is_relative_to(site)
    assert Path(config) == site / 'mmreplk/.mim/configs/upernet_replknet31b_ade20k.py'
    assert arch == '31B'
    packaged = {p.relative_to(site / 'mmreplk/.mim') for p in (site / 'mmreplk/.mim').rglob('*.py')}
    ours = {p.relative_to(ROOT) for folder in ('configs', 'tools')
            for p in (ROOT / folder).rglob('*.py')}
    developers = {'benchmarks', 'quickstart.py'}
    assert packaged == {path for path in ours if path.parts[1] not in developers}
    scripts = {p.name for p in (site / 'mmreplk/.mim/tools').glob('*.sh')}
    assert scripts == {'common.sh', 'dist_train.sh', 'dist_test.sh', 'slurm_train.sh',
                       'slurm_test.sh'}
    info = importlib.metadata.PathDistribution(next(site.glob('mmreplk-*.dist-info'))).metadata
    assert set(info.get_all('Provides-Extra')) == {'mmseg', 'mmdet', 'timm', 'dev'}
    # Older setuptools know no expression.
    assert 'Apache-2.0' in (info['License-Expression'], info['License'])
    text = info.get_payload()
    assert 'The operator alone' in text
    assert not re.findall(r'\]\((?!https?:)', text)
    assert any('Image Recognition' in line for line in info.get_all('Classifier'))
    assert info['Version'] == '0.2.0'
