"""The canvas of the drawn scenes: light, shapes with labels, and surfaces."""

from collections.abc import Sequence
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

# Odd, so that every label pixel has one sample exactly in its middle.
OVERSAMPLE = 3

Color = Sequence[float]
Points = Sequence[tuple[float, float]]


class Light(NamedTuple):
    """Colors and direction of one kind of daylight.

    Attributes:
        zenith (Color): RGB at the top of the sky.
        horizon (Color): RGB of the sky where it meets the ground.
        tint (Color): Factors by which the light scales every color of the scene.
        sun (Color): RGB of the disc in the sky.
    """
    zenith: Color
    horizon: Color
    tint: Color
    sun: Color


LIGHTS = (
    Light((70, 135, 215), (190, 220, 245), (1.00, 1.00, 1.00), (255, 250, 205)),
    Light((95, 165, 225), (225, 236, 240), (1.04, 1.02, 0.96), (255, 246, 190)),
    Light((105, 115, 175), (250, 190, 130), (1.08, 0.92, 0.78), (255, 225, 150)),
    Light((88, 78, 140), (236, 150, 150), (0.94, 0.80, 0.86), (255, 190, 150)),
    Light((140, 152, 166), (205, 210, 214), (0.88, 0.90, 0.94), (232, 234, 236)),
)


class Canvas:
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
        self.side = size * OVERSAMPLE
        self.image = np.zeros((self.side, self.side, 3), np.float32)
        self.label = np.zeros((self.side, self.side), np.uint8)

    def noise(self, cells_x: float, cells_y: float) -> np.ndarray:
        """Smooth noise in [-1, 1] over the canvas with the given number of cells per axis."""
        shape = (max(2, round(cells_y)), max(2, round(cells_x)))
        grid = self.rng.uniform(-1, 1, shape).astype(np.float32)
        return cv2.resize(grid, (self.side, self.side), interpolation=cv2.INTER_LINEAR)

    def fill(self, mask: np.ndarray, color, label: int | None, box=None) -> None:
        """Paint a mask.

        Args:
            mask (np.ndarray): Non-zero where to paint; covers ``box``.
            color (Color | np.ndarray): One RGB color, or a picture of the canvas's size.
            label (int, optional): Label to write; None leaves the labels as they are.
            box (tuple, optional): ``(y0, y1, x0, x1)``; None for the whole canvas.
        """
        y0, y1, x0, x1 = box or (0, self.side, 0, self.side)
        inside = mask.astype(bool)
        if isinstance(color, np.ndarray) and color.ndim == 3:
            self.image[y0:y1, x0:x1][inside] = color[y0:y1, x0:x1][inside]
        else:
            self.image[y0:y1, x0:x1][inside] = np.asarray(color, np.float32)
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

    def polygon(self, points: Points, color, label: int | None = None) -> None:
        """Paint a polygon whose corners are in fractions of the picture's side."""
        corners = np.round(np.asarray(points, np.float64) * self.side).astype(np.int64)
        found = self._mask(corners)
        if found:
            self.fill(found[0], color, label, found[1])

    def rectangle(self, x0, y0, x1, y1, color, label: int | None = None) -> None:
        """Paint an upright rectangle."""
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), color, label)

    def ellipse(self, x, y, rx, ry, color, label: int | None = None) -> None:
        """Paint an upright ellipse with center (x, y)."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self.polygon(
            np.stack((x + rx * np.cos(angle), y + ry * np.sin(angle)), 1), color, label)

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
        middle = OVERSAMPLE // 2
        return image, self.label[middle::OVERSAMPLE, middle::OVERSAMPLE].copy()


def vary(rng: np.random.Generator, color: Color, amount: float = 14) -> np.ndarray:
    """A color near the given one: brightness and hue wander separately."""
    return np.clip(
        np.asarray(color, np.float32) + rng.uniform(-amount, amount)
        + rng.uniform(-amount, amount, 3) * 0.5, 6, 250).astype(np.float32)


def choose(rng: np.random.Generator, items: Sequence):
    """One of the items (``Generator.choice`` would turn them into an array)."""
    return items[int(rng.integers(len(items)))]


def ridge_line(rng: np.random.Generator, base: float, height: float, rough: float) -> list:
    """A ridge line from left to right as (x, y) points, y growing downwards."""
    x = np.linspace(-0.02, 1.02, 60)
    y = np.zeros_like(x)
    for octave in range(1, 6):
        y += rng.uniform(0.5, 1) * rough**(octave - 1) * np.sin(
            2 * np.pi * (2**(octave - 1) * rng.uniform(0.6, 1.0) * x + rng.uniform()))
    y = (y - y.min()) / max(float(np.ptp(y)), 1e-6)
    return list(zip(x, base - height * (0.25 + 0.75 * y), strict=True))


# Surfaces: each returns a picture of the canvas's size to be painted through a mask.


def grass_surface(canvas: Canvas) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    base = vary(rng, choose(rng, ((92, 146, 62), (112, 156, 70), (128, 150, 72))), 12)
    blades = canvas.noise(n * 0.9, n * 0.35)
    patches = canvas.noise(7, 10)
    return base + blades[..., None] * 20 + patches[..., None] * np.float32((16, 10, 4))


def asphalt_surface(canvas: Canvas) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    gray = vary(rng, choose(rng, ((84, 84, 90), (98, 96, 98), (72, 74, 82))), 8)
    return gray + canvas.noise(n, n)[..., None] * 9 + canvas.noise(5, 8)[..., None] * 6


def paving_surface(canvas: Canvas) -> np.ndarray:
    rng = canvas.rng
    base = vary(rng, choose(rng, ((188, 178, 164), (176, 172, 168), (198, 180, 158))), 9)
    surface = base + canvas.noise(canvas.size, canvas.size)[..., None] * 8
    step = max(4, round(canvas.side * rng.uniform(0.045, 0.065)))
    rows = np.arange(canvas.side) // step
    joint = np.arange(canvas.side) % step < max(1, step // 7)
    surface[joint] *= 0.78
    # Every other row of slabs is shifted by half a slab, as pavers lay them.
    columns = (np.arange(canvas.side)[None] + (rows % 2 * (step // 2))[:, None]) % step
    surface[columns < max(1, step // 7)] *= 0.84
    return surface


def water_surface(canvas: Canvas, light: Light) -> np.ndarray:
    rng, n = canvas.rng, canvas.size
    base = vary(rng, choose(rng, ((44, 112, 158), (36, 120, 140), (58, 104, 166))), 10)
    surface = 0.78 * base + 0.22 * np.float32(light.horizon)
    ripples = canvas.noise(n * 0.16, n * 0.75)
    surface = surface + ripples[..., None] * 17
    return surface + np.float32(70) * (ripples > 0.74)[..., None]


def sky_surface(canvas: Canvas, light: Light, horizon: float) -> np.ndarray:
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
