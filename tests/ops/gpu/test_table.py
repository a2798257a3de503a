"""The shipped table of measured tiles: valid, packaged, and followed where it has a row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmreplk.ops.gpu import arch, tiles, variants
from mmreplk.ops.problem import Problem

ROOT = Path(__file__).resolve().parents[3]
P = Problem(torch.float16, 'cuda', False, 64, 384, 32, 32, 1, (31, 31), (1, 1), (15, ) * 4, (1, 1),
            False)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """``table(text)``: the table's file."""
    from mmreplk.ops import caches

    def write(text):
        path = tmp_path / 'tiles.json'
        path.write_text(text)
        monkeypatch.setattr(tiles, 'TABLE', path)
        caches.clear_all()

    yield write
    monkeypatch.undo()
    caches.clear_all()


def test_every_row_is_a_tile():
    for key, row in json.loads(tiles.TABLE.read_text()).items():
        task = key.split()[1]
        assert len(row) == len((tiles.Tile if task == 'forward' else tiles.GradTile)._fields), key


def test_a_row_is_followed(table):
    pytest.importorskip('triton')
    device = arch.arch((9, 0))
    for task in ('forward', 'weight_grad'):
        best, *others = variants.ranked(P, task, 'half', device)
        table(json.dumps({tiles.key(P, task, 'half', device): others[-1].tile}))
        assert variants.ranked(P, task, 'half', device)[0] == (0, others[-1].tile)
        assert tiles.choose(P, task, 'half', device) == others[-1].tile
        assert best in variants.ranked(P, task, 'half', device)


@pytest.mark.parametrize('text', ['', '{', '[]', '\0', 'null'])
def test_a_damaged_table_is_as_none(table, text):
    pytest.importorskip('triton')
    device = arch.arch((9, 0))
    before = variants.ranked(P, 'forward', 'half', device)
    table(text)
    assert variants.ranked(P, 'forward', 'half', device) == before


def test_a_wheel_has_it(tmp_path):
    """The files that setup.py would put into one, by its own command, away from the checkout."""
    code = '''
import sys
from setuptools.dist import Distribution
from distutils.core import run_setup
dist = run_setup('setup.py', ['-q', 'build_py', '--build-lib', sys.argv[1]], 'commandline')
command = dist.get_command_obj('build_py')
command.ensure_finalized()
print('\\n'.join(command.get_outputs()))
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'lib')],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    files = {Path(line).relative_to(tmp_path / 'lib').as_posix()
             for line in done.stdout.splitlines() if line.startswith(str(tmp_path))}
    assert 'mmreplk/ops/gpu/tiles.json' in files
    packages = {path.relative_to(ROOT).as_posix() for path in
                (ROOT / 'mmreplk/ops').rglob('*.py') if '__pycache__' not in path.parts}
    assert packages <= files
