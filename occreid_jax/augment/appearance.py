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
    factors = jax.random.uniform(key_factors, (4,), minval=-1.0, maxval=1.0)
    by = lambda strength, draw: jnp.maximum(1.0 + strength * draw, 0.0)  # noqa: E731
    clip = lambda x: jnp.clip(x, 0.0, 1.0)  # noqa: E731
    changes = (
        lambda x: clip(x * by(brightness, factors[0])),
        lambda x: clip(jnp.mean(grey(x)) + (x - jnp.mean(grey(x))) * by(contrast, factors[1])),
        lambda x: clip(grey(x) + (x - grey(x)) * by(saturation, factors[2])),
        lambda x: clip(shift_hue(x, hue * factors[3])) if hue else x,
    )
    for change in jax.random.permutation(key_order, 4):
        image = jax.lax.switch(change, changes, image)
    return image
