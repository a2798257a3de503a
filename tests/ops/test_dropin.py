"""``depthwise_conv2d_implicit_gemm`` by every form in which networks of others call it."""

import copy
import os
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmreplk.ops import __main__ as command, dropin


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


def test_a_kernel_of_three_sides_is_refused(modules):
    with pytest.raises(ValueError, match='kernel must be a positive int or a pair.*3-d'):
        modules.module.DepthWiseConv2dImplicitGEMM(4, (3, 3, 3))


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


def test_profile_and_environment(capsys):
    shape = ['1', '4', '16', '16', '--kernel', '13']
    assert command.main(['profile', *shape, '--backward', '--dtype', 'bf16']) == 0
    text = capsys.readouterr().out
    assert '(chosen)' in text
    assert '| F.conv2d, channels-last |' in text
    assert command.main(['profile', *shape, '--dry-run']) == 0
    assert 'F.conv2d' not in capsys.readouterr().out
    assert command.main(['env']) == 0
    assert f'torch: {torch.__version__}' in capsys.readouterr().out
    for bad in (['profile', '0', '4', '16', '16', '--kernel', '3'],
                ['profile', *shape, '3', '3'], ['profile', *shape, '--device', 'nothing']):
        with pytest.raises(SystemExit):
            command.main(bad)
