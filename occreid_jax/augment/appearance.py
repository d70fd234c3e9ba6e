"""Colour: normalisation and torchvision's colour jitter, on one image."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of Pillow and torchvision


def normalise(image: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(image - mean) / std per channel; image float32 [..., 3] in [0, 1]."""
    return (image - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def grey(image: Array) -> Array:
    """Luma [..., 1] of an RGB image [..., 3]."""
    return jnp.sum(image * jnp.asarray(LUMA, image.dtype), axis=-1, keepdims=True)


def shift_hue(image: Array, shift: Array) -> Array:
    """Turns the hue of an RGB image [..., 3] in [0, 1] by ``shift`` of a full circle, by way of HSV."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    hue = jnp.where(
        value == red,
        ((green - blue) / safe) % 6.0,
        jnp.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    hue = jnp.where(chroma > 0, hue, 0.0) + 6.0 * shift

    def channel(offset: float) -> Array:
        k = (offset + hue) % 6.0
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def colour_jitter(key: Array, image: Array, brightness: float, contrast: float, saturation: float, hue: float) -> Array:
    """torchvision's ColorJitter on a float image [H, W, 3] in [0, 1]: four changes in a random order, each clipped.

    Factors are uniform in [1 - x, 1 + x], the hue shift in [-hue, hue] of a circle. The original rounds to 8 bits between the
    four changes; here they stay float32.
    """
    key_factors, key_order = jax.random.split(key)
    draws = jax.random.uniform(key_factors, (4,), minval=-1.0, maxval=1.0)
    factors = jnp.maximum(1.0 + jnp.asarray([brightness, contrast, saturation, 0.0]) * draws, 0.0)

    def blended(image: Array, change: Array) -> Array:
        """One of the first three: away from black, from the mean grey or from each pixel's own; the fourth has a factor of 1."""
        greys = grey(image)
        other = jnp.where(change == 1, jnp.mean(greys), jnp.where(change == 2, greys, 0.0))
        factor = jnp.sum(jnp.where(jnp.arange(4) == change, factors, 0.0))  # a look-up would be a gather of its own on a TPU
        return jnp.clip(other + (image - other) * factor, 0.0, 1.0)

    def turned(image: Array) -> Array:
        return jnp.clip(shift_hue(image, hue * draws[3]), 0.0, 1.0)

    # Under vmap a switch computes all its branches for every image, so there is none but for the hue.
    for change in jax.random.permutation(key_order, 4):
        image = jnp.where(change == 3, turned(image), blended(image, change)) if hue else blended(image, change)
    return image
