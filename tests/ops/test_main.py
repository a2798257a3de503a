"""``python -m mmreplk.ops`` as a user calls it."""

import importlib
import re
import sys

import pytest
import torch

from mmreplk.ops import __main__ as command, dropin
from mmreplk.ops.cpu import kernels

SHAPE = ['1', '4', '16', '16']


def lines_of(capsys, *arguments):
    assert command.main(['profile', *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize('backward', [False, True])
def test_profile(capsys, monkeypatch, backward):
    monkeypatch.setattr(command, 'SECONDS', 0)
    lines = lines_of(capsys, *SHAPE, '--kernel', '13', '--dtype', 'bf16',
                     *(['--backward'] if backward else []))
    assert lines[0].startswith('(1, 4, 16, 16) by 13x13, padding 6x6, to 16x16; bf16, forward')
    assert ('backward' in lines[0]) == backward
    table = [line for line in lines if line.startswith('|')]
    assert len({len(line) for line in table}) == 1, 'it lines up'
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table[2:]]
    assert {tuple(row[:2]) for row in rows} >= {
        (name, layout) for name in ('torch', 'auto') for layout in ('NCHW', 'channels-last')}
    for _, _, estimate, time, ratio in rows:
        assert re.fullmatch(r'[\d.e+-]+ ms', estimate)
        assert re.fullmatch(r'[\d.e+-]+ ms \([\d.e+-]+ ms to [\d.e+-]+ ms\)', time)
        assert float(ratio) > 0
    assert max(float(row[4]) for row in rows if row[0] == 'torch') == 1
    assert lines[-2].startswith('triton cannot serve: Triton runs on a GPU')
    assert lines[-1].startswith('cuda cannot serve: the CUDA kernels run on a GPU')


@pytest.mark.parametrize(('kernel', 'named'), [
    (['1x31'], '1x31, padding 0x15, to 16x16'), (['31,1'], '31x1, padding 15x0, to 16x16'),
    (['5', '51'], '5x51, padding 2x25, to 16x16'), (['4'], '4x4, padding 2x2, to 17x17')])
def test_kernels(capsys, kernel, named):
    lines = lines_of(capsys, *SHAPE, '--kernel', *kernel, '--dry-run')
    assert named in lines[0]
    assert not any('median' in line and ' ms (' in line for line in lines)


def test_a_dry_run_needs_no_memory(capsys):
    lines = lines_of(capsys, '4096', '4096', '2048', '2048', '--kernel', '31', '--dry-run',
                     '--backward')
    assert any(re.match(r'\| fft ', line) for line in lines)


def test_maps_that_do_not_fit(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(['profile', '4096', '4096', '2048', '2048', '--kernel', '31'])
    assert stop.value.code == 1
    assert re.search(r'maps of .* GiB do not fit.*\n.*--dry-run', capsys.readouterr().err)


@pytest.mark.parametrize(('bad', 'why'), [
    (['0', '4', '16', '16', '--kernel', '3'], "argument N: '0' must be a positive whole number"),
    (['1', '4', '-16', '16', '--kernel', '3'], "argument H: '-16' must be"),
    (['1', '4', '16', 'a', '--kernel', '3'], "argument W: 'a' must be"),
    (['1', '4', '16', '--kernel', '3'], 'required: W'),
    ([*SHAPE], 'required: --kernel'),
    ([*SHAPE, '--kernel', '-3'], "'-3' must be positive whole numbers: 31, or down and right"),
    ([*SHAPE, '--kernel', '3x'], "'3x' must be"),
    ([*SHAPE, '--kernel', '3x3x3'], 'are 3 sides: give one or two'),
    ([*SHAPE, '--kernel', '3', '--dtype', 'int8'], "--dtype: invalid choice: 'int8'"),
    ([*SHAPE, '--kernel', '3', '--device', 'nothing'], "'nothing' must be cpu or cuda"),
    (['1', '4', '99999999', '16', '--kernel', '3'], 'beyond what the operator takes')])
def test_wrong_values(capsys, bad, why):
    with pytest.raises(SystemExit) as stop:
        command.main(['profile', *bad])
    assert stop.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        command.main(['profile', *SHAPE, '--kernel', '3', '--device', 'cuda'])
    assert "argument --device: PyTorch has no 'cuda' here" in capsys.readouterr().err


def test_environment_and_folder(capsys):
    assert command.main(['env']) == 0
    text = capsys.readouterr().out
    assert re.search(rf'^torch: +{re.escape(torch.__version__)}$', text, re.M)
    assert re.search(r'^compiled kernels: ', text, re.M)
    assert re.search(r'^depthwise_conv2d_implicit_gemm: ', text, re.M)
    assert command.main(['dropin']) == 0
    assert capsys.readouterr().out.strip() == dropin.folder()


@pytest.mark.parametrize(('error', 'words'), [
    (ModuleNotFoundError('No module'), 'the compiled kernels are not installed: .*C compiler'),
    (ImportError('file too short'), 'the compiled kernels do not load: file too short')])
def test_missing_kernels_have_a_reason_in_words(monkeypatch, error, words):
    found = importlib.import_module

    def missing(name, package=None):
        if name == '._native':
            raise error
        return found(name, package)

    monkeypatch.setattr(importlib, 'import_module', missing)
    spec = importlib.util.spec_from_file_location('mmreplk.ops.cpu.without', kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    serves, why = module.available()
    assert not serves
    assert re.match(words, why)
    assert 'circular' not in why
