"""Without the mm packages every part that needs them names what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

CODE = '''
import sys
sys.modules.update(mmengine=None, mmcv=None)
import mmreplk
try:
    {}
except ImportError as error:
    print(error)
'''


@pytest.mark.parametrize('line', [
    'from mmreplk.weights import Pretrained',
    'import mmreplk.training.fsdp', 'import mmreplk.deploy.onnx', 'import mmreplk.commands.checks',
    'from mmreplk.analysis import enlarge_kernels', 'from mmreplk.analysis import cost_of'])
def test_what_to_install(line):
    done = subprocess.run([sys.executable, '-c', CODE.format(line)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert 'not installed: mmengine, mmcv. `pip install onedl-mmengine onedl-mmcv`' in done.stdout


def test_tools_name_what_to_install():
    """Each in one line, before it reads an argument."""
    code = '''
import runpy, sys
sys.modules.update(mmengine=None, mmcv=None)
for tool in sys.argv[1:]:
    sys.argv = [tool, "--help"]
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as end:
        print(end.code, file=sys.stderr)
'''
    tools = sorted(path for path in TOOLS.glob('*.py')
                   if path.name not in ('torchrun.py', 'quickstart.py'))
    assert len(tools) >= 10
    done = subprocess.run([sys.executable, '-c', code, *map(str, tools)], capture_output=True,
                          text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    lines = iter(done.stderr.splitlines())
    assert done.returncode == 0, done.stderr
    for tool, line, code in zip(tools, lines, lines, strict=True):
        assert code == '2'
        assert line.startswith(f'{tool.name}: error: ')
        assert '`pip install onedl-mmengine onedl-mmcv`' in line


def test_scoped_names_of_everything_registered():
    from mmengine.registry import Registry

    import mmreplk.registry as ours
    for registry in vars(ours).values():
        if not isinstance(registry, Registry) or registry.scope != 'mmreplk':
            continue
        registry.import_from_location()
        for name, item in registry.module_dict.items():
            assert registry.parent.get(f'mmreplk.{name}') is item, name
    constructors = ours.OPTIM_WRAPPER_CONSTRUCTORS
    assert constructors.parent.get('mmreplk.RepLKNetLayerDecayConstructor')
