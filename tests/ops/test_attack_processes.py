"""Repeats, threads, forked and spawned processes, data-loader workers, copies and pickles."""

import copy
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d, large_kernel_dwconv2d_pair
from mmreplk.ops.cpu import backend as cpu, kernels as native

BACKENDS = ['fft', 'direct'] if native.available()[0] else ['fft']
can_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')


def step(backend='auto', size=20, kernel=13, channels=5, seed=0):
    """Forward and both gradients, in training and in inference, in one tensor.

    Too small for PyTorch's own operations to use threads, which would hang in a forked child.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, size, size, generator=generator)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = large_kernel_dwconv2d(*leaves, padding=kernel // 2, backend=backend)
    results = [out.detach(), *torch.autograd.grad(out, leaves, x)]
    with torch.no_grad():
        results.append(large_kernel_dwconv2d(x, weight, padding=kernel // 2, backend=backend))
    return torch.cat([t.flatten() for t in results])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('backend', BACKENDS)
def test_thousands_of_repeats_are_one_to_the_bit(two_threads, backend, everything):
    """With two threads, whose order differs from call to call, then with others.

    Thousands with ``MMREPLK_ALL=1``, hundreds otherwise.
    """
    repeats = 1000 if everything else 200
    right = step(backend)
    for count in (2, 1, 3, 4):
        torch.set_num_threads(count)
        for _ in range(repeats if count == 2 else repeats // 10):
            assert torch.equal(step(backend), right)


def test_repeats_of_contrast_and_of_both_branches(two_threads):
    """The second pass over outputs beside huge inputs, and the two gradients in one."""
    x, small = torch.randn(2, 18, 40, 40), torch.randn(18, 1, 5, 5)
    weight = torch.randn(18, 1, 13, 13)
    x[:, ::2, 0, 0] = 1e8
    results = []
    for _ in range(100):
        leaves = [t.clone().requires_grad_() for t in (x, weight, small)]
        outs = large_kernel_dwconv2d_pair(*leaves, backend='fft')
        results.append([*outs, *torch.autograd.grad(outs, leaves, [torch.ones_like(x)] * 2)])
        assert all(map(torch.equal, results[0], results[-1]))


def test_many_threads_train_at_once(two_threads):
    """Each with shapes of its own, all with all backends."""
    jobs = [(backend, 14 + 3 * i, 9 + 2 * (i % 3), 16 + i)
            for i in range(4) for backend in ('auto', *BACKENDS)]
    right, wrong = [step(*job) for job in jobs], []

    def work(first):
        try:
            for i in range(len(jobs)):
                at = (first + i) % len(jobs)
                if not torch.equal(step(*jobs[at]), right[at]):
                    wrong.append(jobs[at])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i, )) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def ends_well(child, seconds=60):
    """Whether a forked child ends with 0 in time; one that hangs is killed."""
    for _ in range(100 * seconds):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@can_fork
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_forked_child_goes_on(two_threads, backend):
    """After the parent has used its threads, kept spectra and put scratch memory aside."""
    right = step(backend)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(step(backend), right) else 1)
        assert ends_well(child)
        assert torch.equal(step(backend), right)


@can_fork
def test_a_fork_while_another_thread_holds_the_kept_spectra():
    """The child, in which that thread does not exist, must not wait for it."""
    right, held, release = step('fft'), threading.Event(), threading.Event()

    def hold():
        with cpu.kept_spectra._lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(step('fft'), right) else 1)
    try:
        assert ends_well(child, 20)
    finally:
        release.set()
        thread.join()


def answer(queue, backend):
    queue.put(step(backend).numpy())  # not as shared memory, which may be scarce


@pytest.mark.skipif(sys.platform == 'win32', reason='no fork')
@pytest.mark.parametrize('how', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_processes_of_multiprocessing(how):
    context = multiprocessing.get_context(how)
    queue, right = context.Queue(), step('fft')
    if how == 'spawn':
        # What it imports by name has to be importable there, as this file is not.
        from attack_cases import spawned
        worker = context.Process(target=spawned, args=(queue, ))
        right = spawned()
    else:
        worker = context.Process(target=answer, args=(queue, 'fft'))
    worker.start()
    found = torch.from_numpy(queue.get(timeout=120))
    worker.join(60)
    assert worker.exitcode == 0
    assert torch.equal(found, right)


class Blurred(Dataset):
    """Augmentation in the workers, as a data loader would do it."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(index))
        return large_kernel_dwconv2d(image, torch.full((3, 1, 21, 21), 1 / 441), padding=10,
                                     backend='auto' if index % 2 else 'fft')


@can_fork
def test_workers_of_a_data_loader(two_threads):
    """Forked after use, with threads in the parent; as right as in the parent itself."""
    right = list(DataLoader(Blurred(), batch_size=2))
    loader = DataLoader(Blurred(), batch_size=2, num_workers=2, multiprocessing_context='fork',
                        timeout=60)
    for _ in range(2):
        for found, wanted in zip(loader, right, strict=True):
            assert torch.equal(found, wanted)
    assert all(map(torch.equal, DataLoader(Blurred(), batch_size=2), right))


@pytest.mark.parametrize('how', ['pickle', 'deepcopy', 'save', 'state_dict'])
def test_copies_of_a_layer_that_was_used(how):
    """Kept spectra and all: a copy gives the same bits, and changes alone."""
    layer = LargeKernelDWConv2d(18, 18, 13, padding=6, groups=18, activation='relu', backend='fft')
    x = torch.randn(2, 18, 24, 24)
    with torch.no_grad():
        right = layer(x)
        if how == 'pickle':
            other = pickle.loads(pickle.dumps(layer))
        elif how == 'deepcopy':
            other = copy.deepcopy(layer)
        elif how == 'save':
            file = io.BytesIO()
            torch.save(layer, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = LargeKernelDWConv2d(
                18, 18, 13, padding=6, groups=18, activation='relu', backend='fft')
            other(x)  # spectra of the weights before
            file = io.BytesIO()
            torch.save(layer.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), right)
        other.weight.mul_(2)
        assert not torch.equal(other(x), right)
        assert torch.equal(layer(x), right)
