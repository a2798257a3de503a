"""timm and torch are enough: every mm package is blocked in a process of its own."""

import subprocess
import sys

import pytest

CODE = '''
import sys

BLOCKED = {'mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain', 'mmocr'}


class Block:
    """A finder that refuses the mm packages, as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Block())
import timm
import torch
from timm.optim import create_optimizer_v2

import mmreplk
import mmreplk.timm

torch.manual_seed(0)
model = timm.create_model('replknet_31b_narrow', num_classes=3, drop_path_rate=0.1)
model.set_grad_checkpointing()
optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, layer_decay=0.7)
loss = torch.nn.functional.cross_entropy(model.train()(torch.rand(4, 3, 64, 64)),
                                         torch.tensor([0, 1, 2, 0]))
loss.backward()
optimizer.step()
path = sys.argv[1]
torch.save(dict(model={name.replace('head.fc.', 'head.'): value
                       for name, value in model.state_dict().items()}), path)
again = timm.create_model('replknet_31b_narrow', num_classes=3, pretrained=True,
                          pretrained_cfg_overlay=dict(file=path, num_classes=3))
x = torch.rand(1, 3, 64, 96)
with torch.no_grad():
    expected = model.eval()(x)
    assert torch.equal(again.eval()(x), expected)
    again.switch_to_deploy()
    torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-4)
features = timm.create_model('replknet_xl_narrow', features_only=True, out_indices=(0, 2))
assert [tuple(out.shape[1:]) for out in features(x)] == [(32, 16, 24), (128, 4, 6)]

backbone = mmreplk.RepLKNet('31B', out_indices=(0, 1))
assert type(backbone).__module__ == 'mmreplk.models.network'
assert [out.shape[1] for out in backbone.eval()(x)] == [128, 256]
assert not {name.partition('.')[0] for name in sys.modules} & BLOCKED
print('trained')
'''


def test_imports_builds_trains_saves_and_loads(tmp_path):
    done = subprocess.run([sys.executable, '-c', CODE, str(tmp_path / 'weights.pth')],
                          capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ['trained'], done.stderr


@pytest.mark.parametrize('mm', [True, False])
def test_without_timm_the_remedy_is_named(mm):
    hidden = "('timm', )" if mm else "('timm', 'mmengine', 'mmcv')"
    code = f'''
import sys
for name in {hidden}:
    sys.modules[name] = None
try:
    import mmreplk.timm
except ModuleNotFoundError as error:
    print(error)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert done.stdout.startswith('mmreplk.timm needs timm'), done.stderr
    assert 'pip install timm' in done.stdout
