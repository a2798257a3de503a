"""``activation='relu'``: the kernels store what ``F.relu`` of their result would be."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmreplk.ops import LargeKernelDWConv2d, large_kernel_dwconv2d
from mmreplk.ops.cpu import kernels as native

CASES = {
    'large': ((2, 24, 20, 23), (13, 13), 6, 1), 'few channels': ((1, 3, 40, 33), (31, 31), 15, 1),
    'small map': ((2, 40, 7, 7), (13, 13), 6, 1), '3x3': ((2, 5, 50, 60), (3, 3), 1, 1),
    'a row': ((1, 40, 14, 40), (1, 5), (0, 2), 1), 'a column': ((1, 9, 40, 14), (5, 1), (2, 0), 1),
    'dilated': ((1, 9, 30, 31), (7, 5), (6, 4), 2), 'tiny': ((1, 1, 5, 5), (3, 3), 1, 1),
    'larger than the map': ((1, 17, 6, 5), (31, 51), (15, 25), 1),
}
BACKENDS = ('auto', 'fft', 'direct', 'torch')


def same(one, two):
    """Equal, NaN where there is NaN."""
    return torch.equal(one.isnan(), two.isnan()) and torch.equal(
        one.nan_to_num(7.0), two.nan_to_num(7.0))


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('last', [False, True])
def test_equals_relu_of_the_result(case, dtype, last):
    shape, kernel, padding, dilation = CASES[case]
    x = torch.randn(shape).to(dtype)
    x[0, 0, 0, 0], x[0, 0, -1, -1] = float('nan'), -float('inf')
    if last:
        x = x.to(memory_format=torch.channels_last)
    weight, bias = torch.randn(shape[1], 1, *kernel).to(dtype), torch.randn(shape[1]).to(dtype)
    for backend in BACKENDS:
        if backend == 'direct' and dtype == torch.float64:
            continue
        if backend == 'direct' and not native.available()[0]:
            continue
        plain = large_kernel_dwconv2d(x, weight, bias, 1, padding, dilation, backend=backend)
        found = large_kernel_dwconv2d(x, weight, bias, 1, padding, dilation, backend=backend,
                                      activation='relu')
        assert same(found, plain.relu()), backend
        assert found.is_contiguous(memory_format=torch.channels_last) == (
            plain.is_contiguous(memory_format=torch.channels_last))
        assert plain.nan_to_num(0.0).min() < 0


def test_without_the_compiled_kernels(monkeypatch):
    monkeypatch.setattr(native, 'available', lambda: (False, 'left out for this test'))
    from mmreplk.ops import dispatch
    dispatch.forget()
    try:
        x, weight = torch.randn(2, 6, 20, 20), torch.randn(6, 1, 13, 13)
        plain = large_kernel_dwconv2d(x, weight, None, 1, 6, backend='fft')
        assert torch.equal(
            large_kernel_dwconv2d(x, weight, None, 1, 6, backend='fft', activation='relu'),
            plain.relu())
    finally:
        dispatch.forget()


@pytest.mark.parametrize('backend', ['auto', 'torch'])
@pytest.mark.parametrize('stride', [1, 2])
def test_derivatives(backend, stride):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
              for shape in ((2, 3, 12, 13), (6, 1, 7, 5), (6, ))]

    def run(*tensors):
        return large_kernel_dwconv2d(*tensors, stride, (3, 2), backend=backend, activation='relu')

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    right = torch.autograd.grad(
        F.relu(F.conv2d(*inputs, stride, (3, 2), groups=3)).sin().sum(), inputs)
    for a, b in zip(torch.autograd.grad(run(*inputs).sin().sum(), inputs), right, strict=True):
        torch.testing.assert_close(a, b)


def test_transforms_compilation_and_export():
    x, weight, bias = torch.randn(3, 4, 20, 20), torch.randn(4, 1, 9, 9), torch.randn(4)

    def run(a, b, c):
        return large_kernel_dwconv2d(a, b, c, 1, 4, activation='relu')

    expected = F.relu(F.conv2d(x, weight, bias, 1, 4, groups=4))
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.vmap(run, (0, None, None))(x[:, None], weight, bias)[:, 0], expected, **close)
    torch.testing.assert_close(
        torch.vmap(run)(torch.stack([x, -x]), torch.stack([weight, weight]),
                        torch.stack([bias, bias]))[0], expected, **close)
    torch.testing.assert_close(torch.func.jvp(run, (x, weight, bias), (x, weight, bias))[0],
                               expected, **close)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend='aot_eager')(
        x, weight, bias), expected, **close)
    layer = LargeKernelDWConv2d(4, 4, 9, padding=4, groups=4, activation='relu')
    program = torch.export.export(layer, (x, ))
    torch.testing.assert_close(program.module()(x), layer(x), **close)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x), **close)
    assert run(x[0], weight, bias).shape == (4, 20, 20)


def test_the_layer():
    x = torch.randn(2, 4, 20, 20)
    layer = LargeKernelDWConv2d(4, 4, 9, padding=4, groups=4, activation='relu')
    plain = copy.deepcopy(layer)
    plain.activation = None
    assert set(layer.state_dict()) == {'weight', 'bias'}
    assert torch.equal(layer(x), plain(x).relu())
    assert 'activation=relu' in repr(layer)
    assert LargeKernelDWConv2d.from_conv2d(layer).activation == 'relu'
    assert LargeKernelDWConv2d.from_conv2d(nn.Conv2d(4, 4, 9, groups=4)).activation is None
    dense = LargeKernelDWConv2d(4, 6, 3, activation='relu')
    assert torch.equal(dense(x), F.conv2d(x, dense.weight, dense.bias).relu())
    assert pickle.loads(pickle.dumps(layer)).activation == 'relu'
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False).activation == 'relu'


def test_unknown_activations():
    with pytest.raises(ValueError, match="activation must be 'relu' or None, not 'gelu'"):
        large_kernel_dwconv2d(torch.rand(1, 3, 40, 40), torch.rand(3, 1, 9, 9), activation='gelu')
    with pytest.raises(ValueError, match="activation must be 'relu' or None, not 'gelu'"):
        LargeKernelDWConv2d(4, 4, 9, activation='gelu')
