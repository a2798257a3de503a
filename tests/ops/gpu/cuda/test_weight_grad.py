"""weight_grad.cu lane by lane on the CPU, against float64."""

import random

import cases
import pytest
import torch

from mmreplk.ops.gpu import selfcheck
from mmreplk.ops.gpu.cuda import grad_plan, launch, variants

BIG, SMALL = grad_plan.GradTile(8, 5, 2, 2, 4), grad_plan.GradTile(4, 3, 1, 4, 4)
LONG, OTHER = grad_plan.GradTile(8, 3, 1, 4, 4), grad_plan.GradTile(8, 5, 1, 4, 4)
FLOAT = grad_plan.GradTile(4, 5, 4, 1, 4)


def variant(tile, images, patches, segments=1, splits=1):
    return variants.WeightGrad(grad_plan.GradLayout(tile, images, patches, segments, splits))


CASES = {
    'the big tile': (dict(batch=16, channels=1, size=(24, 16), kernel=(31, 31)),
                     variant(BIG, 16, 2)),
    'all warps along the sum': (dict(batch=16, channels=1, size=(24, 32), kernel=(15, 31)),
                                variant(OTHER, 8, 4)),
    'a long tile': (dict(batch=9, size=(20, 16)), variant(LONG, 8, 2)),
    'one image': (dict(batch=1, size=(20, 64), kernel=(7, 7)), variant(SMALL, 1, 8)),
    'one image, a narrow map': (dict(batch=1, size=(20, 8), kernel=(7, 7)), variant(SMALL, 1, 8)),
    'few images': (dict(batch=3, size=(9, 24), kernel=(7, 7)), variant(SMALL, 4, 4)),
    'split rows': (dict(batch=3, size=(40, 16), kernel=(7, 7)), variant(SMALL, 4, 2, 3, 2)),
    'split columns': (dict(batch=2, size=(9, 72), kernel=(7, 7)), variant(SMALL, 2, 4, 1, 3)),
    'split images': (dict(batch=17, channels=3, size=(6, 8), kernel=(5, 5)),
                     variant(SMALL, 8, 1, 1, 2)),
    'more parts than the map has rows': (dict(size=(3, 8), kernel=(5, 5)),
                                         variant(SMALL, 2, 4, 8, 4)),
    'a map smaller than the kernel': (dict(batch=8, size=(7, 8), kernel=(31, 31)),
                                      variant(BIG, 8, 1)),
    'one pixel': (dict(batch=8, channels=3, size=(1, 1), kernel=(13, 13)), variant(SMALL, 8, 1)),
    'width 7': (dict(batch=9, size=(7, 7)), variant(SMALL, 8, 1)),
    'width 14': (dict(batch=9, size=(14, 14)), variant(SMALL, 8, 2)),
    'width 25': (dict(batch=2, size=(13, 25)), variant(SMALL, 2, 4)),
    'width 50': (dict(batch=2, size=(13, 50)), variant(SMALL, 2, 8)),
    'an even kernel': (dict(batch=8, size=(12, 16), kernel=(6, 8)), variant(SMALL, 8, 2)),
    'a wide kernel': (dict(batch=8, channels=1, size=(6, 24), kernel=(5, 51)),
                      variant(SMALL, 8, 4)),
    'a tall kernel': (dict(batch=8, channels=1, size=(40, 8), kernel=(51, 5)),
                      variant(SMALL, 8, 1)),
    'uneven padding': (dict(batch=8, size=(12, 16), kernel=(7, 9), padding=(0, 5, 11, 2)),
                       variant(SMALL, 8, 4)),
    'padding beyond the kernel': (dict(batch=2, size=(4, 8), kernel=(3, 3), padding=(5, 6, 20, 9)),
                                  variant(SMALL, 2, 4)),
    'no padding': (dict(batch=8, size=(20, 24), padding=(0, 0, 0, 0)), variant(SMALL, 8, 2)),
    'kernel in parts': (dict(batch=8, channels=1, size=(20, 24), kernel=(51, 51)),
                        variant(BIG, 8, 4)),
}


@pytest.mark.parametrize('name', CASES)
def test_edge_cases(emulated, name):
    changes, one = CASES[name]
    cases.check_grad(emulated, 'fp16', cases.problem(**changes), one)


@pytest.mark.parametrize('name', ['few images', 'split rows', 'width 7', 'uneven padding',
                                  'a wide kernel'])
@pytest.mark.parametrize('arithmetic', ['bf16', 'tf32', 'exact'])
def test_arithmetics(emulated, name, arithmetic):
    changes, one = CASES[name]
    cases.check_grad(emulated, arithmetic, cases.problem(arithmetic, **changes), one)


@pytest.mark.parametrize('arithmetic', ['tf32', 'exact'])
def test_tiles_of_32_bits(emulated, arithmetic):
    p = cases.problem(arithmetic, 9, 1, (20, 16), (31, 31))
    cases.check_grad(emulated, arithmetic, p, variant(FLOAT, 8, 2))


@pytest.mark.sample(by=lambda arithmetic, seed: {(arithmetic, seed % 2)})
@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
def test_random_problems(emulated, arithmetic, seed):
    """Any way to divide any problem. Widths of the output are what they are."""
    draw = random.Random(seed)
    widths = [[1, 7, 25, 33], [14, 50, 2, 26], [4, 12, 20, 44], [8, 24, 40, 16]][
        (seed // 2 + seed % 2) % 4]
    for number in range(3):
        p = cases.random_problem(draw, arithmetic, widths)
        p = p._replace(has_bias=False, relu=False)
        if seed < 4:  # of which a run takes some: as few libraries as may be
            kw = p.kernel[1]
            p = p._replace(padding=(*p.padding[:2], kw // 2, kw - 1 - kw // 2))
        one = cases.grad_variant(p, draw.choice, (SMALL, ), draw.choice([1, 16]))
        cases.check_grad(emulated, arithmetic, p, one, number)


@pytest.mark.sample(by=lambda arithmetic, index: {index % 3, arithmetic})
@pytest.mark.parametrize('index', range(9))
@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
def test_what_is_chosen(emulated, arithmetic, index):
    """As in test_forward.py."""
    size, kernel, batch = [((16, 16), 31, 64), ((7, 7), 13, 64), ((14, 14), 27, 64),
                           ((25, 42), 13, 1), ((28, 28), 29, 64), ((32, 32), 31, 64),
                           ((50, 84), 27, 2), ((56, 56), 31, 64), ((64, 64), 31, 64)][index]
    p = cases.problem(arithmetic, batch, 1, size, (kernel, kernel))
    mode = cases.ARITHMETIC[arithmetic][1]
    best = variants.ranked(p._replace(channels=384), 'weight_grad', mode, cases.HOPPER)[0]
    cases.check_grad(emulated, arithmetic, p._replace(batch=min(batch, 3)), best)


@pytest.mark.parametrize('splits', [1, 2])
@pytest.mark.parametrize('where', ['x', 'grad'])
def test_inf_and_nan_reach_the_taps_that_see_them(emulated, where, splits, compare):
    """At the map's corner: the taps for which it meets nothing but padding stay finite."""
    p = cases.problem('fp16', 2, 2, (9, 16), (5, 7))
    x, _, _, grad = cases.tensors(p)
    bad = x if where == 'x' else grad
    one = variant(SMALL, 2, 4, splits, splits)
    for value in (torch.inf, torch.nan):
        bad[1, 0, 0, 0] = value
        out = launch.weight_grad(x, grad, p, 'half', *one)
        clean = bad.clone()
        clean[1, 0, 0, 0] = 0
        args = (clean, grad) if where == 'x' else (x, clean)
        alone = torch.zeros_like(bad)
        alone[1, 0, 0, 0] = 1
        seen = selfcheck.exact_weight_grad(*(
            (alone, torch.ones_like(grad)) if where == 'x' else (torch.ones_like(x), alone)), p) > 0
        assert seen[0].any()
        assert not seen[0].all()
        assert not seen[1].any()
        assert torch.equal(~out.isfinite(), seen)
        expected = selfcheck.exact_weight_grad(*args, p)
        compare(out.masked_fill(seen, 0), expected.masked_fill(seen, 0), p.dtype)
