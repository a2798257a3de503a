"""The gradient of the weights beside huge inputs, where a transform alone would lose taps."""

import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops import large_kernel_dwconv2d
from mmreplk.ops.cpu import backend as cpu, kernels as native
from mmreplk.ops.problem import Problem
from mmreplk.ops.torch_fft import contrast as fft_mend, conv as fft

needs_kernels = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])


def right(x, grad, kernel):
    weight = x.new_zeros(grad.shape[1], 1, kernel, kernel, dtype=torch.float64).requires_grad_()
    out = F.conv2d(x.double(), weight, None, 1, kernel // 2, 1, x.shape[1])
    return torch.autograd.grad(out, weight, grad.double())[0]


def maps(where, contrast, channels=20, size=40, many=1):
    """Contrast in channel 3: of the input, of the gradient, or of both, one hidden by the other."""
    x, grad = torch.randn(2, channels, size, size), torch.randn(2, channels * many, size, size)
    if where == 'x':
        x[1, 3, 0, 0] = contrast
    elif where == 'grad':
        grad[1, 3, -1, 0] = contrast
    else:
        x[:, 3, :, size // 4:] *= contrast
        grad[:, 3 * many:4 * many, :, size // 4 - 5:] = 0
    return x, grad


def check(found, x, grad, kernel):
    """Every tap within 1e-5 of what its sum is made of."""
    wanted = right(x, grad, kernel)
    parts = right(x.abs(), grad.abs(), kernel)
    assert bool(((found - wanted).abs() <= 1e-5 * parts).all()), (
        ((found - wanted).abs() / parts.clamp_min(1e-30)).max())


@needs_kernels
@pytest.mark.parametrize('contrast', [1e6, 1e8])
@pytest.mark.parametrize('where', ['x', 'grad', 'hidden'])
@pytest.mark.parametrize(('inputs', 'many'), [(True, 1), (False, 1), (True, 2)])
@pytest.mark.parametrize('last', [False, True])
def test_taps_beside_huge_values(where, contrast, inputs, many, last):
    """In both gradients at once, in that of the weights alone, and with a channel multiplier."""
    x, grad = maps(where, contrast, many=many)
    if last:
        x, grad = (m.contiguous(memory_format=torch.channels_last) for m in (x, grad))
    x.requires_grad_(inputs)
    weight = torch.randn(grad.shape[1], 1, 13, 13).requires_grad_()
    out = large_kernel_dwconv2d(x, weight, None, 1, 6, backend='fft')
    found, = torch.autograd.grad(out, weight, grad)
    check(found, x.detach(), grad, 13)


@pytest.mark.parametrize('where', ['x', 'grad', 'hidden'])
def test_through_torch_fft(where):
    x, grad = maps(where, 1e8)
    problem = Problem(x.dtype, 'cpu', False, *x.shape, 1, (13, 13), (1, 1), (6, ) * 4, (1, 1),
                      False)
    found = fft.weight_grad(x, grad, problem)
    check(fft_mend.mend_weight_grad(found, x, grad, problem), x, grad, 13)


@needs_kernels
@pytest.mark.parametrize('one_pass', [True, False])
def test_only_channels_with_contrast_are_summed_directly(one_pass, monkeypatch):
    """Ordinary maps, and those after ReLU, cost no direct sum; a huge pixel that of its channel."""
    summed, run = [], native.direct_weight_grad
    monkeypatch.setattr(native, 'direct_weight_grad',
                        lambda *of: summed.append(of[2].channels) or run(*of))
    if not one_pass:
        monkeypatch.setattr(cpu, 'backward', lambda *of: None)
    for where, relu, count in ((None, False, 0), (None, True, 0), ('x', False, 1)):
        summed.clear()
        for size, kernel in ((64, 31), (14, 13), (7, 7)):
            x, grad = maps(where, 1e6, size=size) if where else (
                torch.randn(2, 20, size, size) for _ in range(2))
            x = (x.relu() if relu else x).requires_grad_()
            weight = torch.randn(20, 1, kernel, kernel).requires_grad_()
            out = large_kernel_dwconv2d(x, weight, None, 1, kernel // 2, backend='fft')
            torch.autograd.grad(out, (x, weight), grad)
        assert summed == [1] * (3 * count)
