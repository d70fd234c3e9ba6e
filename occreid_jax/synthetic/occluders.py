"""Things that stand in front of people, drawn as cut-outs with transparency."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from occreid_jax.synthetic.palettes import COLOURS
from occreid_jax.synthetic.parts import capsule, ellipse
from occreid_jax.synthetic.surface import SHIFT, fixed

_NAMES = tuple(COLOURS)


def render_occluder(kind: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw one occluder that fills a box of the given size.

    Args:
        kind: one of `OBJECTS`.
        rng: decides colour and details.
        height: of the box, in pixels, at least 4.
        width: of the box, in pixels, at least 4.

    Returns:
        uint8 [height, width, 4], RGB and opacity; colours are not multiplied by the opacity.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in _DRAW:
        raise ValueError(f"occluder {kind!r} is unknown; take one of {', '.join(OBJECTS)}")
    colour = np.array(COLOURS[_NAMES[int(rng.integers(len(_NAMES)))]], float) * rng.uniform(0.75, 1.1)
    cut = np.zeros((height, width, 4), np.uint8)
    cut[..., :3] = np.clip(colour, 0, 255)
    _DRAW[kind](_Pen(cut), rng, colour)
    return cut


class _Pen:
    """Draws in a box whose corners are (0, 0) and (1, 1)."""

    def __init__(self, cut: np.ndarray) -> None:
        self.cut = cut
        self.height, self.width = cut.shape[:2]

    def polygon(self, points, colour) -> None:
        points = np.asarray(points, float) * (self.width, self.height)
        self._fill(points, colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def disc(self, x: float, y: float, radius: float, colour) -> None:
        # Round in pixels; the radius counts in box heights.
        size = radius * self.height
        self._fill(ellipse(np.array([x * self.width, y * self.height]), size, size), colour)

    def blob(self, x: float, y: float, radius_x: float, radius_y: float, colour) -> None:
        self._fill(ellipse(np.array([x * self.width, y * self.height]), radius_x * self.width, radius_y * self.height), colour)

    def line(self, a, b, thickness: float, colour) -> None:
        scale = np.array([self.width, self.height])
        radius = max(0.6, 0.5 * thickness * min(self.height, self.width))
        self._fill(capsule(np.array(a) * scale, np.array(b) * scale, radius, radius), colour)

    def ring(self, x: float, y: float, radius: float, thickness: float, colour) -> None:
        centre = (round(x * self.width * 16), round(y * self.height * 16))
        line = max(1, round(thickness * self.height))
        values = (*(float(c) for c in colour), 255.0)
        cv2.circle(self.cut, centre, round(radius * self.height * 16), values, line, cv2.LINE_AA, SHIFT)

    def _fill(self, points: np.ndarray, colour) -> None:
        values = [*(float(min(255.0, max(0.0, c))) for c in colour), 255.0]
        cv2.fillPoly(self.cut, [fixed(points)], values, cv2.LINE_AA, SHIFT)


def _car(pen: _Pen, rng, colour) -> None:
    # The wheels may lie below the picture; the side of the body is what hides people.
    start = rng.uniform(-0.25, 0.1)
    end = rng.uniform(0.9, 1.25)
    roof = [(start + 0.12, 0.42), (start + 0.28, 0.0), (end - 0.32, 0.0), (end - 0.12, 0.42)]
    pen.polygon(roof, colour * 0.85)
    glass = np.array([60, 74, 86]) * rng.uniform(0.7, 1.5)
    middle = 0.5 * (start + end) - 0.02
    pen.polygon([(start + 0.2, 0.38), (start + 0.31, 0.07), (middle, 0.07), (middle, 0.38)], glass)
    pen.polygon([(middle + 0.04, 0.38), (middle + 0.04, 0.07), (end - 0.34, 0.07), (end - 0.2, 0.38)], glass * 1.1)
    pen.polygon([(start, 0.5), (start + 0.1, 0.38), (end - 0.1, 0.38), (end, 0.5), (end, 0.86), (start, 0.86)], colour)
    pen.box(start, 0.64, end, 0.68, colour * 0.7)
    pen.box(middle, 0.42, middle + 0.012, 0.84, colour * 0.55)
    for x in (start + 0.2, end - 0.2):
        pen.disc(x, 0.84, 0.16, (26, 26, 28))
        pen.disc(x, 0.84, 0.08, (150, 150, 154))


def _pole(pen: _Pen, rng, colour) -> None:
    grey = np.array([1, 1, 1]) * rng.uniform(60, 190) if rng.random() < 0.6 else colour
    pen.box(0.0, 0.0, 1.0, 1.0, grey * 0.8)
    pen.box(0.1, 0.0, 0.6, 1.0, grey)
    pen.box(0.2, 0.0, 0.38, 1.0, np.minimum(grey * 1.25, 250))
    if rng.random() < 0.5:
        top = rng.uniform(0.1, 0.6)
        pen.box(0.0, top, 1.0, top + 0.12, rng.uniform(40, 230, 3))


def _sign(pen: _Pen, rng, colour) -> None:
    low = rng.uniform(0.55, 0.9)
    pen.box(0.42, low, 0.58, 1.0, (104, 104, 108))
    pen.box(0.0, 0.0, 1.0, low, colour)
    pen.box(0.06, 0.04, 0.94, low - 0.04, np.minimum(colour * 1.3 + 30, 245))
    ink = rng.uniform(20, 110, 3)
    for row in np.arange(0.1, low - 0.1, 0.11):
        pen.box(0.16, row, rng.uniform(0.45, 0.85), row + 0.05, ink)


def _bush(pen: _Pen, rng, colour) -> None:
    base = np.array([(56, 92, 46), (84, 112, 52), (38, 70, 44), (112, 108, 50)][int(rng.integers(4))], float)
    for _ in range(46):
        y = 0.1 + 0.9 * math.sqrt(rng.random())
        reach = 0.5 * min(1.0, 0.45 + 0.75 * y)
        x = 0.5 + rng.uniform(-reach, reach) * 0.92
        pen.blob(x, y, rng.uniform(0.07, 0.16), rng.uniform(0.05, 0.12), base * rng.uniform(0.6, 1.35))


def _wall(pen: _Pen, rng, colour) -> None:
    base = np.array([(150, 88, 70), (164, 160, 152), (126, 124, 122), (188, 176, 150)][int(rng.integers(4))], float)
    base = base * rng.uniform(0.8, 1.15)
    pen.box(0, 0, 1, 1, base)
    courses = max(3, pen.height // 8)
    for row in range(courses):
        y = row / courses
        pen.box(0, y, 1, y + 0.012, base * 0.72)
        for x in np.arange(0.5 * (row % 2) * 0.25, 1, 0.25):
            pen.box(x, y, x + 0.012, y + 1 / courses, base * 0.75)
    pen.box(0, 0, 1, min(0.3, 4 / pen.height), base * 1.2)


def _barrier(pen: _Pen, rng, colour) -> None:
    other = np.array([232, 228, 222]) if colour.mean() < 150 else np.array([190, 40, 36])
    bars = int(rng.integers(2, 4))
    for bar in range(bars):
        y = bar / bars
        pen.box(0, y, 1, y + 0.78 / bars, colour)
        for x in np.arange(0, 1, 0.24):
            pen.polygon([(x, y + 0.78 / bars), (x + 0.1, y), (x + 0.22, y), (x + 0.12, y + 0.78 / bars)], other)
    for x in (0.08, 0.86):
        pen.box(x, 0, x + 0.06, 1, (88, 88, 92))


def _umbrella(pen: _Pen, rng, colour) -> None:
    angles = np.linspace(math.pi, 2 * math.pi, 17)
    rim = 0.86
    dome = np.stack([0.5 + 0.5 * np.cos(angles), rim + rim * np.sin(angles)], axis=1)
    scallops = [(1 - (k + 0.5) / 5 + d, rim + 0.07 * (1 if d == 0 else 0)) for k in range(5) for d in (0.1, 0.0)]
    pen.polygon(np.concatenate([dome, scallops]), colour)
    if rng.random() < 0.6:  # alternate gores
        other = rng.uniform(40, 235, 3)
        for k in (1, 3):
            gore = [(0.5, 0.02), (k / 5, rim - 0.05), ((k + 1) / 5, rim - 0.05)]
            pen.polygon(gore, other)
    pen.line((0.5, 0.5), (0.5 + rng.uniform(-0.05, 0.05), 0.99), 0.03, (60, 60, 62))


def _bicycle(pen: _Pen, rng, colour) -> None:
    tyre = (34, 34, 36)
    aspect = pen.height / pen.width
    reach = min(0.3 * aspect, 0.26)
    radius = reach / aspect
    wheel_y = 1 - radius - 0.02
    for x in (reach, 1 - reach):
        pen.ring(x, wheel_y, radius, 0.06, tyre)
        pen.ring(x, wheel_y, 0.4 * radius, 0.03, (150, 150, 150))
    back, front, seat, bars, pedal = (reach, wheel_y), (1 - reach, wheel_y), (0.36, 0.2), (0.74, 0.12), (0.46, wheel_y - 0.04)
    for a, b in ((back, pedal), (pedal, seat), (back, seat), (pedal, bars), (seat, bars), (bars, front)):
        pen.line(a, b, 0.075, colour)
    pen.line((0.27, 0.14), (0.44, 0.14), 0.08, tyre)
    pen.line((0.68, 0.04), (0.82, 0.1), 0.06, tyre)
    pannier = rng.uniform(30, 190, 3)
    pen.box(0.02, 0.3, 0.36, 0.78, pannier)  # bags over the back wheel
    pen.box(0.02, 0.3, 0.36, 0.42, pannier * 0.7)
    pen.box(0.7, 0.08, 1.0, 0.46, (120, 92, 60))  # basket
    pen.box(0.7, 0.2, 1.0, 0.24, (90, 66, 42))


def _cart(pen: _Pen, rng, colour) -> None:
    pen.line((0.1, 0.04), (0.02, 0.9), 0.06, (80, 80, 84))
    lid = rng.uniform(0.08, 0.2)
    pen.box(0.06, lid, 0.97, 0.84, colour)
    pen.box(0.06, lid, 0.97, lid + 0.12, colour * 0.7)
    pen.box(0.2, 0.36, 0.8, 0.62, np.minimum(colour * 1.25 + 20, 240))
    pen.box(0.03, 0.82, 1.0, 0.88, colour * 0.5)
    for x in (0.2, 0.82):
        pen.disc(x, 0.93, 0.07, (28, 28, 30))


_DRAW: dict[str, Callable] = {
    "car": _car,
    "pole": _pole,
    "sign": _sign,
    "bush": _bush,
    "wall": _wall,
    "barrier": _barrier,
    "umbrella": _umbrella,
    "bicycle": _bicycle,
    "cart": _cart,
}
OBJECTS = tuple(_DRAW)
"""Kinds that `render_occluder` can draw. ``person`` and ``crop`` are made by `compose`."""
