"""Training and evaluation of a kernel study, network after network in processes of their own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ...config.files import config_root
from .study import Run, Study

TAIL = 20  # lines of a failed command's output


def check_jobs(jobs: int) -> None:
    """Check how many networks are to be trained at a time.

    Args:
        jobs (int): The number.

    Raises:
        ValueError: If it is not positive.
    """
    if jobs < 1:
        raise ValueError(f'jobs {jobs}: give a positive number.')


class RunFailed(RuntimeError):
    """A tool did not do its work; the message has the last lines that it wrote."""


def train_all(study: Study, jobs: int = 1, report: Callable[[str], None] = lambda line: None
              ) -> None:
    """Do what is left of a study's training and evaluation, several networks at a time.

    Each takes one process; the cores are shared out among them. If this ends early, by an error or
    a signal that Python sees, the processes end too.

    Args:
        study (Study): The study; its data are provided first.
        jobs (int): Networks at a time. Defaults to 1.
        report (Callable): Called with lines on the progress. Defaults to nothing.

    Raises:
        BlockingIOError: If somebody else works on it.
        RunFailed: If a tool fails.
        ValueError: If ``jobs`` is not positive.
    """
    check_jobs(jobs)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting = [run for run in study.runs if not study.is_finished(run)]
    done, total, start, here = len(study.runs) - len(waiting), len(study.runs), time.time(), 0
    active: list[_Job] = []
    with study.locked() as lock:
        study.begin()
        if done:
            report(f'{done} of {total} runs were finished before')
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(_Job(study, waiting.pop(0), threads, lock))
                    report(active[-1].announcement())
                time.sleep(0.1)
                for job in [job for job in active if job.advance()]:
                    active.remove(job)
                    done, here = done + 1, here + 1
                    left = (time.time() - start) / here * (total - done)
                    report(f'{job.run.name} finished: {done} of {total} runs'
                           + (f', about {left / 60:.0f} min left' if done < total else ''))
        finally:
            for job in active:
                job.stop()


class _Job:
    """The process that works on a network, one tool after the other."""

    def __init__(self, study: Study, run: Run, threads: int, lock: int):
        self.study, self.run, self.lock = study, run, lock
        self.folder = study.run_folder(run)
        if study.last_checkpoint(run) is None:
            # What is there was stopped before, or while, its first checkpoint was written.
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps = study.steps(run)
        # What an interrupted evaluation left; test.py takes an empty folder only.
        for name in ('predictions', 'test'):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        paths = [str(Path(__file__).resolve().parents[3]), os.environ.get('PYTHONPATH', '')]
        self.environment = dict(
            os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)),
            OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        self._start()

    def announcement(self) -> str:
        trains = self.steps[0][0] == 'train'
        resumed = trains and '--resume' in self.steps[0][1]
        what = 'resumed' if resumed else 'trained' if trains else 'evaluated'
        return f'{self.run.name} is being {what}'

    def _start(self) -> None:
        tool, arguments = self.steps[0]
        self.log = self.folder / f'{tool}.txt'
        command = [sys.executable, config_root().parent / 'tools' / f'{tool}.py', *arguments]
        with self.log.open('a', encoding='utf-8') as file:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=self.study.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                pass_fds=[self.lock])

    def advance(self) -> bool:
        """Start the next tool if one has ended; returns whether it was the last."""
        code = self.process.poll()
        if code is None:
            return False
        if code:
            lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()
            raise RunFailed(f'{self.run.name}: tools/{self.steps[0][0]}.py ended with exit code '
                            f'{code}. Its last lines (all of them: {self.log}):\n'
                            + '\n'.join(lines[-TAIL:]))
        self.steps.pop(0)
        if self.steps:
            self._start()
            return False
        (self.folder / 'done').touch()
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
