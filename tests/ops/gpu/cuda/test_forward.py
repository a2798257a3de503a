"""forward.cu lane by lane on the CPU, against float64; see emulator.h for what else is an error."""

import random

import cases
import pytest
import torch
import torch.nn.functional as F

from mmreplk.ops.gpu import selfcheck
from mmreplk.ops.gpu.cuda import launch, plan, variants

SMALL, WIDE = plan.Tile(1, 8, 4, 4), plan.Tile(2, 8, 4, 4)
BIG, TALL = plan.Tile(2, 16, 4, 4), plan.Tile(4, 8, 4, 4)


def variant(tile, images, patches, blocks=1, whole=False, cut=(1, 1)):
    return variants.Forward(plan.Layout(tile, images, patches, blocks, whole), cut)


# Each of them with what is special about it.
CASES = {
    'ring of rows': (dict(batch=64, channels=1, size=(24, 16), kernel=(31, 31)),
                     variant(SMALL, 64, 1)),
    'all rows at once': (dict(batch=16, channels=1, size=(16, 16), kernel=(31, 31)),
                         variant(SMALL, 16, 2, 2, True)),
    'the big tile': (dict(batch=32, channels=1, size=(40, 32), kernel=(31, 31)),
                     variant(BIG, 32, 4)),
    'its patches in a row': (dict(batch=3, channels=1, size=(40, 72), kernel=(13, 13)),
                             variant(BIG, 4, 8, 4, True)),
    'the tall tile': (dict(batch=33, channels=1, size=(17, 40), kernel=(7, 7)),
                      variant(TALL, 32, 8)),
    'images left over': (dict(batch=17, size=(8, 24), kernel=(5, 5)), variant(SMALL, 16, 4)),
    'one image': (dict(batch=1, size=(25, 24), kernel=(13, 13)), variant(SMALL, 1, 4, 16, True)),
    'a map smaller than the kernel': (dict(size=(7, 8), kernel=(31, 31)),
                                      variant(SMALL, 2, 1, 32, True)),
    'one pixel': (dict(batch=3, channels=3, size=(1, 1), kernel=(31, 31)),
                  variant(SMALL, 4, 1, 16, True)),
    'a column': (dict(size=(9, 1), kernel=(5, 5)), variant(SMALL, 2, 1, 32, True)),
    'width 7': (dict(batch=3, size=(7, 7)), variant(SMALL, 4, 1, 16, True)),
    'width 14': (dict(batch=16, channels=1), variant(WIDE, 16, 2, 4, True)),
    'width 25': (dict(batch=16, channels=1, size=(10, 25)), variant(SMALL, 16, 4)),
    'width 50': (dict(batch=1, channels=1, size=(10, 50)), variant(SMALL, 1, 8, 8, True)),
    'an even kernel': (dict(size=(12, 16), kernel=(6, 8)), variant(SMALL, 2, 2, 16, True)),
    'a wide kernel': (dict(size=(6, 24), kernel=(5, 51)), variant(SMALL, 2, 4, 8, True)),
    'a tall kernel': (dict(size=(40, 8), kernel=(51, 5)), variant(SMALL, 2, 1, 32, True)),
    'uneven padding': (dict(size=(12, 16), kernel=(7, 9), padding=(0, 5, 11, 2)),
                       variant(SMALL, 2, 4, 8, True)),
    'padding beyond the kernel': (dict(size=(4, 8), kernel=(3, 3), padding=(5, 6, 20, 9)),
                                  variant(SMALL, 2, 8, 4, True)),
    'no padding': (dict(size=(20, 24), kernel=(13, 13), padding=(0, 0, 0, 0)),
                   variant(SMALL, 2, 2, 16, True)),
    'a kernel in parts': (dict(size=(20, 24), kernel=(51, 51)),
                          variant(SMALL, 2, 4, 8, True, (2, 2))),
    'parts in a ring': (dict(batch=20, channels=1, size=(20, 16), kernel=(31, 31)),
                        variant(WIDE, 32, 2, 2, True, (3, 2))),
    'bias and ReLU': (dict(batch=3, bias=True, relu=True), variant(SMALL, 4, 2, 8, True)),
    'one tap': (dict(size=(5, 8), kernel=(1, 1), bias=True), variant(SMALL, 2, 1, 32, True)),
}


@pytest.mark.parametrize('name', CASES)
def test_edge_cases(emulated, name):
    changes, one = CASES[name]
    cases.check_forward(emulated, 'fp16', cases.problem(**changes), one)


@pytest.mark.parametrize('name', ['ring of rows', 'width 7', 'width 14', 'a kernel in parts',
                                  'bias and ReLU'])
@pytest.mark.parametrize('arithmetic', ['bf16', 'tf32', 'exact'])
def test_arithmetics(emulated, name, arithmetic):
    changes, one = CASES[name]
    cases.check_forward(emulated, arithmetic, cases.problem(arithmetic, **changes), one)


@pytest.mark.sample(by=lambda arithmetic, seed: {(arithmetic, seed % 2)})
@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
def test_random_problems(emulated, arithmetic, seed):
    """Any way to divide any problem; each seed has one alignment, as that is compiled for."""
    draw = random.Random(seed)
    widths = [[1, 7, 25, 33], [14, 50, 2, 26], [4, 12, 20, 44], [8, 24, 40, 16]][
        (seed // 2 + seed % 2) % 4]
    tiles = [(SMALL, ), (WIDE, )][seed // 2 % 2]
    for number in range(4):
        p = cases.random_problem(draw, arithmetic, widths)
        one = cases.forward_variant(p, arithmetic, draw.choice, tiles,
                                    ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2)))
        if one is not None:
            cases.check_forward(emulated, arithmetic, p, one, number)


@pytest.mark.sample(by=lambda arithmetic, index: {index % 3, arithmetic})
@pytest.mark.parametrize('index', range(9))
@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
def test_what_is_chosen(emulated, arithmetic, index):
    """The authors' maps, and some of detection, divided as on a Hopper; a channel and few images.

    The division is that of the whole problem: 64 images, or one.
    """
    size, kernel, batch = [((16, 16), 31, 64), ((7, 7), 13, 64), ((14, 14), 27, 64),
                           ((25, 42), 13, 1), ((28, 28), 29, 64), ((32, 32), 31, 64),
                           ((50, 84), 27, 2), ((56, 56), 31, 64), ((64, 64), 31, 64)][index]
    p = cases.problem(arithmetic, batch, 1, size, (kernel, kernel), bias=True)
    mode = cases.ARITHMETIC[arithmetic][1]
    best = variants.ranked(p._replace(channels=384), 'forward', mode, cases.HOPPER)[0]
    cases.check_forward(emulated, arithmetic, p._replace(batch=min(batch, 3)), best)


def test_input_gradient(emulated):
    """The gradient of the input is a forward pass with flipped weights and what padding is left."""
    p = cases.problem(size=(12, 16), kernel=(7, 9), padding=(0, 5, 7, 2))
    x, weight, _, grad = cases.tensors(p)
    x = x.double().requires_grad_()
    F.conv2d(F.pad(x, (7, 2, 0, 5)), weight.double(), groups=2).backward(grad.double())
    back = p.of_input_grad()
    assert back.out_size == (12, 16)
    found = launch.forward(grad, weight.flip(2, 3), None, back, 'half',
                           *cases.forward_variant(back, 'fp16', lambda all: all[-1]))
    assert selfcheck.relative_error(found, x.grad) < cases.TOLERANCE['fp16']


@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
@pytest.mark.parametrize('value', [torch.inf, -torch.inf, torch.nan])
def test_inf_and_nan_reach_what_sees_them(emulated, arithmetic, value, compare):
    p = cases.problem(arithmetic, 2, 2, (14, 16), (5, 7))
    x, weight, _, _ = cases.tensors(p)
    x[1, 0, 3, 9] = x[0, 1, 13, 0] = value
    one = variant(SMALL, 2, 2, 16, True)
    out = launch.forward(x, weight, None, p, cases.ARITHMETIC[arithmetic][1], *one)
    compare(out, selfcheck.exact_forward(x, weight, None, p), p.dtype,
            4 if arithmetic != 'tf32' else 1000)


def test_inf_in_weights_reaches_no_output_beside_the_map(emulated, compare):
    """A tap that falls beside the map is no part of a sum, whatever its weight."""
    p = cases.problem('fp16', 2, 2, (14, 16), (5, 7))
    x, weight, _, _ = cases.tensors(p)
    bad = torch.zeros_like(weight)
    bad[1, 0, 0, 6] = 1
    seen = selfcheck.exact_forward(torch.ones_like(x), bad, None, p) > 0
    expected = selfcheck.exact_forward(x, weight * (1 - bad), None, p)
    one = variant(SMALL, 2, 2, 16, True)
    out = launch.forward(x, weight.masked_fill(bad > 0, torch.inf), None, p, 'half', *one)
    assert torch.equal(~out.isfinite(), seen)
    compare(out.masked_fill(seen, 0), expected.masked_fill(seen, 0), p.dtype)


def test_numbers_that_overflow_tf32(emulated, compare):
    """The largest float32 numbers are rounded to Inf in TF32; their sums are taken anew."""
    p = cases.problem('tf32', 2, 2, (8, 12), (3, 3))
    x, weight, _, _ = cases.tensors(p)
    x[0, 0, 2, 2] = torch.finfo(torch.float32).max
    weight *= 0.1
    out = launch.forward(x, weight, None, p, 'tf32', *variant(SMALL, 2, 2, 16, True))
    assert out.isfinite().all()
    expected = selfcheck.exact_forward(x, weight, None, p)
    assert torch.allclose(out.double(), expected, 1e-2, 1e-2)
