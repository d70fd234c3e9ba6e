"""Puts an occluder in front of a person so that it hides a wanted fraction."""

from __future__ import annotations

import math

import numpy as np

from occreid_jax.synthetic.body import Placement, Pose
from occreid_jax.synthetic.figure import figure
from occreid_jax.synthetic.occluders import render_occluder
from occreid_jax.synthetic.parts import paint_image, paint_labels
from occreid_jax.synthetic.people import Person

_TRIES = 6
_FROM_BELOW = ("car", "bush", "wall", "barrier", "bicycle", "cart")
_FROM_ABOVE = ("umbrella",)
_FILL = {"bush": 0.8, "bicycle": 0.5, "cart": 0.75, "barrier": 0.8, "umbrella": 0.85, "car": 0.92, "sign": 0.85}
"""Roughly how much of its box each occluder hides; the first guess of its size."""


def cover_with_object(
    image: np.ndarray,
    truth: np.ndarray,
    total: int,
    kind: str,
    target: float,
    covered: tuple[float, float],
    colour: float,
    rng: np.random.Generator,
) -> tuple[str, np.ndarray]:
    """Draw an object into ``image`` uint8 [H, W, 3] in place.

    ``truth`` uint8 [H, W] holds the person's labels and ``total`` how many pixels she has, those outside the frame too.
    ``colour`` is how far the object's colours lie from grey.
    Returns the kind that was drawn (a wall, if nothing else hides enough) and its mask, uint8 [H, W] of 0 and 1.
    """
    body = truth > 0
    for name in (kind, "wall"):
        factor = 1.0 / _FILL.get(name, 1.0)
        for _ in range(_TRIES):
            layer, opacity = _draw(name, body, total, min(0.97, target * factor), rng)
            mask = opacity >= 0.5
            hidden = 1.0 - np.count_nonzero(body & ~mask) / total
            if covered[0] <= hidden <= covered[1]:
                break
            factor *= min(1.6, max(0.6, target / max(hidden, 0.02)))
        else:
            continue
        break
    layer = 118.0 + colour * (layer - 118.0)
    image[:] = np.rint(image + (layer - image) * opacity[..., None])
    return name, mask.astype(np.uint8)


def _draw(kind: str, body: np.ndarray, total: int, share: float, rng: np.random.Generator):
    height, width = body.shape
    x, y, box_width, box_height = _box(kind, body, total, share, rng)
    cut = render_occluder(kind, rng, max(4, box_height), max(4, box_width))
    layer = np.zeros((height, width, 3), np.float32)
    opacity = np.zeros((height, width), np.float32)
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + cut.shape[0], height), min(x + cut.shape[1], width)
    if y1 > y0 and x1 > x0:
        piece = cut[y0 - y : y1 - y, x0 - x : x1 - x]
        layer[y0:y1, x0:x1] = piece[..., :3]
        opacity[y0:y1, x0:x1] = piece[..., 3] * np.float32(1 / 255)
    return layer, opacity


def _box(kind: str, body: np.ndarray, total: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    height, width = body.shape
    if kind in _FROM_BELOW:
        down = np.cumsum(body.sum(axis=1)) / total
        top = int(np.searchsorted(down, max(0.0, float(down[-1]) - share)))
        low, high = {"car": (1.3, 2.1), "wall": (1.05, 1.3), "barrier": (1.05, 1.3)}.get(kind, (0.9, 1.25))
        box_width = round(width * rng.uniform(low, high))
        slack = width - box_width
        x = round(slack * rng.random()) if slack < 0 else round(slack * 0.5)
        tall = height - top
        if kind == "car":
            tall = round(tall * rng.uniform(1.0, 1.2))
        elif kind not in ("wall", "bush"):
            tall = round(tall * rng.uniform(0.97, 1.04))
        return x, top, box_width, tall + 1
    if kind in _FROM_ABOVE:
        down = np.cumsum(body.sum(axis=1)) / total
        bottom = int(np.searchsorted(down, min(share, 0.75)))
        top = -round(height * rng.uniform(0.02, 0.12))
        box_width = round(width * rng.uniform(1.0, 1.3))
        x = round(0.5 * (width - box_width) + width * rng.normal(0, 0.06))
        return x, top, box_width, bottom - top + 1
    along = np.cumsum(body.sum(axis=0)) / total
    start = rng.uniform(0.0, max(0.0, float(along[-1]) - share))
    x0, x1 = int(np.searchsorted(along, start)), int(np.searchsorted(along, min(start + share, float(along[-1]) - 1e-6)))
    if kind == "sign":
        top = round(height * rng.uniform(-0.05, 0.12))
        return x0, top, x1 - x0 + 1, height - top + 1
    return x0, -2, x1 - x0 + 1, height + 4


def cover_with_person(
    image: np.ndarray,
    truth: np.ndarray,
    total: int,
    other: Person,
    target: float,
    covered: tuple[float, float],
    pose: Pose,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Draw another person in front, entering from one side, into ``image`` uint8 [H, W, 3] in place.

    Returns the mask of the other person and of what he carries, uint8 [H, W] of 0 and 1; None, with nothing drawn, if he is
    too slim to hide enough.
    """
    height, width = truth.shape
    body = truth > 0
    yaw = pose.yaw + rng.normal(0, 0.5) if rng.random() < 0.6 else rng.uniform(-math.pi, math.pi)
    phase, swing, elbow = rng.uniform(0, 2 * math.pi), 0.35 * rng.random(), rng.uniform(0.1, 0.9)
    stand = Pose(yaw=yaw, phase=phase, swing=swing, elbow=elbow, tilt=pose.tilt)
    scale = 0.92 * height * rng.uniform(1.0, 1.2)
    ground = 0.5 * height + 0.46 * height * rng.uniform(1.0, 1.3)
    parts = figure(other, stand, Placement(0.5 * width, ground, scale))
    # A canvas three frames wide: moving the window along it moves the other person across the picture.
    canvas = np.zeros((height, 3 * width), np.uint8)
    paint_labels(parts, canvas, width, 0)
    side = 1 if rng.random() < 0.5 else -1
    best, best_shift = 9.0, 0
    for step in range(17):
        shift = side * round(width * 0.05 * step)
        window = canvas[:, width + shift : 2 * width + shift] > 0
        hidden = 1.0 - np.count_nonzero(body & ~window) / total
        if abs(hidden - target) < abs(best - target):
            best, best_shift = hidden, shift
    if not covered[0] <= best <= covered[1]:
        return None
    paint_image(parts, image, -best_shift, 0)
    return (canvas[:, width + best_shift : 2 * width + best_shift] > 0).astype(np.uint8)
