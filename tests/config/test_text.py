"""The text of a config in a checkpoint is read as text, and never run."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmreplk.config.text import forbid_config_code, plain_settings


@pytest.fixture
def forbidden(monkeypatch):
    monkeypatch.setattr(Config, 'fromstring', staticmethod(Config.fromstring))
    forbid_config_code()


def test_what_mmengine_dumps():
    """A dump comes back whole, whatever plain values are in it."""
    cfg = dict(model=dict(a=[1, (2.5, None)], b={'x-y': -1, '3': True}), gpu_ids=[0, 1], s='a"\n')
    assert plain_settings(Config(cfg).pretty_text) == cfg
    assert plain_settings('gpu_ids = range(0, 2)') == dict(gpu_ids=range(2))


@pytest.mark.parametrize('text', [
    'a = open("{}", "w")', 'open("{}", "w")', 'a = [__import__("os").system("touch {}")]',
    'import os; os.mkdir("{}")', 'a = dict(x=open("{}", "w"))', 'a = f\'{{open("{}", "w")}}\'',
    'def f(x=open("{}", "w")): pass', 'a = {{**open("{}", "w")}}', '_base_ = "{}"',
    'custom_imports = dict(imports=["antigravity"])', 'a = range(open("{}", "w"))',
    'a = (lambda: open("{}", "w"))()', 'a: open("{}", "w") = 1', '@open("{}", "w")\ndef f(): 1'])
def test_nothing_is_run(forbidden, tmp_path, text):
    cfg = Config.fromstring(f'before = 1\n{text.format(tmp_path / "pwned")}\ngpu_ids = [3]', '.py')
    assert not (tmp_path / 'pwned').exists()
    assert (cfg.before, cfg.gpu_ids) == (1, [3])


@pytest.mark.parametrize('text', [
    None, 7, b'a = 1', ['a = 1'], '', 'a = (', 'a = \0', 'a = ' + '(' * 10**5, 'a = ' + '-' * 10**5,
    'a = ' + '1+' * 10**5 + '1', 'a = {[]: 1}', 'filename = 1', 'a = range(1.5)'])
def test_what_is_no_config(forbidden, text):
    assert len(Config.fromstring(text, '.py')) == 0


def test_other_formats(forbidden):
    """MMEngine's reader of YAML builds any object that the text names."""
    with pytest.raises(ValueError, match=r"'.yml' text.*--trust-checkpoints"):
        Config.fromstring('a: !!python/object/apply:os.system [id]', '.yml')


class Model(BaseModel):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        """Nothing to speak of."""
        return dict(loss=self.layer(inputs).sum())


@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_the_runner_resumes_without_running_it(forbidden, tmp_path, key):
    """MMEngine's own Runner, given the file: where nothing is forbidden, 'config' is run."""
    text = f'open({str(tmp_path / "pwned")!r}, "w")\ngpu_ids = [0]\n'
    optimizer = torch.optim.SGD(Model().parameters(), lr=0.1).state_dict()
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    torch.save(dict(state_dict=Model().state_dict(), optimizer=optimizer, message_hub=hub,
                    meta={'epoch': 0, 'iter': 1, key: text}), tmp_path / 'iter_1.pth')
    runner = Runner(
        Model(), str(tmp_path / 'run'), resume=True, load_from=str(tmp_path / 'iter_1.pth'),
        train_dataloader=dict(batch_size=1, dataset=list(torch.rand(4, 1)),
                              sampler=dict(type='InfiniteSampler'), num_workers=0),
        train_cfg=dict(by_epoch=False, max_iters=1), experiment_name=f'{tmp_path.name}_{key}',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), default_scope='mmengine')
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.load_or_resume()
    assert runner.iter == 1
    assert not (tmp_path / 'pwned').exists()
