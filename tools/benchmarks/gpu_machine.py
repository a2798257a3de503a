"""The GPU as `first_gpu.py` sees it: time, streams, graphs. Tests put the CPU in its place."""

import shutil
import subprocess
import time
from collections.abc import Callable

import torch
from timing import FLUSH_BYTES, captured


class Machine:
    """The current CUDA device.

    Attributes:
        device (torch.device): Where tensors lie.
        spoken (str): Its type for `Problem`.
    """

    spoken = 'cuda'
    samples = 20  # at most, of a time

    def __init__(self):
        self.device = torch.device('cuda', torch.cuda.current_device())
        self._flush = None

    def synchronize(self) -> None:
        """Wait; raises what has gone wrong on the device."""
        torch.cuda.synchronize(self.device)

    def clocks(self) -> str:
        """What nvidia-smi says of clocks, temperature and power; '' without it."""
        tool = shutil.which('nvidia-smi')
        if tool is None:
            return ''
        fields = 'clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,driver_version'
        try:
            done = subprocess.run([tool, f'--query-gpu={fields}', '--format=csv,noheader'],
                                  capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return ''
        return done.stdout.strip()

    def captured(self, run: Callable) -> Callable:
        """``run`` as a CUDA graph: what is returned replays it."""
        return captured(run)

    def on_two_streams(self, runs: list[Callable]) -> list:
        """The results of calls that run beside each other."""
        current, results = torch.cuda.current_stream(), []
        for run in runs:
            stream = torch.cuda.Stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results.append(run())
            current.wait_stream(stream)
        return results

    def milliseconds(self, run: Callable, seconds: float) -> tuple[float, float, float, int]:
        """Median, least and most of a call, and how many; the L2 cache is overwritten before each.

        Args:
            run (Callable): What is timed, after one call that is not.
            seconds (float): To spend, as long as three calls are made.
        """
        if self._flush is None:
            self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        run()
        self.synchronize()
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or len(times) < self.samples and time.perf_counter() < end:
            self._flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        times.sort()
        return times[len(times) // 2], times[0], times[-1], len(times)
