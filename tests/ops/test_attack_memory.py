"""Canaries around outputs, scratch and fresh memory full of NaN, and memory that runs out."""

import subprocess
import sys

import pytest
import torch
from attack_cases import attack, bounds, cases, direct, parts, run, within

from mmreplk.ops import dispatch, functional, large_kernel_dwconv2d
from mmreplk.ops.cpu import backend as cpu, kernels as native
from mmreplk.ops.problem import Problem

needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
ISAS = len(native.isas()) if native.available()[0] else 0
ROOM = 64  # floats on either side
CANARY = 0x7fc0dead  # a NaN of a pattern that no arithmetic gives


class Canaries:
    """Memory for an output of some shape in the middle of a larger block: NaN, and canaries."""

    def __init__(self, shape, memory_format=torch.contiguous_format):
        like = torch.empty(shape, device='meta', memory_format=memory_format)
        self.room = torch.full((like.numel() + 2 * ROOM, ), CANARY, dtype=torch.int32)
        self.out = self.room[ROOM:ROOM + like.numel()].view(torch.float32).as_strided(
            like.shape, like.stride())

    @property
    def memory(self):
        return self.out.data_ptr(), self.out.nbytes

    def check(self, expected):
        """The sides are untouched, and in between is what was expected, to the bit."""
        assert (self.room[:ROOM] == CANARY).all()
        assert (self.room[self.room.numel() - ROOM:] == CANARY).all()
        assert torch.equal(self.out, expected)


@needs_kernels
@attack(300, case=cases(backends=('fft', ), dtypes=(torch.float32, ), longest=40))
def test_native_kernels_write_their_outputs_alone(case):
    """All kernels of all instruction sets, called in the middle of a larger buffer."""
    x, weight, bias, grad, _ = parts(case._replace(layouts=('dense', 'dense')))
    last = case.layouts[0] == 'channels_last'
    problem = Problem(torch.float32, 'cpu', last, case.batch, case.channels, *case.size,
                      case.multiplier, case.kernel, (1, 1), case.padding, case.dilation, case.bias)
    kept = problem.memory_format
    x, grad = (t.contiguous(memory_format=kept) for t in (x, grad))
    isa = case.seed % ISAS
    spectrum = native.fft_spectrum(weight, problem, isa)
    call = native._call(problem, isa)
    to_y = [native.memory(t) for t in (x, weight, spectrum, bias)]
    to_weight = native.memory(x), 0, 0
    shape, gradient = weight.shape, native.memory(grad)
    # Where contrast is told of, the caller puts direct sums in the place of what was written: of
    # tiles, or of everything where that takes no longer.
    tiles = torch.zeros(*problem.out_shape[:2], *call.tiles.grid(problem.out_size))
    doubt = torch.zeros(problem.out_channels)
    for kernel, addresses, room, expected, told in (
            (native._SPECTRUM, (0, native.memory(weight), 0, 0, 0), Canaries(spectrum.shape),
             spectrum, None),
            (native._FFT_FORWARD, (*to_y, native.memory(tiles)), Canaries(problem.out_shape, kept),
             native.fft_forward(x, spectrum, weight, bias, problem, isa), tiles),
            (call.forward, (*to_y, 0), Canaries(problem.out_shape, kept),
             native.direct_forward(x, weight, bias, problem, isa), None),
            (native._FFT_WEIGHT_GRAD, (*to_weight, native.memory(doubt), gradient),
             Canaries(shape), native.fft_weight_grad(x, grad, problem, isa), doubt),
            (call.weight_grad, (*to_weight, 0, gradient), Canaries(shape),
             native.direct_weight_grad(x, grad, problem, isa), None)):
        native._native.run(kernel, call.isa, 1, call.geometry, *addresses, room.memory)
        if told is tiles and tiles.any():
            room.out.copy_(expected)
        elif told is doubt:
            room.out[told != 0] = expected[told != 0]
        room.check(expected)
    if case.multiplier == 1 and native.backward_supports(problem):
        both = native.fft_backward(x, [(weight, grad, problem)], isa)
        if both is not None:
            of_x, of_weight = Canaries(x.shape, kept), Canaries(shape)
            of_x.out.zero_()  # as it expects it
            geometry = native._call(problem, isa, problem, True).geometry
            native._native.backward(
                call.isa, 1, native.memory(x), of_x.memory,
                (geometry, native.memory(weight), gradient, of_weight.memory,
                 native.memory(doubt)))
            of_x.check(both[0])
            of_weight.out[doubt != 0] = both[1][0][doubt != 0]
            of_weight.check(both[1][0])


@attack(150, case=cases())
def test_fresh_memory_is_never_read(case):
    """PyTorch hands out memory full of NaN, in which nothing changes."""
    x, weight, bias, grad, _ = parts(case)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        actual = run(case, x, weight, bias, grad)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)
    within(actual, direct(case, x, weight, bias, grad), bounds(case, x, weight, bias, grad))


@needs_kernels
@pytest.mark.parametrize('name', ['fft_forward', 'fft_spectrum', 'direct_forward',
                                  'fft_weight_grad', 'direct_weight_grad', 'fft_backward'])
def test_a_failing_kernel_leaves_no_state(monkeypatch, name):
    """MemoryError comes through as such; the next call is right, to the bit."""
    backend = 'direct' if 'direct' in name else 'fft'
    x, weight = torch.randn(2, 18, 40, 40), torch.randn(18, 1, 13, 13)

    stack = monkeypatch

    def train():
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = large_kernel_dwconv2d(*leaves, padding=6, backend=backend)
        # Without the one pass for both, where it is not meant itself.
        wanted = leaves if name == 'fft_backward' else leaves[1:]
        if name == 'fft_weight_grad':  # as where that pass declines
            stack.setattr(cpu, 'backward', lambda *of: None)
        return out, *torch.autograd.grad(out, wanted, x)

    def infer():
        with torch.no_grad():
            return (large_kernel_dwconv2d(x, weight, padding=6, backend=backend), )

    functions = [train, infer] if name in ('fft_forward', 'fft_spectrum', 'direct_forward') else [
        train]
    right = [function() for function in functions]
    cpu.kept_spectra.forget()
    dispatch.forget()  # what calls the kernel of this name directly
    with monkeypatch.context() as patched:
        def fail(*args, **keywords):
            raise MemoryError

        patched.setattr(native, name, fail)
        for function in functions:
            with pytest.raises(MemoryError):
                function()
    for function, results in zip(functions, right, strict=True):
        assert all(map(torch.equal, function(), results))


# In a process of its own: the limit on addresses concerns all of it.
STARVED = """
import resource, sys, torch
from mmreplk.ops import large_kernel_dwconv2d
torch.set_num_threads(1)
small = torch.randn(1, 4, 40, 40), torch.randn(4, 1, 31, 31)
large = torch.randn(4, 64, 200, 200), torch.randn(64, 1, 31, 31)

def step(x, weight, train, backend):
    leaves = [t.detach().requires_grad_(train) for t in (x, weight)]
    out = large_kernel_dwconv2d(*leaves, padding=15, backend=backend)
    return [out.detach(), *(torch.autograd.grad(out, leaves, x) if train else ())]

def taken():
    return int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()

backend = sys.argv[1]
right = {train: step(*small, train, backend) for train in (False, True)}
full = {train: step(*large, train, backend) for train in (False, True)}
failures = successes = 0
for train in (False, True):
    for more in [0, 1, 2, 4, 8, 12, 20, 30, 45, 60, 80, 120, 160, 240, 400, 800]:
        resource.setrlimit(resource.RLIMIT_AS, (taken() + (more << 20), resource.RLIM_INFINITY))
        try:
            found = step(*large, train, backend)
        except (MemoryError, RuntimeError) as error:
            assert isinstance(error, MemoryError) or 'alloc' in str(error), error
            found, failures = None, failures + 1
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if found is not None:
            assert all(map(torch.equal, found, full[train]))
            successes += 1
        del found
        assert all(map(torch.equal, step(*small, train, backend), right[train]))
print(failures, successes)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a limit on addresses')
@pytest.mark.parametrize('backend', ['fft', 'direct'])
def test_out_of_memory_is_an_error_and_leaves_no_state(backend):
    """At any of 16 limits: right to the bit, or MemoryError or PyTorch's RuntimeError."""
    if backend == 'direct' and not native.available()[0]:
        pytest.skip(native.available()[1])
    done = subprocess.run([sys.executable, '-c', STARVED, backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failures, successes = map(int, done.stdout.split())
    assert failures >= 2
    assert successes >= 2


def test_plans_of_bad_calls_are_not_kept():
    """A call that raised does not decide the next one of the same shapes."""
    x, weight = torch.randn(1, 3, 40, 40), torch.randn(3, 1, 9, 9)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='cannot serve'):
            large_kernel_dwconv2d(x, weight, None, 2, 4, backend='fft')
    assert large_kernel_dwconv2d(x, weight, None, 2, 4).shape == (1, 3, 20, 20)
    assert functional.explain(x, weight, None, 2, 4).backend == 'torch'
