"""Timing of several candidates in one run, so that what disturbs the machine disturbs all alike."""

import gc
import math
import random
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# A sample on a CPU lasts at least this long: what is faster is called several times.
SAMPLE_SECONDS = 2e-3
# Below this, a call is repeated once untimed before each sample.
WARM_SECONDS = 20e-3
FLUSH_BYTES = 256 << 20


class Job(NamedTuple):
    """What is timed.

    Attributes:
        run (Callable): The call.
        prepare (Callable, optional): Called before every sample, untimed.
        most (int, optional): Calls that one ``prepare`` is good for. Defaults to no limit.
    """
    run: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    most: int | None = None


class Times(NamedTuple):
    """Milliseconds a call: median, 20th and 80th percentile of ``repeats`` samples."""
    median: float
    p20: float
    p80: float
    repeats: int
    calls: int

    @classmethod
    def of(cls, samples: list[float], calls: int) -> 'Times':
        """From the milliseconds a call of each sample of ``calls`` calls."""
        values = torch.tensor(samples, dtype=torch.float64)
        levels = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        return cls(*torch.quantile(values, levels).tolist(), len(samples), calls)


def interleaved(jobs: dict[str, Job],
                device: torch.device,
                max_seconds: float = 5.0,
                min_rounds: int = 3,
                max_rounds: int = 30,
                seed: int = 0) -> dict[str, Times]:
    """Time all jobs round by round, each round in another order.

    A slow job takes part in fewer rounds, spread evenly over the run. Each job has been called
    before: the first call, which may compile or build, is not timed here.

    Args:
        jobs (dict[str, Job]): By name.
        device (torch.device): Where they run. On a GPU, CUDA events are used and the L2 cache is
            overwritten before every sample.
        max_seconds (float): Time spent on one job, as long as ``min_rounds`` allow. Defaults to 5.
        min_rounds (int): Samples of the slowest job. Defaults to 3.
        max_rounds (int): Samples of the fastest job. Defaults to 30.
        seed (int): Of the order. Defaults to 0.
    """
    clock = _CudaClock(device) if device.type == 'cuda' else _CpuClock()
    plan = {}
    for name, job in jobs.items():
        seconds = clock.estimate(job)
        calls = clock.calls(seconds, job.most)
        warm = clock.warm(seconds)
        cost = seconds * (calls + warm)
        rounds = min(max_rounds, max(min_rounds, int(max_seconds / max(cost, 1e-9))))
        plan[name] = calls, warm, rounds
    total = max((rounds for _, _, rounds in plan.values()), default=0)
    samples = {name: [] for name in jobs}
    order, shuffle = list(jobs), random.Random(seed).shuffle
    with _no_garbage_collection():
        for number in range(total):
            shuffle(order)
            for name in order:
                calls, warm, rounds = plan[name]
                # Round `number` holds one of the evenly spread turns of this job.
                if (number + 1) * rounds // total > number * rounds // total:
                    samples[name].append(clock.sample(jobs[name], calls, warm))
            clock.end_round()
    return {name: Times.of(clock.milliseconds(taken), plan[name][0])
            for name, taken in samples.items()}


class _CpuClock:

    def estimate(self, job: Job) -> float:
        """Seconds a call."""
        return self.sample(job, 1, 0)

    def calls(self, seconds: float, most: int | None) -> int:
        wanted = max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-7)))
        return min(wanted, most or wanted)

    def warm(self, seconds: float) -> int:
        # A short call would otherwise pay for the caches that its predecessor has left.
        return int(seconds < WARM_SECONDS)

    def sample(self, job: Job, calls: int, warm: int) -> float:
        # With a limit on the calls that one `prepare` is good for, the warm-up has its own.
        if warm:
            if job.prepare:
                job.prepare()
            job.run()
        if job.prepare:
            job.prepare()
        start = time.perf_counter()
        for _ in range(calls):
            job.run()
        return (time.perf_counter() - start) / calls

    def end_round(self) -> None:
        pass

    def milliseconds(self, taken: list[float]) -> list[float]:
        return [seconds * 1e3 for seconds in taken]


class _CudaClock:

    def __init__(self, device: torch.device):
        self.device = device
        # At least twice the L2 cache of any current GPU. Its writing also keeps the GPU busy while
        # the CPU queues the call, so that launches of a single kernel are not what is timed.
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def estimate(self, job: Job) -> float:
        torch.cuda.synchronize(self.device)
        start, end = self.sample(job, 1, 0)
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def calls(self, seconds: float, most: int | None) -> int:
        return 1

    def warm(self, seconds: float) -> int:
        return 0

    def sample(self, job: Job, calls: int, warm: int):
        if job.prepare:
            job.prepare()
        self.flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job.run()
        end.record()
        return start, end

    def end_round(self) -> None:
        torch.cuda.synchronize(self.device)

    def milliseconds(self, taken: list) -> list[float]:
        return [start.elapsed_time(end) for start, end in taken]


def prepare(name: str | None, threads: int | None) -> torch.device:
    """The device to measure, set up: cuDNN picks its kernels by measurement.

    Args:
        name (str, optional): Of the device; None for a GPU if there is one.
        threads (int, optional): Of a CPU; None for PyTorch's own number.
    """
    device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if threads:
        torch.set_num_threads(threads)
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True
    return device


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, synchronized."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` recorded as a CUDA graph: the returned function replays it.

    Raises:
        RuntimeError: If it cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # its memory belongs to the graph

    def replay():
        graph.replay()
        return kept

    return replay


@contextmanager
def _no_garbage_collection():
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
