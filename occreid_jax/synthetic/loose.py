"""Occluders without a picture around them, for libraries that training pastes from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from occreid_jax.synthetic.difficulty import DIFFICULTY
from occreid_jax.synthetic.occluders import render_occluder
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
