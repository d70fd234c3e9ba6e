"""Occluders as they stand in a pedestrian's frame: whole frames for libraries whose objects keep their place and size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np

from occreid_jax.synthetic.difficulty import DIFFICULTY
from occreid_jax.synthetic.loose import PICTURE, loose_people
from occreid_jax.synthetic.occluders import render_occluder
from occreid_jax.synthetic.streams import stream

# Where the upper edge lies and how wide the object is, as shares of the frame; ours, since DPL-ReID's library (arXiv 2605.19527,
# section 3.1) is not public. Those that stand on the ground reach the lower edge.
ON_THE_GROUND = {
    "car": ((0.45, 0.65), (1.0, 1.6)),
    "bicycle": ((0.5, 0.7), (0.6, 1.1)),
    "cart": ((0.5, 0.7), (0.6, 1.1)),
    "barrier": ((0.55, 0.8), (0.9, 1.3)),
    "bush": ((0.55, 0.8), (0.6, 1.2)),
}
UPRIGHT = ("pole", "wall")  # as high as the frame, between a quarter and half as wide: left, in the middle or right
KINDS = tuple(sorted((*ON_THE_GROUND, *UPRIGHT, "sign", "umbrella", "person")))
LEAST_AREA, MOST_AREA = 0.05, 0.6  # of the frame, that a frame may hide
ATTEMPTS = 20
Box = tuple[int, int, int, int]


def standing_box(kind: str, rng: np.random.Generator) -> Box:
    """(top, left, height, width) in pixels of an object's box in a frame of `PICTURE`; it may leave the frame sideways."""
    height, width = PICTURE
    if kind in ON_THE_GROUND:
        upper, wide = (rng.uniform(*share) for share in ON_THE_GROUND[kind])
        top, box_height = upper, 1.0 - upper
        left = rng.uniform(min(0.0, 1.0 - wide) - 0.25, max(0.0, 1.0 - wide) + 0.25)
    elif kind in UPRIGHT:
        wide, top, box_height = rng.uniform(0.25, 0.5), 0.0, 1.0
        left = (0.0, 0.5 * (1 - wide), 1 - wide)[int(rng.integers(3))]
    elif kind == "umbrella":
        wide, top, box_height = rng.uniform(0.6, 1.1), 0.0, rng.uniform(0.2, 0.35)
        left = 0.5 * (1 - wide) + rng.uniform(-0.15, 0.15)
    elif kind == "sign":
        wide, top = rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.4)
        box_height, left = 1.0 - top, 0.5 * (1 - wide) + rng.uniform(-0.15, 0.15)
    else:  # a second person, of whom a part of the width is in the frame
        box_height, wide = rng.uniform(0.6, 1.0), 1.5 * rng.uniform(0.6, 1.0)
        top, seen = 1.0 - box_height, rng.uniform(0.3, 0.5)
        left = seen - 0.75 * wide if rng.random() < 0.5 else 1.0 - seen - 0.25 * wide
    return round(top * height), round(left * width), max(4, round(box_height * height)), max(4, round(wide * width))


def in_frame(pixels: np.ndarray, box: Box) -> np.ndarray:
    """uint8 [h, w, 4] stretched to ``box`` of an empty frame: uint8 [H, W, 4]."""
    top, left, height, width = box
    frame = np.zeros((*PICTURE, 4), np.uint8)
    if pixels.shape[:2] != (height, width):
        alpha = pixels[..., 3:].astype(np.float32) / 255.0
        joined = np.concatenate([pixels[..., :3] * alpha, 255.0 * alpha], axis=-1)
        joined = cv2.resize(joined, (width, height), interpolation=cv2.INTER_AREA)
        colour = joined[..., :3] / np.maximum(joined[..., 3:] / 255.0, 1e-3)
        pixels = np.rint(np.clip(np.concatenate([colour, joined[..., 3:]], axis=-1), 0, 255)).astype(np.uint8)
    first, last = max(left, 0), min(left + width, PICTURE[1])
    lower = min(top + height, PICTURE[0])
    if last > first:
        frame[top:lower, first:last] = pixels[: lower - top, first - left : last - left]
    return frame


def standing_occluders(seed: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, RGBA uint8 [256, 128, 4]) of ``count`` frames, all of `KINDS` equally often, each hiding 5 to 60 % of it.

    Random streams have a name of their own, and people are of those that only training people may be, so nothing of a test set is
    among them. Where no draw of a kind hides as much as it may, the last one is taken.
    """
    people = loose_people(seed, -(-count // len(KINDS)))
    for number, kind in enumerate(itertools.islice(itertools.cycle(KINDS), count)):
        rng = stream(seed, "standing_occluders", number)
        person = next(people)[1] if kind == "person" else None
        for _ in range(ATTEMPTS):
            box = standing_box(kind, rng)
            pixels = person
            if pixels is None:
                pixels = render_occluder(kind, rng, box[2], box[3])
                pixels[..., :3] = np.rint(118.0 + DIFFICULTY.occluder_colour * (pixels[..., :3] - 118.0))
            frame = in_frame(pixels, box)
            if LEAST_AREA <= np.mean(frame[..., 3] > 127) <= MOST_AREA:
                break
        yield f"{kind} {number}", frame
