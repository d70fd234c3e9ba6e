"""Occluders without a picture around them, for libraries that training pastes from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from occreid_jax.synthetic.body import Placement, Pose
from occreid_jax.synthetic.difficulty import DIFFICULTY
from occreid_jax.synthetic.figure import figure
from occreid_jax.synthetic.occluders import render_occluder
from occreid_jax.synthetic.parts import paint_image
from occreid_jax.synthetic.people import sample_people
from occreid_jax.synthetic.streams import stream

# Height and width as shares of a picture's, about as the benchmark places them.
SHAPES = {
    "barrier": ((0.3, 0.65), (1.05, 1.3)),
    "bicycle": ((0.3, 0.65), (0.9, 1.25)),
    "bush": ((0.3, 0.65), (0.9, 1.25)),
    "car": ((0.3, 0.6), (1.3, 2.1)),
    "cart": ((0.3, 0.65), (0.9, 1.25)),
    "pole": ((1.0, 1.0), (0.15, 0.45)),
    "sign": ((0.9, 1.05), (0.25, 0.55)),
    "umbrella": ((0.3, 0.6), (1.0, 1.3)),
    "wall": ((0.3, 0.65), (1.05, 1.3)),
}
PICTURE = (256, 128)  # height and width in pixels that the shares refer to
PASSERS_BY = 2**33  # added to the seed of people who only stand in front: more than any seed that a config may have


def loose_occluders(seed: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, RGBA uint8 [h, w, 4]) of ``count`` objects as the benchmark draws them, all kinds equally often, with their true
    contour.

    The random streams have a name of their own: no object of a benchmark's picture is among them, whatever its seed.
    """
    for number, kind in enumerate(itertools.islice(itertools.cycle(sorted(SHAPES)), count)):
        rng = stream(seed, "occluder_library", number)
        height, width = (round(side * rng.uniform(*share)) for side, share in zip(PICTURE, SHAPES[kind], strict=True))
        pixels = render_occluder(kind, rng, height, width)
        colour = 118.0 + DIFFICULTY.occluder_colour * (pixels[..., :3] - 118.0)  # as far from grey as in the benchmark
        pixels[..., :3] = np.rint(colour)
        yield f"{kind} {number}", pixels


def loose_people(seed: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, RGBA uint8 [256, 192, 4]) of ``count`` people who stand or walk, each another one, with their true contour.

    Their outfits are of those that only a benchmark's training people may have, so nobody of a test set is among them.
    """
    height, width = PICTURE[0], 3 * PICTURE[1] // 2
    for number, person in enumerate(sample_people(seed + PASSERS_BY, count, "train")):
        rng = stream(seed, "occluder_library/people", number)
        pose = Pose(rng.uniform(-math.pi, math.pi), rng.uniform(0, 2 * math.pi), 0.35 * rng.random(), rng.uniform(0.1, 0.9))
        parts = figure(person, pose, Placement(0.5 * width, 0.96 * height, 0.88 * height))
        black, white = (np.full((height, width, 3), value, np.uint8) for value in (0, 255))
        for background in (black, white):
            paint_image(parts, background, 0, 0)
        # What of a white background shines through, and of a black one does not, is not covered.
        opacity = 255.0 - np.mean(white.astype(float) - black, axis=2)
        colour = black * (255.0 / np.maximum(opacity, 1.0))[..., None]
        yield f"person {number}", np.rint(np.clip(np.dstack([colour, opacity]), 0, 255)).astype(np.uint8)
