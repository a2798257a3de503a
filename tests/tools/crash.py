"""Tools in processes that can be killed at any moment: forks of one that has all imports already.

Loaded by the `crashes` fixture; see test_resume.py.
"""

import multiprocessing
import runpy
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BECOME = ROOT / 'tests/configs/tool_process.py'
TOO_LONG = 240  # seconds
# A disk that takes its time: a checkpoint is half-written for a while, and whole for another.
SLOW_DISK = '''
import time
from mmreplk.training import checkpoint_hook as checkpoints

def put(self, obj, filepath):
    def write(draft):
        with open(draft, 'wb') as file:
            file.write(obj[:len(obj) // 2])
            file.flush()
            time.sleep(0.3)
            file.write(obj[len(obj) // 2:])
            file.flush()
            time.sleep(0.1)
    checkpoints.write_whole(filepath, write)

checkpoints.WholeFileBackend.put = put
'''


class Crashes:
    """Starts tools inside a folder, and kills them.

    Attributes:
        folder (Path): Their working directory.
        kills (int): How many were killed at work, not after their end.
    """

    def __init__(self, folder: Path):
        self.folder, self.kills, self._runs = folder, 0, 0
        self._server = multiprocessing.get_context('forkserver')
        self._server.set_forkserver_preload(['mmreplk', 'mmseg.apis', 'matplotlib.pyplot'])

    def start(self, tool: str, *args, **env):
        """Start a tool; returns its process, with the attribute ``log``."""
        self._runs += 1
        log = self.folder / f'{self._runs}.log'
        job = dict(ARGV=[str(ROOT / 'tools' / tool), *map(str, args)], FOLDER=str(self.folder),
                   LOG=str(log), ENV={'PYTHONPATH': str(self.folder),
                                      **{key: str(value) for key, value in env.items()}})
        process = self._server.Process(target=runpy.run_path, args=(str(BECOME), job))
        process.start()
        process.log = log
        return process

    def finish(self, tool: str, *args, **env) -> str:
        """Run a tool to its end, which has to be a good one; returns what it wrote."""
        process = self.start(tool, *args, **env)
        process.join(TOO_LONG)
        if process.is_alive():
            process.kill()
            process.join()
        text = process.log.read_text()
        assert process.exitcode == 0, text
        return text

    def kill_after(self, seconds: float, *args) -> bool:
        """Start train.py and kill it after a time; returns whether it was still at work."""
        process = self.start('train.py', *args)
        process.join(seconds)
        return self._kill(process)

    def kill_while(self, pattern: str, *args) -> bool:
        """Start train.py and kill it as soon as a file of a pattern is there; whether it was."""
        process = self.start('train.py', *args)
        end = time.monotonic() + TOO_LONG
        while process.is_alive() and time.monotonic() < end:
            if any(self.folder.glob(pattern)):
                return self._kill(process)
            time.sleep(0.005)
        return self._kill(process) and False

    def _kill(self, process) -> bool:
        process.kill()
        process.join()
        if process.exitcode not in (0, -9):
            raise AssertionError(process.log.read_text())
        self.kills += process.exitcode == -9
        return process.exitcode == -9
