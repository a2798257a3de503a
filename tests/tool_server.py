"""Tools as forks of one process that has the libraries loaded already.

A tool that is started anew imports for 3 to 5 seconds before it does anything. Here one process
imports, and forks for each program; the fork becomes ``python PROGRAM ARGUMENTS`` in its own folder
and environment and ends as Python ends, with its exit code, its atexit functions and its traceback.

What is loaded are libraries that MMReplk and the codebases stand on, not these themselves: each
program finds their registries empty and has to import what it needs. No line of them has computed
anything, so there are no threads to lose. What is read when Python or a library starts
(``PYTHONPATH``, ``OMP_NUM_THREADS``) is the server's: where it matters, start a process instead.

Loaded as a module by conftest.py; run as a program, it serves.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time

LIBRARIES = ('torch', 'torchvision', 'cv2', 'scipy.optimize', 'scipy.stats', 'matplotlib.pyplot',
             'prettytable', 'numba', 'imgaug', 'imagecorruptions', 'pycocotools.mask', 'timm',
             'mmengine.runner', 'mmengine.visualization', 'mmcv.ops')
SIZE = 1 << 18  # of a message: a program's arguments and environment
# Of the process that runs the tests alone.
NOT_OURS = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'PORT', 'MASTER_PORT', 'PYTEST_CURRENT_TEST')


def environment(**more) -> dict[str, str]:
    """The environment of a tool: ours, on the CPU, without windows, and one thread a process.

    The tests themselves run side by side.
    """
    clean = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    clean |= dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='', MPLBACKEND='Agg',
                  OMP_NUM_THREADS='1')
    return clean | {key: str(value) for key, value in more.items()}


class Program:
    """A program that was started, with the interface of :class:`subprocess.Popen`.

    Attributes:
        pid (int): Its number.
        returncode (int | None): Its exit code, or minus the signal that ended it; None before.
    """

    def __init__(self, server: 'ToolServer', pid: int):
        self._server, self.pid, self.returncode = server, pid, None

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It still runs after so many seconds.
        """
        end = time.monotonic() + timeout
        while self.returncode is None:
            if not self._server.listen(end - time.monotonic()):
                raise subprocess.TimeoutExpired(f'program {self.pid}', timeout)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code if it has ended, else None."""
        while self.returncode is None and self._server.listen(0):
            pass
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended, and wait for that."""
        if self.returncode is None:
            self._server.send(kill=self.pid)
            self.wait(60)


class ToolServer:
    """Starts programs as forks of a process that has imported some modules.

    Args:
        modules: What it imports; a module that is missing is left out.

    Attributes:
        environment (dict): That of the programs, and of the server when it was started.
    """

    environment_now = staticmethod(environment)

    def __init__(self, modules=LIBRARIES):
        self.environment = environment()
        self._running, self._started = {}, None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(number), *modules], env=self.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[number])

    def start(self, argv, cwd, output: int, env=None) -> Program:
        """Become ``python ARGV`` in a fork.

        Args:
            argv: The program's path and its arguments.
            cwd: Its working directory.
            output: The file descriptor that takes both its streams.
            env: Its environment; by default that of the server.
        """
        job = dict(argv=[str(arg) for arg in argv], cwd=str(cwd),
                   env=self.environment if env is None else env)
        socket.send_fds(self._channel, [json.dumps(job).encode()], [output])
        self._started = None
        while self._started is None:
            self.listen(120)
        program = self._running[self._started] = Program(self, self._started)
        return program

    def run(self, argv, cwd, timeout: float) -> tuple[int, str]:
        """Run a program to its end.

        Returns:
            tuple: Its exit code, and what it wrote to both streams.

        Raises:
            subprocess.TimeoutExpired: It took longer than so many seconds, and was killed.
        """
        with tempfile.TemporaryFile('w+') as file:
            program = self.start(argv, cwd, file.fileno())
            try:
                program.wait(timeout)
            finally:
                program.kill()
            file.seek(0)
            return program.returncode, file.read()

    def send(self, **message) -> None:
        self._channel.send(json.dumps(message).encode())

    def listen(self, timeout: float) -> bool:
        """Take a message, if one comes within so many seconds."""
        self._channel.settimeout(max(timeout, 1e-6))
        try:
            text = self._channel.recv(SIZE)
        except TimeoutError:
            return False
        finally:
            self._channel.settimeout(None)
        if not text:
            raise RuntimeError(f'the server of tools has ended with {self._process.wait()}')
        message = json.loads(text)
        if 'code' in message:
            self._running.pop(message['pid']).returncode = message['code']
        else:
            self._started = message['pid']
        return True

    def close(self) -> None:
        """End the server, and with it what still runs."""
        self._channel.close()
        self._process.wait(60)


def serve(channel: socket.socket) -> dict | None:
    """Fork for each job that comes, and tell when its program has ended.

    Returns:
        dict | None: In a fork, the job. In the server None, when the other side has closed.
    """
    programs = {}  # the descriptors by which their ends are seen, and their numbers
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not channel:
                    pid = programs.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(BrokenPipeError):
                        channel.send(json.dumps(dict(pid=pid, code=code)).encode())
                    continue
                text, files, _, _ = socket.recv_fds(channel, SIZE, 1)
                if not text:
                    for pid in programs.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                job = json.loads(text)
                if 'kill' in job:
                    if job['kill'] in programs.values():
                        os.kill(job['kill'], signal.SIGKILL)
                    continue
                pid = os.fork()
                if not pid:
                    for number in programs:
                        os.close(number)
                    channel.close()
                    return dict(job, output=files[0])
                os.close(files[0])
                number = os.pidfd_open(pid)
                programs[number] = pid
                selector.register(number, selectors.EVENT_READ)
                channel.send(json.dumps(dict(pid=pid)).encode())


def become(job: dict) -> None:
    """Run a job's program as Python would have started it."""
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    os.dup2(job['output'], 1)
    os.dup2(job['output'], 2)
    os.close(job['output'])
    sys.argv = job['argv']
    # By its place: a library may have put something before it.
    sys.path[sys.path.index(job['folder'])] = os.path.dirname(os.path.realpath(sys.argv[0]))
    # Else all forks draw the same; Python's random does this by itself.
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed()
    if 'torch' in sys.modules:
        sys.modules['torch'].seed()
    runpy.run_path(sys.argv[0], run_name='__main__')


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    folder = sys.path[0]  # of this file, as Python has put it there
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What is loaded stays: a fork that looks for garbage in it would copy its pages.
    gc.freeze()
    job = serve(channel)
    if job is not None:
        become(dict(job, folder=folder))


if __name__ == '__main__':
    main()
