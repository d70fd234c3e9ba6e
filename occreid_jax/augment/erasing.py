"""Random erasing of one box with per-pixel noise (Zhong et al. 2020; the "pixel" mode of timm that ReID recipes use).

A key draws the same box everywhere, but other noise on an accelerator than on a CPU (`box_noise`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

ATTEMPTS = 10  # boxes drawn before giving up, as timm does
AREA = (0.02, 1.0 / 3.0)  # share of the image
ASPECT = (0.3, 1.0 / 0.3)  # height / width, drawn log-uniformly


def draw_box(key: Array, height: int, width: int, shares: tuple[float, float] = AREA) -> tuple[Array, Array, Array, Array, Array]:
    """Draws (top, left, box height, box width, found) in pixels; ``found`` is False if all attempts were too large."""
    key_area, key_aspect, key_top, key_left = jax.random.split(key, 4)
    area = jax.random.uniform(key_area, (ATTEMPTS,), minval=shares[0], maxval=shares[1]) * (height * width)
    aspect = jnp.exp(jax.random.uniform(key_aspect, (ATTEMPTS,), minval=jnp.log(ASPECT[0]), maxval=jnp.log(ASPECT[1])))
    box_height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    box_width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (box_height < height) & (box_width < width)
    first = jnp.arange(ATTEMPTS) == jnp.argmax(fits)
    box_height, box_width = (jnp.sum(jnp.where(first, side, 0)) for side in (box_height, box_width))
    # randint on a traced upper end: both ends included, as python's random.randint in the originals.
    top = jnp.floor(jax.random.uniform(key_top) * (height - box_height + 1)).astype(jnp.int32)
    left = jnp.floor(jax.random.uniform(key_left) * (width - box_width + 1)).astype(jnp.int32)
    return top, left, box_height, box_width, jnp.any(fits)


def random_erasing(key: Array, image: Array, probability: float) -> Array:
    """Replaces one random box of a normalised image float32 [H, W, C] by N(0, 1) noise with the given probability."""
    return erase_box(key, image, probability)[0]


def erase_box(
    key: Array, image: Array, probability: float, shares: tuple[float, float] = AREA
) -> tuple[Array, Array]:
    """`random_erasing` of a box that takes between two ``shares`` of the image, and bool [H, W] where it erased."""
    key_use, key_box, key_noise = jax.random.split(key, 3)
    height, width, channels = image.shape
    top, left, box_height, box_width, found = draw_box(key_box, height, width, shares)
    row, column = jnp.arange(height)[:, None] - top, jnp.arange(width)[None, :] - left
    inside = (row >= 0) & (row < box_height) & (column >= 0) & (column < box_width)
    inside &= found & jax.random.bernoulli(key_use, probability)
    noise = box_noise(key_noise, row * box_width + column, image.shape, shares[1])
    return jnp.where(inside[..., None], noise, image), inside


def box_noise(key: Array, place: Array, shape: tuple[int, int, int], largest: float) -> Array:
    """N(0, 1) noise float32 [H, W, C], the ``shape``, of which only the pixels of one box are to be used.

    ``place`` int32 [H, W] numbers the pixels of the box row by row, and means nothing elsewhere; ``largest`` is the greatest
    share of the picture that a box takes. The platform that the program is lowered for decides, so the same key gives other
    noise there: on CPUs random numbers are the dearest part of the whole augmentation, and no more are drawn than the largest
    box has pixels; on accelerators they cost next to nothing, while handing them to their pixels is a gather of rows of three.
    """
    height, width, channels = shape
    count = int(height * width * largest) + height + width  # a box's sides are rounded: half a row and half a column more

    def handed_out(key: Array, place: Array) -> Array:
        return jax.random.normal(key, (count, channels))[jnp.clip(place, 0, count - 1)]

    def everywhere(key: Array, place: Array) -> Array:
        return jax.random.normal(key, shape)

    return jax.lax.platform_dependent(key, place, cpu=handed_out, default=everywhere)
