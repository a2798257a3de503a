"""tools/benchmarks/first_gpu.py end to end, with the CPU and PyTorch in the GPU's place."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'tools/benchmarks'
SMALL = ['--batch', '2', '--channels', '4', '--layers', '2', '--maps', '8', '9', '--seconds', '600']


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv('MMREPLK_CACHE', 'set by the tool')
    before = set(sys.modules)
    import first_gpu
    yield first_gpu
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def gpu(tool, monkeypatch):
    """A machine on the CPU, on which the family of Triton's kernels computes by PyTorch.

    What it plans, names and compiles to is Triton's own; the kernels alone are replaced.
    """
    pytest.importorskip('triton', minversion='3.4')
    import ceilings
    import gpu_machine

    from mmreplk.ops import dispatch
    from mmreplk.ops.gpu import (
        arch,
        backend,
        families,
        health,
        launch,
        memory,
        selfcheck,
        tiles,
        versions,
    )

    class Machine(gpu_machine.Machine):
        spoken, samples, broken = 'cpu', 3, False

        def __init__(self):
            self.device, self.clock = torch.device('cpu'), 0.0

        def synchronize(self):
            if self.broken:
                raise RuntimeError('CUDA error: an illegal memory access was encountered')

        def captured(self, run):
            run()
            return run

        def on_two_streams(self, runs):
            return [run() for run in runs]

        def milliseconds(self, run, seconds):
            start = time.perf_counter()
            run()
            taken = (time.perf_counter() - start) * 1e3
            return taken, taken, taken, 1

    machine = Machine()
    machine.lies = machine.raises = None

    def forward(x, weight, bias, problem, mode, variant):
        if machine.raises:
            machine.raises(problem)
        out = memory.empty(x, problem.out_shape)
        if problem.channels_last:
            out = out.contiguous(memory_format=torch.channels_last)
        out.copy_(selfcheck.exact_forward(x, weight, bias, problem))
        return machine.lies(out, problem) if machine.lies else out

    def weight_grad(x, grad, problem, mode, variant):
        return selfcheck.exact_weight_grad(x, grad, problem).to(x.dtype)

    family = backend.FAMILY._replace(
        supports=lambda problem, task: launch.supports(problem._replace(device='cuda'), task),
        estimate=lambda problem, task: 1e-9, forward=forward, weight_grad=weight_grad)
    monkeypatch.setattr(families, 'FAMILIES', {'triton': family})
    monkeypatch.setitem(dispatch.BACKENDS, 'triton', dispatch.BACKENDS['triton']._replace(
        supports=family.supports, estimate=family.estimate))
    monkeypatch.setattr(arch, 'DEVICE_TYPES', ('cuda', 'cpu'))
    monkeypatch.setattr(versions, 'driver', lambda: '580.1')
    monkeypatch.setattr(ceilings, 'measure', lambda device, dtype: ceilings.Ceilings(1e10, 1e10))
    monkeypatch.setattr(tiles, 'TABLE', tiles.TABLE)
    health.forget()
    selfcheck.forget()
    # Where a test of this process has imported PyTorch's own tests, its switches are locked.
    with getattr(torch.backends, '__allow_nonbracketed_mutation')():
        switches = [(where, name, getattr(where, name)) for where, name in (
            (torch.backends.cudnn, 'benchmark'), (torch.backends.cudnn, 'allow_tf32'),
            (torch.backends.cuda.matmul, 'allow_tf32'))]
        yield machine
        for where, name, value in switches:
            setattr(where, name, value)
    monkeypatch.undo()  # nothing of it is a switch
    health.forget()
    selfcheck.forget()


def rows_of(out):
    return [json.loads(line) for line in (out / 'rows.jsonl').read_text().splitlines()]


def test_end_to_end(tool, gpu, tmp_path, capsys, monkeypatch):
    import gpu_check
    monkeypatch.setattr(gpu_check, 'SHAPES', gpu_check.SHAPES[:7])
    assert tool.main(['--out', str(tmp_path), *SMALL], gpu) == 0
    rows = rows_of(tmp_path)
    for part in tool.PARTS:
        mine = [row for row in rows if row['part'] == part]
        assert mine[0]['status'] == 'begun'
        assert mine[-1]['status'] == 'done'
        assert len(mine) > 2, part
        assert {row['status'] for row in mine} <= {'begun', 'ok', 'done'}, part
        assert all(row['torch'] == torch.__version__ for row in mine)
    checks = [row for row in rows if row['part'] == 'correct' and 'kind' in row]
    assert {row['kind'] for row in checks} == {
        'poisoned', 'unaligned', 'channels_last', 'streams', 'graph', 'infinite'}
    assert {row['dtype'] for row in checks} == {'fp16', 'bf16', 'tf32', 'fp32'}
    compiled = [row for row in rows if row.get('kind') == 'compiled']
    assert len({(row['dtype'], row['task']) for row in compiled}) == 4
    table = (tmp_path / 'table.md').read_text()
    assert capsys.readouterr().out.strip().endswith(table.strip())
    for line in ('fp16, 8x8', 'tf32, 9x9'):
        cells = [cell.strip() for row in table.splitlines() if row.startswith(f'| {line}')
                 for cell in row.split('|')[2:-1]]
        assert len(cells) == 8
        assert '-' not in cells
    tiles = json.loads((tmp_path / 'tiles.json').read_text())
    assert tiles
    assert all(len(tile) in (8, 9) for tile in tiles.values())
    assert list((tmp_path / 'cache/gpu').glob('checks-*.json'))


@pytest.mark.filterwarnings('ignore:mmreplk')
def test_a_wrong_kernel_is_seen(tool, gpu, tmp_path, monkeypatch):
    import gpu_check
    monkeypatch.setattr(gpu_check, 'SHAPES', gpu_check.SHAPES[:7])
    gpu.lies = lambda out, problem: out * 1.1 if problem.width == 32 else out
    assert tool.main(['--out', str(tmp_path), '--parts', 'correct', *SMALL], gpu) == 1
    wrong = [row for row in rows_of(tmp_path) if row['status'] == 'wrong']
    assert {row['shape'][3] for row in wrong} == {32}
    assert {row['kind'] for row in wrong} >= {'poisoned', 'unaligned', 'graph'}
    assert 'poisoned triton forward fp16' in (tmp_path / 'table.md').read_text()


def test_a_failure_is_a_row_and_the_rest_goes_on(tool, gpu, tmp_path):
    def fails(problem):
        if problem.height == 8:
            raise RuntimeError('out of resource: shared memory')

    gpu.raises = fails
    assert tool.main(['--out', str(tmp_path), '--parts', 'tiles', *SMALL], gpu) == 1
    rows = [row for row in rows_of(tmp_path) if row.get('kind') == 'tile'
            and row['task'] == 'forward']
    assert {(row['shape'][2], row['status']) for row in rows} == {(8, 'failed'), (9, 'ok')}
    assert 'out of resource' in rows[0]['note']


def test_a_broken_device_ends_the_process(tool, gpu, tmp_path):
    def breaks(problem):
        gpu.broken = True
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    gpu.raises = breaks
    args = ['--out', str(tmp_path), '--parts', 'tiles', 'small', *SMALL, '--child',
            str(time.monotonic())]
    assert tool.main(args, gpu) == tool.BROKEN
    rows = rows_of(tmp_path)
    assert not [row for row in rows if row['part'] == 'small']
    assert rows[-1]['kind'] == 'part'


def test_deadlines(tool, gpu, tmp_path):
    """A part ends where its time does, and says what it has left out; others have their own."""
    argv = ['--out', str(tmp_path), *SMALL[:-1], '0.001']
    assert tool.main(argv, gpu) == 0
    rows = rows_of(tmp_path)
    assert [row['part'] for row in rows if row['status'] == 'unfinished'] == list(tool.PARTS)
    assert 'Not done:' in (tmp_path / 'table.md').read_text()


CHILD = '''
import json, sys, time, os
file, names = sys.argv[1], sys.argv[2:]
def row(**columns):
    with open(file, 'a') as out:
        out.write(json.dumps(columns) + chr(10))
for name in names:
    row(part=name, status='begun')
    if name == 'correct':
        os._exit(3)
    if name == 'cudnn':
        with open(file, 'a') as out:
            out.write('{"part": "cu')
        time.sleep(60)
    row(part=name, status='done')
'''


def test_children_that_hang_or_end(tool, tmp_path, monkeypatch):
    """Each part has one turn, whatever becomes of the process."""
    monkeypatch.setattr(tool, 'GRACE', 1.0)
    file = tmp_path / 'rows.jsonl'
    file.touch()
    names = ['ceilings', 'correct', 'tiles', 'cudnn', 'small']
    tool.supervise(names, [sys.executable, '-S', '-c', CHILD, str(file)], file, time.monotonic(),
                   1.0)
    rows = rows_of(tmp_path)
    assert [row['part'] for row in rows if row['status'] == 'done'] == ['ceilings', 'tiles',
                                                                       'small']
    lost = {row['part']: row['note'] for row in rows if row['status'] == 'failed'}
    assert lost == {'correct': 'ended the process, exit code 3', 'cudnn': 'hung and was ended'}
    assert [row['part'] for row in rows if row['status'] == 'begun'] == names


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu(tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(['--out', str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == f'{Path(sys.argv[0]).name}: PyTorch sees no GPU here'


def test_bad_arguments(tool, gpu, tmp_path, capsys):
    (tmp_path / 'f').write_text('')
    for argv in (['--out', str(tmp_path / 'f')], ['--out', str(tmp_path), '--seconds', '0'],
                 ['--out', str(tmp_path), '--parts', 'x']):
        with pytest.raises(SystemExit):
            tool.main(argv, gpu)
    assert 'cannot be written to' in capsys.readouterr().err
