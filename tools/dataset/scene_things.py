"""The things of the drawn scenes, from a tree to a row of houses.

Positions and lengths are shares of the side of the picture.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scene_canvas import (
    CLASS_IDS,
    UNLABELLED,
    Canvas,
    Light,
    Points,
    choose,
    ridge_line,
    sky_surface,
    vary,
)


def draw_tree(canvas: Canvas, x: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['tree']
    canvas.shade(x, y, height * 0.28, height * 0.05)
    trunk = vary(rng, (98, 70, 48), 12)
    width = height * rng.uniform(0.035, 0.055)
    canvas.polygon(((x - width, y), (x + width, y), (x + width * 0.6, y - height * 0.55),
                    (x - width * 0.6, y - height * 0.55)), trunk, label)
    green = vary(rng, choose(rng, ((38, 88, 44), (50, 98, 40), (30, 80, 56), (72, 96, 34))), 9)
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
    center, spread = y - height * 0.66, height * 0.26
    for _ in range(22):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = spread * reach * np.cos(angle), spread * reach * np.sin(angle)
        radius = height * rng.uniform(0.075, 0.14)
        # Leaves further up catch more light, which gives the crown its volume.
        lit = 0.86 - 0.30 * dy / spread + rng.uniform(-0.08, 0.08)
        canvas.ellipse(x + dx, center + dy, radius, radius * 0.9, np.clip(green * lit, 0, 255),
                       label)


def draw_building(canvas: Canvas, x0: float, x1: float, y: float, height: float,
              house: bool) -> None:
    rng, label = canvas.rng, CLASS_IDS['building']
    wall = vary(rng, choose(rng, ((196, 110, 84), (222, 186, 128), (206, 150, 130),
                                    (168, 88, 80), (232, 214, 176), (190, 132, 96))), 12)
    top, width = y - height, x1 - x0
    canvas.rectangle(x0, top, x1, y, wall, label)
    # One flank in shade separates a house from its neighbor of the same color.
    canvas.rectangle(x1 - width * 0.1, top, x1, y, wall * 0.8, label)
    roof = vary(rng, choose(rng, ((120, 52, 44), (92, 66, 62), (134, 76, 52))), 10)
    if house:
        rise = min(width, height) * rng.uniform(0.35, 0.55)
        canvas.polygon(((x0 - width * 0.06, top), (x1 + width * 0.06, top),
                        (x1 - width * 0.28, top - rise), (x0 + width * 0.28, top - rise)),
                       roof, label)
    else:
        canvas.rectangle(x0 - 0.006, top - 0.014, x1 + 0.006, top + 0.008, roof, label)
    glass = vary(rng, choose(rng, ((70, 92, 118), (250, 222, 140), (98, 124, 142))), 12)
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
                     vary(rng, (86, 58, 46), 10), label)


def draw_person(canvas: Canvas, x: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['person']
    canvas.shade(x, y, height * 0.22, height * 0.04)
    skin = vary(rng, choose(rng, ((236, 196, 164), (198, 146, 110), (130, 88, 64))), 8)
    shirt = vary(rng, choose(rng, ((226, 40, 110), (150, 50, 180), (244, 116, 176),
                                     (196, 40, 150))), 12)
    trousers = vary(rng, choose(rng, ((44, 54, 112), (62, 48, 92))), 8)
    hair = vary(rng, choose(rng, ((46, 34, 28), (128, 84, 44), (214, 182, 110))), 8)
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


def draw_car_side(canvas: Canvas, x: float, y: float, length: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['car']
    paint = vary(rng, choose(rng, ((206, 36, 40), (36, 92, 196), (238, 182, 30),
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


def draw_car_rear(canvas: Canvas, x: float, y: float, width: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['car']
    paint = vary(rng, choose(rng, ((206, 36, 40), (36, 92, 196), (238, 182, 30),
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


def draw_boat(canvas: Canvas, x: float, y: float, length: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['boat']
    hull = vary(rng, choose(rng, ((240, 240, 236), (150, 52, 44), (120, 78, 46),
                                    (36, 52, 104))), 10)
    sail = vary(rng, choose(rng, ((250, 248, 238), (240, 108, 52), (246, 214, 96))), 6)
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


def draw_fence(canvas: Canvas, x0: float, x1: float, y: float, height: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['fence']
    wood = vary(rng, choose(rng, ((150, 104, 62), (244, 240, 230), (122, 84, 60))), 10)
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


def draw_mountains(canvas: Canvas, light: Light, horizon: float) -> None:
    rng, label = canvas.rng, CLASS_IDS['mountain']
    for layer in range(int(rng.integers(1, 3))):
        height = rng.uniform(0.16, 0.27) * (1 - 0.35 * layer)
        ridge = ridge_line(rng, horizon, height, 0.46)
        base = vary(rng, choose(rng, ((112, 112, 132), (126, 112, 116), (98, 110, 126))), 10)
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


def draw_heavens(canvas: Canvas, light: Light, horizon: float) -> None:
    """The sky and, unlabelled since no class here covers them, the sun and a balloon."""
    rng = canvas.rng
    canvas.rectangle(0, 0, 1, horizon + 0.02, sky_surface(canvas, light, horizon), CLASS_IDS['sky'])
    if rng.random() < 0.7:
        x, y = rng.uniform(0.08, 0.92), rng.uniform(0.05, horizon * 0.55)
        r = rng.uniform(0.03, 0.05)
        canvas.ellipse(x, y, r * 1.5, r * 1.5,
                       np.float32(light.sun) * 0.5 + np.float32(light.horizon) * 0.5, None)
        canvas.ellipse(x, y, r, r, light.sun, UNLABELLED)
    if rng.random() < 0.35:
        x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.08, horizon * 0.5), rng.uniform(0.04, 0.065)
        one, two = vary(rng, (224, 66, 70)), vary(rng, (250, 220, 110))
        canvas.ellipse(x, y, r, r * 1.1, one, UNLABELLED)
        canvas.ellipse(x, y, r * 0.6, r * 1.1, two, UNLABELLED)
        canvas.ellipse(x, y, r * 0.22, r * 1.1, one, UNLABELLED)
        canvas.rectangle(x - r * 0.2, y + r * 1.25, x + r * 0.2, y + r * 1.6, (110, 76, 48),
                         UNLABELLED)


def draw_terrace(canvas: Canvas, y: float, gap: float) -> None:
    """A row of buildings along the line y, with a gap left open now and then."""
    rng, x = canvas.rng, canvas.rng.uniform(-0.15, 0.02)
    while x < 1:
        width = rng.uniform(0.16, 0.30)
        if rng.random() > gap:
            house = rng.random() < 0.4
            height = rng.uniform(0.15, 0.22) if house else rng.uniform(0.2, 0.36)
            draw_building(canvas, x, x + width, y, min(height, y - 0.08), house)
        x += width + rng.uniform(0.0, 0.03)


# What stands in the foreground, given the foot only.


def draw_fence_along(canvas: Canvas, y: float) -> None:
    start = canvas.rng.uniform(-0.1, 0.4)
    end = start + canvas.rng.uniform(0.4, 0.8)
    draw_fence(canvas, start, end, y, canvas.rng.uniform(0.11, 0.17))


def draw_passer_by(canvas: Canvas, y: float) -> None:
    draw_person(canvas, canvas.rng.uniform(0.08, 0.92), y, canvas.rng.uniform(0.28, 0.40))


def draw_car_by(canvas: Canvas, y: float) -> None:
    draw_car_side(canvas, canvas.rng.uniform(0.15, 0.85), y, canvas.rng.uniform(0.28, 0.38))


def draw_tree_at_the_side(canvas: Canvas, y: float) -> None:
    rng = canvas.rng
    x = choose(rng, (0.06, 0.92)) + rng.uniform(-0.04, 0.04)
    draw_tree(canvas, x, y, rng.uniform(0.45, 0.62))


def stand_in_order(canvas: Canvas, things: Sequence[tuple[float, Callable]]) -> None:
    """Draw (foot, function) pairs from the far ones to the near ones."""
    for y, draw in sorted(things, key=lambda thing: thing[0]):
        draw(canvas, y)
