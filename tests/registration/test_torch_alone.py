"""Without the mm packages every part that needs them names what to install."""

import subprocess
import sys

import pytest

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
    'from mmreplk.analysis import enlarge_kernels'])
def test_what_to_install(line):
    done = subprocess.run([sys.executable, '-c', CODE.format(line)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert 'not installed: mmengine, mmcv. `pip install onedl-mmengine onedl-mmcv`' in done.stdout


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
