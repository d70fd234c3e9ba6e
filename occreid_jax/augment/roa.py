"""Realistic occlusion: every picture gets a twin with an object in front that has its true contour.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435), section III-C and
Algorithm 1. Cut & Paste (whole boxes) and random erasing are the alternatives of its Table X.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from occreid_jax.augment import appearance, framed
from occreid_jax.augment.paste import COVERED, OCCLUDED_PARTS, check, covered_parts, erase, paste, pick, twins
from occreid_jax.errors import UserError

Array = jax.Array

NOISES = ("after", "before")
PASTED = ("roa", "cut_and_paste")  # kinds that need a library of objects
OTHER = "other_image"
KINDS = (*PASTED, "erasing", OTHER, "none")
TALL = 2  # an object is tall if it is more than so many times as high as wide


def placement(sides: Array, share: Array, corner: Array, height: int, width: int) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width) int32 [] of an object's box in a picture of ``height`` x ``width`` pixels.

    ``sides`` int32 [2] is the object's own height and width, ``share`` float32 [] the box's share of the picture, ``corner``
    int32 [] which of the paper's three places its corner takes: 0 top left, 1 bottom left, 2 top right. A tall object is as high
    as the picture, any other one as wide; the other side is truncated to whole pixels.
    """
    tall = sides[0] > TALL * sides[1]
    box_height = jnp.where(tall, height, jnp.floor(share * height).astype(jnp.int32))
    box_width = jnp.where(tall, jnp.floor(share * width).astype(jnp.int32), width)
    top = jnp.where(corner == 1, height - box_height, 0)
    left = jnp.where(corner == 2, width - box_width, 0)
    return top, left, box_height, box_width


def realistic_occlusion(
    rng: Array,
    image: Array,
    pictures: Array,
    sides: Array,
    *,
    least_area: float = 0.5,
    most_area: float = 0.75,
    balanced: bool = False,
    hard: bool = False,
    rectangles: bool = False,
    flip: float = 0.5,
) -> tuple[Array, Array]:
    """Puts one object of a library in front of one picture.

    ``image`` float32 [H, W, 3] in 0..1, ``pictures`` uint8 [K, S, S * 4], ``sides`` int32 [K, 2]. The box takes an even share
    between ``least_area`` and ``most_area`` of the picture; an object is mirrored with probability ``flip``. As the paper lists
    its three places, two of them are the same for every object: 2/3 of the wide ones lie at the top, 2/3 of the tall ones on the
    left. ``balanced`` makes both halves. ``hard`` has no soft edge; ``rectangles`` pastes the whole box (Cut & Paste).

    Returns the picture and the object's opacity float32 [H, W].
    """
    key_object, key_area, key_corner, key_flip = jax.random.split(rng, 4)
    number = jax.random.randint(key_object, (), 0, len(pictures))
    share = jax.random.uniform(key_area, minval=least_area, maxval=most_area)
    corner = jax.random.randint(key_corner, (), 0, 2 if balanced else 3)
    cutout, own = pick(pictures, sides, number)
    if balanced:  # the one place that differs from the top left: bottom for a wide object, right for a tall one
        corner = jnp.where(corner == 1, jnp.where(own[0] > TALL * own[1], 2, 1), 0)
    if rectangles:
        cutout = cutout.at[..., 3].set(255)
    box = placement(own, share, corner, *image.shape[:2])
    return paste(image, cutout, *box, jax.random.bernoulli(key_flip, flip), hard)


def other_images(batch: dict, together: int) -> dict:
    """``batch`` with another picture of the person as every picture's twin: the next one of its group.

    ``together`` pictures of a person stand side by side, as the sampler puts them; a person with fewer has some twice. The twin
    keeps its camera, ``occluded_camid`` int32 [B], and its labels.
    """

    def following(x: Array) -> Array:
        return jnp.roll(x.reshape(-1, together, *x.shape[1:]), -1, axis=1).reshape(x.shape)

    twins_of = {"image": "occluded", "camid": "occluded_camid", "parts": OCCLUDED_PARTS}
    return batch | {twin: following(batch[name]) for name, twin in twins_of.items() if name in batch}


def roa(config, mean: tuple[float, ...], std: tuple[float, ...], together: int = 1) -> Callable[[Array, dict], dict]:
    """A training augmentation with an occluded twin of every picture.

    ``config`` has ``flip``, ``pad`` and ``jitter`` as `augment.standard`, which both twins share, and ``occlusion`` with

    * ``kind``: "roa", "cut_and_paste" (whole boxes), "erasing" (random erasing with probability ``config.erasing``, which counts
      here only, of ``erased_area``, with noise "after" or "before" pictures are normalised), "other_image" (`other_images`, of
      which ``together`` stand side by side) or "none" (the twin is the picture),
    * ``probability`` that an object is pasted; ``least_area``, ``most_area``, ``balanced``, ``hard`` and ``flip`` as in
      `realistic_occlusion`.

    Returns ``augment(rng, batch)``, whose batch needs the library (`paste.LIBRARY`) unless nothing is pasted. The result has no
    library any more, ``image`` and ``occluded`` float32 [B, H, W, 3] normalised, and ``covered`` float32 [B], the share of
    pixels that are covered by more than half. ``parts`` moves along; ``occluded_parts`` is the same with the object. Raises
    `UserError` for an unknown kind, and for other images where a batch has one of a person.
    """
    erasing, settings = config.erasing, config.occlusion
    kind, probability = settings.kind, settings.probability
    check("kind", kind, KINDS)
    check("noise", settings.noise, NOISES)
    if kind == OTHER and together < 2:
        told = "needs several pictures of a person side by side: a sampler with images_per_identity of 2 or more"
        raise UserError(f"augment.occlusion.kind is '{OTHER}', which {told}")
    areas = dict(least_area=settings.least_area, most_area=settings.most_area)
    rules = dict(balanced=settings.balanced, hard=settings.hard, rectangles=kind == "cut_and_paste", flip=settings.flip)

    def one(key, image, parts, pictures, sides):
        key_geometry, key_jitter, key_use, key_occluder = jax.random.split(key, 4)
        image, parts = framed(key_geometry, key_jitter, image, parts, config)
        clean = occluded = appearance.normalise(image, mean, std)
        alpha = jnp.zeros(image.shape[:2])
        if kind == "erasing":
            source = clean if settings.noise == "after" else image
            occluded, alpha = erase(key_occluder, source, erasing, tuple(settings.erased_area))
            occluded = occluded if settings.noise == "after" else appearance.normalise(occluded, mean, std)
        elif kind in PASTED:
            pasted, alpha = realistic_occlusion(key_occluder, image, pictures, sides, **areas, **rules)
            alpha = jnp.where(jax.random.bernoulli(key_use, probability), alpha, 0.0)
            occluded = jnp.where(alpha[..., None] > 0, appearance.normalise(pasted, mean, std), clean)
        result = {"image": clean, "occluded": occluded, "covered": jnp.mean(alpha > COVERED)}
        return result | ({} if parts is None else {"parts": parts, OCCLUDED_PARTS: covered_parts(parts, alpha)})

    augment = twins(one, pastes=kind in PASTED)
    return augment if kind != OTHER else lambda rng, batch: other_images(augment(rng, batch), together)
