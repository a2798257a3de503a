"""Two runs that want the same: a work dir, a port."""

import socket

from mmreplk.training.work_dir_lock import lock_work_dir, unlock_work_dir


def test_work_dir_in_use(seg_bench):
    folder = seg_bench.folder / 'run'
    folder.mkdir()
    lock_work_dir(str(folder))
    try:
        text = seg_bench.refused('train.py', 'tiny.py', '--work-dir', 'run')
    finally:
        unlock_work_dir(str(folder))
    assert "work_dir: 'run' is in use by another run (process " in text


def test_port_in_use(seg_bench):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = seg_bench.run('dist_train.sh', 'tiny.py', 2, PORT=port)
    assert run.code
    assert 'Traceback' not in run.text
    last = run.text.splitlines()[-1]
    assert 'torchrun.py: error' in last
    assert str(port) in last
    assert 'name another one: PORT=' in last
