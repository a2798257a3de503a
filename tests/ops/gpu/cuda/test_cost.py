"""The counted cost: equal to what the emulator counts, and within the project's goals.

The goals are for 64 x 384 x R x R maps and 31 x 31 kernels on an H200, whose bound is the larger of
its multiply-adds at 790 TFLOPS in 16 bits, half in TF32, and its bytes at 4.2 TB/s.
"""

import cases
import pytest

from mmreplk.ops.gpu.arch import Arch
from mmreplk.ops.gpu.cuda import cost, grad_plan, plan, variants

H200 = Arch((9, 0), 132, 1.755e9, 2048, 64, 227 << 10, 5.5e12 / 132 / 1.755e9, 4.2e12)
MACS = {'fp16': 395e12, 'tf32': 197.5e12}


def problem(arithmetic, size, channels=384):
    return cases.problem(arithmetic, 64, channels, (size, size), (31, 31))


def bound(p, arithmetic):
    return max(p.macs / MACS[arithmetic], p.bytes_moved / H200.memory)


def best(p, task, arithmetic, device=H200):
    mode = cases.ARITHMETIC[arithmetic][1]
    one = variants.ranked(p, task, mode, device)[0]
    return one, variants.seconds(p, mode, one, device)


def test_the_bound_is_that_of_the_audit():
    found = [1e6 * bound(problem('fp16', size), 'fp16') for size in (16, 32, 64)]
    assert found == pytest.approx([6.2, 35.2, 189.2], abs=0.1)


@pytest.mark.parametrize(('arithmetic', 'size', 'times'), [
    ('fp16', 16, 1.65), ('fp16', 32, 2.0), ('fp16', 64, 2.0),
    ('tf32', 16, 1.55), ('tf32', 32, 2.0), ('tf32', 64, 2.0)])
def test_forward_is_within_twice_the_bound(arithmetic, size, times):
    p = problem(arithmetic, size)
    assert best(p, 'forward', arithmetic)[1] <= times * bound(p, arithmetic)


# The goal is 2.5; it is missed at R = 16, where waiting and bookkeeping are as long as the sums.
@pytest.mark.parametrize(('arithmetic', 'size', 'times'), [
    ('fp16', 16, 2.8), ('fp16', 32, 2.2), ('fp16', 64, 2.1),
    ('tf32', 16, 3.7), ('tf32', 32, 2.5), ('tf32', 64, 2.2)])
def test_backward_beside_forward(arithmetic, size, times):
    p = problem(arithmetic, size)
    forward = best(p, 'forward', arithmetic)[1]
    input_grad = best(p.of_input_grad(), 'forward', arithmetic)[1]
    weight_grad = best(p, 'weight_grad', arithmetic)[1]
    assert input_grad + weight_grad <= times * forward


LAYOUTS = [
    ((24, 32), (31, 31), plan.Layout(plan.Tile(2, 16, 4, 4), 32, 4, 1, False)),
    ((24, 32), (31, 31), plan.Layout(plan.Tile(2, 16, 4, 4), 16, 4, 2, True)),
    ((16, 16), (31, 31), plan.Layout(plan.Tile(2, 8, 4, 4), 64, 2, 1, False)),
    ((40, 24), (13, 13), plan.Layout(plan.Tile(1, 8, 4, 4), 16, 4, 1, False)),
    ((40, 24), (6, 9), plan.Layout(plan.Tile(1, 8, 4, 4), 16, 2, 2, True))]


@pytest.mark.parametrize('arithmetic', ['fp16', 'tf32'])
@pytest.mark.parametrize(('size', 'kernel', 'layout'), LAYOUTS)
def test_products_and_loads_are_those_of_the_emulator(emulated, arithmetic, size, kernel, layout):
    p = cases.problem(arithmetic, layout.images, 1, size, kernel)
    mode = cases.ARITHMETIC[arithmetic][1]
    s, rate = plan.sizes(p, mode, layout, (1, 1)), cost.rates(mode, H200)
    counted = cost.NOTHING
    for tile_i in range(s.tiles_i):
        for tile_j in range(s.tiles_j):
            counted = counted.plus(
                cost.count_forward(p, mode, layout, (1, 1), rate, tile_i, tile_j))
    cases.check_forward(emulated, arithmetic, p, variants.Forward(layout, (1, 1)))
    products, _, cycles, *_ = emulated.counts[-1]
    assert counted.products == products
    # Loads in which eight lanes never meet in a bank.
    assert counted.loads == cycles


GRAD_LAYOUTS = [
    ((24, 32), (31, 31), grad_plan.GradLayout(grad_plan.GradTile(8, 5, 2, 2, 4), 16, 4, 1, 1)),
    ((16, 40), (13, 13), grad_plan.GradLayout(grad_plan.GradTile(4, 3, 1, 4, 4), 16, 2, 1, 1))]


@pytest.mark.parametrize(('size', 'kernel', 'layout'), GRAD_LAYOUTS)
def test_those_of_the_weight_gradient(emulated, size, kernel, layout):
    p = cases.problem('fp16', layout.images, 1, size, kernel)
    counted = cost.count_channel(p, 'half', layout, H200)
    cases.check_grad(emulated, 'fp16', p, variants.WeightGrad(layout))
    products, _, cycles, *_ = emulated.counts[-1]
    assert counted.products == products
    assert counted.loads == cycles


def test_blocks_beside_each_other():
    """One block: busy and idle. Many: as good as busy all the time, and never faster."""
    assert cost._between(100, 20, 1) == 120
    last = 120
    for resident in range(2, 20):
        now = cost._between(100, 20, resident)
        assert 100 <= now <= last
        last = now
    assert last == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize('task', ['forward', 'weight_grad'])
def test_more_of_a_device_is_never_slower(task):
    p = problem('fp16', 32)
    one, whole = best(p, task, 'fp16')
    for change in (dict(sms=66), dict(clock=1e9), dict(macs=1024), dict(l2=10.0),
                   dict(memory=1e12)):
        assert variants.seconds(p, 'half', one, H200._replace(**change)) >= whole
