"""The pieces a figure is drawn from: flat or textured polygons with a body-part label."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from occreid_jax.parts import PARTS
from occreid_jax.synthetic.surface import SHIFT, Surface, fixed, paint_surface

HEAD, LEFT_ARM, RIGHT_ARM, TORSO, LEFT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT = range(1, len(PARTS))
CARRIED = 9
"""Label of things held in a hand. They hide what is behind them but are no part of the person's body."""

Colour = tuple[float, float, float]


class Part(NamedTuple):
    """One polygon. ``fill`` None draws the label only, ``label`` 0 draws the colour only."""

    order: float  # small numbers are drawn first
    outline: np.ndarray  # float [n, 2] pixels
    fill: Colour | Surface | None
    label: int


_HALF_CIRCLE = np.stack([np.cos(np.linspace(0, np.pi, 7)), np.sin(np.linspace(0, np.pi, 7))], axis=1)
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 15)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 15)[:-1])], axis=1)


def capsule(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """Return the outline [14, 2] of a limb from pixel ``a`` to ``b`` with round ends."""
    dx, dy = float(b[0] - a[0]), float(b[1] - a[1])
    length = math.hypot(dx, dy)
    if length < 1e-6:
        return ellipse(a, max(radius_a, radius_b), max(radius_a, radius_b))
    ux, uy = dx / length, dy / length
    turn = np.array([[-uy, ux], [-ux, -uy]])
    start = a + radius_a * (_HALF_CIRCLE @ turn)
    end = b - radius_b * (_HALF_CIRCLE @ turn)
    return np.concatenate([start, end])


def ellipse(centre: np.ndarray, radius_x: float, radius_y: float) -> np.ndarray:
    """Return the outline [14, 2] of an upright ellipse."""
    return np.asarray(centre) + _CIRCLE * (radius_x, radius_y)


def tint(colour: Colour, factor: float) -> Colour:
    """Make a colour lighter (factor > 1) or darker."""
    return tuple(min(255.0, c * factor + (8.0 if factor > 1 else 0.0)) for c in colour)  # type: ignore[return-value]


def extent(parts: list[Part]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of everything that has a label, in pixels."""
    points = np.concatenate([part.outline for part in parts if part.label])
    low, high = points.min(axis=0), points.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def paint_image(parts: list[Part], image: np.ndarray, dx: float = 0.0, dy: float = 0.0) -> None:
    """Draw parts, already in drawing order, into ``image`` uint8 [H, W, 3] in place, moved by (dx, dy) pixels."""
    for part in parts:
        if part.fill is None:
            continue
        if isinstance(part.fill, Surface):
            paint_surface(image, part.outline, part.fill, dx, dy)
        else:
            cv2.fillConvexPoly(image, fixed(part.outline + (dx, dy)), part.fill, cv2.LINE_AA, SHIFT)


def paint_labels(parts: list[Part], labels: np.ndarray, dx: float = 0.0, dy: float = 0.0) -> None:
    """Draw the labels of parts into ``labels`` uint8 [H, W] in place. What is carried never hides a body part."""
    for carried in (True, False):
        for part in parts:
            if part.label and (part.label == CARRIED) == carried:
                cv2.fillPoly(labels, [fixed(part.outline + (dx, dy))], part.label, cv2.LINE_8, SHIFT)
