"""Flip, pad and crop of one image, with its body-part map moving along."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.parts import flip_parts

Array = jax.Array

def flip_pad_crop(key: Array, image: Array, parts: Array | None, flip: float, pad: int) -> tuple[Array, Array | None]:
    """Mirrors with probability ``flip``, pads ``pad`` zero pixels on every side and crops the old size at a random place.

    image uint8 [H, W, 3], parts uint8 [H, W] or None; both keep shape and type. Padding is black and background, since it
    comes before normalisation.
    """
    key_flip, key_row, key_column = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(key_flip, flip)
    row = jax.random.randint(key_row, (), 0, 2 * pad + 1)
    column = jax.random.randint(key_column, (), 0, 2 * pad + 1)

    def crop(x: Array) -> Array:
        margins = ((pad, pad), (pad, pad)) + ((0, 0),) * (x.ndim - 2)
        return jax.lax.dynamic_slice(jnp.pad(x, margins), (row, column) + (0,) * (x.ndim - 2), x.shape)

    image = crop(jnp.where(mirrored, image[:, ::-1], image))
    if parts is not None:
        parts = crop(jnp.where(mirrored, flip_parts(parts[:, ::-1]), parts))
    return image, parts
