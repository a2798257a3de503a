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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scene_canvas import (
    CLASS_IDS,
    LIGHTS,
    Canvas,
    Light,
    asphalt_surface,
    choose,
    grass_surface,
    paving_surface,
    ridge_line,
    water_surface,
)
from scene_things import (
    draw_boat,
    draw_building,
    draw_car_by,
    draw_car_rear,
    draw_car_side,
    draw_fence,
    draw_fence_along,
    draw_heavens,
    draw_mountains,
    draw_passer_by,
    draw_person,
    draw_terrace,
    draw_tree,
    draw_tree_at_the_side,
    stand_in_order,
)

# A change to what is drawn must change this number, or a data set drawn by an older version
# would be taken for a current one.
VERSION = 1
STAMP = 'draw_scenes.json'
SPLITS = ('training', 'validation')
MIN_SIZE = 32
_JPEG_QUALITY = 95


def _street(canvas: Canvas, light: Light) -> None:
    """A street seen from across: houses, pavement, road and a verge in front."""
    rng = canvas.rng
    horizon = rng.uniform(0.38, 0.46)
    draw_heavens(canvas, light, horizon)
    if rng.random() < 0.75:
        draw_mountains(canvas, light, horizon)
    kerb = horizon + rng.uniform(0.09, 0.14)
    canvas.rectangle(0, horizon, 1, 1, grass_surface(canvas), CLASS_IDS['grass'])
    draw_terrace(canvas, horizon + 0.04, 0.25)
    for _ in range(int(rng.integers(1, 4))):
        draw_tree(canvas, rng.uniform(0, 1), kerb, rng.uniform(0.24, 0.38))
    if rng.random() < 0.4:
        start = rng.uniform(-0.1, 0.5)
        draw_fence(canvas, start, start + rng.uniform(0.35, 0.6), kerb, rng.uniform(0.085, 0.12))
    road = kerb + rng.uniform(0.08, 0.12)
    # Whatever the other heights, the foreground keeps room to stand on.
    verge = min(road + rng.uniform(0.18, 0.24), 0.86)
    canvas.rectangle(0, kerb, 1, road, paving_surface(canvas), CLASS_IDS['sidewalk'])
    canvas.rectangle(0, road, 1, verge, asphalt_surface(canvas), CLASS_IDS['road'])
    dash, middle = rng.uniform(0.07, 0.11), (road + verge) / 2
    for x in np.arange(rng.uniform(-dash, 0), 1, dash * 2):
        canvas.rectangle(x, middle - 0.007, x + dash, middle + 0.007, (232, 230, 214))
    for _ in range(int(rng.integers(0, 3))):
        draw_person(canvas, rng.uniform(0.05, 0.95), kerb + rng.uniform(0.03, 0.07),
                rng.uniform(0.20, 0.27))
    lanes = [(0.45, 0.9)] if rng.random() < 0.5 else [(0.3, 0.5), (0.6, 0.95)]
    for low, high in lanes:
        y = road + (verge - road) * rng.uniform(low, high)
        draw_car_side(canvas, rng.uniform(0.1, 0.9), y, rng.uniform(0.26, 0.38))
    front = []
    if rng.random() < 0.4:
        front.append((verge + rng.uniform(0.1, 0.14), draw_fence_along))
    if rng.random() < 0.6:
        front.append((rng.uniform(verge + 0.06, 0.97), draw_passer_by))
    stand_in_order(canvas, front)


def _lake(canvas: Canvas, light: Light) -> None:
    """A lake between a far shore and a near one, with boats, and a path across the meadow."""
    rng = canvas.rng
    horizon = rng.uniform(0.32, 0.42)
    draw_heavens(canvas, light, horizon)
    if rng.random() < 0.85:
        draw_mountains(canvas, light, horizon)
    meadow = grass_surface(canvas)
    canvas.rectangle(0, horizon, 1, 1, meadow, CLASS_IDS['grass'])
    far = horizon + rng.uniform(0.03, 0.08)
    near = min(far + rng.uniform(0.22, 0.32), 0.74)
    for _ in range(int(rng.integers(0, 3))):
        if rng.random() < 0.5:
            x = rng.uniform(0, 0.8)
            draw_building(canvas, x, x + rng.uniform(0.13, 0.2), far, rng.uniform(0.11, 0.15), True)
    for _ in range(int(rng.integers(1, 4))):
        draw_tree(canvas, rng.uniform(0, 1), far, rng.uniform(0.14, 0.24))
    shore = [(x, near + (y - near) * 0.4) for x, y in ridge_line(rng, near + 0.03, 0.1, 0.3)]
    canvas.polygon([(-0.02, far), (1.02, far)] + shore[::-1], water_surface(canvas, light),
                   CLASS_IDS['water'])
    boats = np.sort(rng.uniform(far + 0.09, near - 0.04, int(rng.integers(1, 3))))
    for y in boats:
        draw_boat(canvas, rng.uniform(0.12, 0.88), y, rng.uniform(0.18, 0.28))
    front = []
    if rng.random() < 0.45:
        y = rng.uniform(near + 0.1, near + 0.2)
        thick = rng.uniform(0.1, 0.15)
        canvas.polygon(((-0.02, y), (1.02, y - 0.02), (1.02, y + thick), (-0.02, y + thick + 0.04)),
                       asphalt_surface(canvas), CLASS_IDS['road'])
        if rng.random() < 0.7:
            front.append((y + thick * 0.8, draw_car_by))
    elif rng.random() < 0.5:
        y = rng.uniform(near + 0.1, near + 0.2)
        canvas.rectangle(-0.02, y, 1.02, y + rng.uniform(0.09, 0.13), paving_surface(canvas),
                         CLASS_IDS['sidewalk'])
    if rng.random() < 0.55:
        front.append((rng.uniform(near + 0.12, 0.94), draw_fence_along))
    feet = rng.uniform(near + 0.12, 0.97, int(rng.integers(0, 3)))
    front += [(float(y), draw_passer_by) for y in feet]
    if rng.random() < 0.6:
        front.append((rng.uniform(near + 0.1, 0.95), draw_tree_at_the_side))
    stand_in_order(canvas, front)


def _avenue(canvas: Canvas, light: Light) -> None:
    """A road running away from the eye between pavements, buildings and trees."""
    rng = canvas.rng
    horizon = rng.uniform(0.38, 0.48)
    draw_heavens(canvas, light, horizon)
    if rng.random() < 0.75:
        draw_mountains(canvas, light, horizon)
    canvas.rectangle(0, horizon, 1, 1, grass_surface(canvas), CLASS_IDS['grass'])
    sea = rng.random() < 0.45
    if sea:
        # One side is a quay: water instead of grass.
        left = rng.random() < 0.5
        edge = -0.02 if left else 1.02
        canvas.rectangle(min(edge, 0.5), horizon + 0.015, max(edge, 0.5), 1.02,
                         water_surface(canvas, light), CLASS_IDS['water'])
    vanish = rng.uniform(0.42, 0.58)
    half, walk = rng.uniform(0.27, 0.36), rng.uniform(0.12, 0.17)
    tip = rng.uniform(0.015, 0.03)

    def line(offset: float, y: float) -> float:
        depth = (y - horizon) / (1 - horizon)
        return vanish + np.sign(offset) * tip + (0.5 + offset - vanish) * depth

    def band(inner: float, outer: float, surface: np.ndarray, label: int) -> None:
        canvas.polygon(((line(inner, horizon), horizon), (line(outer, horizon), horizon),
                        (line(outer, 1.02), 1.02), (line(inner, 1.02), 1.02)), surface, label)

    band(-half - walk, half + walk, paving_surface(canvas), CLASS_IDS['sidewalk'])
    band(-half, half, asphalt_surface(canvas), CLASS_IDS['road'])
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
                    draw_boat(canvas, outer + side * n * rng.uniform(0.7, 0.9), y, n)
                continue
            if rng.random() < 0.55 and depth < 0.6:
                width = 0.13 + 0.4 * depth
                x0, x1 = sorted((outer + side * 0.015, outer + side * (0.015 + width)))
                height = min(0.13 + 0.75 * depth * rng.uniform(0.7, 1), y - 0.03)
                draw_building(canvas, x0, x1, y, height, depth < 0.15)
            elif rng.random() < 0.7:
                draw_tree(canvas, outer + side * (0.03 + 0.12 * depth), y, 0.17 + 0.55 * depth)
            elif depth > 0.3:
                edge = -0.02 if side < 0 else 1.02
                draw_fence(canvas, min(edge, outer), max(edge, outer), y, 0.08 + 0.12 * depth)
        if depth > 0.3 and rng.random() < 0.5:
            side = choose(rng, (-1, 1))
            draw_person(canvas, line(side * (half + walk * 0.5), y), y, 0.14 + 0.38 * depth)
        if depth > 0.15 and rng.random() < 0.5:
            side = choose(rng, (-1, 1))
            draw_car_rear(canvas, line(side * half * 0.5, y), y, 0.06 + 0.26 * depth)


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
    canvas = Canvas(rng, size)
    light = choose(rng, LIGHTS)
    choose(rng, (_street, _lake, _avenue))(canvas, light)
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
