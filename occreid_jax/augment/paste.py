"""Pasting a cut-out on a picture: resampling as two matrix products, so that place and size may be traced.

The result is that of resizing the cut-out with an antialiased bilinear filter, colours multiplied by their opacity, and laying
it over the picture. Used by `roa` (DPEFormer, arXiv 2402.10435) and `npo` (FED, CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from occreid_jax.augment import erasing, image_keys
from occreid_jax.errors import UserError
from occreid_jax.parts import OCCLUDED

Array = jax.Array

OCCLUDED_PARTS = "occluded_parts"  # the body-part labels of the occluded twin, beside "parts" of the clean picture
COVERED = 0.5  # a pixel counts as covered above this opacity
LIBRARY = ("occluders", "occluder_sides")
"""What a stage names in ``Stage.shared`` to paste occluders: uint8 [K, S, S * 4], and height and width in pixels int32 [K, 2]."""


def pick(pictures: Array, sides: Array, number: Array) -> tuple[Array, Array]:
    """Object ``number`` int32 [] of a library, [K, S, S, 4] or [K, S, S * 4]: its picture uint8 [S, S, 4], its sides int32 [2].

    Clipped as `occreid_jax.data.resident.gather` does: with plain indexing a TPU copies the whole library into another layout
    at every step.
    """
    picture = jnp.take(pictures, number, axis=0, mode="clip")
    return picture.reshape(len(picture), -1, 4), jnp.take(sides, number, axis=0, mode="clip")


def resampling(length: int, start: Array, size: Array, side: int, flip: Array | bool = False) -> Array:
    """Weights float32 [length, side] that put ``side`` samples, stretched to ``size`` pixels, at pixel ``start`` of ``length``.

    A row sums to one inside the stretch and to zero outside.
    """
    place = (jnp.arange(length) + 0.5 - start) / size
    inside = (place >= 0) & (place < 1)
    place = jnp.where(flip, 1.0 - place, place)
    source = jnp.clip(place * side - 0.5, 0.0, side - 1.0)
    distance = jnp.abs(source[:, None] - jnp.arange(side)[None, :]) / jnp.maximum(1.0, side / size)
    weights = jnp.maximum(0.0, 1.0 - distance) * inside[:, None]
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def paste(
    image: Array, cutout: Array, top: Array, left: Array, height: Array, width: Array, flip: Array | bool, hard: bool = False
) -> tuple[Array, Array]:
    """Lays a cut-out over a picture.

    ``image`` float32 [H, W, 3] in 0..1; ``cutout`` [S, S, 4], RGB and opacity, uint8 or float32 in 0..1, colours not multiplied
    by the opacity. ``top``, ``left``, ``height`` and ``width`` say in pixels where it goes; what lies outside the picture is cut
    off. ``flip`` mirrors the cut-out. ``hard`` covers pixels wholly where the opacity is above one half, and not at all
    elsewhere. All but ``hard`` may be traced. Returns the picture and the opacity float32 [H, W] at every pixel.
    """
    if cutout.dtype == jnp.uint8:
        cutout = cutout.astype(jnp.float32) / 255.0
    opacity = cutout[..., 3:]
    source = jnp.concatenate([cutout[..., :3] * opacity, opacity], axis=-1)
    side = cutout.shape[0]
    rows = resampling(image.shape[0], top, height, side)
    columns = resampling(image.shape[1], left, width, side, flip)
    exact = jax.lax.Precision.HIGHEST
    across = jnp.einsum("xj,ijc->ixc", columns, source, precision=exact)
    layer = jnp.einsum("yi,ixc->yxc", rows, across, precision=exact)
    colour, alpha = layer[..., :3], layer[..., 3]
    if hard:
        covered = alpha > COVERED
        colour = colour / jnp.maximum(alpha, COVERED)[..., None]
        return jnp.where(covered[..., None], colour, image), covered.astype(jnp.float32)
    return image * (1.0 - alpha[..., None]) + colour, alpha


def erase(
    key: Array, image: Array, probability: float, shares: tuple[float, float] = erasing.AREA
) -> tuple[Array, Array]:
    """Random erasing of a picture float32 [H, W, 3] -> the picture and float32 [H, W], 1 where it was erased."""
    erased, inside = erasing.erase_box(key, image, probability, shares)
    return erased, inside.astype(jnp.float32)


def covered_parts(parts: Array, alpha: Array) -> Array:
    """Body-part labels uint8 [..., H, W] with `OCCLUDED` where an occluder of opacity float32 [..., H, W] covers the pixel."""
    return jnp.where(alpha > COVERED, parts | jnp.uint8(OCCLUDED), parts)


def twins(one: Callable[..., dict], pastes: bool) -> Callable[[Array, dict], dict]:
    """``augment(rng, batch)`` from ``one(key, image, parts, pictures, sides)``, which makes the new entries of one picture.

    The library goes whole to every picture, or None without ``pastes``, and is no part of the result. ``parts`` may be None.
    """

    def augment(rng: Array, batch: dict) -> dict:
        library = [batch[name] if pastes else None for name in LIBRARY]
        keys = image_keys(rng, batch["image"].shape[0])
        changed = jax.vmap(one, in_axes=(0, 0, 0, None, None))(keys, batch["image"], batch.get("parts"), *library)
        return {name: value for name, value in batch.items() if name not in LIBRARY} | changed

    return augment


def check(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises `UserError` if a setting below ``augment.occlusion`` is none of the words that it may be."""
    if value not in known:
        raise UserError(f"augment.occlusion.{name} is '{value}'; it must be one of {', '.join(known)}")
