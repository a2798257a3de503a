"""Look for wrong 16-bit results of PyTorch's own depth-wise convolutions on this CPU.

``python tests/ops/survey_pytorch.py [--minutes 10] [--seed 0]`` needs torch alone, of any version,
and nothing of mmreplk. Random geometries, strides, dilations and memory layouts run forward and
backward in bfloat16 and float16, with freed memory full of NaN, and are compared with float64.
Each wrong value is printed; the last line is a row for the survey of docs/reliability.md.
"""

import argparse
import random
import time
from collections import Counter

import torch
import torch.nn.functional as F

LAYOUTS = ('contiguous', 'channels_last', 'permuted', 'sliced')
NAMES = ('output', 'input gradient', 'weight gradient')
# A kernel this wide on 2 to 16 channels may never return (docs/reliability.md).
LARGEST_KERNEL = 13


def laid_out(values, layout):
    """The same values in another memory layout."""
    n, c, h, w = values.shape
    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last)
    if layout == 'permuted':
        return values.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    if layout == 'sliced':
        room = values.new_full((n, c + 1, h + 2, w + 3), torch.nan)
        return room[:, 1:, 1:-1, 2:-1].copy_(values)
    return values.contiguous()


def dirty_memory(numbers):
    """Leave freed blocks full of NaN, of the sizes that the next call may be given."""
    for count in numbers:
        for _ in range(4):
            torch.full((count, ), torch.nan, dtype=torch.bfloat16)


def draw(generator):
    """A random convolution: sizes, strides, dilations, layouts and dtype."""
    pick = generator.choice
    kernel = generator.randint(1, LARGEST_KERNEL), generator.randint(1, LARGEST_KERNEL)
    dilation, stride = (pick((1, 1, 2, 3)), pick((1, 2, 3))), (pick((1, 1, 1, 2)), pick((1, 1, 2)))
    padding = tuple(generator.randint(0, d * (k - 1) // 2 + 1)
                    for d, k in zip(dilation, kernel, strict=True))
    size = tuple(max(generator.randint(1, 140 // (1 + i % 2)), d * (k - 1) + 1 - 2 * p)
                 for i, (d, k, p) in enumerate(zip(dilation, kernel, padding, strict=True)))
    channels = generator.randint(1, 32)
    return dict(batch=generator.randint(1, 2), channels=channels, size=size, kernel=kernel,
                stride=stride, padding=padding, dilation=dilation, layout=pick(LAYOUTS),
                grad_layout=pick(LAYOUTS), dtype=pick((torch.bfloat16, torch.float16)))


def compare(case, seed):
    """Names of the wrong values of a case."""
    generator = torch.Generator().manual_seed(seed)
    shape = case['batch'], case['channels'], *case['size']
    how = dict(stride=case['stride'], padding=case['padding'], dilation=case['dilation'],
               groups=case['channels'])
    x = torch.randn(shape, generator=generator).to(case['dtype'])
    weight = torch.randn((case['channels'], 1, *case['kernel']), generator=generator)
    weight = weight.to(case['dtype'])
    right_x, right_weight = (t.double().requires_grad_() for t in (x, weight))
    right = F.conv2d(right_x, right_weight, **how)
    grad = torch.randn(right.shape, generator=generator).to(case['dtype'])
    rights = right.detach(), *torch.autograd.grad(right, (right_x, right_weight), grad.double())
    x = laid_out(x, case['layout']).requires_grad_()
    weight.requires_grad_()
    dirty_memory((x.numel(), weight.numel(), grad.numel()))
    out = F.conv2d(x, weight, **how)
    dirty_memory((x.numel(), weight.numel(), grad.numel()))
    found = out.detach(), *torch.autograd.grad(out, (x, weight),
                                               laid_out(grad, case['grad_layout']))
    wrong = []
    for name, a, b in zip(NAMES, found, rights, strict=True):
        # Sums in 16 bits err by far less than their largest value; unwritten memory does not.
        error = (a.double() - b).abs().max() if a.numel() else torch.zeros(())
        if not error <= 0.25 * b.abs().max() + 1:
            wrong.append(name)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    generator, end = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    values, wrong, seed = 0, Counter(), arguments.seed
    while time.monotonic() < end:
        case, seed = draw(generator), seed + 1
        for name in compare(case, seed):
            dilated = 'dilated' if max(case['dilation']) > 1 else 'not dilated'
            wrong[f'{name}, {case["dtype"]}, {case["layout"]}, {dilated}'] += 1
            print(f'{name}: {case}, seed {seed}', flush=True)
        values += 3
    features = torch.backends.cpu.get_cpu_capability()
    print(f'{features} | {torch.__version__} | {values} values | {sum(wrong.values())} wrong: '
          f'{dict(wrong)}')


if __name__ == '__main__':
    main()
