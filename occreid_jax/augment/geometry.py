"""Flip, pad and crop of one image, with its body-part map moving along."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from occreid_jax.parts import flip_parts

Array = jax.Array


def flip_pad_crop(key: Array, image: Array, parts: Array | None, flip: float, pad: int) -> tuple[Array, Array | None]:
    """Mirrors with probability ``flip``, pads ``pad`` zero pixels on every side and crops the old size at a random place.

    image uint8 or float32 [H, W, 3], parts uint8 [H, W] or None; both keep shape and type. Padding is black and background,
    since it comes before normalisation.
    """
    key_flip, key_row, key_column = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(key_flip, flip)
    row = jax.random.randint(key_row, (), 0, 2 * pad + 1)
    column = jax.random.randint(key_column, (), 0, 2 * pad + 1)
    # The same values on every platform. Many places at once are a gather of slices on CPUs, a loop over the pictures on a TPU.
    move = functools.partial(jax.lax.platform_dependent, mirrored, row, column, cpu=by_slice(pad), default=by_products(pad))
    image = move(image)
    if parts is not None:
        parts = move(jnp.where(mirrored, flip_parts(parts), parts))
    return image, parts


def by_slice(pad: int) -> Callable[[Array, Array, Array, Array], Array]:
    """``move(mirrored, row, column, x)``: x [H, W, ...], mirrored or not, padded and cropped at ``row`` and ``column``."""

    def move(mirrored: Array, row: Array, column: Array, x: Array) -> Array:
        margins = ((pad, pad), (pad, pad)) + ((0, 0),) * (x.ndim - 2)
        padded = jnp.pad(jnp.where(mirrored, x[:, ::-1], x), margins)
        return jax.lax.dynamic_slice(padded, (row, column) + (0,) * (x.ndim - 2), x.shape)

    return move


def by_products(pad: int) -> Callable[[Array, Array, Array, Array], Array]:
    """`by_slice` as two products with matrices of ones and zeros, for x uint8 or float32, to the last bit.

    A pixel of the result is one pixel of ``x`` or, where its row has no one, padding. Whole numbers up to 256 are exact in
    bfloat16; a float32 is the exact sum of the bfloat16 pieces that `HIGHEST` makes of it.
    """

    def move(mirrored: Array, row: Array, column: Array, x: Array) -> Array:
        height, width = x.shape[:2]
        rows = jnp.arange(height) + row - pad
        columns = jnp.arange(width) + column - pad
        columns = jnp.where(mirrored, width - 1 - columns, columns)
        whole = x.dtype == jnp.uint8
        dtype, precision = (jnp.bfloat16, None) if whole else (x.dtype, jax.lax.Precision.HIGHEST)
        rows = (rows[:, None] == jnp.arange(height)).astype(dtype)
        columns = (columns[:, None] == jnp.arange(width)).astype(dtype)
        moved = jnp.einsum("yh,hw...->yw...", rows, x.astype(dtype), precision=precision)
        moved = jnp.einsum("xw,yw...->yx...", columns, moved, precision=precision)
        return moved.astype(x.dtype)

    return move
