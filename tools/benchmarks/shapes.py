"""The shapes that are timed, by suite."""

import itertools
import random
from typing import NamedTuple


class Shape(NamedTuple):
    """A depth-wise convolution of stride 1 and padding ``K // 2``, or a stack of them.

    Attributes:
        batch, channels, height, width (int): Input ``(N, C, H, W)``.
        kernel (tuple[int, int]): ``(Kh, Kw)``.
        layers (int): Convolutions, each with its own weights, one after another.
        label (str): Where the shape comes from.
    """
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    layers: int = 1
    label: str = ''

    @property
    def padding(self) -> tuple[int, int]:
        return self.kernel[0] // 2, self.kernel[1] // 2

    @property
    def text(self) -> str:
        """Short: N x C x H x W, K."""
        kernel = str(self.kernel[0])
        if self.kernel[0] != self.kernel[1]:
            kernel += f'x{self.kernel[1]}'
        stack = f', {self.layers} layers' if self.layers > 1 else ''
        return f'{self.batch}x{self.channels}x{self.height}x{self.width}, K {kernel}{stack}'


# (C, H, K): the network's stages at a 512 crop, stage 3 of a 224 image, and the smallest map that
# RepLKNet-31B has, stage 4 of a 224 image.
FACTS = ((128, 128, 31), (256, 64, 29), (512, 32, 27), (1024, 16, 13), (512, 14, 27), (1024, 7, 13))

# The paper's table of latencies.
AUTHORS_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
AUTHORS_MAPS = (16, 32, 64)
AUTHORS_CHANNELS = 384

# Depth-wise channels (times dw_ratio) and large kernels of the four stages, strides 4 to 32. The
# network's own table (mmreplk/models/arch.py) needs the mm packages; a test compares the two.
NETWORKS = {
    '31B': ((128, 256, 512, 1024), (31, 29, 27, 13)),
    '31L': ((192, 384, 768, 1536), (31, 29, 27, 13)),
    'XL': ((384, 768, 1536, 3072), (27, 27, 27, 13)),
}
NETWORK_INPUTS = ((224, 224), (384, 384), (512, 512), (640, 640), (800, 1280))

SWEEP_KERNELS = (*((k, k) for k in (3, 5, 7, 9, 11, 13, 15, 17, 21, 25, 27, 29, 31, 35, 41, 47,
                                    51)),
                 (51, 5), (5, 51), (1, 31), (31, 1))
SWEEP_MAPS = (*((s, s) for s in (7, 8, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128,
                                 160, 192, 224, 256)),
              (7, 56), (64, 16), (25, 40), (50, 80), (96, 256), (256, 96))
SWEEP_CHANNELS = (1, 3, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)

SUITES = ('facts', 'authors', 'network', 'sweep')


def suite(name: str, device_type: str, batches: list[int] | None = None,
          layers: int | None = None) -> list[Shape]:
    """The shapes of a suite.

    Args:
        name (str): One of `SUITES`.
        device_type (str): 'cpu' or 'cuda', which sets the defaults.
        batches (list[int], optional): Defaults to 1; on a GPU to 64 for 'authors', 8 elsewhere.
        layers (int, optional): Depth of the stack of 'authors'. Defaults to 24 on a GPU, else 1.
    """
    gpu = device_type == 'cuda'
    if not batches:
        batches = [64 if name == 'authors' else 8] if gpu else [1]
    if name == 'facts':
        return [Shape(n, c, h, h, (k, k)) for n in batches for c, h, k in FACTS]
    if name == 'authors':
        layers = layers or (24 if gpu else 1)
        return [Shape(n, AUTHORS_CHANNELS, r, r, (k, k), layers)
                for n in batches for r in AUTHORS_MAPS for k in AUTHORS_KERNELS]
    if name == 'network':
        return [Shape(n, c, h >> stage + 2, w >> stage + 2, (k, k), 1,
                      f'{arch} stage {stage + 1} at {h}x{w}')
                for n in batches for arch, table in NETWORKS.items() for h, w in NETWORK_INPUTS
                for stage, (c, k) in enumerate(zip(*table, strict=True))]
    if name == 'sweep':
        return [Shape(n, c, *size, kernel) for n, kernel, size, c in itertools.product(
            batches, SWEEP_KERNELS, SWEEP_MAPS, SWEEP_CHANNELS)]
    raise ValueError(f'suite {name!r} is unknown; choose one of {", ".join(SUITES)}')


def sample(shapes: list[Shape], count: int | None, seed: int) -> list[Shape]:
    """A random subset, always the same for a seed; all of them if ``count`` is None."""
    if count is None or count >= len(shapes):
        return shapes
    return random.Random(seed).sample(shapes, count)


def parse(text: str) -> Shape:
    """``N,C,H,W,K`` or ``N,C,H,W,Kh,Kw``.

    Raises:
        ValueError: If it is neither.
    """
    numbers = [int(part) for part in text.split(',')]
    if len(numbers) not in (5, 6) or min(numbers) < 1:
        raise ValueError(f'a shape is N,C,H,W,K or N,C,H,W,Kh,Kw, not {text!r}')
    return Shape(*numbers[:4], (numbers[4], numbers[-1]))
