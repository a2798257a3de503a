"""Triton's own path, compiler included, under a driver that is none: what it raises is survived."""

import os

import pytest
import torch

pytest.importorskip('triton', minversion='3.6')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip('nothing is compiled under the interpreter', allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import compiler  # noqa: E402
from triton.runtime import driver  # noqa: E402

from mmreplk.ops import dispatch, large_kernel_dwconv2d  # noqa: E402
from mmreplk.ops.gpu import families, health, kernels, launch  # noqa: E402

SHARED = {75: 64, 80: 163, 86: 99, 90: 227}


class Driver:
    """Says that it is a GPU; loads and launches nothing.

    Attributes:
        capability (int): As 90.
        shared (int): KiB of shared memory.
        on_load, on_launch (Exception, optional): What is raised there.
        loads, launches (list): Names of kernels; names and arguments.
    """

    def __init__(self, capability=90):
        self.capability, self.shared = capability, SHARED[capability]
        self.on_load = self.on_launch = None
        self.loads, self.launches = [], []
        self.utils = self

    def get_device_properties(self, device):
        return dict(max_shared_mem=self.shared << 10, multiprocessor_count=132,
                    max_num_regs=65536, warpSize=32)

    def load_binary(self, name, kernel, shared, device):
        if self.on_load:
            raise self.on_load
        self.loads.append(name)
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, src, metadata):
        def launch(*args):
            if self.on_launch:
                raise self.on_launch
            self.launches.append((metadata.name, args))
        return launch

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget('cuda', self.capability, 32)


def empty():
    """Forget what Triton knows of its driver and has compiled in this process."""
    compiler.max_shared_mem.cache_clear()
    for name in ('forward_kernel', 'toeplitz_kernel', 'weight_grad_kernel',
                 'weight_grad_sum_kernel'):
        getattr(kernels, name).device_caches.clear()


@pytest.fixture
def gpu(monkeypatch, on_cpu):
    """A driver in Triton's place, and CPU tensors in those of a GPU."""
    fake = Driver()
    monkeypatch.setattr(driver, '_active', fake)
    empty()

    def supports(problem, task):
        return launch.supports(problem._replace(device='cuda'), task)

    triton = families.FAMILIES['triton']._replace(supports=supports, estimate=lambda *_: 1e-9)
    monkeypatch.setitem(families.FAMILIES, 'triton', triton)
    monkeypatch.setitem(dispatch.BACKENDS, 'triton', dispatch.BACKENDS['triton']._replace(
        supports=supports, estimate=lambda *_: 1e-9))
    dispatch.forget()
    yield fake
    empty()


def half(data):
    x, weight, bias, padding = data
    return x.half(), weight.half(), bias.half(), padding


def test_kernels_that_write_nothing_are_found_out(gpu, data, compare):
    """Compiled, loaded and launched as on a GPU; the check sees that nothing was computed."""
    x, weight, bias, padding = half(data)
    with pytest.warns(RuntimeWarning, match="'triton' kernels failed on cpu.* is wrong: off by"):
        out = large_kernel_dwconv2d(x, weight, bias, padding=padding)
    compare(out, torch.nn.functional.conv2d(
        x.double(), weight.double(), bias.double(), padding=padding, groups=3), torch.float16)
    assert [name for name, _ in gpu.launches] == ['toeplitz_kernel', 'forward_kernel']
    assert set(gpu.loads) == {'toeplitz_kernel', 'forward_kernel'}


@pytest.mark.parametrize('what', ['load', 'launch', 'shared memory', 'memory', 'old driver'])
def test_what_a_driver_raises(gpu, data, compare, what):
    x, weight, bias, padding = half(data)
    message = 'Triton Error [CUDA]: device kernel image is invalid'
    if what == 'load':
        gpu.on_load = RuntimeError(message)
    elif what == 'launch':
        gpu.on_launch = RuntimeError(message := 'Triton Error [CUDA]: invalid argument')
    elif what == 'shared memory':
        gpu.shared, message = 8, 'out of resource: shared memory'
    elif what == 'old driver':
        gpu.on_load = RuntimeError(message := 'the provided PTX was compiled with an unsupported '
                                   'toolchain')
    else:
        gpu.on_load = RuntimeError('Triton Error [CUDA]: out of memory')
        with pytest.raises(RuntimeError, match='out of memory'):
            large_kernel_dwconv2d(x, weight, bias, padding=padding)
        assert not health.why(x.device, 'triton')
        return
    with pytest.warns(RuntimeWarning) as seen:
        out = large_kernel_dwconv2d(x, weight, bias, padding=padding)
    assert len(seen) == 1
    assert message in str(seen[0].message)
    compare(out, torch.nn.functional.conv2d(
        x.double(), weight.double(), bias.double(), padding=padding, groups=3), torch.float16)


def test_another_architecture(gpu, data):
    """What the compiler refuses for a device is a failure as any other."""
    gpu.capability = 75
    x, weight, bias, padding = half(data)
    weight.requires_grad_()
    with pytest.warns(RuntimeWarning, match="'triton' kernels failed"):
        large_kernel_dwconv2d(x, weight, bias, padding=padding)
