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


def test_what_first_gpu_compiles_in_threads(gpu, monkeypatch, tmp_path):
    """Triton's real compiler, nothing launched; what is called afterwards needs no compiler."""
    from pathlib import Path
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / 'tools/benchmarks'))
    import gpu_parts
    import gpu_time
    from rows import RowFile

    class Machine:
        device, spoken = torch.device('cpu'), 'cpu'

        def synchronize(self):
            pass

    monkeypatch.setattr(gpu_time, 'FACTS', [])
    monkeypatch.setattr(gpu_time, 'classes', lambda variants, most: list(variants[:1]))
    context = gpu_parts.Context(Machine(), RowFile(tmp_path / 'rows.jsonl'), gpu_parts.Scale(
        batch=2, channels=4, maps=(16, ), kernel=5), {})
    monkeypatch.setattr(context, 'stack', lambda: [
        ('fp16', context.problem('fp16', 2, 4, 16, 16, (5, 5)))])
    gpu_time.compile_all(context)
    assert [row['status'] for row in context.rows] == ['ok', 'ok']
    assert {row['task'] for row in context.rows} == {'forward', 'weight_grad'}
    assert not gpu.launches
    compiled = {name: sum(len(cache[0]) for cache in getattr(kernels, name).device_caches.values())
                for name in ('forward_kernel', 'weight_grad_kernel', 'toeplitz_kernel')}
    assert set(compiled.values()) == {1}
    _, problem = context.stack()[0]
    x, weight = torch.zeros(2, 4, 16, 16).half(), torch.zeros(4, 1, 5, 5).half()
    monkeypatch.setattr(compiler, 'compile', lambda *args, **kwargs: pytest.fail('compiled anew'))
    variant = families.FAMILIES['triton'].variants(problem, 'forward', 'half', launch.arch_of(
        'cpu'))[0]
    launch.forward(x, weight, None, problem, True, variant.tile, variant.more)
    assert [name for name, _ in gpu.launches] == ['toeplitz_kernel', 'forward_kernel']


# -- launched without Triton's own way of calling --------------------------------------------------

def both(x, weight, grad, problem):
    launch.forward(x, weight, None, problem)
    launch.weight_grad(x, grad, problem)


def plain(launches):
    """Tensors by address and shape, but for those that are made anew in each call."""
    kept = []
    for name, args in launches:
        values = [(tuple(a.shape), a.dtype) if isinstance(a, torch.Tensor) else a for a in args
                  if not isinstance(a, compiler.LazyDict)]
        kept.append((name, [v for v in values if not callable(v)]))
    return kept


@pytest.fixture
def call():
    problem = dispatch.Problem(torch.float16, 'cuda', False, 2, 3, 12, 16, 1, (5, 7), (1, 1),
                               (2, 2, 3, 3), (1, 1), False)
    x, weight = torch.randn(2, 3, 12, 16).half(), torch.randn(3, 1, 5, 7).half()
    return x, weight, torch.randn(problem.out_shape).half(), problem


def test_later_launches_are_as_the_first(gpu, call, monkeypatch):
    """The same kernel, grid, stream and arguments, without binding and specializing anew."""
    both(*call)
    first = plain(gpu.launches)
    names = [name for name, _ in first]
    assert names == ['toeplitz_kernel', 'forward_kernel', 'weight_grad_kernel',
                     'weight_grad_sum_kernel']
    gpu.launches.clear()
    for name in names:
        monkeypatch.setattr(getattr(kernels, name), 'run',
                            lambda *args, **kwargs: pytest.fail("Triton's own way"))
    both(*call)
    assert plain(gpu.launches) == first


def test_launches_by_triton_where_it_is_older(gpu, call, monkeypatch):
    from mmreplk.ops.gpu import direct
    monkeypatch.setattr(direct, '_version', (3, 5))
    seen = []
    run = kernels.forward_kernel.run
    monkeypatch.setattr(kernels.forward_kernel, 'run',
                        lambda *args, **kwargs: seen.append(1) or run(*args, **kwargs))
    both(*call)
    both(*call)
    assert len(seen) == 2
    assert plain(gpu.launches[:4]) == plain(gpu.launches[4:])


def test_other_values_in_the_same_launch(gpu, call):
    """Tensors are those of the call, sizes those of the problem."""
    x, weight, grad, problem = call
    both(*call)
    gpu.launches.clear()
    others = x.clone(), weight.clone(), grad.clone()
    both(*others, problem)
    given = {a.data_ptr() for _, args in gpu.launches for a in args if isinstance(a, torch.Tensor)}
    assert {t.data_ptr() for t in others} <= given
    assert not {t.data_ptr() for t in call[:3]} & given
    gpu.launches.clear()
    small = problem._replace(batch=1)
    launch.forward(x[:1], weight, None, small)
    forward, = (args for name, args in gpu.launches if name == 'forward_kernel')
    names = kernels.forward_kernel.arg_names
    assert forward[-len(names):][names.index('images')] == 1


def test_an_unaligned_map_meets_the_same_kernel(gpu, call):
    """It is copied, so that nothing is compiled anew, and what is launched is aligned."""
    x, weight, grad, problem = call
    both(*call)
    loads = len(gpu.loads)
    gpu.launches.clear()
    odd = torch.empty(x.numel() + 1).half()[1:].view_as(x).copy_(x)
    both(odd, weight, grad, problem)
    assert len(gpu.loads) == loads
    assert all(a.data_ptr() % 16 == 0 for _, args in gpu.launches for a in args
               if isinstance(a, torch.Tensor))
