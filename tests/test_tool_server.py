"""A fork of the tool server is the program that Python would have started."""

import json
import os
import signal
import subprocess
import sys

import pytest

PROBE = """
import json, os, signal, sys
state = dict(argv=sys.argv, name=__name__, file=__file__, path=list(sys.path), cwd=os.getcwd(),
             main=sys.modules['__main__'].__file__, env=dict(os.environ),
             signals=[str(signal.getsignal(number)) for number in signal.valid_signals()],
             threads=len(os.listdir('/proc/self/task')), group=os.getpgid(0),
             files=len(os.listdir('/proc/self/fd')), stdin=sys.stdin.read())
state.update(ours=sorted({name.partition('.')[0] for name in sys.modules} & {
    'mmreplk', 'mmseg', 'mmdet', 'mmpretrain'}))
import mmreplk, torch
import mmcv.ops, mmengine.runner, mmengine.visualization  # every tool has them in the end
from mmengine import registry
state.update(grad=torch.is_grad_enabled(), cores=torch.get_num_threads(),
             path_after=sys.path, registries={
                 name: [sorted(value.module_dict), sorted(value.children)]
                 for name, value in vars(registry).items() if isinstance(value, registry.Registry)})
print(json.dumps(state, sort_keys=True))
"""
ENDS = {
    'end': "print('written')",
    'exit': 'import sys; sys.exit(2)',
    'message': "import sys; sys.exit('no such file')",
    'error': "raise ValueError('first line')",
    'atexit': "import atexit; atexit.register(print, 'at the end')",
    'killed': 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
    'at once': 'import os; os._exit(7)',
    'streams': "import os, sys; os.system('echo child'); print('é\\r\\n', file=sys.stderr)",
}


@pytest.fixture
def program(tmp_path):
    """Writes a program; returns its command line."""

    def write(code):
        (tmp_path / 'program.py').write_text(code)
        return [str(tmp_path / 'program.py'), 'a b', '--option']

    return write


def anew(server, argv, cwd):
    done = subprocess.run([sys.executable, *argv], cwd=cwd, env=server.environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def test_the_state_at_its_start(tool_server, program, tmp_path):
    """Arguments, paths, signals, threads, registries: all that a program may find."""
    argv = program(PROBE)
    (code, text), (wanted, expected) = (
        tool_server.run(argv, tmp_path, 60), anew(tool_server, argv, tmp_path))
    assert code == wanted == 0, text + expected
    assert json.loads(text) == json.loads(expected)


@pytest.mark.parametrize('end', ENDS)
def test_how_it_ends(tool_server, program, tmp_path, end):
    argv = program(ENDS[end])
    (code, text), (wanted, expected) = (
        tool_server.run(argv, tmp_path, 60), anew(tool_server, argv, tmp_path))
    assert code == wanted
    if end == 'error':  # of the same place, with the server's own frames above it
        expected = '\n'.join(expected.splitlines()[1:])
        assert text.startswith('Traceback')
        assert text.strip().endswith(expected)
    else:
        assert text == expected


def test_too_long(tool_server, program, tmp_path):
    argv = program('import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(60)')
    with pytest.raises(subprocess.TimeoutExpired):
        tool_server.run(argv, tmp_path, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_several_at_once(tool_server, program, tmp_path):
    argv = program('import time; time.sleep(60)')
    with open(tmp_path / 'log', 'w') as file:
        first, second = (tool_server.start(argv, tmp_path, file.fileno()) for _ in range(2))
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(30) == -signal.SIGTERM
        assert second.poll() is None
        second.kill()
        assert second.poll() == -signal.SIGKILL


def test_random_numbers_are_not_those_of_the_last(tool_server, program, tmp_path):
    argv = program('import random, numpy, torch\n'
                   'print(random.random(), numpy.random.rand(), torch.initial_seed())')
    first, second = (tool_server.run(argv, tmp_path, 60)[1].split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]
