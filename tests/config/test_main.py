"""python -m mmreplk, as a shell uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

import mmreplk
from mmreplk.__main__ import main
from mmreplk.config.files import config_root

NAME = 'upernet_replknet31b_ade20k'


@pytest.mark.parametrize('name', [NAME, f'{NAME}.py', f'mmreplk::{NAME}', f'mmreplk::{NAME}.py'])
def test_path(name, capsys):
    assert main(['config', name]) == 0
    assert capsys.readouterr().out == f'{mmreplk.config_path(NAME)}\n'


def test_in_a_shell_from_any_folder(tmp_path):
    """The output is the path alone, for $(...)."""
    done = subprocess.run([sys.executable, '-m', 'mmreplk', 'config', NAME], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    assert Path(done.stdout.removesuffix('\n')).samefile(mmreplk.config_path(NAME))


def test_without_a_name_all_are_listed(capsys):
    assert main(['config']) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == sorted(path.stem for path in config_root().glob('*.py'))
    assert NAME in names


@pytest.mark.parametrize(('name', 'hint'), [
    ('upernet_replknet31b_ade', f'is it {NAME}'), ('zzz', "'zzz'; `python"),
    ('../setup.py', "no config '../setup.py'")])
def test_unknown(name, hint, capsys):
    assert main(['config', name]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert len(error.splitlines()) == 1
    assert hint in error
    assert '`python -m mmreplk config` lists all' in error


def test_help(capsys):
    for arguments in (['--help'], ['config', '--help']):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert 'path of a packaged config' in capsys.readouterr().out
