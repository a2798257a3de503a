"""Nothing in a file or a name is run, and nothing is written outside the work dir."""

import os
import resource
import stat
from pathlib import Path

import pytest
import torch

from mmreplk.training import work_dir_lock
from mmreplk.weights import safe_load as reading
from mmreplk.weights.safe_load import UnsafeFileError, read_any, read_checkpoint

# Would leave a file if a shell, or eval, ever saw it as more than a word.
EVIL = "a b;touch pwned;$(touch pwned)`touch pwned`'\"&& touch pwned #"
# Notes every file that a process opens for writing, makes, renames or removes.
AUDIT = '''
import os, sys
def watch(event, args, log=os.environ['AUDIT_LOG']):
    if event == 'open' and isinstance(args[0], (str, bytes)):
        writes = isinstance(args[1], str) and set(args[1]) & set('wax+')
        if not writes and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in ('os.mkdir', 'os.rename', 'os.link', 'os.symlink', 'os.remove', 'os.rmdir'):
        return
    paths = [os.fsdecode(arg) for arg in args if isinstance(arg, (str, bytes))][:2]
    if event == 'open':
        paths = paths[:1]
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log not in paths else None
    if handle is not None:
        os.write(handle, ''.join(os.path.abspath(path) + chr(10) for path in paths).encode())
        os.close(handle)
sys.addaudithook(watch)
'''


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture
def evil(tmp_path):
    torch.save(dict(state_dict={}, hook=Evil(tmp_path / 'pwned')), tmp_path / 'evil.pth')
    return tmp_path / 'evil.pth'


def test_files_that_could_run_code(evil, monkeypatch):
    for read in (read_checkpoint, read_any):
        with pytest.raises(UnsafeFileError, match=r'open.*--trust-checkpoints'):
            read(str(evil))
    assert not (evil.parent / 'pwned').exists()
    # Addresses: MMEngine reads them, and may not do more.
    with monkeypatch.context() as patch:
        patch.setattr(reading.osp, 'isfile', lambda path: False)
        patch.setattr(reading.CheckpointLoader, 'load_checkpoint',
                      lambda path, where: torch.load(path, where, weights_only=False))
        with pytest.raises(UnsafeFileError, match='open'):
            read_any(str(evil))
    assert not (evil.parent / 'pwned').exists()
    assert reading.ALWAYS not in os.environ
    monkeypatch.setenv(reading.NEVER, '1')
    assert read_any(str(evil))['state_dict'] == {}
    assert (evil.parent / 'pwned').exists()


@pytest.mark.slow
def test_tools_refuse_them(seg_bench, crashes, evil):
    run = crashes.Crashes(seg_bench.folder)
    content = torch.load(seg_bench.folder / seg_bench.checkpoint(), weights_only=False)
    torch.save(dict(content, hook=Evil(evil.parent / 'pwned')), evil)
    for args in (('test.py', 'tiny.py', evil), ('train.py', 'tiny.py', '--cfg-options',
                                                f'load_from={evil}')):
        process = run.start(*args)
        process.join(120)
        assert process.exitcode == 2, process.log.read_text()
        assert 'needs more than weights' in process.log.read_text()
    assert not (evil.parent / 'pwned').exists()
    run.finish('test.py', 'tiny.py', evil, '--trust-checkpoints')
    assert (evil.parent / 'pwned').exists()


def test_text_in_a_checkpoint_is_not_run(seg_bench, tmp_path):
    """Python in meta, a best checkpoint elsewhere: resumed, evaluated, nothing run or removed."""
    bench = seg_bench
    bench.write(train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2))
    bench.done('train.py', 'tiny.py', '--work-dir', 'run')
    victim = tmp_path / 'victim'
    victim.mkdir()
    file = bench.folder / 'run/iter_2.pth'
    content = torch.load(file, weights_only=False)
    text = f'open({str(tmp_path / "pwned")!r}, "w")\n'
    content['meta'].update(config=text, cfg=text, seed=0)
    content['message_hub']['runtime_info'].update(best_ckpt=str(victim), best_score=-1.0, cfg=text)
    content['message_hub']['resumed_keys'].update(best_ckpt=True, best_score=True)
    torch.save(content, file)
    longer = ('--cfg-options', 'train_cfg.max_iters=4', 'default_hooks.checkpoint.save_best=mIoU')
    run = bench.done('train.py', 'tiny.py', '--work-dir', 'run', '--resume', *longer)
    assert 'resumed epoch: 0, iter: 2' in run.text
    assert 'is not of this work dir' in run.text
    assert len(bench.files('run', 'best*')) == 1  # so that one was to be removed for it
    bench.done('test.py', 'tiny.py', file)
    assert victim.is_dir()
    assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize(('tool', 'args'), [
    ('dist_train.sh', (EVIL, 2, '--work-dir', EVIL, '--cfg-options', f'x={EVIL}')),
    ('dist_test.sh', (EVIL, EVIL, 2, '--out', EVIL)),
    ('slurm_train.sh', (EVIL, EVIL, EVIL, '--work-dir', EVIL)),
    ('slurm_test.sh', (EVIL, EVIL, EVIL, EVIL, '--out', EVIL)),
])
def test_names_reach_no_shell(seg_bench, tool, args):
    """Each comes out as the one word that it went in as."""
    bench = seg_bench
    echo = bench.folder / 'bin' / 'srun'
    echo.parent.mkdir()
    echo.write_text('#!/bin/sh\nprintf "<%s>\\n" "$@"\n')
    echo.chmod(echo.stat().st_mode | stat.S_IXUSR)
    env = dict(PATH=f'{echo.parent}{os.pathsep}{os.environ["PATH"]}', PYTHON=echo)
    before = sorted(bench.folder.rglob('*'))
    for more in ({}, dict(NNODES=2, MASTER_ADDR=EVIL, NODE_RANK=EVIL, PORT=EVIL), dict(
            GPUS=2, GPUS_PER_NODE=0, CPUS_PER_TASK=EVIL)):
        text = bench.done(tool, *args, **env, **more).text
        assert text.count(EVIL) >= sum(EVIL in str(arg) for arg in args)
    assert sorted(bench.folder.rglob('*')) == before


def test_install_refuses_unknown_words(seg_bench):
    run = seg_bench.run('install.sh', EVIL)
    assert run.code == 1
    assert f"unknown argument '{EVIL}'" in run.text
    assert not list(seg_bench.folder.rglob('pwned'))


def test_nothing_is_written_elsewhere(seg_bench, crashes):
    """A training and a test with terrible names, watched: their work dirs alone are written to."""
    bench = seg_bench
    home = bench.folder / 'home'
    (home / 'tmp').mkdir(parents=True)
    (bench.folder / 'audit.py').write_text(AUDIT)
    bench.write(custom_imports=dict(imports=['mmreplk', 'audit'], allow_failed_imports=False))
    name = EVIL.replace('/', '')
    (bench.folder / 'tiny.py').rename(bench.folder / f'{name}.py')
    run = crashes.Crashes(bench.folder)
    env = dict(HOME=home, TMPDIR=home / 'tmp', AUDIT_LOG=bench.folder / 'audit.txt',
               XDG_CACHE_HOME=home / 'cache')
    before = set(bench.folder.rglob('*'))
    run.finish('train.py', f'{name}.py', '--work-dir', f'work {name}', '--cfg-options',
               f'note={name}', **env)
    run.finish('test.py', f'{name}.py', f'work {name}/iter_2.pth', '--work-dir', f'test {name}',
               '--out', f'out {name}', **env)
    allowed = [str(bench.folder / f'{folder} {name}') for folder in ('work', 'test', 'out')]
    # yapf, by which MMEngine formats the copy of the config, keeps its grammar in the user's cache.
    temporary = [str(home / 'tmp'), str(home / 'cache'), '/dev/', '/proc/', '/tmp/pymp-']
    for path in (bench.folder / 'audit.txt').read_text().splitlines():
        assert path.startswith((*allowed, *temporary)), path
    new = {path for path in set(bench.folder.rglob('*')) - before
           if not str(path).startswith((*allowed, str(home / 'cache')))}
    assert {path.name for path in new if '__pycache__' not in str(path)} <= {
        'audit.txt', '1.log', '2.log'}
    assert any(str(path).startswith(allowed[0]) for path in bench.folder.rglob('*.pth'))
    assert list((home / 'tmp').iterdir()) == []


@pytest.mark.slow
def test_a_full_disk(seg_bench, crashes):
    """The second checkpoint does not fit: a message, and the first one is still good."""
    bench = seg_bench
    run = crashes.Crashes(bench.folder)
    run.finish('train.py', 'tiny.py')
    first = bench.folder / 'work_dirs/tiny/iter_2.pth'
    content = first.read_bytes()
    (bench.folder / 'full_disk.py').write_text(
        f'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({len(content) // 2}, '
        f'{resource.RLIM_INFINITY}))\n')
    bench.write(custom_imports=dict(imports=['mmreplk', 'full_disk'], allow_failed_imports=False))
    process = run.start('train.py', 'tiny.py', '--resume', '--cfg-options', 'train_cfg.max_iters=4')
    process.join(120)
    text = process.log.read_text()
    assert process.exitcode == 1, text
    assert "iter_4.pth' could not be written, and nothing was changed" in text
    assert 'and resume the run' in text
    assert first.read_bytes() == content
    assert bench.files('work_dirs/tiny', '*.pth') == {'iter_2.pth'}
    assert [path.name for path in first.parent.glob('.*')] == [work_dir_lock.NAME]
    bench.write()
    assert 'resumed epoch: 0, iter: 2' in run.finish(
        'train.py', 'tiny.py', '--resume', '--cfg-options', 'train_cfg.max_iters=4')


def test_a_broken_image(seg_bench, crashes):
    """The run ends with the name of the file; what was saved before is good."""
    bench = seg_bench
    Path(bench.folder / 'data/img/train/3.png').write_bytes(b'no picture')
    loader = dict(bench.config['train_dataloader'], batch_size=1)
    bench.write(train_dataloader=loader, train_cfg=dict(type='IterBasedTrainLoop', max_iters=8))
    run = crashes.Crashes(bench.folder)
    process = run.start('train.py', 'tiny.py', '--cfg-options', 'val_dataloader=None',
                        'val_cfg=None', 'val_evaluator=None')
    process.join(120)
    assert process.exitcode == 1
    assert 'train/3.png' in process.log.read_text().splitlines()[-1]
    read_checkpoint(str(bench.folder / 'work_dirs/tiny/iter_2.pth'))
