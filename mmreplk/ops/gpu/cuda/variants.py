"""The ways to divide a problem among the CUDA kernels' blocks, best first by counted cost."""

from typing import NamedTuple

from ...caches import cached
from ...problem import Problem
from ..arch import Arch
from . import cost, grad_plan, plan

_CAREFULLY = 6  # of the best by a rough count, all places are counted
_WIDEST = 64  # columns of maps that a check runs on


class Forward(NamedTuple):
    """One way to launch forward.cu."""

    layout: plan.Layout
    cut: tuple[int, int]


class WeightGrad(NamedTuple):
    """One way to launch weight_grad.cu."""

    layout: grad_plan.GradLayout


@cached
def ranked(problem: Problem, task: str, mode: str, device: Arch
           ) -> tuple[Forward | WeightGrad, ...]:
    """All that fit a device, by estimated time; none if nothing does."""
    p = problem._replace(channels_last=False, has_bias=False, relu=False)
    if task == 'forward':
        options = []
        for tile in plan.tiles_for(device.capability):
            for layout in plan.layouts(p, tile):
                cut = plan.cut_for(p, mode, layout, device.shared)
                if cut is not None:
                    options.append(Forward(layout, cut))
    else:
        options = [WeightGrad(layout) for tile in grad_plan.TILES[p.dtype.itemsize]
                   for layout in grad_plan.layouts(p, tile, 2 * device.sms)
                   if grad_plan.sizes(p, layout).shared <= device.shared]
    found = sorted(options, key=lambda one: _seconds(p, mode, one, device, rough=True))
    best = sorted(found[:_CAREFULLY], key=lambda one: _seconds(p, mode, one, device))
    return (*best, *found[_CAREFULLY:])


@cached
def seconds(problem: Problem, mode: str, variant: Forward | WeightGrad, device: Arch) -> float:
    """Estimated seconds of a problem."""
    plain = problem._replace(channels_last=False, has_bias=False, relu=False)
    return _seconds(plain, mode, variant, device)


def _seconds(problem, mode, variant, device, rough=False) -> float:
    if isinstance(variant, Forward):
        return cost.forward_seconds(problem, mode, *variant, device, rough)
    return cost.weight_grad_seconds(problem, mode, variant.layout, device, rough)


@cached(maxsize=1024)
def probe(problem: Problem, task: str, mode: str, variant: Forward | WeightGrad, device: Arch
          ) -> tuple[str, Problem]:
    """A name for what a variant is, and a small problem that is compiled and divided the same way.

    Compiled code is shared by all kernel sizes, but what a check runs over is not.
    """
    p = problem
    kernel = kernel_of(problem, mode, variant)
    key = ' '.join([task, str(p.dtype), mode, 'k{}x{}'.format(*p.kernel),
                    'p' + 'x'.join(map(str, p.padding)), f'{variant}',
                    *(f'{name}={value}' for name, value in kernel.defines)])
    small = p._replace(channels=min(p.channels, 2), batch=min(p.batch, 3), channels_last=False)
    # Some outputs at least, and rows as wide as the problem's in steps of 16 columns, so that they
    # begin at the same multiples.
    height = p.height - max(0, min(p.height - 17, p.out_size[0] - 9))
    width = p.width
    if width > _WIDEST:
        width -= max(0, min(width - 33, p.out_size[1] - 17)) // 16 * 16
    for other in (small._replace(height=height, width=width), small):
        if kernel_of(other, mode, variant) == kernel and _fits(other, mode, variant, device):
            return key, other
    return key, p._replace(channels_last=False)


def kernel_of(problem: Problem, mode: str, variant: Forward | WeightGrad) -> plan.Kernel:
    """What a variant is compiled from."""
    p = problem._replace(channels_last=False)
    if isinstance(variant, Forward):
        return plan.plan_forward(p, mode, *variant).kernel
    return grad_plan.plan_weight_grad(p, mode, variant.layout)[0].kernel


def _fits(problem: Problem, mode: str, variant: Forward | WeightGrad, device: Arch) -> bool:
    if isinstance(variant, Forward):
        return plan.sizes(problem, mode, *variant).shared <= device.shared
    return grad_plan.sizes(problem, variant.layout).shared <= device.shared


def read(task: str, value) -> Forward | WeightGrad:
    """A variant from JSON.

    Raises:
        ValueError, TypeError: If it is none.
    """
    layout, *cut = value
    tile, *rest = layout
    numbers = (*tile, *rest, *(cut[0] if cut else ()))
    if not all(type(number) in (int, bool) and 0 <= number <= 1024 for number in numbers):
        raise ValueError(f'not a variant: {value!r}')
    if task == 'forward':
        (down, right), = cut
        found = Forward(plan.Layout(plan.Tile(*tile), *rest[:3], bool(rest[3])), (down, right))
        known = found.layout.tile in plan.TILES and (down, right) in plan.CUTS
    else:
        found = WeightGrad(grad_plan.GradLayout(grad_plan.GradTile(*tile), *rest))
        known = not cut and any(found.layout.tile in tiles for tiles in grad_plan.TILES.values())
    if not known:
        raise ValueError(f'not a variant: {value!r}')
    return found
