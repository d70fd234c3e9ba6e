"""Flip, pad and crop of one image, with its body-part map moving along."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

LEFT_RIGHT = ((2, 3), (5, 6), (7, 8))
"""Part numbers that change places in a mirror: arms, legs, feet (see occreid_jax.data.parsing)."""


def mirror_parts(parts: Array) -> Array:
    """Part map uint8 [H, W] mirrored left to right, the person's own left and right exchanged. Higher bits are kept."""
    parts = parts[:, ::-1]
    label, rest = parts & 15, parts & 240
    swapped = label
    for left, right in LEFT_RIGHT:
        swapped = jnp.where(label == left, right, jnp.where(label == right, left, swapped))
    return swapped.astype(parts.dtype) | rest


def flip_pad_crop(key: Array, image: Array, parts: Array | None, flip: float, pad: int) -> tuple[Array, Array | None]:
    """Mirrors with probability ``flip``, pads ``pad`` zero pixels on every side and crops the old size at a random place.

    image uint8 [H, W, 3], parts uint8 [H, W] or None; both keep shape and type. Padding is black and background, since it
    comes before normalisation.
    """
    key_flip, key_row, key_column = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(key_flip, flip)
    height, width = image.shape[:2]
    row = jax.random.randint(key_row, (), 0, 2 * pad + 1)
    column = jax.random.randint(key_column, (), 0, 2 * pad + 1)

    def crop(x: Array) -> Array:
        margins = ((pad, pad), (pad, pad)) + ((0, 0),) * (x.ndim - 2)
        return jax.lax.dynamic_slice(jnp.pad(x, margins), (row, column) + (0,) * (x.ndim - 2), x.shape)

    image = crop(jnp.where(mirrored, image[:, ::-1], image))
    if parts is not None:
        parts = crop(jnp.where(mirrored, mirror_parts(parts), parts))
    assert image.shape[:2] == (height, width)
    return image, parts
