"""What a run cannot go on from is refused by name, and passed over where there is another."""

import math
import os
import tempfile

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict

from mmreplk import paths
from mmreplk.commands import checks as preflight
from mmreplk.training import resumable, resume_state
from mmreplk.training.resume_state import check_resumable


@pytest.fixture
def run(tmp_path, run_state):
    """A work dir with iter_1.pth and iter_2.pth; ``run(change)`` saves the second one changed."""
    cfg = Config(dict(work_dir=str(tmp_path / 'run'), resume=True, default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False))))
    os.makedirs(cfg.work_dir)
    for number in (1, 2):
        torch.save(dict(run_state, state_dict={}), f'{cfg.work_dir}/iter_{number}.pth')
    return cfg


def changed(state: dict, name: str, value) -> dict:
    """A copy with one entry, at a dotted name, replaced; left out for ``...``."""
    key, _, rest = name.partition('.')
    state = dict(state)
    if rest:
        state[key] = changed(state[key], rest, value)
    elif value is ...:
        del state[key]
    else:
        state[key] = value
    return state


BROKEN = [
    *((f'meta.{key}', value) for key in ('iter', 'epoch')
      for value in (-1, math.nan, 1.5, 2.0, '3', None, True, ..., [1], 2**70, '../../x')),
    *(('meta.seed', value) for value in (-1, 'x', 1.5, math.nan, 2**32)),
    ('meta', ...), ('meta', []), ('meta.config', 'gpu_ids = 7'),
    *((key, value) for key in ('optimizer', 'message_hub')
      for value in (..., None, {}, [], 'x', 7, dict(state={}), torch.ones(2))),
    ('optimizer', dict(state={}, param_groups=[])),
    ('optimizer', dict(state={}, param_groups=[7])),
    ('optimizer', dict(state=[], param_groups=[dict(params=[0])])),
    ('optimizer', dict(state={}, param_groups=[dict(params=0)])),
    ('optimizer', dict(state={1: {}}, param_groups=[dict(params=[0])])),
    ('optimizer', dict(state={0: 7}, param_groups=[dict(params=[0])])),
    ('optimizer', dict(state={}, param_groups=[dict(params=[0], lr=math.nan)])),
    ('optimizer', dict(a=dict(state={}))),
    ('param_schedulers', 'x'), ('param_schedulers', [7]),
    ('param_schedulers', [dict(last_step=-3)]), ('param_schedulers', dict(a=7)),
    *((f'message_hub.{key}', value) for key in ('log_scalars', 'runtime_info', 'resumed_keys')
      for value in (..., None, [], 'x')),
    *(('message_hub.runtime_info.best_score', value)
      for value in ('x', None, math.nan, torch.ones(3))),
    ('message_hub.runtime_info.best_ckpt_mIoU', 7),
    *(('message_hub.runtime_info.keep_ckpt_ids', value) for value in ('x', 7, [-1], ['../x'])),
]


@pytest.mark.parametrize(('name', 'value'), BROKEN)
def test_broken_state(run, run_state, name, value):
    """Named in a line; without a name, the one before is used."""
    last = f'{run.work_dir}/iter_2.pth'
    torch.save(changed(dict(run_state, state_dict={}), name, value), last)
    with pytest.raises(ValueError, match=r"state of a training run|is damaged: ") as error:
        check_resumable(torch.load(last, weights_only=True))
    assert '\n' not in str(error.value)
    path, notes = resumable.find_resumable(run)
    assert os.path.basename(path) == 'iter_1.pth'
    assert notes[0].startswith(f'resume: the checkpoint {last!r} ')


@pytest.mark.parametrize('kind', [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_what_mmengine_saves(run_state, kind):
    model = torch.nn.Linear(2, 2)
    wrapper = OptimWrapper(kind([dict(params=[value]) for value in model.parameters()], lr=0.1))
    wrapper.update_params(model(torch.ones(1, 2)).sum())
    several = OptimWrapperDict(a=wrapper, b=wrapper)
    for optimizer in (wrapper, several):
        hub = dict(run_state['message_hub'], runtime_info=dict(
            best_score=torch.tensor(0.5), best_ckpt=None, keep_ckpt_ids=[1], best_score_a=0.1))
        meta = dict(run_state['meta'], seed=None, config='gpu_ids = range(0, 1)')
        check_resumable(dict(run_state, optimizer=optimizer.state_dict(), message_hub=hub,
                             meta=meta))
    amp = dict(wrapper.state_dict(), loss_scaler=dict(scale=2.0))
    assert AmpOptimWrapper
    check_resumable(dict(run_state, optimizer=amp, param_schedulers=dict(a=[dict(last_step=3)])))


@pytest.mark.parametrize('content', [
    b'\0' * 40, b'\xff\xfe\x80', b'iter_2.pth\0', b'gone.pth', b'/gone/iter_9.pth', b'/dev/zero',
    b'a\nb', b'https://example.org/iter_2.pth', b's3://bucket/iter_2.pth', b'x' * 10**5, b'..',
    b'{0}/pipe', b'{0}/other/iter_7.pth', b'{0}/run/../other/iter_7.pth', b'{0}/run/best.pth',
    b'{0}/run', b'/'])
def test_a_pointer_of_no_use(run, tmp_path, content):
    """A line, and the newest is used: nothing elsewhere is read, nothing waits for ever."""
    (tmp_path / 'other').mkdir()
    os.link(f'{run.work_dir}/iter_1.pth', tmp_path / 'other/iter_7.pth')
    os.symlink(tmp_path / 'other/iter_7.pth', f'{run.work_dir}/best.pth')
    os.mkfifo(tmp_path / 'pipe')
    os.mkfifo(f'{run.work_dir}/iter_6.pth')  # passed over among the numbered ones
    with open(f'{run.work_dir}/last_checkpoint', 'wb') as file:
        file.write(content.replace(b'{0}', os.fsencode(tmp_path)))
    path, notes = resumable.find_resumable(run)
    assert path == f'{run.work_dir}/iter_2.pth'
    assert any('so it is passed over' in note for note in notes)
    if b'iter_2' not in content:
        assert any("iter_6.pth' is no file but a pipe" in note for note in notes)
    assert all('\n' not in note for note in notes)
    preflight.check_work_dir(run)
    assert run.resume


@pytest.mark.parametrize('content', [b'\0\0', b'\xff', b'/gone.pth', b'/dev/null'])
def test_a_pointer_alone(run, content):
    for number in (1, 2):
        os.remove(f'{run.work_dir}/iter_{number}.pth')
    with open(f'{run.work_dir}/last_checkpoint', 'wb') as file:
        file.write(content)
    with pytest.raises(FileNotFoundError, match='last_checkpoint.*no other checkpoint') as error:
        preflight.check_work_dir(run)
    assert '\n' not in str(error.value)


def test_the_runner_does_not_follow_an_empty_pointer(run):
    """It would, if it were told to resume without a file."""
    for number in (1, 2):
        os.remove(f'{run.work_dir}/iter_{number}.pth')
    open(f'{run.work_dir}/last_checkpoint', 'w').close()
    assert 'starts at its beginning' in preflight.check_work_dir(run)[0]
    assert (run.resume, run.load_from) == (False, None)


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'link'])
def test_a_pointer_that_is_no_file(run, tmp_path, kind):
    """MMEngine would write to it at the first checkpoint."""
    pointer = f'{run.work_dir}/last_checkpoint'
    dict(pipe=os.mkfifo, folder=os.mkdir,
         link=lambda path: os.symlink(tmp_path / 'elsewhere', path))[kind](pointer)
    with pytest.raises(OSError, match=f'last_checkpoint.* is no file but a {kind}'):
        preflight.check_work_dir(run)
    run.resume = False
    with pytest.raises(FileExistsError, match='last_checkpoint'):
        preflight.check_work_dir(run)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name, kind in ((tmp_path / 'pipe', 'pipe'), (tmp_path, 'folder'), ('/dev/null', 'device')):
        with pytest.raises(OSError, match=f'CHECKPOINT: .* is no file but a {kind}'):
            paths.check_file(str(name), 'CHECKPOINT', '')
    with pytest.raises(FileNotFoundError):
        paths.check_file('a\0b', 'CHECKPOINT', '')


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    cfg = Config(dict(work_dir=str(tmp_path / 'new/run')))
    preflight.make_work_dir(cfg)
    assert os.listdir(cfg.work_dir) == []
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file/run', tmp_path / ('x' * 300), '/dev/null'):
        with pytest.raises(OSError, match='--work-dir: .*no folder that can be written to'):
            preflight.make_work_dir(Config(dict(work_dir=str(path))))
    cfg.default_hooks = dict(checkpoint=dict(out_dir=str(tmp_path / 'file')))
    with pytest.raises(OSError, match='checkpoint.out_dir: .*no folder'):
        preflight.make_work_dir(cfg)

    def refused(dir):
        raise PermissionError(13, 'Permission denied', dir)  # root may write anywhere

    monkeypatch.setattr(tempfile, 'TemporaryFile', refused)
    with pytest.raises(OSError, match=r'--work-dir: .*\(Permission denied\)'):
        preflight.make_work_dir(cfg)


def test_a_schedule_that_waits_behind_a_warm_up():
    """MMEngine's schedulers are at -1 until their begin."""
    assert resume_state._is_schedule([dict(last_step=3), dict(last_step=-1)])
    assert not resume_state._is_schedule([dict(last_step=-2)])
