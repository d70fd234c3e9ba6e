"""Occluders that already stand where they belong: whole frames laid over a picture, softened, and matched to its colours.

Source: "Dual-Prompt CLIP with Hybrid Visual Encoders for Occluded Person Re-Identification" (DPL-ReID, arXiv 2605.19527), section
3.1 and Eq. 3, 4. The paper gives the steps; how wide edges are softened, and what stands behind them, is our choice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment.paste import resampling

Array = jax.Array

EXACT = jax.lax.Precision.HIGHEST
LEAST_DEVIATION = 1e-5  # of a channel that is divided by its deviation
FAINT = 1e-4  # opacity below which a pixel has no colour of its own


@functools.cache
def blur_weights(length: int, sigma: float) -> np.ndarray:
    """float32 [length, length]: a Gaussian of ``sigma`` pixels, cut off at 2.5 of them, ends repeated; 0 leaves all as it is."""
    radius = int(2.5 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
    weights = np.zeros((length, length))
    for place in range(length):
        for tap, weight in zip(range(-radius, radius + 1), taps / taps.sum(), strict=True):
            weights[place, min(max(place + tap, 0), length - 1)] += weight
    return weights.astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of float32 [H, W, C]; the edge's pixels stand outside."""
    rows, columns = (blur_weights(length, sigma) for length in image.shape[:2])
    return jnp.einsum("yi,ijc,xj->yxc", rows, image, columns, precision=EXACT)


def erode(alpha: Array, pixels: int) -> Array:
    """The least opacity within so many ``pixels``, float32 [H, W]; a frame's edge is no edge of what it cuts."""
    side = 2 * pixels + 1
    return jax.lax.reduce_window(alpha, jnp.inf, jax.lax.min, (side, side), (1, 1), "SAME") if pixels else alpha


def feather(layer: Array, pixels: int, sigma: float) -> tuple[Array, Array]:
    """Colours float32 [H, W, 3] and opacity [H, W] of a layer [H, W, 4] (colours times opacity) with softened edges.

    The opacity is eroded by ``pixels`` and blurred. It then reaches beyond the object, where the layer has no colour; there the
    object's own blurred colours continue it, so that no dark fringe appears.
    """
    smeared = blur(layer, sigma)
    alpha = layer[..., 3]
    behind = smeared[..., :3] / jnp.maximum(smeared[..., 3:], FAINT)
    colour = layer[..., :3] + (1.0 - alpha[..., None]) * behind
    soft = blur(erode(alpha, pixels)[..., None], sigma)[..., 0]
    return jnp.clip(colour, 0.0, 1.0), jnp.clip(soft, 0.0, 1.0)


def composite(image: Array, colour: Array, alpha: Array) -> Array:
    """``colour`` float32 [H, W, 3] over ``image``, with opacity [H, W]."""
    return alpha[..., None] * colour + (1.0 - alpha[..., None]) * image


def align(occluded: Array, clean: Array) -> Array:
    """Eq. 3 and 4: every channel of ``occluded`` float32 [H, W, C] gets the mean and the (population) deviation that it has in
    ``clean``, over the whole frame. Not clipped: clipping would change both again."""

    def moments(x: Array) -> tuple[Array, Array]:
        mean = jnp.mean(x, axis=(0, 1))
        return mean, jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=(0, 1)))

    (mean, deviation), (wanted_mean, wanted) = moments(occluded), moments(clean)
    return (occluded - mean) / jnp.maximum(deviation, LEAST_DEVIATION) * wanted + wanted_mean


def premultiplied(frame: Array) -> Array:
    """A library's picture uint8 [S, S, 4] as float32 in 0..1, colours times opacity."""
    frame = frame.astype(jnp.float32) / 255.0
    return jnp.concatenate([frame[..., :3] * frame[..., 3:], frame[..., 3:]], axis=-1)


def lay(frame: Array, shape: tuple[int, int], box: tuple[Array, Array, Array, Array], flip: Array | bool) -> Array:
    """A picture [S, S, 4] (see `premultiplied`) stretched to ``box`` (top, left, height, width) of a frame of ``shape`` pixels:
    float32 [H, W, 4]. The box may leave the frame; nothing stands outside of it."""
    top, left, height, width = box
    side = frame.shape[0]
    rows, columns = resampling(shape[0], top, height, side), resampling(shape[1], left, width, side, flip)
    return jnp.einsum("yi,ijc,xj->yxc", rows, frame, columns, precision=EXACT)


def object_box(frame: Array) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width) float32 [] of what is not transparent in [S, S, 4], as shares of the frame's sides."""
    side = frame.shape[0]

    def ends(seen: Array) -> tuple[Array, Array]:
        first = jnp.argmax(seen)
        return first / side, jnp.maximum(side - jnp.argmax(seen[::-1]) - first, 1) / side

    opaque = frame[..., 3] > 0
    (top, height), (left, width) = ends(opaque.any(axis=1)), ends(opaque.any(axis=0))
    return top, left, height, width
