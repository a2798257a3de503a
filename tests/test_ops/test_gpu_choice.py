"""Which backend a GPU would get. No GPU is needed: the models are pure functions of shapes."""

import pytest
import torch

from mmreplk.ops import dispatch, gpu
from mmreplk.ops.problem import Problem

DEVICES = {'H100': ((9, 0), 132), 'A100': ((8, 0), 108), 'RTX 4090': ((8, 9), 128),
           'B200': ((10, 0), 148)}


@pytest.fixture(autouse=True)
def _fresh_choices():
    dispatch.choose.cache_clear()
    dispatch.choose_weight_grad.cache_clear()
    yield
    dispatch.choose.cache_clear()
    dispatch.choose_weight_grad.cache_clear()


def problem(batch=64, channels=384, size=64, kernel=31, dtype=torch.float16, **changes):
    return Problem(dtype, 'cuda', False, batch, channels, size, size, 1, (kernel, kernel), (1, 1),
                   (kernel // 2, ) * 4, (1, 1), False)._replace(**changes)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('size', [16, 32, 64])
def test_large_kernels_go_to_triton(monkeypatch, device, dtype, size):
    pytest.importorskip('triton')
    monkeypatch.setattr(gpu, '_device', lambda: DEVICES[device])
    for choose in (dispatch.choose, dispatch.choose_weight_grad):
        choice = choose(problem(size=size, dtype=dtype))
        assert choice.backend == 'triton', choice
        assert 0 < choice.candidates['triton'] < choice.candidates['torch']
        assert choice.candidates['fft'] is None
        assert 'estimate' in choice.reason


@pytest.mark.parametrize(('changes', 'why'), [
    (dict(dtype=torch.float64), 'float64'),
    (dict(stride=(2, 2)), 'stride 1'),
    (dict(dilation=(2, 2)), 'dilation 1'),
    (dict(multiplier=2), 'as many outputs'),
])
def test_what_triton_cannot_serve_goes_to_pytorch(changes, why):
    pytest.importorskip('triton')
    choice = dispatch.choose(problem(**changes))
    assert choice.backend == 'torch'
    assert why in choice.candidates['triton']
    with pytest.raises(RuntimeError, match=why):
        dispatch.choose(problem(**changes), 'triton')


def test_without_triton(monkeypatch):
    monkeypatch.setattr(gpu, '_has_triton', lambda: False)
    choice = dispatch.choose(problem())
    assert choice.backend == 'torch'
    assert choice.candidates['triton'] == 'Triton is not installed'


def test_pytorchs_estimate_follows_the_published_latencies(monkeypatch):
    """24 layers on a 2080 Ti, the paper's table of latencies: 3090 ms at K = 31, 69.6 ms at K = 3."""
    from mmreplk.ops import triton_tiles
    turing = triton_tiles.Arch((7, 5), 68, 1.545e9, 512, 16, 64 << 10, 25.0, 616e9)
    monkeypatch.setattr(triton_tiles, 'arch', lambda *args: turing)
    monkeypatch.setitem(gpu._MACS, (7, 5), 64)
    for kernel, milliseconds in ((31, 3090.4), (3, 69.6)):
        time = 24e3 * gpu.pytorch(problem(kernel=kernel, dtype=torch.float32), 'forward')
        assert 0.7 < time / milliseconds < 1.4
