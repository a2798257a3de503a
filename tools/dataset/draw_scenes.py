# Copyright (c) mmreplk authors.
"""Draw a small segmentation data set in the layout and labels of ADE20K.

The pictures are little streets, lakes and avenues.  They exist so that training and
evaluation can be tried from end to end in a few minutes without downloading anything, and they
use true ADE20K label numbers, so that the same config also runs on ADE20K itself.

Example:
    python tools/dataset/draw_scenes.py data/scenes --num-train 400 --num-val 80
"""
import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

# Label numbers as they stand in ADE20K's annotation files (class index + 1).
CLASS_IDS: dict[str, int] = {
    'building': 2,
    'sky': 3,
    'tree': 5,
    'road': 7,
    'grass': 10,
    'sidewalk': 12,
    'person': 13,
    'mountain': 17,
    'car': 21,
    'water': 22,
    'fence': 33,
    'boat': 77,
}
UNLABELLED = 0

# A change to what is drawn must change this number, or a data set drawn by an older version
# would be taken for a current one.
VERSION = 1
STAMP = 'draw_scenes.json'
SPLITS = ('training', 'validation')
MIN_SIZE = 32
# Odd, so that every label pixel has one sample exactly in its middle.
_OVERSAMPLE = 3
_JPEG_QUALITY = 95

Colour = Sequence[float]
Points = Sequence[tuple[float, float]]


class Light(NamedTuple):
    """Colours and direction of one kind of daylight.

    Attributes:
        zenith (Colour): RGB at the top of the sky.
        horizon (Colour): RGB of the sky where it meets the ground.
        tint (Colour): Factors by which the light scales every colour of the scene.
        sun (Colour): RGB of the disc in the sky.
    """
    zenith: Colour
    horizon: Colour
    tint: Colour
    sun: Colour


_LIGHTS = (
    Light((70, 135, 215), (190, 220, 245), (1.00, 1.00, 1.00), (255, 250, 205)),
    Light((95, 165, 225), (225, 236, 240), (1.04, 1.02, 0.96), (255, 246, 190)),
    Light((105, 115, 175), (250, 190, 130), (1.08, 0.92, 0.78), (255, 225, 150)),
    Light((88, 78, 140), (236, 150, 150), (0.94, 0.80, 0.86), (255, 190, 150)),
    Light((140, 152, 166), (205, 210, 214), (0.88, 0.90, 0.94), (232, 234, 236)),
)


class _Canvas:
    """A picture and its label map, painted together from back to front.

    Both are drawn oversampled with hard edges.  Averaging the picture and sampling the label
    then gives a smooth picture whose label map still holds class numbers only.

    Args:
        rng (np.random.Generator): Source of every random choice.
        size (int): Height and width of the finished picture.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.size = size
        self.side = size * _OVERSAMPLE
        self.image = np.zeros((self.side, self.side, 3), np.float32)
        self.label = np.zeros((self.side, self.side), np.uint8)

    def noise(self, cells_x: float, cells_y: float) -> np.ndarray:
        """Smooth noise in [-1, 1] over the canvas with the given number of cells per axis."""
        shape = (max(2, round(cells_y)), max(2, round(cells_x)))
        grid = self.rng.uniform(-1, 1, shape).astype(np.float32)
        return cv2.resize(grid, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def fill(self, mask: np.ndarray, colour, label: int | None, box=None) -> None:
        """Paint a mask.

        Args:
            mask (np.ndarray): Non-zero where to paint; covers ``box``.
            colour (Colour | np.ndarray): One RGB colour, or a picture of the canvas's size.
            label (int, optional): Label to write; None leaves the labels as they are.
            box (tuple, optional): ``(y0, y1, x0, x1)``; None for the whole canvas.
        """
        y0, y1, x0, x1 = box or (0, self.side, 0, self.side)
        inside = mask.astype(bool)
        if isinstance(colour, np.ndarray) and colour.ndim == 3:
            self.image[y0:y1, x0:x1][inside] = colour[y0:y1, x0:x1][inside]
        else:
            self.image[y0:y1, x0:x1][inside] = np.asarray(colour, np.float32)
        if label is not None:
            self.label[y0:y1, x0:x1][inside] = label

    def _mask(self, points: np.ndarray):
        """Mask of a polygon, cut to the part of its bounding box that is on the canvas."""
        low, high = points.min(0), points.max(0) + 1
        x0, y0 = (int(v) for v in np.clip(low, 0, self.side))
        x1, y1 = (int(v) for v in np.clip(high, 0, self.side))
        if x1 <= x0 or y1 <= y0:
            return None
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [(points - (x0, y0)).astype(np.int32)], 1)
        return mask, (y0, y1, x0, x1)

    def polygon(self, points: Points, colour, label: int | None = None) -> None:
        """Paint a polygon whose corners are in fractions of the picture's side."""
        corners = np.round(np.asarray(points, np.float64) * self.side).astype(np.int64)
        found = self._mask(corners)
        if found:
            self.fill(found[0], colour, label, found[1])

    def rectangle(self, x0, y0, x1, y1, colour, label: int | None = None) -> None:
        """Paint an upright rectangle."""
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, label)

    def ellipse(self, x, y, rx, ry, colour, label: int | None = None) -> None:
        """Paint an upright ellipse with centre (x, y)."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self.polygon(
            np.stack((x + rx * np.cos(angle), y + ry * np.sin(angle)), 1), colour, label)

    def shade(self, x, y, rx, ry, factor: float = 0.62) -> None:
        """Darken an ellipse without touching its labels: the shadow of what stands on it."""
        angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        points = np.stack((x + rx * np.cos(angle), y + ry * np.sin(angle)), 1)
        found = self._mask(np.round(points * self.side).astype(np.int64))
        if found:
            mask, (y0, y1, x0, x1) = found
            self.image[y0:y1, x0:x1][mask.astype(bool)] *= factor

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture (float RGB) and the label map in the size asked for."""
        shape = (self.size, self.size)
        image = cv2.resize(self.image, shape, interpolation=cv2.INTER_AREA)
        middle = _OVERSAMPLE // 2
        return image, self.label[middle::_OVERSAMPLE, middle::_OVERSAMPLE].copy()


def _vary(rng: np.random.Generator, colour: Colour, amount: float = 14) -> np.ndarray:
    """A colour near the given one: brightness and hue wander separately."""
    return np.clip(
        np.asarray(colour, np.float32) + rng.uniform(-amount, amount)
        + rng.uniform(-amount, amount, 3) * 0.5, 6, 250).astype(np.float32)


def _choose(rng: np.random.Generator, items: Sequence):
    """One of the items (``Generator.choice`` would turn them into an array)."""
    return items[int(rng.integers(len(items)))]


def _ridge(rng: np.random.Generator, base: float, height: float, rough: float) -> list:
    """A ridge line from left to right as (x, y) points, y growing downwards."""
    x = np.linspace(-0.02, 1.02, 60)
    y = np.zeros_like(x)
    for octave in range(1, 6):
        y += rng.uniform(0.5, 1) * rough**(octave - 1) * np.sin(
            2 * np.pi * (2**(octave - 1) * rng.uniform(0.6, 1.0) * x + rng.uniform()))
    y = (y - y.min()) / max(float(np.ptp(y)), 1e-6)
    return list(zip(x, base - height * (0.25 + 0.75 * y), strict=True))


# Surfaces: each returns a picture of the canvas's size to be painted through a mask.


def _grass(canvas: _Canvas) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    base = _vary(rng, _choose(rng, ((92, 146, 62), (112, 156, 70), (128, 150, 72))), 12)
    blades = canvas.noise(n * 0.9, n * 0.35)
    patches = canvas.noise(7, 10)
    return base + blades[..., None] * 20 + patches[..., None] * np.float32((16, 10, 4))


def _asphalt(canvas: _Canvas) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    grey = _vary(rng, _choose(rng, ((84, 84, 90), (98, 96, 98), (72, 74, 82))), 8)
    return grey + canvas.noise(n, n)[..., None] * 9 + canvas.noise(5, 8)[..., None] * 6


def _paving(canvas: _Canvas) -> np.ndarray:
    rng = canvas.rng
    base = _vary(rng, _choose(rng, ((188, 178, 164), (176, 172, 168), (198, 180, 158))), 9)
    surface = base + canvas.noise(canvas.size, canvas.size)[..., None] * 8
    step = max(4, round(canvas.side * rng.uniform(0.045, 0.065)))
    rows = np.arange(canvas.side) // step
    joint = np.arange(canvas.side) % step < max(1, step // 7)
    surface[joint] *= 0.78
    # Every other row of slabs is shifted by half a slab, as pavers lay them.
    columns = (np.arange(canvas.side)[None] + (rows % 2 * (step // 2))[:, None]) % step
    surface[columns < max(1, step // 7)] *= 0.84
    return surface


def _water(canvas: _Canvas, light: Light) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    base = _vary(rng, _choose(rng, ((44, 112, 158), (36, 120, 140), (58, 104, 166))), 10)
    surface = 0.78 * base + 0.22 * np.float32(light.horizon)
    ripples = canvas.noise(n * 0.16, n * 0.75)
    surface = surface + ripples[..., None] * 17
    return surface + np.float32(70) * (ripples > 0.74)[..., None]


def _sky(canvas: _Canvas, light: Light, horizon: float) -> np.ndarray:
    rng = canvas.rng
    height = np.clip(np.linspace(0, 1, canvas.side) / horizon, 0, 1).astype(np.float32)
    fade = (height**rng.uniform(0.8, 1.6))[:, None, None]
    sky = np.float32(light.zenith) * (1 - fade) + np.float32(light.horizon) * fade
    sky = np.repeat(sky, canvas.side, 1)
    # Two scales of noise, cut off below, make clouds with soft rims.
    cloud = canvas.noise(6, 13) * 0.65 + canvas.noise(14, 30) * 0.35
    cloud = np.clip((cloud - rng.uniform(0.0, 0.5)) * 2.4, 0, 0.85)[..., None]
    return sky * (1 - cloud) + np.clip(np.float32(light.horizon) + 40, 0, 250) * cloud


# Things that stand in a scene.  x is the middle, y the foot, both fractions of the side.


def _tree(canvas: _Canvas, x: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['tree']
    canvas.shade(x, y, height * 0.28, height * 0.05)
    trunk = _vary(rng, (98, 70, 48), 12)
    width = height * rng.uniform(0.035, 0.055)
    canvas.polygon(((x - width, y), (x + width, y), (x + width * 0.6, y - height * 0.55),
                    (x - width * 0.6, y - height * 0.55)), trunk, label)
    green = _vary(rng, _choose(rng, ((38, 88, 44), (50, 98, 40), (30, 80, 56), (72, 96, 34))), 9)
    if rng.random() < 0.35:
        # A conifer: tiers that shrink upwards, each lit from above.
        tiers = int(rng.integers(3, 5))
        for i in range(tiers):
            bottom = y - height * (0.14 + 0.72 * i / tiers)
            half = height * (0.27 - 0.15 * i / tiers)
            top = bottom - height * 0.42
            canvas.polygon(((x - half, bottom), (x + half, bottom), (x, max(top, y - height))),
                           green * (0.8 + 0.12 * i), label)
            canvas.polygon(((x, bottom), (x + half, bottom), (x, max(top, y - height))),
                           green * (0.66 + 0.12 * i), label)
        return
    centre, spread = y - height * 0.66, height * 0.26
    for _ in range(22):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = spread * reach * np.cos(angle), spread * reach * np.sin(angle)
        radius = height * rng.uniform(0.075, 0.14)
        # Leaves further up catch more light, which gives the crown its volume.
        lit = 0.86 - 0.30 * dy / spread + rng.uniform(-0.08, 0.08)
        canvas.ellipse(x + dx, centre + dy, radius, radius * 0.9, np.clip(green * lit, 0, 255),
                       label)


def _building(canvas: _Canvas, x0: float, x1: float, y: float, height: float,
              house: bool) -> None:
    rng, label = canvas.rng, CLASS_IDS['building']
    wall = _vary(rng, _choose(rng, ((196, 110, 84), (222, 186, 128), (206, 150, 130),
                                    (168, 88, 80), (232, 214, 176), (190, 132, 96))), 12)
    top, width = y - height, x1 - x0
    canvas.rectangle(x0, top, x1, y, wall, label)
    # One flank in shade separates a house from its neighbour of the same colour.
    canvas.rectangle(x1 - width * 0.1, top, x1, y, wall * 0.8, label)
    roof = _vary(rng, _choose(rng, ((120, 52, 44), (92, 66, 62), (134, 76, 52))), 10)
    if house:
        rise = min(width, height) * rng.uniform(0.35, 0.55)
        canvas.polygon(((x0 - width * 0.06, top), (x1 + width * 0.06, top),
                        (x1 - width * 0.28, top - rise), (x0 + width * 0.28, top - rise)),
                       roof, label)
    else:
        canvas.rectangle(x0 - 0.006, top - 0.014, x1 + 0.006, top + 0.008, roof, label)
    glass = _vary(rng, _choose(rng, ((70, 92, 118), (250, 222, 140), (98, 124, 142))), 12)
    columns = max(1, int(width / 0.075))
    rows = max(1, int((height - 0.06) / 0.085))
    for i in range(columns):
        for j in range(rows):
            left = x0 + width * (i + 0.26) / columns
            right = x0 + width * (i + 0.72) / columns
            high = top + 0.03 + 0.085 * j
            pane = glass * rng.uniform(0.75, 1.05)
            canvas.rectangle(left - 0.005, high - 0.005, right + 0.005, high + 0.055,
                             wall * 0.62 + 90, label)
            canvas.rectangle(left, high, right, high + 0.048, np.clip(pane, 0, 255), label)
    door = x0 + width * rng.uniform(0.35, 0.6)
    canvas.rectangle(door, y - min(0.09, height * 0.4), door + min(0.05, width * 0.22), y,
                     _vary(rng, (86, 58, 46), 10), label)


def _person(canvas: _Canvas, x: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['person']
    canvas.shade(x, y, height * 0.22, height * 0.04)
    skin = _vary(rng, _choose(rng, ((236, 196, 164), (198, 146, 110), (130, 88, 64))), 8)
    shirt = _vary(rng, _choose(rng, ((226, 40, 110), (150, 50, 180), (244, 116, 176),
                                     (196, 40, 150))), 12)
    trousers = _vary(rng, _choose(rng, ((44, 54, 112), (62, 48, 92))), 8)
    hair = _vary(rng, _choose(rng, ((46, 34, 28), (128, 84, 44), (214, 182, 110))), 8)
    h, stride = height, height * rng.uniform(0.03, 0.09)
    for side in (-1, 1):
        foot = x + side * stride
        canvas.polygon(((x + side * 0.005 * h, y - 0.5 * h), (x + side * 0.17 * h, y - 0.5 * h),
                        (foot + side * 0.13 * h, y), (foot - side * 0.03 * h, y)), trousers, label)
        swing = rng.uniform(0.0, 0.1) * h
        canvas.polygon(((x + side * 0.10 * h, y - 0.80 * h), (x + side * 0.20 * h, y - 0.78 * h),
                        (x + side * (0.24 * h + swing), y - 0.44 * h),
                        (x + side * (0.13 * h + swing), y - 0.44 * h)), shirt * 0.8, label)
    canvas.polygon(((x - 0.18 * h, y - 0.80 * h), (x + 0.18 * h, y - 0.80 * h),
                    (x + 0.17 * h, y - 0.44 * h), (x - 0.17 * h, y - 0.44 * h)), shirt, label)
    canvas.ellipse(x, y - 0.895 * h, 0.105 * h, 0.112 * h, hair, label)
    canvas.ellipse(x + 0.012 * h, y - 0.875 * h, 0.078 * h, 0.085 * h, skin, label)


def _car_side(canvas: _Canvas, x: float, y: float, length: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['car']
    paint = _vary(rng, _choose(rng, ((206, 36, 40), (36, 92, 196), (238, 182, 30),
                                     (236, 238, 240), (36, 148, 92), (34, 36, 44))), 10)
    facing = -1 if rng.random() < 0.5 else 1
    canvas.shade(x, y, length * 0.54, length * 0.06, 0.5)

    def at(points: Points) -> Points:
        return [(x + facing * u * length, y - v * length) for u, v in points]

    canvas.polygon(at(((-0.30, 0.26), (-0.20, 0.44), (0.12, 0.44), (0.27, 0.26))),
                   paint * 0.92, label)
    glass = np.float32((150, 190, 212))
    canvas.polygon(at(((-0.24, 0.27), (-0.17, 0.41), (-0.04, 0.41), (-0.04, 0.27))), glass, label)
    canvas.polygon(at(((0.0, 0.27), (0.0, 0.41), (0.10, 0.41), (0.21, 0.27))), glass, label)
    canvas.polygon(at(((-0.49, 0.06), (-0.50, 0.22), (-0.44, 0.28), (0.28, 0.28), (0.47, 0.22),
                       (0.50, 0.16), (0.50, 0.06))), paint, label)
    canvas.polygon(at(((-0.49, 0.06), (-0.49, 0.11), (0.50, 0.11), (0.50, 0.06))), paint * 0.7,
                   label)
    canvas.polygon(at(((0.45, 0.16), (0.46, 0.21), (0.50, 0.20), (0.50, 0.15))), (255, 240, 190),
                   label)
    for wheel in (-0.28, 0.29):
        canvas.ellipse(x + facing * wheel * length, y - 0.075 * length, 0.095 * length,
                       0.095 * length, (26, 26, 28), label)
        canvas.ellipse(x + facing * wheel * length, y - 0.075 * length, 0.045 * length,
                       0.045 * length, (170, 172, 176), label)


def _car_rear(canvas: _Canvas, x: float, y: float, width: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['car']
    paint = _vary(rng, _choose(rng, ((206, 36, 40), (36, 92, 196), (238, 182, 30),
                                     (236, 238, 240), (36, 148, 92), (34, 36, 44))), 10)
    w = width
    canvas.shade(x, y, w * 0.58, w * 0.1, 0.5)
    for side in (-1, 1):
        wheel = x + side * 0.38 * w
        canvas.rectangle(wheel - 0.09 * w, y - 0.2 * w, wheel + 0.09 * w, y, (26, 26, 28), label)
    canvas.polygon(((x - 0.40 * w, y - 0.42 * w), (x - 0.30 * w, y - 0.76 * w),
                    (x + 0.30 * w, y - 0.76 * w), (x + 0.40 * w, y - 0.42 * w)), paint * 0.9, label)
    canvas.polygon(((x - 0.33 * w, y - 0.44 * w), (x - 0.26 * w, y - 0.70 * w),
                    (x + 0.26 * w, y - 0.70 * w), (x + 0.33 * w, y - 0.44 * w)), (120, 158, 184),
                   label)
    canvas.rectangle(x - 0.5 * w, y - 0.46 * w, x + 0.5 * w, y - 0.1 * w, paint, label)
    canvas.rectangle(x - 0.5 * w, y - 0.17 * w, x + 0.5 * w, y - 0.1 * w, paint * 0.6, label)
    canvas.rectangle(x - 0.15 * w, y - 0.29 * w, x + 0.15 * w, y - 0.2 * w, (238, 238, 226), label)
    for side in (-1, 1):
        canvas.rectangle(x + side * 0.40 * w - 0.08 * w, y - 0.40 * w,
                         x + side * 0.40 * w + 0.08 * w, y - 0.28 * w, (250, 70, 50), label)


def _boat(canvas: _Canvas, x: float, y: float, length: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['boat']
    hull = _vary(rng, _choose(rng, ((240, 240, 236), (150, 52, 44), (120, 78, 46),
                                    (36, 52, 104))), 10)
    sail = _vary(rng, _choose(rng, ((250, 248, 238), (240, 108, 52), (246, 214, 96))), 6)
    n = length
    canvas.shade(x, y, n * 0.5, n * 0.06, 0.7)
    canvas.polygon(((x - 0.50 * n, y - 0.18 * n), (x + 0.52 * n, y - 0.18 * n),
                    (x + 0.36 * n, y), (x - 0.38 * n, y)), hull, label)
    canvas.polygon(((x - 0.50 * n, y - 0.18 * n), (x + 0.52 * n, y - 0.18 * n),
                    (x + 0.49 * n, y - 0.13 * n), (x - 0.475 * n, y - 0.13 * n)), hull * 0.66,
                   label)
    tall = n * rng.uniform(0.75, 1.0)
    canvas.rectangle(x - 0.02 * n, y - 0.2 * n - tall, x + 0.02 * n, y - 0.16 * n, (96, 74, 52),
                     label)
    canvas.polygon(((x + 0.02 * n, y - 0.18 * n - tall), (x + 0.44 * n, y - 0.24 * n),
                    (x + 0.02 * n, y - 0.24 * n)), sail, label)
    canvas.polygon(((x - 0.02 * n, y - 0.12 * n - tall), (x - 0.38 * n, y - 0.24 * n),
                    (x - 0.02 * n, y - 0.24 * n)), sail * 0.88, label)


def _fence(canvas: _Canvas, x0: float, x1: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['fence']
    wood = _vary(rng, _choose(rng, ((150, 104, 62), (244, 240, 230), (122, 84, 60))), 10)
    step = height * rng.uniform(0.26, 0.34)
    # The gaps belong to the fence, as they do in hand-drawn annotations.
    canvas.rectangle(x0, y - height * 0.92, x1, y, wood * 0.45, label)
    for rail in (0.30, 0.72):
        canvas.rectangle(x0, y - height * (rail + 0.1), x1, y - height * rail, wood * 0.78, label)
    x = x0
    while x < x1 - step * 0.5:
        shade = wood * rng.uniform(0.88, 1.02)
        canvas.polygon(((x, y), (x, y - height * 0.9), (x + step * 0.33, y - height),
                        (x + step * 0.66, y - height * 0.9), (x + step * 0.66, y)), shade, label)
        x += step


def _mountains(canvas: _Canvas, light: Light, horizon: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['mountain']
    for layer in range(int(rng.integers(1, 3))):
        height = rng.uniform(0.16, 0.27) * (1 - 0.35 * layer)
        ridge = _ridge(rng, horizon, height, 0.46)
        base = _vary(rng, _choose(rng, ((112, 112, 132), (126, 112, 116), (98, 110, 126))), 10)
        # Air between the eye and the far ridge washes it out.
        rock = base * (0.72 + 0.28 * layer) + np.float32(light.horizon) * (0.28 - 0.2 * layer)
        slope = canvas.noise(22, 16) * 0.6 + canvas.noise(60, 34) * 0.4
        surface = rock + slope[..., None] * 26
        canvas.polygon(ridge + [(1.02, horizon + 0.02), (-0.02, horizon + 0.02)], surface, label)
        if layer == 0 and rng.random() < 0.6:
            line = horizon - height * rng.uniform(0.62, 0.75)
            cap = [(x, min(y, line)) for x, y in ridge]
            jag = [(x, line + rng.uniform(0, 0.025) if y < line else line)
                   for x, y in reversed(ridge)]
            cap_mask = np.zeros((canvas.side, canvas.side), np.uint8)
            cv2.fillPoly(
                cap_mask, [np.round(np.asarray(cap + jag) * canvas.side).astype(np.int32)], 1)
            snow = np.float32((236, 240, 246)) + slope[..., None] * 12
            # Snow lies on the rock only: never on the sky beside it.
            canvas.fill(cap_mask & (canvas.label == label), snow, label)


def _heavens(canvas: _Canvas, light: Light, horizon: float) -> None:
    """The sky and, unlabelled since no class here covers them, the sun and a balloon."""
    rng = canvas.rng
    canvas.rectangle(0, 0, 1, horizon + 0.02, _sky(canvas, light, horizon), CLASS_IDS['sky'])
    if rng.random() < 0.7:
        x, y = rng.uniform(0.08, 0.92), rng.uniform(0.05, horizon * 0.55)
        r = rng.uniform(0.03, 0.05)
        canvas.ellipse(x, y, r * 1.5, r * 1.5,
                       np.float32(light.sun) * 0.5 + np.float32(light.horizon) * 0.5, None)
        canvas.ellipse(x, y, r, r, light.sun, UNLABELLED)
    if rng.random() < 0.35:
        x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.08, horizon * 0.5), rng.uniform(0.04, 0.065)
        one, two = _vary(rng, (224, 66, 70)), _vary(rng, (250, 220, 110))
        canvas.ellipse(x, y, r, r * 1.1, one, UNLABELLED)
        canvas.ellipse(x, y, r * 0.6, r * 1.1, two, UNLABELLED)
        canvas.ellipse(x, y, r * 0.22, r * 1.1, one, UNLABELLED)
        canvas.rectangle(x - r * 0.2, y + r * 1.25, x + r * 0.2, y + r * 1.6, (110, 76, 48),
                         UNLABELLED)


def _terrace(canvas: _Canvas, y: float, gap: float) -> None:
    """A row of buildings along the line y, with a gap left open now and then."""
    rng, x = canvas.rng, canvas.rng.uniform(-0.15, 0.02)
    while x < 1:
        width = rng.uniform(0.16, 0.30)
        if rng.random() > gap:
            house = rng.random() < 0.4
            height = rng.uniform(0.15, 0.22) if house else rng.uniform(0.2, 0.36)
            _building(canvas, x, x + width, y, min(height, y - 0.08), house)
        x += width + rng.uniform(0.0, 0.03)


# What stands in the foreground, given the foot only.


def _fence_along(canvas: _Canvas, y: float) -> None:
    start = canvas.rng.uniform(-0.1, 0.4)
    _fence(canvas, start, start + canvas.rng.uniform(0.4, 0.8), y, canvas.rng.uniform(0.11, 0.17))


def _passer_by(canvas: _Canvas, y: float) -> None:
    _person(canvas, canvas.rng.uniform(0.08, 0.92), y, canvas.rng.uniform(0.28, 0.40))


def _car_by(canvas: _Canvas, y: float) -> None:
    _car_side(canvas, canvas.rng.uniform(0.15, 0.85), y, canvas.rng.uniform(0.28, 0.38))


def _tree_at_the_side(canvas: _Canvas, y: float) -> None:
    rng = canvas.rng
    _tree(canvas, _choose(rng, (0.06, 0.92)) + rng.uniform(-0.04, 0.04), y, rng.uniform(0.45, 0.62))


def _stand(canvas: _Canvas, things: Sequence[tuple[float, Callable]]) -> None:
    """Draw (foot, function) pairs from the far ones to the near ones."""
    for y, draw in sorted(things, key=lambda thing: thing[0]):
        draw(canvas, y)


def _street(canvas: _Canvas, light: Light) -> None:
    """A street seen from across: houses, pavement, road and a verge in front."""
    rng = canvas.rng
    horizon = rng.uniform(0.38, 0.46)
    _heavens(canvas, light, horizon)
    if rng.random() < 0.75:
        _mountains(canvas, light, horizon)
    kerb = horizon + rng.uniform(0.09, 0.14)
    canvas.rectangle(0, horizon, 1, 1, _grass(canvas), CLASS_IDS['grass'])
    _terrace(canvas, horizon + 0.04, 0.25)
    for _ in range(int(rng.integers(1, 4))):
        _tree(canvas, rng.uniform(0, 1), kerb, rng.uniform(0.24, 0.38))
    if rng.random() < 0.4:
        start = rng.uniform(-0.1, 0.5)
        _fence(canvas, start, start + rng.uniform(0.35, 0.6), kerb, rng.uniform(0.085, 0.12))
    road = kerb + rng.uniform(0.08, 0.12)
    # Whatever the other heights, the foreground keeps room to stand on.
    verge = min(road + rng.uniform(0.18, 0.24), 0.86)
    canvas.rectangle(0, kerb, 1, road, _paving(canvas), CLASS_IDS['sidewalk'])
    canvas.rectangle(0, road, 1, verge, _asphalt(canvas), CLASS_IDS['road'])
    dash, middle = rng.uniform(0.07, 0.11), (road + verge) / 2
    for x in np.arange(rng.uniform(-dash, 0), 1, dash * 2):
        canvas.rectangle(x, middle - 0.007, x + dash, middle + 0.007, (232, 230, 214))
    for _ in range(int(rng.integers(0, 3))):
        _person(canvas, rng.uniform(0.05, 0.95), kerb + rng.uniform(0.03, 0.07),
                rng.uniform(0.20, 0.27))
    lanes = [(0.45, 0.9)] if rng.random() < 0.5 else [(0.3, 0.5), (0.6, 0.95)]
    for low, high in lanes:
        y = road + (verge - road) * rng.uniform(low, high)
        _car_side(canvas, rng.uniform(0.1, 0.9), y, rng.uniform(0.26, 0.38))
    front = []
    if rng.random() < 0.4:
        front.append((verge + rng.uniform(0.1, 0.14), _fence_along))
    if rng.random() < 0.6:
        front.append((rng.uniform(verge + 0.06, 0.97), _passer_by))
    _stand(canvas, front)


def _lake(canvas: _Canvas, light: Light) -> None:
    """A lake between a far shore and a near one, with boats, and a path across the meadow."""
    rng = canvas.rng
    horizon = rng.uniform(0.32, 0.42)
    _heavens(canvas, light, horizon)
    if rng.random() < 0.85:
        _mountains(canvas, light, horizon)
    meadow = _grass(canvas)
    canvas.rectangle(0, horizon, 1, 1, meadow, CLASS_IDS['grass'])
    far = horizon + rng.uniform(0.03, 0.08)
    near = min(far + rng.uniform(0.22, 0.32), 0.74)
    for _ in range(int(rng.integers(0, 3))):
        if rng.random() < 0.5:
            x = rng.uniform(0, 0.8)
            _building(canvas, x, x + rng.uniform(0.13, 0.2), far, rng.uniform(0.11, 0.15), True)
    for _ in range(int(rng.integers(1, 4))):
        _tree(canvas, rng.uniform(0, 1), far, rng.uniform(0.14, 0.24))
    shore = [(x, near + (y - near) * 0.4) for x, y in _ridge(rng, near + 0.03, 0.1, 0.3)]
    canvas.polygon([(-0.02, far), (1.02, far)] + shore[::-1], _water(canvas, light),
                   CLASS_IDS['water'])
    boats = np.sort(rng.uniform(far + 0.09, near - 0.04, int(rng.integers(1, 3))))
    for y in boats:
        _boat(canvas, rng.uniform(0.12, 0.88), y, rng.uniform(0.18, 0.28))
    front = []
    if rng.random() < 0.45:
        y = rng.uniform(near + 0.1, near + 0.2)
        thick = rng.uniform(0.1, 0.15)
        canvas.polygon(((-0.02, y), (1.02, y - 0.02), (1.02, y + thick), (-0.02, y + thick + 0.04)),
                       _asphalt(canvas), CLASS_IDS['road'])
        if rng.random() < 0.7:
            front.append((y + thick * 0.8, _car_by))
    elif rng.random() < 0.5:
        y = rng.uniform(near + 0.1, near + 0.2)
        canvas.rectangle(-0.02, y, 1.02, y + rng.uniform(0.09, 0.13), _paving(canvas),
                         CLASS_IDS['sidewalk'])
    if rng.random() < 0.55:
        front.append((rng.uniform(near + 0.12, 0.94), _fence_along))
    feet = rng.uniform(near + 0.12, 0.97, int(rng.integers(0, 3)))
    front += [(float(y), _passer_by) for y in feet]
    if rng.random() < 0.6:
        front.append((rng.uniform(near + 0.1, 0.95), _tree_at_the_side))
    _stand(canvas, front)


def _avenue(canvas: _Canvas, light: Light) -> None:
    """A road running away from the eye between pavements, buildings and trees."""
    rng = canvas.rng
    horizon = rng.uniform(0.38, 0.48)
    _heavens(canvas, light, horizon)
    if rng.random() < 0.75:
        _mountains(canvas, light, horizon)
    canvas.rectangle(0, horizon, 1, 1, _grass(canvas), CLASS_IDS['grass'])
    sea = rng.random() < 0.45
    if sea:
        # One side is a quay: water instead of grass.
        left = rng.random() < 0.5
        edge = -0.02 if left else 1.02
        canvas.rectangle(min(edge, 0.5), horizon + 0.015, max(edge, 0.5), 1.02,
                         _water(canvas, light), CLASS_IDS['water'])
    vanish = rng.uniform(0.42, 0.58)
    half, walk = rng.uniform(0.27, 0.36), rng.uniform(0.12, 0.17)
    tip = rng.uniform(0.015, 0.03)

    def line(offset: float, y: float) -> float:
        depth = (y - horizon) / (1 - horizon)
        return vanish + np.sign(offset) * tip + (0.5 + offset - vanish) * depth

    def band(inner: float, outer: float, surface: np.ndarray, label: int) -> None:
        canvas.polygon(((line(inner, horizon), horizon), (line(outer, horizon), horizon),
                        (line(outer, 1.02), 1.02), (line(inner, 1.02), 1.02)), surface, label)

    band(-half - walk, half + walk, _paving(canvas), CLASS_IDS['sidewalk'])
    band(-half, half, _asphalt(canvas), CLASS_IDS['road'])
    for depth in np.arange(rng.uniform(0.1, 0.2), 1, 0.22):
        ends = (depth, min(1.02, 1.1 * depth + 0.04))
        y0, y1 = (horizon + (1 - horizon) * end for end in ends)
        x0, x1 = (vanish + (0.5 - vanish) * (y - horizon) / (1 - horizon) for y in (y0, y1))
        w0, w1 = 0.022 * depth, 0.03 * depth
        canvas.polygon(((x0 - w0, y0), (x0 + w0, y0), (x1 + w1, y1), (x1 - w1, y1)),
                       (234, 228, 196))
    # Far things first, so that near ones hide them.
    for depth in (0.08, 0.2, 0.38, 0.64):
        y = horizon + (1 - horizon) * depth
        for side in (-1, 1):
            quay = sea and (side < 0) == left
            outer = line(side * (half + walk), y)
            if quay:
                if rng.random() < 0.55 and 0.1 < depth < 0.5:
                    n = 0.14 + 0.30 * depth
                    _boat(canvas, outer + side * n * rng.uniform(0.7, 0.9), y, n)
                continue
            if rng.random() < 0.55 and depth < 0.6:
                width = 0.13 + 0.4 * depth
                x0, x1 = sorted((outer + side * 0.015, outer + side * (0.015 + width)))
                height = min(0.13 + 0.75 * depth * rng.uniform(0.7, 1), y - 0.03)
                _building(canvas, x0, x1, y, height, depth < 0.15)
            elif rng.random() < 0.7:
                _tree(canvas, outer + side * (0.03 + 0.12 * depth), y, 0.17 + 0.55 * depth)
            elif depth > 0.3:
                edge = -0.02 if side < 0 else 1.02
                _fence(canvas, min(edge, outer), max(edge, outer), y, 0.08 + 0.12 * depth)
        if depth > 0.3 and rng.random() < 0.5:
            side = _choose(rng, (-1, 1))
            _person(canvas, line(side * (half + walk * 0.5), y), y, 0.14 + 0.38 * depth)
        if depth > 0.15 and rng.random() < 0.5:
            side = _choose(rng, (-1, 1))
            _car_rear(canvas, line(side * half * 0.5, y), y, 0.06 + 0.26 * depth)


def _expose(rng: np.random.Generator, image: np.ndarray, light: Light) -> np.ndarray:
    """Light the finished scene and take the photograph: tint, gradient, gain, blur, noise."""
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    lean = rng.uniform(-0.12, 0.12, 2)
    gradient = 1 + lean[0] * axis[None, :] + lean[1] * axis[:, None]
    image = image * np.float32(light.tint) * gradient[..., None] * rng.uniform(0.86, 1.12)
    image = 255 * np.clip(image / 255, 0, 1)**rng.uniform(0.85, 1.2)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(1.5, 6.0), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        rng (np.random.Generator): Source of every random choice; the same state gives the same
            scene.
        size (int): Height and width in pixels.

    Returns:
        tuple[np.ndarray, np.ndarray]: The RGB picture, (size, size, 3) uint8, and its label map,
        (size, size) uint8, in ADE20K numbers with 0 for pixels of no class.
    """
    _check_int('size', size, MIN_SIZE, 'pictures smaller than that cannot show the objects')
    canvas = _Canvas(rng, size)
    light = _choose(rng, _LIGHTS)
    _choose(rng, (_street, _lake, _avenue))(canvas, light)
    image, label = canvas.finish()
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return _expose(rng, np.ascontiguousarray(image), light), np.ascontiguousarray(label)


def _check_int(name: str, value: int, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f'{name} must be an integer of at least {least} ({why}), but got '
                         f'{value!r}; pass {name}={least} or more')


def _write(path: Path, image: np.ndarray, flags: Sequence[int] = ()) -> None:
    # imencode and write_bytes instead of imwrite, which reports a full disk as False only.
    ok, data = cv2.imencode(path.suffix, image, list(flags))
    if not ok:
        raise RuntimeError(f'OpenCV could not encode {path}')
    path.write_bytes(data.tobytes())


def _write_scene(job: tuple[int, int], root: str, size: int, seed: int) -> None:
    """Draw and write scene ``job = (split number, index)``.

    The stream is seeded by split and index, so a scene does not depend on which others were
    drawn, nor on how many processes share the work.
    """
    split, index = job
    image, label = draw_scene(np.random.default_rng([seed, split, index]), size)
    name = f'ADE_{"train" if split == 0 else "val"}_{index + 1:08d}'
    folder = Path(root)
    _write(folder / 'images' / SPLITS[split] / f'{name}.jpg',
           cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    _write(folder / 'annotations' / SPLITS[split] / f'{name}.png', label)


def write_dataset(root: str,
                  num_train: int = 400,
                  num_val: int = 80,
                  size: int = 128,
                  seed: int = 0,
                  num_workers: int = 1) -> bool:
    """Write the data set, or find it written already.

    A stamp file is written last, so a folder with a stamp is complete.  A folder whose write was
    interrupted has a start mark instead, and is written again.

    Args:
        root (str): Folder of the data set; created where missing.
        num_train (int): Number of training scenes. Defaults to 400.
        num_val (int): Number of validation scenes. Defaults to 80.
        size (int): Height and width of the scenes in pixels. Defaults to 128.
        seed (int): Seed; scenes of different seeds have nothing in common. Defaults to 0.
        num_workers (int): Number of processes that draw; does not change what is drawn.
            Defaults to 1.

    Returns:
        bool: True if it was written, False if an identical one was there.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If the folder holds something else.
    """
    _check_int('num_train', num_train, 1, 'training needs pictures')
    _check_int('num_val', num_val, 1, 'validation needs pictures')
    _check_int('size', size, MIN_SIZE, 'pictures smaller than that cannot show the objects')
    _check_int('seed', seed, 0, 'numpy takes no negative seed')
    _check_int('num_workers', num_workers, 1, 'somebody has to draw')

    folder = Path(root)
    parameters = dict(
        version=VERSION, num_train=int(num_train), num_val=int(num_val), size=int(size),
        seed=int(seed), classes=CLASS_IDS)
    stamp, unfinished = folder / STAMP, folder / f'{STAMP}.unfinished'
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f'root={str(root)!r} is a file; name a folder')
    if stamp.exists():
        found = _read_stamp(stamp)
        if found == parameters:
            return False
        different = ', '.join(
            f'{key} is {found.get(key)!r} there and {parameters[key]!r} here'
            for key in parameters if found.get(key) != parameters[key])
        raise FileExistsError(
            f'root={str(root)!r} holds scenes drawn with other parameters ({different}); name '
            'another folder, or delete that one')
    begun = unfinished.exists() and _read_stamp(unfinished) == parameters
    if folder.exists() and any(folder.iterdir()) and not begun:
        raise FileExistsError(
            f'root={str(root)!r} is not empty and was not begun by this script with the same '
            'parameters; name a new or an empty folder')

    folder.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(parameters, indent=2) + '\n', encoding='utf-8')
    for kind in ('images', 'annotations'):
        for split in SPLITS:
            (folder / kind / split).mkdir(parents=True, exist_ok=True)

    jobs = [(0, i) for i in range(num_train)] + [(1, i) for i in range(num_val)]
    draw = partial(_write_scene, root=str(folder), size=int(size), seed=int(seed))
    if num_workers == 1:
        for job in jobs:
            draw(job)
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            list(pool.map(draw, jobs, chunksize=8))
    os.replace(unfinished, stamp)
    return True


def _read_stamp(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def main(args: Sequence[str | None] = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('root', help='folder to write; new, empty, or holding the same data set')
    parser.add_argument('--num-train', type=int, default=400, help='training scenes (%(default)s)')
    parser.add_argument('--num-val', type=int, default=80, help='validation scenes (%(default)s)')
    parser.add_argument('--size', type=int, default=128, help='height and width (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all streams (%(default)s)')
    parser.add_argument('--num-workers', type=int, default=1, help='processes (%(default)s)')
    options = vars(parser.parse_args(args))
    try:
        written = write_dataset(**options)
    except (ValueError, FileExistsError) as error:
        print(f'draw_scenes.py: error: {error}', file=sys.stderr)
        return 2
    print(f'{options["num_train"]} training and {options["num_val"]} validation scenes '
          f'{"written to" if written else "found in"} {options["root"]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
