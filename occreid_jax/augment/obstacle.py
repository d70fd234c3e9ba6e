"""An obstacle on a random region: every picture gets a twin with an object of a library in front, anywhere and of any size.

Source: OGFR, arXiv 2507.08520, section 4.2, which superimposes "an obstacle patch onto a randomly chosen region" and says neither
its size nor how often: both are settings.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from occreid_jax.augment import appearance, erasing, framed
from occreid_jax.augment.paste import COVERED, OCCLUDED_PARTS, check, covered_parts, paste, pick, twins

Array = jax.Array
KINDS = ("obstacle", "none")


def obstacle(config, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Array, dict], dict]:
    """A training augmentation with an occluded twin of every picture.

    ``config`` has ``flip``, ``pad`` and ``jitter`` as `augment.standard`, which both twins share, and ``occlusion`` with

    * ``kind``: "obstacle" or "none" (the twin is the picture),
    * ``probability`` that an object is pasted,
    * ``area`` (least and most, of the picture, of the box that the object is stretched to; its sides have a ratio of
      `erasing.ASPECT` and it lies anywhere inside the picture),
    * ``jitter`` of the object's brightness, contrast and saturation, ``flip``, the probability that it is mirrored, and
      ``rectangles``: whether the whole box is pasted, and not the object's own outline.

    Returns ``augment(rng, batch)``, whose batch needs the library (`paste.LIBRARY`) unless nothing is pasted. The result has
    ``image`` and ``occluded`` float32 [B, H, W, 3] normalised and ``covered`` float32 [B], the share of pixels that are covered
    by more than half. ``parts`` moves along; ``occluded_parts`` is the same with the object. Raises `UserError` for an unknown
    kind.
    """
    settings = config.occlusion
    check("kind", settings.kind, KINDS)
    pastes = settings.kind == "obstacle"

    def pasted(key: Array, image: Array, pictures: Array, sides: Array) -> tuple[Array, Array]:
        key_object, key_colour, key_box, key_flip, key_use = jax.random.split(key, 5)
        cutout, _ = pick(pictures, sides, jax.random.randint(key_object, (), 0, len(pictures)))
        cutout = cutout.astype(jnp.float32) / 255.0
        colour = appearance.colour_jitter(key_colour, cutout[..., :3], *[settings.jitter] * 3, 0.0)
        opacity = jnp.ones_like(cutout[..., 3:]) if settings.rectangles else cutout[..., 3:]
        top, left, height, width, found = erasing.draw_box(key_box, *image.shape[:2], tuple(settings.area))
        box = top, left, jnp.maximum(height, 1), jnp.maximum(width, 1)
        covered, alpha = paste(
            image, jnp.concatenate([colour, opacity], axis=-1), *box, jax.random.bernoulli(key_flip, settings.flip)
        )
        used = found & jax.random.bernoulli(key_use, settings.probability)
        return covered, jnp.where(used, alpha, 0.0)

    def one(key, image, parts, pictures, sides):
        key_geometry, key_jitter, key_occluder = jax.random.split(key, 3)
        image, parts = framed(key_geometry, key_jitter, image, parts, config)
        clean = occluded = appearance.normalise(image, mean, std)
        alpha = jnp.zeros(image.shape[:2])
        if pastes:
            covered, alpha = pasted(key_occluder, image, pictures, sides)
            occluded = jnp.where(alpha[..., None] > 0, appearance.normalise(covered, mean, std), clean)
        result = {"image": clean, "occluded": occluded, "covered": jnp.mean(alpha > COVERED)}
        return result | ({} if parts is None else {"parts": parts, OCCLUDED_PARTS: covered_parts(parts, alpha)})

    return twins(one, pastes)
