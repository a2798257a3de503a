"""What the process has set - default dtype and device, flush-to-zero - plays no part in results."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import large_kernel_dwconv2d, large_kernel_dwconv2d_pair
from mmreplk.ops.cpu import kernels as native
from mmreplk.ops.problem import Problem

needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])


def results(dtype, backend, last, multiplier=1):
    """Output and gradients of one convolution, and of the pair, on maps large enough to be cut."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, device='cpu').to(dtype)

    x, weight = normal(2, 18, 40, 36), normal(18 * multiplier, 1, 13, 13)
    small, bias = normal(18, 1, 5, 5), normal(18 * multiplier)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    out = [large_kernel_dwconv2d(x, weight, bias, padding=6, backend=backend)]
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    trained = large_kernel_dwconv2d(*leaves, padding=6, backend=backend)
    out += [trained.detach(), *torch.autograd.grad(trained, leaves, torch.ones_like(trained))]
    if multiplier == 1:
        leaves = [t.clone().requires_grad_() for t in (x, weight, small)]
        both = sum(large_kernel_dwconv2d_pair(*leaves, backend=backend))
        out += [both.detach(), *torch.autograd.grad(both, leaves, torch.ones_like(both))]
    return out


def same_everywhere():
    """Run in a process of its own, which the fault that this looks for would kill."""
    torch.set_num_threads(1)
    cases = [(dtype, backend, last, multiplier)
             for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
             for backend in ('auto', 'fft', 'direct', 'torch') for last in (False, True)
             for multiplier in (1, 2)
             if not (backend == 'direct' and (dtype == torch.float64 or not native.available()[0]))]
    expected = [results(*case) for case in cases]
    for default in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(default)
        check(cases, expected)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device('meta')
    # A pair's gradients are taken one by one then, which rounds them in another order.
    check(cases, expected, exact=5)


def check(cases, expected, exact=None):
    for case, tensors in zip(cases, expected, strict=True):
        for i, (a, b) in enumerate(zip(results(*case), tensors, strict=True)):
            assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape), case
            if exact is None or i < exact:
                assert torch.equal(a, b), case
            else:
                limit = 2 * max(torch.finfo(a.dtype).eps, 1e-6) * b.abs().max()
                assert (a - b).abs().max() <= limit, case


def test_default_dtype_and_device_play_no_part():
    code = (
        f'import importlib.util as u; s = u.spec_from_file_location("defaults", {__file__!r}); '
        'm = u.module_from_spec(s); s.loader.exec_module(m); m.same_everywhere()')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('decided_under', [
    'torch.set_default_device("meta")', 'torch.set_default_dtype(torch.float64)',
    'torch.set_default_dtype(torch.bfloat16)'])
def test_nothing_is_decided_from_the_defaults_for_the_process(decided_under):
    """Whether oneDNN multiplies here is asked once, and the answer is the same."""
    code = ('import torch; from mmreplk.models.cpu_inference import pointwise\n'
            '{}; print([pointwise._multiplies(d) for d in (torch.float32, torch.bfloat16)])')
    answers = {subprocess.run([sys.executable, '-c', code.format(first)], capture_output=True,
                              text=True, check=True).stdout for first in ('0', decided_under)}
    assert len(answers) == 1


@needs_kernels
def test_the_kernels_refuse_memory_that_is_too_small_or_not_float32():
    problem = Problem(torch.float32, 'cpu', False, 1, 2, 20, 20, 1, (5, 5), (1, 1), (2, ) * 4,
                      (1, 1), True)
    x, weight, bias = torch.randn(1, 2, 20, 20), torch.randn(2, 1, 5, 5), torch.randn(2)
    spectrum = native.fft_spectrum(weight, problem)
    short = {t: t.flatten()[:-1].clone() for t in (x, weight, bias, spectrum)}
    for name, given in (('x', (short[x], weight, bias)), ('weight', (x, short[weight], bias)),
                        ('bias', (x, weight, short[bias]))):
        with pytest.raises(RuntimeError, match=f'the memory of {name} holds'):
            native.direct_forward(*given, problem)
    with pytest.raises(RuntimeError, match='the memory of the spectrum holds'):
        native.fft_forward(x, short[spectrum], weight, bias, problem)
    for run in (native.direct_weight_grad, native.fft_weight_grad):
        with pytest.raises(RuntimeError, match='the memory of grad holds'):
            run(x, short[x], problem)
    for given in ((short[x], weight, x), (x, short[weight], x), (x, weight, short[x])):
        with pytest.raises(RuntimeError, match='the memory of .* holds'):
            native.fft_backward(given[0], [(*given[1:], problem)])
    for wrong in (x.double(), x.bfloat16(), x.to('meta')):
        with pytest.raises(RuntimeError, match='float32 on the CPU'):
            native.direct_forward(wrong, weight, bias, problem)
    call, memory = native._call(problem, -1), native.memory
    with pytest.raises(RuntimeError, match='the memory of the result holds'):
        native._native.run(call.forward, call.isa, 1, call.geometry, memory(x), memory(weight), 0,
                           0, 0, memory(short[x]))


@pytest.fixture
def flushed():
    """Denormal numbers are 0 in this thread, as PyTorch sets it."""
    threads = torch.get_num_threads()
    if not torch.set_flush_denormal(True):
        pytest.skip('this processor cannot flush denormal numbers')
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize('backend', ['fft', 'direct'])
@pytest.mark.parametrize('last', [False, True])
def test_flushed_denormals_repeat_for_any_number_of_threads(flushed, backend, last):
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (scale * torch.randn(shape, generator=generator) for scale, shape in (
        (1e-20, (4, 33, 24, 24)), (1e-19, (33, 1, 9, 9)), (1e-19, (4, 33, 24, 24))))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)

    def run():
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = large_kernel_dwconv2d(*leaves, padding=4, backend=backend)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    torch.set_num_threads(1)
    alone = run()
    for threads in (2, 3, 5, 2):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run(), alone, strict=True))
    # The mode is the caller's, and what a worker had is given back to it.
    torch.set_flush_denormal(False)
    kept = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(run(), kept, strict=True))
    right = F.conv2d(x.double(), weight.double(), padding=4, groups=33)
    assert (kept[0] - right).abs().max() <= 1e-4 * right.abs().max()
