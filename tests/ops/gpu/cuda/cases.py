"""Problems for the CUDA kernels, and their exact results."""

import random

import torch

from mmreplk.ops.gpu import arch, selfcheck
from mmreplk.ops.gpu.cuda import grad_plan, launch, plan, variants
from mmreplk.ops.problem import Problem

# By arithmetic: dtype, and mode of `tiles.MODES`.
ARITHMETIC = {'fp16': (torch.float16, 'half'), 'bf16': (torch.bfloat16, 'half'),
              'tf32': (torch.float32, 'tf32'), 'exact': (torch.float32, 'exact')}
# Largest error as a share of the root mean square and of each value. In TF32, x has 11 bits.
TOLERANCE = {'fp16': 1e-3, 'bf16': 8e-3, 'tf32': 4e-3, 'exact': 4e-6}
HOPPER = arch.arch((9, 0))


def problem(arithmetic='fp16', batch=2, channels=2, size=(14, 14), kernel=(13, 13), padding=None,
            bias=False, relu=False, device='cpu', channels_last=False):
    """A problem with 'same' padding unless another is given: top, bottom, left, right."""
    (kh, kw), (height, width) = kernel, size
    if padding is None:
        padding = (kh // 2, kh // 2, kw // 2, kw // 2)
    return Problem(ARITHMETIC[arithmetic][0], device, channels_last, batch, channels, height, width,
                   1, (kh, kw), (1, 1), tuple(padding), (1, 1), bias, relu)


def tensors(p, seed=0):
    """x, weight, bias or None, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(p.dtype)

    x, weight = normal(p.batch, p.channels, p.height, p.width), normal(p.channels, 1, *p.kernel)
    bias, grad = normal(p.channels), normal(*p.out_shape)
    return x, weight, bias if p.has_bias else None, grad


def check_forward(emulated, arithmetic, p, variant, seed=0):
    """A forward pass in the emulator against float64."""
    x, weight, bias, _ = tensors(p, seed)
    out = launch.forward(x, weight, bias, p, ARITHMETIC[arithmetic][1], *variant)
    error = selfcheck.relative_error(out, selfcheck.exact_forward(x, weight, bias, p))
    assert error <= TOLERANCE[arithmetic], (error, p, variant)
    assert not emulated.plain_sums, (p, variant)


def check_grad(emulated, arithmetic, p, variant, seed=0):
    """A gradient of the weights in the emulator against float64."""
    x, _, _, grad = tensors(p, seed)
    out = launch.weight_grad(x, grad, p, ARITHMETIC[arithmetic][1], *variant)
    error = selfcheck.relative_error(out, selfcheck.exact_weight_grad(x, grad, p))
    assert error <= TOLERANCE[arithmetic], (error, p, variant)
    assert not emulated.plain_sums, (p, variant)


def forward_variant(p, arithmetic, choose, tiles=plan.TILES, cuts=((1, 1), )):
    """One of all ways to divide a problem that fit a Hopper, by ``choose(options)``; or None."""
    mode = ARITHMETIC[arithmetic][1]
    options = [variants.Forward(layout, cut) for tile in tiles for layout in plan.layouts(p, tile)
               for cut in cuts if plan.sizes(p, mode, layout, cut).shared <= HOPPER.shared]
    return choose(options) if options else None


def grad_variant(p, choose, tiles=None, blocks=1):
    """As `forward_variant`, of the gradient of the weights."""
    tiles = tiles or grad_plan.TILES[p.dtype.itemsize]
    options = [variants.WeightGrad(layout) for tile in tiles
               for layout in grad_plan.layouts(p, tile, blocks)
               if grad_plan.sizes(p, layout).shared <= HOPPER.shared]
    return choose(options) if options else None


def random_problem(draw: random.Random, arithmetic, widths):
    """Maps smaller than the kernel, odd widths, rectangular and even kernels, uneven padding."""
    while True:
        kh = draw.choice([1, 2, 3, 5, 7, 13, 31, draw.randint(1, 40)])
        kw = draw.choice([kh, kh, draw.randint(1, 40), 51])
        height = draw.choice([1, 2, 7, 14, 16, draw.randint(1, 40)])
        width = draw.choice(widths)
        padding = (kh // 2, kh // 2, kw // 2, kw // 2)
        if draw.random() < 0.5:
            padding = tuple(draw.randint(0, k + 3) for k in (kh, kh, kw, kw))
        p = problem(arithmetic, draw.choice([1, 2, 3, 9, 17, 20]), draw.choice([1, 2, 3]),
                    (height, width), (kh, kw), padding, draw.random() < 0.5, draw.random() < 0.3)
        if min(p.out_size) >= 1:
            return p

