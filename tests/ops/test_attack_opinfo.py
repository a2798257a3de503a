"""PyTorch's own samples of convolutions, with all backends and gradients, and its bad inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

from mmreplk.ops import explain, large_kernel_dwconv2d

INFO = next(op for op in op_db if op.name == 'nn.functional.conv2d')


def samples(dtype):
    """Depth-wise: those that are, and the others with kernels of their own for each channel."""
    for sample in INFO.sample_inputs('cpu', dtype, requires_grad=True):
        keywords, weight, *rest = dict(sample.kwargs), *sample.args
        bias = rest[0] if rest else keywords.pop('bias', None)
        channels = sample.input.shape[-3]
        if keywords.pop('groups', 1) != channels or weight.shape[1] != 1:
            weight = torch.randn(2 * channels, 1, *weight.shape[2:], dtype=dtype).requires_grad_()
            bias = None if bias is None else torch.randn(
                2 * channels, dtype=dtype).requires_grad_()
        yield sample.input, weight, bias, keywords, channels


@pytest.mark.parametrize('backend', ['auto', 'fft', 'direct'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_samples_and_their_gradients(backend, dtype):
    seen = 0
    for x, weight, bias, keywords, channels in samples(dtype):
        candidates = explain(x, weight, bias, **keywords).candidates
        if backend != 'auto' and isinstance(candidates.get(backend, 'no'), str):
            continue
        results = []
        for wide in (False, True):
            leaves = [t.detach().to(torch.float64 if wide else dtype).requires_grad_()
                      for t in (x, weight, bias) if t is not None]
            arguments = leaves + [None] * (bias is None)
            out = (F.conv2d(*arguments, **keywords, groups=channels) if wide
                   else large_kernel_dwconv2d(*arguments, **keywords, backend=backend))
            grad = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
            results.append([out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
        near = 1e-10 if dtype == torch.float64 else 20 * torch.finfo(dtype).eps
        for actual, right in zip(*results, strict=True):
            scale = right.abs().max().item() if right.numel() else 1.0
            torch.testing.assert_close(actual.double(), right, rtol=near, atol=near * scale)
        seen += 1
    # PyTorch lets no float64 reach the compiled direct sum, and many samples have strides.
    assert seen >= (0 if (backend, dtype) == ('direct', torch.float64) else 6)


def test_bad_inputs():
    """PyTorch's list of them: the same error, in the same words where PyTorch's are ours."""
    seen = 0
    for bad in INFO.error_inputs('cpu'):
        x, (weight, *rest), keywords = bad.sample_input.input, bad.sample_input.args, dict(
            bad.sample_input.kwargs)
        if keywords.pop('groups', 1) != 1:
            continue
        with pytest.raises(bad.error_type):
            large_kernel_dwconv2d(x, weight, *rest, **keywords)
        seen += 1
    if not seen:
        pytest.skip('this PyTorch lists no bad inputs without groups')
