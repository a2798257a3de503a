"""Checkpoints of others: read as they are, or refused; never garbage, a crash or a program."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmreplk.analysis.erf import zoo as erf_zoo
from mmreplk.models import RepLKNet
from mmreplk.weights.checks import check_model_weights
from mmreplk.weights.layouts import check_values, unwrap
from mmreplk.weights.pretrained import enlarged_weights
from mmreplk.weights.safe_load import UnsafeFileError, read_any, read_checkpoint

FUZZ = Path(__file__).with_name('fuzz_safe_load.py')
core = np.core if np.__version__.startswith('1.') else np._core


class Made:
    """Pickles as a call of a function, with a state for what it returns."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


OBJECTS = Made(np.dtype, ('f8', False, True),
               (3, '|', (np.dtype('O'), (1, )), None, None, 8, 1, 63))
ADDRESS = b'\x41' * 8
EMPTY = core.multiarray._reconstruct, (np.ndarray, (0, ), b'b')


@pytest.mark.parametrize('value', [
    OBJECTS, Made(np.ndarray, ((), OBJECTS, ADDRESS)),
    Made(np.ndarray, ((1, ), 'O', ADDRESS)), Made(np.ndarray, ((), 'f8', ADDRESS)),
    Made(*EMPTY, (1, (1, ), OBJECTS, False, ADDRESS)),
    Made(*EMPTY, (1, (1, ), np.dtype('O'), False, [1])),
    Made(*EMPTY, (1, (2, ), np.dtype('f8'), False, ADDRESS)),
    Made(*EMPTY, (1, (-1, ), np.dtype('f8'), False, b'')),
    Made(core.multiarray._reconstruct, (np.memmap, (0, ), b'b')),
    Made(core.multiarray.scalar, (np.dtype('f8'), b'123')),
    Made(core.multiarray.scalar, (np.dtype('O'), 1)), np.dtype([('a', 'f8')]), np.array([object]),
    Made(bytes, (1 << 20, )),
])
def test_values_of_numpy_that_are_no_numbers(tmp_path, value):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict={}, value=value), path)
    for read in (read_checkpoint, read_any):
        with pytest.raises(UnsafeFileError, match='trust-checkpoints'):
            read(str(path))


VALUES = dict(
    number=np.float64(3.5), count=np.int64(3), yes=np.bool_(True), half=np.float16(0.5),
    array=np.arange(6.).reshape(2, 3), columns=np.asfortranarray(np.arange(6).reshape(2, 3)),
    big_endian=np.arange(3, dtype='>i4'), empty=np.zeros((0, 3)), complex=np.array([1j]),
    state=np.random.RandomState(0).get_state()[1])


@pytest.mark.parametrize('name', VALUES)
def test_numbers_of_numpy_are_read(tmp_path, name):
    """And saved again under NumPy's own name, whatever stood in for it."""
    path = str(tmp_path / 'file.pth')
    torch.save(dict(value=VALUES[name]), path)
    value = read_checkpoint(path)['value']
    assert isinstance(value, (np.ndarray, np.generic))
    assert np.array_equal(value, VALUES[name])
    assert value.dtype.kind == VALUES[name].dtype.kind
    torch.save(dict(value=value), path)
    again = torch.load(path, weights_only=False)['value']
    assert type(again) is type(VALUES[name])
    assert np.array_equal(read_checkpoint(path)['value'], VALUES[name])
    assert b'mmreplk' not in pickle.dumps(value)


def test_records_of_mmengine_are_read(tmp_path):
    path = str(tmp_path / 'file.pth')
    torch.save(dict(loss=HistoryBuffer([1, 2, 6], [1, 1, 1])), path)
    loss = read_checkpoint(path)['loss']
    loss.update(3)
    assert loss.mean() == 3
    torch.save(dict(loss=loss), path)
    assert read_checkpoint(path)['loss'].mean() == 3


def test_a_record_changes_no_other(tmp_path):
    """MMEngine's own reader puts the methods that a file names into the class."""
    HistoryBuffer()
    before = dict(HistoryBuffer._statistics_methods)
    path = str(tmp_path / 'file.pth')
    for change, good in ((dict(_statistics_methods=dict(mean=HistoryBuffer.max)), True),
                         (dict(_log_history=np.ones((2, 2))), False),
                         (dict(max_length='x'), False), (dict(_count_history=3), False)):
        buffer = HistoryBuffer([1.], [1])
        vars(buffer).update(change)
        torch.save(dict(loss=buffer), path)
        if good:
            assert type(read_checkpoint(path)['loss']) is HistoryBuffer
        else:
            with pytest.raises(UnsafeFileError):
                read_checkpoint(path)
        assert HistoryBuffer._statistics_methods == before


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='is no file'):
        read_checkpoint(str(tmp_path / 'pipe'))


def test_thousands_of_broken_files():
    """A sample of fuzz_reading.py."""
    done = subprocess.run([sys.executable, '-W', 'ignore', str(FUZZ), '--inputs', '3000'],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ' read' in done.stdout
    assert ' refused' in done.stdout


def deflate(path):
    packed = path.with_name('packed.pth')
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return packed


def test_a_compressed_archive(tmp_path):
    """Mapped into memory, its bytes would be taken for numbers."""
    want = {f'w{i}': torch.randn(40, 50) for i in range(3)}
    torch.save(dict(state_dict=want), tmp_path / 'file.pth')
    packed = deflate(tmp_path / 'file.pth')
    for read in (read_checkpoint, read_any):
        got = read(str(packed))['state_dict']
        assert all(torch.equal(got[name], want[name]) for name in want)


WEIGHTS = torch.ones(3, 3)
KINDS = {
    'meta': (WEIGHTS.to('meta'), "on the device 'meta'"),
    'sparse': (WEIGHTS.to_sparse(), 'of the layout torch.sparse_coo'),
    'quantized': (torch.quantize_per_tensor(WEIGHTS, 0.1, 0, torch.qint8), 'quantized'),
    'complex': (WEIGHTS.to(torch.complex64), 'complex'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_tensors_that_are_no_weights(tmp_path, kind):
    tensor, words = KINDS[kind]
    with pytest.raises(ValueError, match=f'holds stem.w {words}'):
        unwrap(dict(state_dict={'stem.w': tensor}))


def test_integers_where_there_are_to_be_floats():
    own = dict(weight=torch.ones(1), count=torch.tensor(1))
    check_values(dict(weight=torch.ones(1).half(), count=torch.tensor(2)), own)
    with pytest.raises(ValueError, match='holds weight of torch.int8'):
        check_values(dict(weight=torch.ones(1).to(torch.int8)), own)


def test_every_reader_of_weights_looks_at_them(tiny_arch, tmp_path):
    """The backbone's init_cfg, an enlarged network's, a whole model's and erf.py's zoo."""
    backbone = RepLKNet(tiny_arch, drop_path_rate=0.)
    name = 'stages.0.blocks.0.pw1.conv.weight'
    for change in (lambda w: w.to('meta'), lambda w: w.to_sparse(), lambda w: w.to(torch.int8)):
        state = backbone.state_dict()
        state[name] = change(state[name])
        path = str(tmp_path / 'file.pth')
        torch.save(dict(state_dict=state), path)
        before = backbone.state_dict()[name].clone()
        started = RepLKNet(tiny_arch, init_cfg=dict(type='Pretrained', checkpoint=path))
        with pytest.raises(ValueError, match=f'holds {name}'):
            started.init_weights()
        assert torch.equal(backbone.state_dict()[name], before)
        model = torch.nn.ModuleDict(dict(backbone=backbone))
        with pytest.raises(ValueError, match=f'holds backbone.{name}'):
            check_model_weights(model, {f'backbone.{key}': value for key, value in state.items()})
        enlarged = SimpleNamespace(state_dict=backbone.state_dict, deploy=False)
        with pytest.raises(ValueError, match=f'holds {name}'):
            enlarged_weights(enlarged, state, '')
        spec = SimpleNamespace(checkpoint=path, source='timm:x')
        with pytest.raises(ValueError, match=f'CHECKPOINT: .* holds {name}'):
            erf_zoo._load(backbone, spec, ('head', ))


def test_safetensors(tmp_path):
    torch_files = pytest.importorskip('safetensors.torch')
    path = str(tmp_path / 'file.safetensors')
    torch_files.save_file(dict(weight=torch.arange(3.)), path)
    assert torch.equal(read_checkpoint(path)['weight'], torch.arange(3.))
    assert torch.equal(read_any(path)['weight'], torch.arange(3.))
    Path(path).write_bytes(b'no header')
    with pytest.raises(ValueError, match='cannot be read'):
        read_checkpoint(path)
