"""Augmentation as jitted functions of one image and its own key, vmapped over the batch.

`geometry` (flip, pad and crop), `erasing`, `appearance` (normalisation, colour jitter), and here `standard`, the order in
which ReID recipes apply them. `roa` and `npo` make an occluded twin of every picture with `paste`; `patch_transfer` works on
tokens. Every function maps arrays to arrays of the same shape, so nothing recompiles.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from occreid_jax.augment import appearance, erasing, geometry

Array = jax.Array


def image_keys(rng: Array, count: int) -> Array:
    """One key per image of the global batch: image i gets the same key on any number of devices."""
    return jax.random.split(rng, count)


def framed(key_geometry: Array, key_jitter: Array, image: Array, parts: Array | None, config) -> tuple[Array, Array | None]:
    """A picture uint8 [H, W, 3] mirrored, padded, cropped and jittered as ``config`` says (`standard`), float32 in 0..1, and its
    body-part labels uint8 [H, W] or None, moved along."""
    image, parts = geometry.flip_pad_crop(key_geometry, image, parts, config.flip, config.pad)
    image, jitter = image.astype(jnp.float32) / 255.0, tuple(config.jitter)
    return (appearance.colour_jitter(key_jitter, image, *jitter) if any(jitter) else image), parts


def standard(config, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Array, dict], dict]:
    """The training augmentation of TransReID and its descendants: flip, zero-pad and crop, colour jitter, normalise, erase.

    ``config`` has ``flip`` (probability), ``pad`` (pixels), ``jitter`` (brightness, contrast, saturation, hue) and ``erasing``
    (probability). Returns ``augment(rng, batch)``; ``batch["image"]`` uint8 [B, H, W, 3] becomes float32, and a
    ``batch["parts"]`` map moves with its image.
    """
    erase = config.erasing

    def one(key, image, parts):
        key_geometry, key_jitter, key_erase = jax.random.split(key, 3)
        image, parts = framed(key_geometry, key_jitter, image, parts, config)
        image = appearance.normalise(image, mean, std)
        if erase:
            image = erasing.random_erasing(key_erase, image, erase)
        return image, parts

    def augment(rng: Array, batch: dict) -> dict:
        keys = image_keys(rng, batch["image"].shape[0])
        image, parts = jax.vmap(one)(keys, batch["image"], batch.get("parts"))
        return batch | {"image": image} | ({} if parts is None else {"parts": parts})

    return augment
