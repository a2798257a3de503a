"""``depthwise_conv2d_implicit_gemm`` by every form in which networks of others call it."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d, dropin, large_kernel_dwconv2d


@pytest.fixture
def modules(monkeypatch):
    """The two modules, found as a folder of sys.path, as the variables of networks do it."""
    monkeypatch.setattr(sys, 'path', [*sys.path, dropin.folder()])
    for name in dropin.NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import _depthwise_conv2d_implicit_gemm_C as compiled
    import depthwise_conv2d_implicit_gemm as module
    yield types.SimpleNamespace(module=module, compiled=compiled)
    for name in dropin.NAMES:
        sys.modules.pop(name, None)


def reference(x, weight, bias=None):
    """The convolution of F.conv2d in float64, and its gradients for a gradient of ones."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight)]
    out = F.conv2d(*leaves, None if bias is None else bias.double(), groups=x.shape[1],
                   padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    return out.detach(), *torch.autograd.grad(out.sum(), leaves)


@pytest.mark.parametrize('kernel', [5, (31, 31), [51, 5], (5, 51), 3, 13, 4])
@pytest.mark.parametrize('bias', [False, True])
def test_the_class(modules, kernel, bias):
    layer = modules.module.DepthWiseConv2dImplicitGEMM(8, kernel, bias=bias)
    sides = [kernel, kernel] if isinstance(kernel, int) else list(kernel)
    assert set(layer.state_dict()) == ({'weight', 'bias'} if bias else {'weight'})
    assert layer.weight.shape == (8, 1, *sides)
    assert layer.padding == (sides[0] // 2, sides[1] // 2)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (8, 8, 8)
    assert (layer.stride, layer.dilation) == ((1, 1), (1, 1))
    x = torch.randn(2, 8, 20, 24, requires_grad=True)
    out = layer(x)
    right, right_x, right_weight = reference(x, layer.weight, layer.bias)
    torch.testing.assert_close(out.double(), right, atol=1e-4, rtol=1e-4)
    found = torch.autograd.grad(out.sum(), (x, layer.weight))
    for a, b in zip(found, (right_x, right_weight), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-3, rtol=1e-3)
    if all(side % 2 for side in sides):
        assert out.shape == x.shape


def test_positional_and_subclassed(modules):
    class DWConv2D(modules.module.DepthWiseConv2dImplicitGEMM):
        def __init__(self, in_channels, kernel_size, bias):
            super().__init__(in_channels, kernel_size, bias)

    layer = DWConv2D(4, 7, True)
    assert layer.bias is not None
    assert isinstance(layer, nn.Conv2d)
    assert copy.deepcopy(layer)(torch.randn(1, 4, 9, 9)).shape == (1, 4, 9, 9)
    plain = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 30, 30).permute(0, 1, 3, 2)  # any strides
    torch.testing.assert_close(layer(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_input_decides_the_dtype(modules, dtype):
    layer = modules.module.DepthWiseConv2dImplicitGEMM(4, 13, bias=True)
    x = torch.randn(2, 4, 16, 16, dtype=dtype, requires_grad=True)
    out = layer(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert x.grad.dtype == dtype
    right, *_ = reference(x, layer.weight.to(dtype), layer.bias.to(dtype))
    torch.testing.assert_close(out.double(), right, atol=0.05, rtol=0.02)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(torch.randn(1, 4, 16, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize('kernel', [(3, 3, 3), (3, ), 3.0, '31', (3, 3.5), 0, -3, (3, 0), None])
def test_what_is_no_kernel_is_refused(modules, kernel):
    with pytest.raises(ValueError, match='kernel must be a positive int or a pair.*3-d'):
        modules.module.DepthWiseConv2dImplicitGEMM(4, kernel)


@pytest.mark.parametrize(('name', 'dtype'), [
    ('_DepthWiseConv2dImplicitGEMMFP32', torch.float32),
    ('_DepthWiseConv2dImplicitGEMMFP16', torch.float16),
    ('_DepthWiseConv2dImplicitGEMMFP16', torch.bfloat16)])
def test_the_functions(modules, name, dtype):
    x = torch.randn(2, 6, 18, 18, dtype=dtype, requires_grad=True)
    kernels = torch.randn(6, 1, 13, 13, requires_grad=True)  # computed by a network
    out = getattr(modules.module, name).apply(x, kernels)
    assert out.dtype == dtype
    right, right_x, right_weight = reference(x, kernels.to(dtype))
    close = dict(atol=1e-3, rtol=1e-4) if dtype == torch.float32 else dict(atol=1.0, rtol=0.05)
    torch.testing.assert_close(out.double(), right, **close)
    out.sum().backward()
    torch.testing.assert_close(x.grad.double(), right_x, **close)
    torch.testing.assert_close(kernels.grad.double(), right_weight, **close)


@pytest.mark.parametrize('kernel', [(31, 31), (51, 5), (3, 3), (4, 6)])
@pytest.mark.parametrize(('suffix', 'dtype'), [('fp32', torch.float32), ('fp16', torch.float16),
                                               ('fp16', torch.bfloat16)])
def test_the_six_functions(modules, kernel, suffix, dtype):
    x, w = torch.randn(2, 6, 22, 26, dtype=dtype), torch.randn(6, 1, *kernel, dtype=dtype)
    right, right_x, right_weight = reference(x, w)
    compiled = modules.compiled
    out = getattr(compiled, f'forward_{suffix}')(x, w)
    grad = torch.ones_like(out)
    grad_x = getattr(compiled, f'backward_data_{suffix}')(grad, w)
    grad_weight = getattr(compiled, f'backward_filter_{suffix}')(grad, x, w)
    assert (out.dtype, grad_x.dtype, grad_weight.dtype) == (dtype, dtype, torch.float32)
    close = dict(atol=1e-3, rtol=1e-4) if dtype == torch.float32 else dict(atol=1.0, rtol=0.05)
    for a, b in ((out, right), (grad_x, right_x)):
        torch.testing.assert_close(a.double(), b, **close)
    # Never rounded to 16 bits.
    torch.testing.assert_close(grad_weight.double(), right_weight, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('variable', ['LARGE_KERNEL_CONV_IMPL', 'DWCONV_IMPL', 'PYTHONPATH'])
def test_the_folder_of_the_command(variable, tmp_path):
    environment = {**os.environ, 'PYTHONPATH': os.getcwd()}
    folder = subprocess.run([sys.executable, '-m', 'mmreplk.ops', 'dropin'], text=True, check=True,
                            capture_output=True, env=environment).stdout.strip()
    if variable == 'PYTHONPATH':
        folder = f'{folder}{os.pathsep}{os.getcwd()}'
    code = (f'import os, sys; sys.path.append(os.environ[{variable!r}])\n'
            'from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM\n'
            'import torch; print(DepthWiseConv2dImplicitGEMM(4, 31, bias=False)'
            '(torch.ones(1, 4, 8, 8)).shape)')
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True,
                          env={**environment, variable: folder}, check=True)
    assert done.stdout.strip() == 'torch.Size([1, 4, 8, 8])'


def test_the_longer_name(modules):
    from DepthwiseConv2d.depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
    assert DepthWiseConv2dImplicitGEMM is modules.module.DepthWiseConv2dImplicitGEMM


class Merged(nn.Module):
    """How the networks build, merge and rebuild a block: by attributes of the layer."""

    def __init__(self, conv, channels, kernel):
        super().__init__()
        self.conv, self.bn = conv(channels, kernel), nn.BatchNorm2d(channels)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x):
        return self.bn(self.conv(x))

    def merge(self):
        conv, scale = self.conv, self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride,
                        padding=conv.padding, dilation=conv.dilation, groups=conv.groups, bias=True)
        new.weight.data = conv.weight * scale.view(-1, 1, 1, 1)
        new.bias.data = self.bn.bias - self.bn.running_mean * scale
        return new


@pytest.mark.parametrize('kernel', [31, (51, 5)])
def test_merging_by_attributes(modules, kernel):
    block = Merged(modules.module.DepthWiseConv2dImplicitGEMM, 4, kernel).eval()
    x = torch.randn(2, 4, 30, 22)
    new = block.merge()
    torch.testing.assert_close(new(x), block(x), atol=1e-4, rtol=1e-4)
    new.weight.data *= 2
    served = modules.module.DepthWiseConv2dImplicitGEMM(4, kernel, bias=True)
    served.weight.data, served.bias.data = new.weight.data, new.bias.data
    torch.testing.assert_close(served(x), new(x), atol=1e-4, rtol=1e-4)


def test_under_tools_that_read_code(modules):
    layer = modules.module.DepthWiseConv2dImplicitGEMM(4, 13, bias=True).eval()
    x = torch.randn(1, 4, 20, 20)
    right = layer(x)
    graph = torch.fx.symbolic_trace(layer)
    assert [node.target for node in graph.graph.nodes if node.op == 'call_function'] == [
        large_kernel_dwconv2d]
    for other in (graph, torch.jit.script(layer), torch.jit.trace(layer, x),
                  torch.compile(layer, backend='eager', fullgraph=True),
                  pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        torch.testing.assert_close(other(x), right, atol=1e-5, rtol=1e-5)
    # Wherever the weights lie, and whatever their dtype.
    for dtype in (torch.float32, torch.float16):
        out = copy.deepcopy(layer).to('meta')(torch.empty(1, 4, 20, 20, dtype=dtype, device='meta'))
        assert (out.shape, out.dtype) == (right.shape, dtype)
    kernels = torch.empty(4, 1, 5, 5, device='meta')
    out = modules.module._DepthWiseConv2dImplicitGEMMFP32.apply(x.to('meta'), kernels)
    assert out.shape == right.shape


def test_attributes_set_from_outside_act(modules):
    layer = modules.module.DepthWiseConv2dImplicitGEMM(4, 13)
    layer.activation = 'relu'
    for dtype in (torch.float32, torch.bfloat16):
        assert layer(torch.randn(1, 4, 20, 20, dtype=dtype)).min() >= 0
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(1, 4, 20, 20))
    assert calls == [1]


def test_layers_that_were_pickled_with_the_extension(modules):
    """They have the extension's padding, 0, and none of our attributes."""
    layer = modules.module.DepthWiseConv2dImplicitGEMM(4, (5, 13))
    state = dict(layer.__dict__, padding=(0, 0), _reversed_padding_repeated_twice=[0, 0, 0, 0])
    del state['backend'], state['activation']
    old = modules.module.DepthWiseConv2dImplicitGEMM.__new__(type(layer))
    old.__setstate__(copy.deepcopy(state))
    assert old.padding == (2, 6)
    x = torch.randn(1, 4, 20, 20)
    assert torch.equal(old(x), layer(x))
    layer.padding = 0  # of ours, what was set stays
    assert pickle.loads(pickle.dumps(layer)).padding == 0


def vendored(compiled):
    """The extension's Python half as networks copy it into their own folders."""
    class Function(torch.autograd.Function):

        @staticmethod
        @torch.amp.custom_fwd(cast_inputs=torch.float32, device_type='cpu')
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return compiled.forward_fp32(x, w)

        @staticmethod
        @torch.amp.custom_bwd(device_type='cpu')
        def backward(ctx, grad):
            x, w = (t.contiguous() for t in ctx.saved_tensors)
            grad = grad.contiguous()
            return compiled.backward_data_fp32(grad, w), compiled.backward_filter_fp32(grad, x, w)

    return Function


@pytest.mark.parametrize('autocast', [False, True])
def test_autograd_functions_of_others(modules, autocast):
    x = torch.randn(2, 4, 20, 20, requires_grad=True)
    w = torch.randn(4, 1, 13, 13, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = vendored(modules.compiled).apply(x, w)
        ours = modules.module._DepthWiseConv2dImplicitGEMMFP32.apply(x, w)
        raw = modules.compiled.forward_fp32(x.detach(), w.detach())
        grads = torch.autograd.grad(out.sum(), (x, w))  # still inside, where networks should not
    right, *right_grads = reference(x, w)
    for found in (out, ours, raw):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), right, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(grads, right_grads, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=2e-3, rtol=1e-3)


def test_threads(modules):
    layer = modules.module.DepthWiseConv2dImplicitGEMM(4, 13)
    x = torch.randn(1, 4, 20, 20)
    right = layer(x)

    def once(_):
        sys.path.append(dropin.folder())  # as RepLKNet does before every import
        from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
        dropin.install()
        assert DepthWiseConv2dImplicitGEMM is type(layer)
        return torch.equal(layer(x), right)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(once, range(40)))


def test_install_keeps_what_is_ours(modules, tmp_path, monkeypatch):
    """Layers made before a second call stay of the class that is imported after it."""
    before = modules.module.DepthWiseConv2dImplicitGEMM(4, 13)
    for replace in (False, True):
        dropin.install(replace)
        from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
        assert isinstance(before, DepthWiseConv2dImplicitGEMM)
    assert isinstance(before, LargeKernelDWConv2d)
    assert sys.path.count(dropin.folder()) == 1
    for name in dropin.NAMES:  # as the wheel of the old name puts them elsewhere
        shutil.copy(Path(dropin.folder()) / f'{name}.py', tmp_path)
        del sys.modules[name]
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    dropin.install()


@pytest.mark.slow
def test_the_wheel_of_the_old_name(tmp_path):
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / 'packaging/dropin', tmp_path / 'source')  # with what its link points to
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index',
                    '--no-build-isolation', '--target', str(tmp_path / 'site'),
                    str(tmp_path / 'source')], check=True)
    code = ('from importlib.metadata import version\n'
            'import depthwise_conv2d_implicit_gemm as module, DepthwiseConv2d\n'
            'import _depthwise_conv2d_implicit_gemm_C, torch\n'
            'assert version("depthwise-conv2d-implicit-gemm") == "0.0.0"\n'
            'module.DepthWiseConv2dImplicitGEMM(4, 31)(torch.ones(1, 4, 8, 8))\n'
            'print(module.__file__)')
    done = subprocess.run(
        [sys.executable, '-c', code], text=True, capture_output=True, check=True, cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path / "site"}{os.pathsep}{root}'})
    assert Path(done.stdout.strip()).parent == tmp_path / 'site'


def test_install_replaces_nothing_unasked(tmp_path, monkeypatch):
    (tmp_path / 'depthwise_conv2d_implicit_gemm.py').write_text('theirs = True\n')
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    before = list(sys.path)
    with pytest.raises(ImportError, match=r'is installed here already .*replace=True'):
        dropin.install()
    assert sys.path == before
    try:
        dropin.install(replace=True)
        import depthwise_conv2d_implicit_gemm as module
        assert hasattr(module, 'DepthWiseConv2dImplicitGEMM')
        dropin.install()  # ours is there: nothing to say
    finally:
        for name in dropin.NAMES:
            sys.modules.pop(name, None)
