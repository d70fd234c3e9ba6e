"""Backgrounds: one wide static panorama per camera, of which every image shows a window."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from occreid_jax.synthetic.body import Placement, Pose
from occreid_jax.synthetic.figure import figure
from occreid_jax.synthetic.palettes import COLOURS
from occreid_jax.synthetic.parts import capsule, ellipse, paint_image
from occreid_jax.synthetic.people import sample_people
from occreid_jax.synthetic.streams import stream
from occreid_jax.synthetic.surface import SHIFT, fixed

_GROUNDS = ((150, 146, 140), (112, 114, 118), (168, 150, 128), (120, 132, 104), (92, 92, 98), (176, 172, 164))
_WALLS = ((176, 168, 154), (128, 96, 80), (150, 156, 164), (196, 186, 160), (96, 104, 112), (204, 202, 198))
_GREY = np.array([128.0, 126.0, 122.0])
_GREENS = ((66, 102, 54), (88, 120, 62), (48, 80, 50))


@functools.lru_cache(maxsize=32)
def panorama(seed: int, namespace: str, number: int, height: int, clutter: int, colour: float) -> np.ndarray:
    """Return the surroundings of one camera, uint8 [1.3 height, 5 height, 3]; do not write into it.

    ``clutter`` and ``colour`` are the fields of `difficulty.Difficulty` of that name.
    """
    rng = stream(seed, namespace, number)
    tall, wide = int(1.3 * height), 5 * height
    image = np.empty((tall, wide, 3), np.uint8)
    horizon = int(tall * rng.uniform(0.28, 0.52))
    wall, ground = np.array(_WALLS[number % 6], float), np.array(_GROUNDS[(number * 5 + 1) % 6], float)
    wall, ground = (np.clip(c + rng.normal(0, 10, 3), 20, 235) for c in (wall, ground))
    image[:horizon] = wall
    ramp = np.linspace(0.8, 1.1, tall - horizon)[:, None, None]
    image[horizon:] = np.clip(ground * ramp, 0, 255)
    _facade(image, rng, horizon, wall)
    _floor(image, rng, horizon, ground)
    for _ in range(clutter):
        _thing(image, rng, horizon, height)
    _walkers(image, rng, seed, namespace, number, height, horizon)
    image = _GREY + colour * (image - _GREY)
    texture = cv2.resize(rng.normal(0, 9, (tall // 4, wide // 4)).astype(np.float32), (wide, tall))
    fine = rng.normal(0, 3.5, (tall, wide)).astype(np.float32)
    light = 1 + 0.18 * np.sin(np.linspace(0, rng.uniform(4, 9), wide) + rng.uniform(0, 6))
    mixed = image * light[None, :, None] + (texture + fine)[..., None]
    image = cv2.GaussianBlur(np.clip(mixed, 0, 255).astype(np.uint8), (0, 0), 0.7 * height / 128)
    image.setflags(write=False)
    return image


def _polygon(image: np.ndarray, points, colour) -> None:
    values = [float(np.clip(c, 0, 255)) for c in colour]
    cv2.fillPoly(image, [fixed(np.asarray(points, float))], values, cv2.LINE_AA, SHIFT)


def _box(image: np.ndarray, x: float, y: float, width: float, height: float, colour) -> None:
    _polygon(image, [(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour)


def _facade(image: np.ndarray, rng: np.random.Generator, horizon: int, wall: np.ndarray) -> None:
    wide, unit = image.shape[1], image.shape[0] / 1.3
    x = 0.0
    while x < wide:  # sections of a wall with windows, doors, posters or hedges
        span = unit * rng.uniform(0.35, 1.0)
        kind = rng.integers(5)
        shade = wall * rng.uniform(0.75, 1.2)
        _box(image, x, 0, span, horizon, shade)
        if kind < 2:
            for column in np.arange(x + 0.08 * unit, x + span - 0.15 * unit, 0.22 * unit):
                _box(image, column, 0.1 * horizon, 0.14 * unit, 0.6 * horizon, rng.uniform(40, 110) * np.array([0.8, 0.95, 1.1]))
        elif kind == 2:
            _box(image, x + 0.2 * span, 0.2 * horizon, 0.5 * span, 0.8 * horizon, rng.uniform(30, 190, 3))
        elif kind == 3:
            for _ in range(18):
                place = (x + rng.uniform(0, span), horizon - rng.uniform(0, 0.6) * horizon)
                green = np.array(_GREENS[int(rng.integers(3))]) * rng.uniform(0.7, 1.2)
                _polygon(image, ellipse(np.array(place), 0.12 * unit, 0.09 * unit), green)
        else:
            for row in np.arange(0.05 * horizon, horizon, 0.09 * unit):
                _box(image, x, row, span, 0.012 * unit, shade * 0.8)
        x += span


def _floor(image: np.ndarray, rng: np.random.Generator, horizon: int, ground: np.ndarray) -> None:
    tall, wide = image.shape[:2]
    kind = int(rng.integers(3))
    if kind == 0:  # paving
        for step in np.geomspace(1, 12, 9):
            y = horizon + (tall - horizon) * step / 12
            _box(image, 0, y, wide, max(1.0, 0.006 * tall), ground * 0.82)
        for x in np.arange(-wide, 2 * wide, 0.28 * tall):
            middle = wide / 2
            near, far = middle + (x - middle) * 1.5, x
            _polygon(image, [(far, horizon), (far + 1, horizon), (near + 2, tall), (near, tall)], ground * 0.84)
    elif kind == 1:  # road markings
        for x in np.arange(0, wide, 0.5 * tall):
            near, far = [(x, tall), (x + 0.13 * tall, tall)], [(x + 0.3 * tall, horizon), (x + 0.25 * tall, horizon)]
            _polygon(image, near + far, ground * 1.4)
    else:  # grass verge and kerb
        _box(image, 0, horizon, wide, 0.12 * tall, _GREENS[int(rng.integers(3))])
        _box(image, 0, horizon + 0.12 * tall, wide, 0.02 * tall, ground * 1.25)
    for _ in range(6):  # shadows lying on the ground
        place = np.array([rng.uniform(0, wide), rng.uniform(horizon, tall)])
        _polygon(image, ellipse(place, rng.uniform(0.2, 0.8) * tall, rng.uniform(0.02, 0.07) * tall), ground * 0.62)


def _thing(image: np.ndarray, rng: np.random.Generator, horizon: int, height: int) -> None:
    # Things at the height and in the colours of garments, so that the background competes with the person.
    wide = image.shape[1]
    x = rng.uniform(0, wide)
    base = horizon + rng.uniform(0.02, 0.32) * height
    size = height * rng.uniform(0.12, 0.4)
    names = list(COLOURS)
    colour = np.array(COLOURS[names[int(rng.integers(len(names)))]], float) * rng.uniform(0.7, 1.1)
    kind = int(rng.integers(6))
    if kind == 0:
        _box(image, x, base - 2.6 * size, 0.12 * size, 2.6 * size, colour)
    elif kind == 1:
        _box(image, x, base - size, 0.7 * size, size, colour)
        _box(image, x, base - size, 0.7 * size, 0.2 * size, colour * 0.7)
    elif kind == 2:
        _box(image, x + 0.45 * size, base - 1.6 * size, 0.08 * size, 1.6 * size, (90, 90, 90))
        _box(image, x, base - 2.2 * size, size, 0.7 * size, colour)
    elif kind == 3:
        for _ in range(14):
            place = np.array([x + rng.normal(0, 0.4) * size, base - rng.uniform(0, 1.2) * size])
            green = np.array(_GREENS[int(rng.integers(3))]) * rng.uniform(0.6, 1.2)
            _polygon(image, ellipse(place, 0.3 * size, 0.2 * size), green)
    elif kind == 4:
        _box(image, x, base - 0.55 * size, 2.2 * size, 0.45 * size, colour)
        roof = [(x + 0.3 * size, base - 0.5 * size), (x + 0.6 * size, base - size), (x + 1.5 * size, base - size)]
        _polygon(image, [*roof, (x + 1.9 * size, base - 0.5 * size)], colour * 0.6)
        for wheel in (0.45, 1.75):
            _polygon(image, ellipse(np.array([x + wheel * size, base - 0.1 * size]), 0.2 * size, 0.2 * size), (30, 30, 32))
    else:
        for wheel in (0.0, 0.9):
            centre = (round((x + wheel * size) * 16), round((base - 0.3 * size) * 16))
            cv2.circle(image, centre, round(0.3 * size * 16), (40, 40, 42), max(1, round(0.05 * size)), cv2.LINE_AA, SHIFT)
        a, b = np.array([x, base - 0.3 * size]), np.array([x + 0.7 * size, base - 0.7 * size])
        _polygon(image, capsule(a, b, 0.05 * size, 0.05 * size), colour)


def _walkers(image, rng: np.random.Generator, seed: int, namespace: str, number: int, height: int, horizon: int) -> None:
    owner = next((name for name in ("pretrain_test", "pretrain") if namespace.startswith(name)), "distractor")
    people = sample_people(seed + 1000 + number, 5, owner)
    for person in people:
        scale = height * rng.uniform(0.3, 0.55)
        place = Placement(rng.uniform(0, image.shape[1]), horizon + 0.6 * scale, scale)
        pose = Pose(rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi), 0.35)
        paint_image(figure(person, pose, place), image)
