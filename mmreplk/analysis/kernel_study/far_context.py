"""Images whose labels depend on context far away, drawn in the layout and labels of ADE20K.

Islands lie in water. All land looks alike; what it is called (field, sand or rock) is told by one
small landmark near the shore of its island, up to 100 pixels away. A network finds the water and
the shores from what is near, but the name of the land only where its receptive field reaches from a
pixel to the landmark. So the score falls gradually, and not to zero, as the field shrinks.
"""

import json
import os
from pathlib import Path

import cv2
import numpy as np

# A change to what is drawn must change this number, or an older data set would pass for this one.
VERSION = 1
# Numbers as they stand in ADE20K's annotation files (class index + 1).
CLASS_IDS = {'water': 22, 'field': 30, 'rock': 35, 'sand': 47}
LANDS = ('field', 'rock', 'sand')
SIZE = 192  # pixels
SPLITS = ('training', 'validation')
DISTANCES = 'distances'
NO_DISTANCE = 255  # of pixels in the water
STAMP = 'far_context.json'

_WATER, _LAND = (62, 112, 150), (150, 140, 112)  # RGB
_LANDMARKS = {'field': (48, 118, 42), 'rock': (186, 66, 60), 'sand': (232, 226, 206)}
_LANDMARK_RADIUS = 5.5  # pixels
_RADII = (30, 54)  # of islands, mean, pixels
_STRAIT = 7  # pixels between two islands
_JPEG_QUALITY = 95


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        rng (np.random.Generator): Source of every random choice; the same state gives the same
            image.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: Three arrays (192, 192): the image, RGB with a
        last axis of 3; the labels, in ADE20K's numbers; and the distance of each pixel on land from
        its landmark in pixels, rounded, 255 in the water. All uint8.
    """
    image = np.float32(_WATER) + 16 * _noise(rng, 1.1)[..., None] + 6 * _noise(rng, 0.6, 3)
    surface = np.float32(_LAND) + 16 * _noise(rng, 1.1)[..., None] + 6 * _noise(rng, 0.6, 3)
    labels = np.full((SIZE, SIZE), CLASS_IDS['water'], np.uint8)
    distances = np.full((SIZE, SIZE), NO_DISTANCE, np.uint8)
    free = np.ones((SIZE, SIZE), bool)
    wanted = int(rng.integers(2, 5))
    for _ in range(60):
        island = _island(rng)
        if not (free | ~island).all():
            continue
        place = _landmark_place(rng, island)
        if place is None:
            continue
        land = LANDS[int(rng.integers(len(LANDS)))]
        away = _distance_from(place)
        shade = rng.uniform(-10, 10)  # islands differ, their names have no part in it
        image[island] = surface[island] + shade
        cover = np.clip(_LANDMARK_RADIUS + 0.5 - away, 0, 1)[..., None]
        color = np.float32(_LANDMARKS[land]) + rng.uniform(-12, 12, 3)
        image = image * (1 - cover) + cover * (color + 8 * _noise(rng, 0.6)[..., None])
        labels[island] = CLASS_IDS[land]
        distances[island] = np.minimum(np.round(away[island]), NO_DISTANCE - 1)
        reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _STRAIT + 1, ) * 2)
        free &= cv2.dilate(island.astype(np.uint8), reach) == 0
        wanted -= 1
        if not wanted:
            break
    image = image * rng.uniform(0.85, 1.12) + rng.normal(0, rng.uniform(2, 6), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels, distances


def _noise(rng: np.random.Generator, exponent: float, channels: int | None = None) -> np.ndarray:
    """Noise of unit variance whose amplitudes fall as 1 / f^exponent, as those of photographs."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))
    frequency[0, 0] = np.inf
    count = channels or 1
    spectrum = np.fft.rfft2(rng.standard_normal((count, SIZE, SIZE))) / frequency**exponent
    waves = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    waves /= waves.std((1, 2), keepdims=True)
    waves = waves.transpose(1, 2, 0).astype(np.float32)
    return waves if channels else waves[..., 0]


def _island(rng: np.random.Generator) -> np.ndarray:
    """A mask with a wavy outline."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    outline = np.ones_like(angles)
    for waves in range(2, 6):
        outline += rng.uniform(0, 0.32 / waves) * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    radius = rng.uniform(*_RADII) * outline
    center = rng.uniform(_RADII[0] * 0.7, SIZE - _RADII[0] * 0.7, 2)
    points = center + radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _landmark_place(rng: np.random.Generator, island: np.ndarray) -> tuple[int, int] | None:
    """Row and column near the shore and within the image; None if there is no room."""
    framed = np.zeros((SIZE, SIZE), np.uint8)
    framed[1:-1, 1:-1] = island[1:-1, 1:-1]
    inland = cv2.distanceTransform(framed, cv2.DIST_L2, 5)
    rows, columns = np.nonzero((inland > _LANDMARK_RADIUS + 1) & (inland < _LANDMARK_RADIUS + 5))
    if not len(rows):
        return None
    index = int(rng.integers(len(rows)))
    return int(rows[index]), int(columns[index])


def _distance_from(place: tuple[int, int]) -> np.ndarray:
    at = np.arange(SIZE)
    return np.hypot(at[:, None] - place[0], at - place[1])


def write_dataset(root: str | os.PathLike, num_train: int, num_val: int, seed: int = 0) -> bool:
    """Write the data set, or find it written already.

    A stamp is written last, so that a folder with a stamp is complete; one without is written
    again. Images depend on seed, split and number alone.

    Args:
        root (str | PathLike): Its folder; created where missing.
        num_train (int): Number of images to train on.
        num_val (int): Number of images to score on.
        seed (int): Images of different seeds have nothing in common. Defaults to 0.

    Returns:
        bool: Whether it was written now.

    Raises:
        FileExistsError: If the folder holds another data set.
    """
    root = Path(root)
    parameters = dict(version=VERSION, num_train=num_train, num_val=num_val, size=SIZE, seed=seed)
    stamp = root / STAMP
    if stamp.is_file():
        found = json.loads(stamp.read_text(encoding='utf-8'))
        if found != parameters:
            raise FileExistsError(f'{str(root)!r} holds pictures drawn with {found}, not with '
                                  f'{parameters}; name another folder.')
        return False
    for split, (name, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True)):
        for kind in ('images', 'annotations', DISTANCES):
            (root / kind / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, labels, distances = draw_picture(np.random.default_rng([seed, split, index]))
            stem = f'ADE_{("train", "val")[split]}_{index + 1:08d}'
            _write(root / 'images' / name / f'{stem}.jpg', image[..., ::-1],
                   [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            _write(root / 'annotations' / name / f'{stem}.png', labels)
            _write(root / DISTANCES / name / f'{stem}.png', distances)
    stamp.write_text(json.dumps(parameters, indent=2) + '\n', encoding='utf-8')
    return True


def _write(path: Path, image: np.ndarray, flags: list[int] | None = None) -> None:
    # imencode and write_bytes instead of imwrite, which reports a full disk as False only.
    done, data = cv2.imencode(path.suffix, image, flags or [])
    if not done:
        raise RuntimeError(f'OpenCV could not encode {path}')
    path.write_bytes(data.tobytes())
