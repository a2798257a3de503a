"""How the cost of RepLKNet-31B grows with the side of the image, the batch and the kernel."""

from dataclasses import asdict, replace

import ceilings
import torch
from network_models import Candidate, replknet
from networks import with_plain_convolutions

SIDES = (224, 320, 448, 640, 832, 1024)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
KERNELS = (3, 7, 13, 21, 31, 51)


def with_kernels(arch, kernel: int) -> dict:
    """31B with one size of all kernels, and no small one."""
    sizes = (kernel, ) * len(arch.large_kernel_sizes)
    return asdict(replace(arch, large_kernel_sizes=sizes, small_kernel=None))


def cases(args):
    """Cases for network.py: everything else as for one image of 224 with the paper's kernels."""
    from mmreplk.models.arch import ARCHS
    arch = ARCHS['31B']
    for dtype in args.dtype:
        for axis, value, batch, side in (
                *(('side', side, 1, side) for side in SIDES),
                *(('batch', batch, batch, 224) for batch in BATCHES),
                *(('kernel', kernel, 1, 224) for kernel in KERNELS)):
            chosen = with_kernels(arch, value) if axis == 'kernel' else asdict(arch)

            def deployed(chosen=chosen):
                model = replknet(chosen)
                model.backbone.switch_to_deploy()
                return model

            ways = {'ours': deployed,
                    'conv2d': lambda make=deployed: with_plain_convolutions(make())}
            makes = {}
            for name, make in ways.items():
                if name in args.candidates:
                    makes[name] = lambda make=make: Candidate(
                        seeded(make), torch.contiguous_format, 'replknet')
            yield makes, (batch, 3, side, side), 'inference', dtype, dict(
                suite='growth', network='RepLKNet-31B', axis=axis, value=value)


def bounds_of(call, rates: ceilings.Ceilings) -> dict:
    """What the large kernels of a network have to do, and the bounds of it, as columns.

    Args:
        call (Inference): The network and its images.
        rates (Ceilings): What the device can do.
    """
    from mmreplk.ops import LargeKernelDWConv2d
    from mmreplk.ops.functional import problem_of
    problems = []

    def note(layer, inputs):
        problems.append(problem_of(inputs[0], layer.weight, layer.bias, layer.stride,
                                   layer.padding, layer.dilation))

    hooks = [module.register_forward_pre_hook(note) for module in call.model.modules()
             if isinstance(module, LargeKernelDWConv2d)]
    call()
    for hook in hooks:
        hook.remove()
    nbytes, macs = sum(p.bytes_moved for p in problems), sum(p.macs for p in problems)
    bound = ceilings.bound(nbytes, macs, rates)
    return dict(depthwise_bytes=nbytes, depthwise_macs=macs, memory_bound_ms=bound.memory,
                direct_bound_ms=bound.direct)


def seeded(make):
    """What a function builds from the seed that all candidates start with."""
    torch.manual_seed(0)
    return make()
