"""The Triton kernels in Triton's interpreter, compared with PyTorch's convolution in float64.

The interpreter has to be asked for before Triton is imported, so the tests run in a process of
their own: ``test_in_the_interpreter`` starts it, and there this file is collected again.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('triton', minversion='3.4')  # the interpreter of 3.3 fails
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


def here(test):
    """Only collected in the process of test_in_the_interpreter."""
    return test if INTERPRETED else None


if INTERPRETED:
    from mmreplk.ops.gpu import launch, tiles
    from mmreplk.ops.problem import Problem

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
# What the interpreter computes in TF32 mode has rounded weights and exact inputs.
TF32 = (1e-3, 1e-3)


@pytest.mark.skipif(INTERPRETED, reason='is that process')
@pytest.mark.parametrize('part', ['forward', 'weight_grad and not forward'])
def test_in_the_interpreter(part):
    code = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__, '-k',
         part],
        env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True, check=False)
    assert code.returncode == 0, code.stdout[-6000:] + code.stderr[-2000:]
    assert 'passed' in code.stdout


def make(dtype, shape, kernel, padding=None, bias=False, relu=False):
    """A problem on the interpreter's device; 'same' padding by default."""
    if padding is None:
        padding = (kernel[0] // 2, ) * 2 + (kernel[1] // 2, ) * 2
    return Problem(dtype, 'cpu', False, *shape, 1, kernel, (1, 1), padding, (1, 1), bias,
                   relu)


def inputs(p):
    x = torch.randn(p.batch, p.channels, p.height, p.width).to(p.dtype)
    weight = torch.randn(p.channels, 1, *p.kernel).to(p.dtype)
    return x, weight, torch.randn(p.channels).to(p.dtype) if p.has_bias else None


def padded(x, p):
    top, bottom, left, right = p.padding
    return F.pad(x.double(), (left, right, top, bottom))


def exact(x, weight, bias, p):
    out = F.conv2d(padded(x, p), weight.double(), None if bias is None else bias.double(),
                   groups=p.channels)
    return out.relu() if p.relu else out


def exact_weight_grad(x, grad, p):
    return torch.nn.grad.conv2d_weight(
        padded(x, p), (p.channels, 1, *p.kernel), grad.double(), groups=p.channels)


@pytest.fixture(autouse=True)
def canaries(monkeypatch):
    """New tensors are full of NaN and lie between two canaries, which must survive."""
    kept = []

    def empty(x, shape, dtype=None):
        whole = torch.full((torch.Size(shape).numel() + 128, ), float('nan'),
                           dtype=dtype or x.dtype)
        whole[:64] = whole[-64:] = 7
        kept.append(whole)
        return whole[64:-64].view(shape)

    if INTERPRETED:
        monkeypatch.setattr(launch, '_empty', empty)
    yield
    for whole in kept:
        assert (whole[:64] == 7).all()
        assert (whole[-64:] == 7).all()


def close(compare, actual, reference, p, mode):
    """`compare`, by TF32's tolerance where that is what was asked for."""
    if mode != 'tf32':
        compare(actual, reference, p.dtype)
        return
    scale = reference.square().mean().sqrt()
    error = (actual.double() - reference).abs()
    assert (error <= TF32[0] * scale + TF32[1] * reference.abs()).all()


def check_forward(compare, p, allow_tf32=True, tile=None):
    x, weight, bias = inputs(p)
    mode = tiles.mode_of(p.dtype, allow_tf32)
    out = launch.forward(x, weight, bias, p, allow_tf32, tile)
    assert out.shape == p.out_shape
    close(compare, out, exact(x, weight, bias, p), p, mode)


def check_weight_grad(compare, p, allow_tf32=True, tile=None):
    x, _, _ = inputs(p)
    grad = torch.randn(p.out_shape).to(p.dtype)
    mode = tiles.mode_of(p.dtype, allow_tf32)
    out = launch.weight_grad(x, grad, p, allow_tf32, tile)
    assert out.shape == (p.channels, 1, *p.kernel)
    reference = exact_weight_grad(x, grad, p)
    if mode == 'tf32' or not reference.any():
        mode = 'exact'  # the interpreter's products are exact, and the weights are not rounded
    close(compare, out, reference, p, mode)


# Kernels 1 to 51, odd, even, rectangular; maps 1 to 40; uneven padding; larger than the map.
SHAPES = [
    ((2, 2, 1, 1), (1, 1), None),
    ((1, 1, 1, 40), (1, 31), None),
    ((1, 1, 40, 1), (51, 1), None),
    ((3, 1, 16, 16), (31, 31), None),
    ((2, 3, 14, 14), (27, 27), None),
    ((5, 2, 7, 7), (13, 13), None),
    ((1, 2, 28, 28), (29, 29), None),
    ((1, 1, 40, 33), (51, 5), None),
    ((1, 1, 33, 40), (5, 51), None),
    ((2, 1, 20, 24), (4, 6), (1, 2, 3, 0)),
    ((2, 1, 9, 11), (3, 3), (0, 0, 0, 0)),
    ((1, 1, 5, 6), (5, 6), (0, 0, 0, 0)),
    ((1, 2, 3, 4), (2, 3), (9, 0, 0, 37)),
    ((1, 1, 4, 3), (3, 2), (0, 21, 40, 1)),
    ((1, 1, 2, 2), (31, 31), (30, 29, 31, 15)),
    ((3, 2, 13, 17), (8, 12), (7, 0, 0, 11)),
]
PARAMETERS = ('shape', 'kernel', 'padding')


@here
@pytest.mark.sample
@pytest.mark.parametrize(PARAMETERS, SHAPES)
@pytest.mark.parametrize(('dtype', 'tf32'), [(HALF, True), (BRAIN, True), (FULL, True),
                                             (FULL, False)])
def test_forward(compare, dtype, tf32, shape, kernel, padding):
    check_forward(compare, make(dtype, shape, kernel, padding, bias=dtype != BRAIN,
                                relu=dtype == HALF), tf32)


@here
@pytest.mark.sample
@pytest.mark.parametrize(PARAMETERS, SHAPES)
@pytest.mark.parametrize(('dtype', 'tf32'), [(HALF, True), (FULL, False)])
def test_weight_grad(compare, dtype, tf32, shape, kernel, padding):
    check_weight_grad(compare, make(dtype, shape, kernel, padding), tf32)


@here
@pytest.mark.sample
@pytest.mark.parametrize(('dtype', 'shape', 'kernel', 'padding'), [
    (BRAIN, (3, 1, 22, 40), (9, 7), (4, 4, 3, 3)), (FULL, (2, 1, 19, 21), (6, 13), (0, 6, 12, 2))])
def test_forward_every_tile(compare, some, dtype, shape, kernel, padding):
    p = make(dtype, shape, kernel, padding)
    for tile in some(tiles.candidates(tiles.mode_of(dtype, True), (9, 0))):
        check_forward(compare, p, True, tile)


@here
@pytest.mark.sample
@pytest.mark.parametrize(('dtype', 'shape', 'kernel', 'padding'), [
    (BRAIN, (3, 1, 22, 40), (9, 7), (4, 4, 3, 3)), (FULL, (2, 1, 19, 21), (6, 13), (0, 6, 12, 2))])
def test_weight_grad_every_tile(compare, some, dtype, shape, kernel, padding):
    p = make(dtype, shape, kernel, padding)
    for tile in some(tiles.grad_candidates(p, tiles.mode_of(dtype, True), (9, 0))):
        check_weight_grad(compare, p, True, tile)


@here
def test_forward_and_weight_grad_in_small_workspaces(compare, monkeypatch):
    """Channels are taken a few at a time where the workspace is full."""
    monkeypatch.setattr(launch, 'WORKSPACE', 1 << 12)
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()
    p = make(HALF, (2, 7, 12, 20), (9, 9))
    check_forward(compare, p)
    check_weight_grad(compare, p)
    tile = tiles.choose(p, 'forward', 'half', tiles.arch())
    assert launch.plan_forward(p, 'half', tile).channels < 7
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()


@here
def test_forward_and_weight_grad_workspace_bound():
    for channels, size, k in [(384, 64, 31), (1536, 8, 51), (4096, 7, 101)]:
        p = make(HALF, (1, channels, size, size), (k, k))
        bound = max(64 << 20, (p.bytes_moved - channels * k * k * 2) // 10)
        plan = launch.plan_forward(p, 'half', tiles.choose(p, 'forward', 'half', tiles.arch()))
        assert plan.tables * plan.part * 2 <= bound
        tile = tiles.choose(p, 'weight_grad', 'half', tiles.arch())
        plan = launch.plan_weight_grad(p, 'half', tile, tiles.arch())
        assert plan.channels * plan.sums * 4 <= bound


def arranged(tensor, layout):
    """The same values, not contiguous."""
    if layout == 'channels_last':
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == 'transposed':
        return tensor.mT.contiguous().mT
    whole = torch.full([2 * size for size in tensor.shape], float('nan'), dtype=tensor.dtype)
    whole[::2, 1::2, ::2, 1::2] = tensor
    return whole[::2, 1::2, ::2, 1::2]


@here
@pytest.mark.sample
@pytest.mark.parametrize('workspace', [64 << 20, 6 << 10])
@pytest.mark.parametrize('layout', ['channels_last', 'transposed', 'sliced'])
def test_forward_and_weight_grad_of_other_layouts(compare, monkeypatch, layout, workspace):
    """Channels are copied a few at a time, inputs are left alone, the output keeps the format."""
    monkeypatch.setattr(launch, 'WORKSPACE', workspace)
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()
    p = make(HALF, (2, 7, 12, 20), (5, 9), bias=True)
    p = p._replace(channels_last=layout == 'channels_last')
    assert len(launch._channel_blocks(p)) == (1 if workspace > 1 << 20 else 7)
    x, weight, bias = inputs(p)
    grad = torch.randn(p.out_shape).to(HALF)
    # Weights and biases that lie neither densely nor at a multiple of 16 bytes.
    odd = torch.stack([bias, torch.full_like(bias, float('nan'))], 1)[:, 0]
    spread = torch.cat([weight.flatten().new_full((3, ), float('nan')), weight.flatten()])[3:]
    out = launch.forward(arranged(x, layout), spread.view_as(weight), odd, p)
    compare(out, exact(x, weight, bias, p), HALF)
    assert out.is_contiguous(memory_format=p.memory_format)
    expected = exact_weight_grad(x, grad, p)
    for a, b in ((x, arranged(grad, layout)), (arranged(x, layout), grad)):
        compare(launch.weight_grad(a, b, p), expected, HALF)
    ones = torch.ones((), dtype=HALF).expand(p.out_shape)  # as of the gradient of a sum
    compare(launch.weight_grad(x, ones, p), exact_weight_grad(x, ones, p), HALF)
    launch.plan_forward.cache_clear()
    launch.plan_weight_grad.cache_clear()


@here
def test_forward_and_weight_grad_copies_within_the_workspace():
    """Copies of a few channels, their tables and sums: the larger of 64 MiB and a tenth."""
    for batch, channels, size, k in [(64, 384, 64, 31), (16, 128, 200, 31), (8, 1536, 14, 27)]:
        p = make(HALF, (batch, channels, size, size), (k, k))._replace(channels_last=True)
        maps = 2 * p.batch * p.channels * p.height * p.width * 2
        bound = max(64 << 20, maps // 10)
        blocks = launch._channel_blocks(p)
        assert [c for block in blocks for c in block] == list(range(channels))
        for block in (blocks[0], blocks[-1]):
            part = p._replace(channels=len(block))
            copies = maps // channels * len(block)
            plan = launch.plan_forward(
                part, 'half', tiles.choose(part, 'forward', 'half', tiles.arch()), bound // 2)
            assert copies + plan.tables * plan.part * 2 <= bound
            tile = tiles.choose(part, 'weight_grad', 'half', tiles.arch())
            plan = launch.plan_weight_grad(part, 'half', tile, tiles.arch(), bound // 2)
            assert copies + plan.channels * plan.sums * 4 <= bound


def summed_over_taps_inside(x, weight, grad, p):
    """Forward and weight gradient of a sum that never touches the padding."""
    top, bottom, left, right = p.padding
    pads = (left, right, top, bottom)
    taps = p.kernel[0] * p.kernel[1]
    inside = F.unfold(F.pad(torch.ones(1, 1, p.height, p.width), pads), p.kernel).bool()
    columns = F.unfold(F.pad(x.double(), pads), p.kernel).view(p.batch, p.channels, taps, -1)
    zero = torch.zeros((), dtype=torch.float64)
    products = columns * weight.double().view(1, p.channels, taps, 1)
    out = torch.where(inside, products, zero).sum(2).view(p.out_shape)
    products = columns * grad.double().view(p.batch, p.channels, 1, -1)
    return out, torch.where(inside, products, zero).sum((0, 3)).view(weight.shape)


@here
@pytest.mark.filterwarnings('ignore::RuntimeWarning')
@pytest.mark.sample
@pytest.mark.parametrize('dtype', [HALF, FULL])
@pytest.mark.parametrize('where', ['x', 'weight', 'grad'])
def test_forward_and_weight_grad_of_infinite_values(compare, dtype, where):
    """Inf and NaN reach the outputs whose taps see them inside the map, and no others."""
    p = make(dtype, (2, 2, 13, 19), (7, 9))
    x, weight, _ = inputs(p)
    grad = torch.randn(p.out_shape).to(dtype)
    spoilt = dict(x=x, weight=weight, grad=grad)[where]
    spoilt[0, 0, 0, 0] = float('inf')
    spoilt[1, 0 if where == 'weight' else 1, 3, 5] = float('nan')
    expected = summed_over_taps_inside(x, weight, grad, p)
    actual = launch.forward(x, weight, None, p, False), launch.weight_grad(x, grad, p, False)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan())
        assert torch.equal(a.isposinf(), e.isposinf())
        assert torch.equal(a.isneginf(), e.isneginf())
        compare(a, e, dtype)


@here
def test_weight_grad_repeats():
    p = make(FULL, (3, 2, 17, 23), (7, 9))
    x, grad = inputs(p)[0], torch.randn(p.out_shape)
    assert torch.equal(launch.weight_grad(x, grad, p), launch.weight_grad(x, grad, p))


@here
@pytest.mark.sample
@pytest.mark.parametrize('change', [
    dict(dtype=torch.float64), dict(stride=(2, 1)), dict(dilation=(1, 2)), dict(multiplier=2),
    dict(kernel=(103, 3)), dict(height=1 << 24), dict(height=1 << 20, width=1 << 12)])
def test_forward_reasons(change):
    p = make(HALF, (1, 2, 40, 40), (3, 3), (60, 60, 60, 60))
    assert launch.supports(p) == (True, '')
    assert launch.supports(p, 'weight_grad') == (True, '')
    ok, why = launch.supports(p._replace(**change))
    assert not ok
    assert why
    assert launch.supports(p, capability=(7, 5))[0] is False
