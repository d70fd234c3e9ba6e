"""One picture: background, person, occluder, camera; and its truth map."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from occreid_jax.parts import OCCLUDED
from occreid_jax.synthetic.body import Placement, Pose, viewpoint
from occreid_jax.synthetic.cameras import Camera
from occreid_jax.synthetic.covering import cover_with_object, cover_with_person
from occreid_jax.synthetic.difficulty import DIFFICULTY, Difficulty
from occreid_jax.synthetic.figure import figure
from occreid_jax.synthetic.occluders import OBJECTS
from occreid_jax.synthetic.parts import CARRIED, Part, ellipse, extent, paint_image, paint_labels
from occreid_jax.synthetic.people import Person

CROP = "crop"
_TRIES = 5
_TALL = 0.93
"""Height of a normal person as a fraction of the bounding box."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One rendered image and all that is known about it."""

    image: np.ndarray  # uint8 [H, W, 3] RGB
    truth: np.ndarray  # uint8 [H, W]: low four bits the amodal part label 0 .. 8, bit 16 where an occluder covers the pixel
    occlusion: str  # none, object, person or crop
    occluder: str  # kind of the object, "person", side of the crop, or "" for none
    covered: float  # fraction of the person's amodal pixels that are hidden or cut away by the frame
    viewpoint: str  # side of the body that the camera sees, see body.VIEWPOINTS


def sample_pose(camera: Camera, rng: np.random.Generator, yaw: float | None = None, difficulty: Difficulty = DIFFICULTY) -> Pose:
    """Draw how a person stands before a camera; ``yaw`` is the direction of the sequence, None draws a new one."""
    if yaw is None:
        yaw = sample_yaw(camera, rng, difficulty)
    return Pose(
        yaw=yaw + rng.normal(0, difficulty.yaw_jitter),
        phase=rng.uniform(0, 2 * math.pi),
        swing=difficulty.swing * rng.uniform(0.1, 1.0),
        elbow=rng.uniform(0.1, 0.7),
        raised=rng.uniform(0.9, 1.6) if rng.random() < 0.12 else 0.0,
        lean=rng.normal(0.04, 0.03),
        tilt=max(0.02, camera.tilt + rng.normal(0, 0.02)),
    )


def sample_yaw(camera: Camera, rng: np.random.Generator, difficulty: Difficulty = DIFFICULTY) -> float:
    """Draw the direction in which a person crosses a camera's view, radians."""
    if rng.random() < 0.15:
        return float(rng.uniform(-math.pi, math.pi))
    return camera.yaw + float(rng.normal(0, difficulty.yaw_spread))


def render_image(
    person: Person,
    camera: Camera,
    pose: Pose,
    occluder: str | Person | None,
    rng: np.random.Generator,
    size: tuple[int, int] = (128, 64),
    covered: tuple[float, float] = (DIFFICULTY.covered_low, DIFFICULTY.covered_high),
    box_error: float = 1.0,
) -> Picture:
    """Render one bounding box.

    Args:
        occluder: None, a kind in `occluders.OBJECTS`, "crop" (the frame cuts the person), or another person who stands in front.
        size: height and width in pixels.
        covered: least and largest fraction of the person to hide. An object too thin or too small for it gives way to a wall.
        box_error: factor on the error of the bounding box; 6 and more gives the useless boxes of a failed detector.

    Raises:
        ValueError: if ``occluder`` is a string that names no occluder.
    """
    if isinstance(occluder, str) and occluder not in (*OBJECTS, CROP):
        raise ValueError(f"occluder {occluder!r} is unknown; take one of {', '.join((*OBJECTS, CROP))}, a Person or None")
    height, width = size
    difficulty = camera.difficulty
    share = rng.beta(1.2, 1.2 * difficulty.covered_skew)
    if isinstance(occluder, Person):
        share *= 0.5  # with more hidden, the box would be about the person in front
    target = covered[0] + 0.03 + (covered[1] - covered[0] - 0.06) * float(share)
    side = ""
    if occluder == CROP:
        parts, truth, total, (dx, dy), side = _cropped(person, pose, rng, size, target, covered)
    else:
        place = _place(rng, height, width, difficulty, box_error)
        parts = figure(person, pose, place)
        labels, (left, top) = _label_canvas(parts, size)
        total = int(np.count_nonzero(labels))
        truth, (dx, dy) = labels[top : top + height, left : left + width].copy(), (0.0, 0.0)
    image = camera.background(rng, height, width)
    _shadow(image, parts, dx, dy)
    paint_image(parts, image, dx, dy)
    kind, name = "none", ""
    if occluder == CROP:
        kind, name = "crop", side
    elif occluder is not None:
        mask = None
        if isinstance(occluder, Person):
            kind, name = "person", "person"
            mask = cover_with_person(image, truth, total, occluder, target, covered, pose, rng)
        if mask is None:
            kind = "object"
            thing = occluder if isinstance(occluder, str) else "wall"
            name, mask = cover_with_object(image, truth, total, thing, target, covered, difficulty.occluder_colour, rng)
        truth |= mask * np.uint8(OCCLUDED)
    visible = np.count_nonzero((truth > 0) & (truth < OCCLUDED))
    fraction = 1.0 - visible / total if total else 0.0
    return Picture(camera.expose(image, rng), truth, kind, name, fraction, viewpoint(pose.yaw))


def _place(rng: np.random.Generator, height: int, width: int, difficulty: Difficulty, box_error: float) -> Placement:
    shift, scale = difficulty.box_shift * box_error, difficulty.box_scale * min(box_error, 3.0)
    tall = _TALL * height * math.exp(rng.normal(0, scale))
    middle = width * (0.5 + rng.normal(0, shift))
    ground = 0.5 * height + 0.5 * tall + height * rng.normal(0, 0.5 * shift)
    return Placement(middle, ground, tall)


def _label_canvas(parts: list[Part], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    # Large enough for the whole figure, so that what the frame cuts away can be counted.
    left, top, right, bottom = extent(parts)
    pad_left, pad_top = max(0, math.ceil(-left) + 1), max(0, math.ceil(-top) + 1)
    pad_right, pad_bottom = max(0, math.ceil(right - size[1]) + 1), max(0, math.ceil(bottom - size[0]) + 1)
    labels = np.zeros((size[0] + pad_top + pad_bottom, size[1] + pad_left + pad_right), np.uint8)
    paint_labels(parts, labels, pad_left, pad_top)
    labels[labels == CARRIED] = 0
    return labels, (pad_left, pad_top)


def _cropped(person: Person, pose: Pose, rng: np.random.Generator, size: tuple[int, int], target: float, covered):
    height, width = size
    side = ("bottom", "bottom", "bottom", "top", "left", "right")[int(rng.integers(6))]
    if side in ("bottom", "top"):
        target = min(target, 0.6)
        zoom = min(1.6, 0.97 / (1 - target)) * rng.uniform(0.92, 1.0)
    else:
        zoom = rng.uniform(1.0, 1.25)
    for _ in range(_TRIES):
        place = Placement(0.5 * width, 0.5 * height * (1 + _TALL * zoom), _TALL * height * zoom)
        parts = figure(person, pose, place)
        labels, (left, top) = _label_canvas(parts, size)
        body = labels > 0
        total = int(np.count_nonzero(body))
        share = np.cumsum(body.sum(axis=1 if side in ("bottom", "top") else 0)) / total
        x, y = left, top
        if side == "bottom":
            y = int(np.searchsorted(share, 1 - target)) - height
        elif side == "top":
            y = int(np.searchsorted(share, target))
        elif side == "left":
            x = int(np.searchsorted(share, target))
        else:
            x = int(np.searchsorted(share, 1 - target)) - width
        truth = np.zeros(size, np.uint8)
        y0, x0 = max(y, 0), max(x, 0)
        piece = labels[y0 : max(y + height, 0), x0 : max(x + width, 0)]
        truth[y0 - y : y0 - y + piece.shape[0], x0 - x : x0 - x + piece.shape[1]] = piece
        hidden = 1.0 - np.count_nonzero(truth) / total
        if covered[0] <= hidden <= covered[1]:
            break
        zoom = max(0.95, zoom * 0.88)  # the frame cut more than the one side
    return parts, truth, total, (float(left - x), float(top - y)), side


def _shadow(image: np.ndarray, parts: list[Part], dx: float, dy: float) -> None:
    left, top, right, bottom = extent(parts)
    place = np.array([0.5 * (left + right) + dx, bottom + dy])
    outline = ellipse(place, 0.42 * (right - left), 0.03 * (bottom - top))
    colour = 0.5 * image[min(max(int(place[1]) - 2, 0), image.shape[0] - 1), 0]
    cv2.fillConvexPoly(image, np.rint(outline).astype(np.int32), [float(c) for c in colour], cv2.LINE_AA)
