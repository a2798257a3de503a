"""The user's cache: atomic, shared between processes, and never in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.gpu import cache

ROOT = Path(__file__).resolve().parents[3]
ABOUT = dict(device='a', driver='1')


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv('MMREPLK_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert cache.folder() == tmp_path / '.cache/mmreplk/gpu'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'x'))
    assert cache.folder() == tmp_path / 'x/mmreplk/gpu'
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')  # to be ignored, says the standard
    assert cache.folder() == tmp_path / '.cache/mmreplk/gpu'
    monkeypatch.setenv('MMREPLK_CACHE', str(tmp_path / 'named'))
    assert cache.folder() == tmp_path / 'named/gpu'


def test_rows_are_added(own_cache):
    assert cache.read('x', ABOUT) == {}
    assert cache.add('x', ABOUT, dict(a=1))
    assert cache.add('x', ABOUT, dict(b=2))
    assert cache.read('x', ABOUT) == dict(a=1, b=2)
    assert cache.read('x', dict(ABOUT, driver='2')) == {}
    assert sorted(p.name for p in own_cache.iterdir()) == ['x.json', 'x.lock']


def test_a_failed_write_leaves_what_was_there(own_cache, monkeypatch):
    cache.add('x', ABOUT, dict(a=1))

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(cache.os, 'fsync', full)
    assert not cache.add('x', ABOUT, dict(b=2))
    assert cache.read('x', ABOUT) == dict(a=1)
    assert sorted(p.name for p in own_cache.iterdir()) == ['x.json', 'x.lock']


@pytest.mark.parametrize('where', ['a file', 'read-only', 'no home', 'a null byte'])
def test_works_without(stand_in, data, right, where, tmp_path, monkeypatch):
    """No warning, right results, and each process finds out for itself."""
    if where == 'a file':
        (tmp_path / 'f').write_text('')
        monkeypatch.setenv('MMREPLK_CACHE', str(tmp_path / 'f'))
    elif where == 'read-only':
        def refuse(self, *args, **kwargs):
            raise PermissionError(30, 'Read-only file system', str(self))
        monkeypatch.setattr(cache.Path, 'mkdir', refuse)
    elif where == 'no home':
        monkeypatch.delenv('MMREPLK_CACHE')
        monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
        monkeypatch.setattr(cache.os.path, 'expanduser', lambda path: path)
        assert cache.folder() is None
    else:
        monkeypatch.setattr(cache, 'folder', lambda: Path('a\0b'))
    x, weight, bias, padding = data
    for _ in range(2):
        right(large_kernel_dwconv2d(x, weight, bias, padding=padding))
    assert not cache.add('x', ABOUT, dict(a=1))
    assert sum(call.problem.channels == 2 for call in stand_in.calls) == 1


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission(tmp_path, monkeypatch):
    (tmp_path / 'r').mkdir(mode=0o500)
    monkeypatch.setenv('MMREPLK_CACHE', str(tmp_path / 'r'))
    assert not cache.add('x', ABOUT, dict(a=1))


def test_several_processes_write_at_once(own_cache):
    code = f'''
import sys
from mmreplk.ops.gpu import cache
for i in range(15):
    assert cache.add('x', {ABOUT!r}, {{sys.argv[1] + str(i): i}})
'''
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    running = [subprocess.Popen([sys.executable, '-c', code, name], env=env) for name in 'abc']
    assert [each.wait() for each in running] == [0, 0, 0]
    rows = cache.read('x', ABOUT)
    assert rows == {f'{name}{i}': i for name in 'abc' for i in range(15)}
    assert json.loads((own_cache / 'x.json').read_text())['format'] == cache.FORMAT
    assert not list(own_cache.glob('.writing-*'))


def test_a_huge_file_is_not_read(own_cache):
    cache.add('x', ABOUT, dict(a=1))
    with (own_cache / 'x.json').open('a') as file:
        file.truncate(cache.LARGEST + 1)
    assert cache.read('x', ABOUT) == {}


def test_a_lock_that_is_never_given_back(own_cache, monkeypatch):
    """Of a process that hangs: not waited for."""
    fcntl = pytest.importorskip('fcntl')
    monkeypatch.setattr(cache, 'PATIENCE', 0.05)
    cache.add('x', ABOUT, dict(a=1))
    with (own_cache / 'x.lock').open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.add('x', ABOUT, dict(b=2))
    assert cache.read('x', ABOUT) == dict(a=1, b=2)


@pytest.mark.filterwarnings('error')
def test_the_check_under_other_defaults(stand_in, data, right):
    """What users set for their own tensors is not the check's."""
    import torch
    x, weight, bias, padding = data
    torch.set_default_dtype(torch.float64)
    torch.set_default_device('meta')
    try:
        out = large_kernel_dwconv2d(x, weight, bias, padding=padding)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    right(out)
    assert stand_in.calls[-1].problem.channels == 3
