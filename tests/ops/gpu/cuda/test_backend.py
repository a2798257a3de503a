"""The 'cuda' backend: when it serves, its record, its cache, and the way to a launch, without a
GPU."""

import ctypes
import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import cases
import pytest
import torch

from mmreplk.ops import LargeKernelDWConv2d, dispatch, explain, large_kernel_dwconv2d
from mmreplk.ops.gpu import arch, families, health, selfcheck
from mmreplk.ops.gpu.cuda import backend, binary, driver, launch, nvrtc, plan, variants

H100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132, clock_rate=1980000,
                       memory_clock_rate=2619000, memory_bus_width=5120, name='H100')


@pytest.fixture(name='on')
def _on(monkeypatch):
    """``on(H100)``: a machine with these devices, where NVRTC and the driver can be loaded."""
    def on(*devices):
        dispatch.forget()
        monkeypatch.setattr(arch, 'properties', lambda: devices)
        monkeypatch.setattr(nvrtc, 'library', lambda: None)
        monkeypatch.setattr(driver, 'library', lambda: None)

    yield on
    monkeypatch.undo()
    dispatch.forget()


@pytest.fixture(name='on_this_cpu')
def _on_this_cpu(monkeypatch, on_cpu, emulated):
    """The kernels serve the CPU's tensors, in the emulator."""
    def supports(problem, task):
        why = backend.can_divide(problem, task)
        return not why, why

    family = backend.FAMILY._replace(
        estimate=lambda problem, task: 1e-9, supports=supports,
        versions=lambda: dict(nvrtc='none', source='emulated'))
    monkeypatch.setattr(families, 'FAMILIES', {'cuda': family})
    monkeypatch.setattr(dispatch, 'BACKENDS', {**dispatch.BACKENDS, 'cuda': dispatch.BACKENDS[
        'cuda']._replace(supports=family.supports, estimate=family.estimate)})
    dispatch.forget()
    # By the context: where PyTorch's own test tools were imported, the flag cannot be set.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield emulated


def gpu_problem(**changes):
    return cases.problem(**{**dict(batch=64, channels=384, size=(32, 32), kernel=(31, 31),
                                   device='cuda'), **changes})


# -- when it serves --------------------------------------------------------------------------------

def test_nothing_is_loaded_at_import():
    text = ('import sys, ctypes; loaded = []; real = ctypes.CDLL.__init__\n'
            'def record(self, name, *args, **kwargs):\n'
            '    loaded.append(str(name)); real(self, name, *args, **kwargs)\n'
            'import torch; ctypes.CDLL.__init__ = record\n'
            'import mmreplk.ops; from mmreplk.ops import dispatch\n'
            'assert "cuda" in dispatch.BACKENDS\n'
            'import torch; x = torch.randn(1, 2, 40, 40); w = torch.randn(2, 1, 31, 31)\n'
            'mmreplk.ops.explain(x, w, padding=15)\n'
            'print([n for n in loaded if "nvrtc" in n or "libcuda" in n])')
    out = subprocess.run([sys.executable, '-c', text], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def test_it_says_why_not(on):
    on(H100)
    reasons = {
        'on a GPU, the input is on the CPU': cases.problem(),
        'do not compute in torch.float64': gpu_problem()._replace(dtype=torch.float64),
        'stride 1': gpu_problem()._replace(stride=(2, 2)),
        'dilation 1': gpu_problem()._replace(dilation=(2, 2)),
        'as many outputs': gpu_problem()._replace(multiplier=2),
        'too many elements': gpu_problem(size=(1 << 16, 1 << 15)),
        'blocks in 32 bits': gpu_problem(batch=1 << 30, size=(1, 1), kernel=(1, 1)),
    }
    for text, problem in reasons.items():
        for task in ('forward', 'weight_grad'):
            ok, why = backend.supports(problem, task)
            assert not ok
            assert text in why


def test_old_devices(on):
    on(SimpleNamespace(**{**vars(H100), 'major': 7, 'minor': 5}))
    assert 'compute capability 8.0' in backend.supports(gpu_problem(), 'forward')[1]


def test_missing_libraries_are_named(on, monkeypatch):
    on(H100)
    for module, error in ((nvrtc, nvrtc.Unavailable('no libnvrtc')),
                          (driver, driver.DriverError('no libcuda'))):
        def missing(error=error):
            raise error

        dispatch.forget()
        with monkeypatch.context() as patch:
            patch.setattr(module, 'library', missing)
            ok, why = backend.supports(gpu_problem(), 'forward')
        assert not ok
        assert why == f'the CUDA kernels cannot be compiled and loaded here: {error}'
        dispatch.forget()
    assert backend.supports(gpu_problem(), 'forward') == (True, '')


def test_a_torch_without_nvrtc_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(nvrtc, '_folders', lambda: [tmp_path])
    monkeypatch.setattr(torch.version, 'cuda', None)
    with pytest.raises(nvrtc.Unavailable, match='pip install nvidia-cuda-nvrtc'):
        nvrtc.find()
    monkeypatch.setattr(torch.version, 'cuda', '99.1')
    assert nvrtc.find() == 'libnvrtc.so.99'
    nvrtc.library.cache_clear()
    with pytest.raises(nvrtc.Unavailable, match='libnvrtc.so.99'):
        nvrtc.library()


def test_the_model_decides_among_families(on):
    pytest.importorskip('triton')
    on(H100)
    for size in ((16, 16), (32, 32), (64, 64)):
        for task in ('forward', 'weight_grad'):
            times = {name: family.estimate(gpu_problem(size=size), task)
                     for name, family in families.FAMILIES.items()}
            assert times.keys() == {'triton', 'cuda'}
            assert all(0 < time < 1 for time in times.values())
            # Counted, both: the audit's reason for these kernels.
            if size == (64, 64):
                assert times['cuda'] < times['triton']


@pytest.mark.sample
@pytest.mark.parametrize('size', [(7, 7), (14, 14), (25, 42), (50, 84), (1, 1), (200, 320)])
@pytest.mark.parametrize('batch', [1, 2, 64])
@pytest.mark.parametrize('kernel', [(3, 3), (31, 31), (6, 51), (101, 101)])
@pytest.mark.parametrize('arithmetic', ['fp16', 'exact'])
def test_every_shape_can_be_divided(on, size, batch, kernel, arithmetic):
    p, mode = gpu_problem(size=size, batch=batch, kernel=kernel, arithmetic=arithmetic), \
        cases.ARITHMETIC[arithmetic][1]
    for capability in ((8, 0), (8, 6), (9, 0), (12, 0)):
        device = arch.arch(capability)
        for task in ('forward', 'weight_grad'):
            ranked = variants.ranked(p, task, mode, device)
            assert ranked
            key, small = variants.probe(p, task, mode, ranked[0], device)
            assert variants.kernel_of(small, mode, ranked[0]) == variants.kernel_of(
                p, mode, ranked[0])
            assert small.batch <= 3
            assert small.channels <= 2
            assert task in key
            assert variants.read(task, json.loads(json.dumps(ranked[0]))) == ranked[0]


@pytest.mark.parametrize('value', [
    [], [1], [[[2, 16, 4, 4], 1, 1, 1, 1]], [[[3, 3, 3, 3], 1, 1, 1, True], [1, 1]],
    [[[2, 16, 4, 4], 1, 1, 1, True], [7, 1]], [[[2, 16, 4, 4], 1, 1, -1, True], [1, 1]], 'cuda'])
def test_what_is_no_variant(value):
    with pytest.raises((ValueError, TypeError)):
        variants.read('forward', value)


# -- through the operator --------------------------------------------------------------------------

@pytest.mark.parametrize('channels_last', [False, True])
def test_the_operator_and_its_gradients(on_this_cpu, compare, channels_last):
    x = torch.randn(3, 2, 12, 24)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = LargeKernelDWConv2d(2, 2, 7, padding=3, groups=2, backend='cuda')
    x.requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert {launch.function for launch in on_this_cpu.launches} == {'forward', 'weight_grad'}
    exact = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    expected = torch.nn.functional.conv2d(*exact, padding=3, groups=2)
    expected.backward(grad.double())
    compare(out.double(), expected, torch.float32)
    for found, right in zip((x, layer.weight, layer.bias), exact, strict=True):
        compare(found.grad.double(), right.grad, torch.float32)
    assert out.is_contiguous(memory_format=(
        torch.channels_last if channels_last else torch.contiguous_format))


def test_it_is_checked_before_its_first_use(on_this_cpu, monkeypatch):
    x, weight = torch.randn(2, 2, 12, 24), torch.randn(2, 1, 7, 7)
    large_kernel_dwconv2d(x, weight, padding=3, backend='cuda')
    assert [one.arguments.images for one in on_this_cpu.launches] == [2, 2]
    large_kernel_dwconv2d(x, weight, padding=3, backend='cuda')
    assert len(on_this_cpu.launches) == 3

    real = on_this_cpu.run

    def wrong(what, tensors):
        real(what, tensors)
        tensors['y'].flatten()[5] += 1

    monkeypatch.setattr(driver, 'run', wrong)
    y = torch.randn(2, 2, 13, 24)
    with pytest.warns(RuntimeWarning, match="'cuda' kernels failed.*wrong: off by"):
        out = large_kernel_dwconv2d(y, torch.randn(2, 1, 5, 5), padding=2)
    assert out.isfinite().all()
    assert health.why(y.device, 'cuda')
    assert 'wrong' in str(explain(y, weight, padding=3).candidates['cuda'])


@pytest.mark.parametrize('name', ['x', 'grad', 'weight'])
def test_odd_addresses_are_copied(emulated, name):
    p = cases.problem(batch=2, size=(9, 16), kernel=(5, 5))
    x, weight, _, grad = cases.tensors(p)
    kept = {'x': x, 'weight': weight, 'grad': grad}
    moved = torch.empty(kept[name].numel() + 1, dtype=p.dtype)[1:].view(kept[name].shape)
    kept[name] = moved.copy_(kept[name])
    out = launch.forward(kept['x'], kept['weight'], None, p, 'half', *cases.forward_variant(
        p, 'fp16', lambda all: all[0], plan.TILES[2:3]))
    assert selfcheck.relative_error(out, selfcheck.exact_forward(x, weight, None, p)) < 1e-3
    out = launch.weight_grad(kept['x'], kept['grad'], p, 'half',
                             *cases.grad_variant(p, lambda all: all[-1]))
    assert selfcheck.relative_error(out, selfcheck.exact_weight_grad(x, grad, p)) < 1e-3


@pytest.mark.parametrize('task', ['forward', 'weight_grad'])
def test_copies_are_made_a_few_channels_at_a_time(emulated, monkeypatch, task):
    p = cases.problem(batch=2, channels=5, size=(9, 16), kernel=(5, 5), channels_last=True)
    x, weight, _, grad = cases.tensors(p)
    monkeypatch.setattr(launch, 'WORKSPACE', 5000)
    last = {name: t.contiguous(memory_format=torch.channels_last)
            for name, t in dict(x=x, grad=grad).items()}
    if task == 'forward':
        one = cases.forward_variant(p, 'fp16', lambda all: all[0], plan.TILES[2:3])
        out = launch.forward(last['x'], weight, None, p, 'half', *one)
        expected = selfcheck.exact_forward(x, weight, None, p)
        assert out.is_contiguous(memory_format=torch.channels_last)
    else:
        out = launch.weight_grad(last['x'], last['grad'], p, 'half',
                                 *cases.grad_variant(p, lambda all: all[-1]))
        expected = selfcheck.exact_weight_grad(x, grad, p)
    assert selfcheck.relative_error(out, expected) < 1e-3
    assert sum(one.arguments.channels for one in emulated.launches) == 5
    assert max(one.arguments.channels for one in emulated.launches) < 5


def test_check_tells_of_every_kind(emulated):
    found = backend.check('cpu')
    assert len(found) == 8
    assert set(found.values()) == {'right'}


# -- compiled code, and the driver -----------------------------------------------------------------

KERNEL = plan.Kernel('forward', (('MODE', 0), ))


@pytest.fixture(name='compiler')
def _compiler(monkeypatch):
    """NVRTC that makes the same of everything; the list of what it was asked for."""
    asked = []

    def compiled(name, defines, target):
        asked.append((name, defines, target))
        return b'machine code'

    monkeypatch.setattr(nvrtc, 'compiled', compiled)
    monkeypatch.setattr(nvrtc, 'known', lambda: (80, 86, 90))
    monkeypatch.setattr(nvrtc, 'version', lambda: '13.0')
    return asked


def test_compiled_code_is_kept(compiler, own_cache, monkeypatch):
    for _ in range(2):
        assert binary.machine_code(KERNEL, (9, 0)) == b'machine code'
    assert compiler == [('forward', KERNEL.defines, 'sm_90')]
    binary.machine_code(KERNEL, (8, 0))
    binary.machine_code(KERNEL._replace(defines=(('MODE', 1), )), (9, 0))
    assert len(compiler) == 3
    monkeypatch.setattr(nvrtc, 'version', lambda: '13.1')
    binary.machine_code(KERNEL, (9, 0))
    monkeypatch.setattr(nvrtc, 'sources', lambda name: {'forward.cu': b'another'})
    binary.machine_code(KERNEL, (9, 0))
    assert len(compiler) == 5
    assert len(list((own_cache / 'cuda').iterdir())) == 5


@pytest.mark.parametrize('damage', [lambda text: b'', lambda text: text[:-1],
                                    lambda text: text[:-1] + b'x', lambda text: b'x' + text[1:]])
def test_damaged_files_are_compiled_again(compiler, damage):
    binary.machine_code(KERNEL, (9, 0))
    path = binary.path_of(KERNEL, 'sm_90')
    path.write_bytes(damage(path.read_bytes()))
    assert binary.machine_code(KERNEL, (9, 0)) == b'machine code'
    assert len(compiler) == 2
    binary.machine_code(KERNEL, (9, 0))
    assert len(compiler) == 2


def test_a_folder_that_cannot_be_written(compiler, monkeypatch, tmp_path):
    file = tmp_path / 'a file'
    file.touch()
    monkeypatch.setenv('MMREPLK_CACHE', str(file))
    for _ in range(2):
        assert binary.machine_code(KERNEL, (9, 0)) == b'machine code'
    assert len(compiler) == 2


def test_writers_do_not_meet(compiler, own_cache):
    threads = [threading.Thread(target=binary.machine_code, args=(KERNEL, (9, 0)))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (own_cache / 'cuda').iterdir()] == [
        binary.path_of(KERNEL, 'sm_90').name]
    assert stat.S_IMODE(os.stat(binary.path_of(KERNEL, 'sm_90')).st_mode) & 0o400


class Cuda:
    """A driver that notes what it is asked for; ``fails`` is the name of what it refuses."""

    def __init__(self):
        self.calls, self.fails, self.context = [], '', 0

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, args))
            if name == 'cuCtxGetCurrent':
                args[0]._obj.value = self.context
            if name in ('cuGetErrorName', 'cuGetErrorString'):
                args[1]._obj.value = {'cuGetErrorName': b'CUDA_ERROR_OUT_OF_MEMORY',
                                      'cuGetErrorString': b'out of memory'}[name]
                return 0
            if name == 'cuLaunchKernel':
                self.launched = args
                self.bytes = ctypes.string_at(args[9][0], 152)
            return 2 if name == self.fails else 0
        return call


@pytest.fixture(name='cuda')
def _cuda(monkeypatch, compiler):
    one = Cuda()
    monkeypatch.setattr(driver, 'library', lambda: one)
    monkeypatch.setattr(driver, '_modules', {})
    monkeypatch.setattr(driver, '_functions', {})
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    return one


def some_launch():
    p = cases.problem(batch=2, size=(9, 16), kernel=(5, 5))
    one = cases.forward_variant(p, 'fp16', lambda all: all[0])
    return plan.plan_forward(p, 'half', *one)


def test_a_launch(cuda):
    what = some_launch()
    x, y = torch.zeros(4), torch.zeros(4)
    for _ in range(2):
        driver.run(what, dict(x=x, w=x, bias=None, y=y))
    names = [name for name, _ in cuda.calls]
    assert names.count('cuModuleLoadData') == names.count('cuModuleGetFunction') == 1
    assert names.count('cuLaunchKernel') == 2
    assert names.count('cuCtxSetCurrent') == 2  # of a thread that has no context
    _, *sizes, shared, stream, _, none = cuda.launched
    assert sizes == [what.grid, 1, 1, what.threads, 1, 1]
    assert (shared, stream.value, none) == (what.shared, 77, None)
    sent = plan.ForwardArguments.from_buffer_copy(cuda.bytes)
    assert (sent.x, sent.w, sent.bias, sent.y) == (x.data_ptr(), x.data_ptr(), 0, y.data_ptr())
    assert (sent.height, sent.width, sent.kh) == (9, 16, 5)
    assert what.arguments.x == 0  # plans are shared
    limit, = (args for name, args in cuda.calls if name == 'cuFuncSetAttribute')
    assert limit[1:] == (8, arch.arch((9, 0)).shared)


def test_a_context_that_is_there_is_left(cuda):
    cuda.context = 5
    driver.run(some_launch(), dict(x=torch.zeros(4)))
    assert 'cuCtxSetCurrent' not in [name for name, _ in cuda.calls]


@pytest.mark.parametrize('fails', ['cuModuleLoadData', 'cuModuleGetFunction', 'cuLaunchKernel',
                                   'cuFuncSetAttribute', 'cuCtxGetCurrent'])
def test_what_the_driver_refuses_is_told(cuda, fails):
    cuda.fails = fails
    with pytest.raises(driver.DriverError, match='CUDA_ERROR_OUT_OF_MEMORY: out of memory') as what:
        driver.run(some_launch(), dict(x=torch.zeros(4)))
    assert health.is_out_of_memory(what.value)


def test_no_driver(monkeypatch):
    def missing(name, *args):
        raise OSError(f'{name}: cannot open shared object file')

    monkeypatch.setattr(ctypes, 'CDLL', missing)
    driver.library.cache_clear()
    with pytest.raises(driver.DriverError, match='libcuda.so.1, cannot be loaded'):
        driver.library()
