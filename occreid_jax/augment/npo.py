"""Non-pedestrian occlusion: a rectangle pasted along one edge of every picture, and which stripes of it are still visible.

Source: "Feature Erasing and Diffusion Network for Occluded Person Re-Identification" (CVPR 2022), section 3.1, and its official
code. Differences: the rectangle is resized with an antialiased bilinear filter instead of a bicubic one, and colour jitter comes
after the picture was resized and does not round to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import appearance, geometry
from occreid_jax.augment.paste import COVERED, OCCLUDED_PARTS, check, covered_parts, erase, paste, pick, twins

Array = jax.Array

KINDS = ("npo", "erasing", "none")
RULES = ("difference", "coverage")
JITTER = (0.5, 0.5, 0.5, 0.0)  # brightness, contrast, saturation and hue of horizontal occluders
SIZES = (0.25, 0.5)  # of the picture's width for a vertical occluder, of its height for a horizontal one
DOMINANT = 3.0  # a stripe that changed so many times as much as the second one is hidden alone
HIDDEN = 0.75  # rule "coverage": a stripe is hidden above this share of covered pixels


def draw_box(key: Array, vertical: Array, height: int, width: int) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width) int32 [] in pixels: as high as the picture (``vertical`` bool []) or as wide, in a corner.

    The other side is a whole number, evenly between a quarter and a half of the picture's, both included.
    """
    key_width, key_height, key_right, key_bottom = jax.random.split(key, 4)

    def draw(key: Array, side: int) -> Array:
        return jax.random.randint(key, (), round(SIZES[0] * side), round(SIZES[1] * side) + 1)

    box_width = jnp.where(vertical, draw(key_width, width), width)
    box_height = jnp.where(vertical, height, draw(key_height, height))
    top = jnp.where(jax.random.bernoulli(key_bottom), height - box_height, 0)
    left = jnp.where(jax.random.bernoulli(key_right), width - box_width, 0)
    return top, left, box_height, box_width


def natural_occlusion(
    rng: Array, image: Array, pictures: Array, sides: Array, *, aspect: float = 2.0, contour: bool = False
) -> tuple[Array, Array]:
    """Pastes one picture of a library on one image float32 [H, W, 3] in 0..1.

    ``pictures`` uint8 [K, S, S * 4], ``sides`` int32 [K, 2]. More than ``aspect`` times as high as wide is vertical, all others
    are horizontal and get their own colour jitter; both are mirrored half of the time. ``contour`` keeps the opacity of
    cut-outs, otherwise the whole box is opaque. Returns the image and the opacity float32 [H, W].
    """
    key_object, key_jitter, key_box, key_flip = jax.random.split(rng, 4)
    number = jax.random.randint(key_object, (), 0, len(pictures))
    cutout, own = pick(pictures, sides, number)
    cutout = cutout.astype(jnp.float32) / 255.0
    vertical = own[0] > aspect * own[1]
    colour = jnp.where(vertical, cutout[..., :3], appearance.colour_jitter(key_jitter, cutout[..., :3], *JITTER))
    opacity = cutout[..., 3:] if contour else jnp.ones_like(cutout[..., 3:])
    box = draw_box(key_box, vertical, *image.shape[:2])
    return paste(image, jnp.concatenate([colour, opacity], axis=-1), *box, jax.random.bernoulli(key_flip))


def stripe_means(values: Array, parts: int) -> Array:
    """Means float32 [..., parts] of values [..., H, W] over equal horizontal stripes; a row counts where its top edge lies."""
    height, width = values.shape[-2:]
    member = np.arange(height) * parts // height == np.arange(parts)[:, None]
    sums = jnp.einsum("pr,...r->...p", member.astype(np.float32), jnp.sum(values, -1), precision=jax.lax.Precision.HIGHEST)
    return sums / (member.sum(axis=1) * width)


def visible_by_difference(means: Array) -> Array:
    """The official labels float32 [..., P], 1 visible and 0 hidden, from the mean change float32 [..., P] of every stripe.

    If all stripes changed, or none, all are visible. If one changed more than `DOMINANT` times as much as any other, it alone is
    hidden. Otherwise all that changed are.
    """
    changed = means > 0
    count, parts = jnp.sum(changed, axis=-1, keepdims=True), means.shape[-1]
    largest = jnp.argmax(means, axis=-1, keepdims=True) == jnp.arange(parts)
    first = jnp.max(means, axis=-1, keepdims=True)
    second = jnp.max(jnp.where(largest, 0.0, means), axis=-1, keepdims=True)
    hidden = jnp.where(first > DOMINANT * second, largest, changed) & (count > 0) & (count < parts)
    return 1.0 - hidden.astype(jnp.float32)


def visible_by_coverage(covered: Array) -> Array:
    """The paper's labels float32 [..., P]: a stripe is hidden if more than `HIDDEN` of it is covered (float32 [..., P])."""
    return 1.0 - (covered > HIDDEN).astype(jnp.float32)


def npo(config, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Array, dict], dict]:
    """FED's training augmentation: jitter, flip, pad and crop, then an occluded twin and its stripe labels.

    ``config`` has ``jitter``, ``flip`` and ``pad`` as `augment.standard`, which both twins share (jitter comes first here), and
    ``occlusion`` with

    * ``kind``: "npo", "erasing" (random erasing with probability ``config.erasing``, which counts here only) or "none" (the twin
      is the picture itself),
    * ``parts``, the number of stripes; ``stripe_rule``: "difference" (official code) or "coverage" (paper),
    * ``aspect`` and ``contour`` as in `natural_occlusion`.

    Returns ``augment(rng, batch)``, whose batch needs the library (`paste.LIBRARY`) if something is pasted. The result has no
    library any more, ``image`` and ``occluded`` float32 [B, H, W, 3] normalised, ``visible`` float32 [B, parts] of 1 and 0, and
    ``covered`` float32 [B, parts], the share of a stripe's pixels that are covered by more than half. ``parts`` moves along;
    ``occluded_parts`` is the same with the occluder. Raises `UserError` for an unknown kind or rule.
    """
    flip, pad, jitter, erasing = config.flip, config.pad, tuple(config.jitter), config.erasing
    settings = config.occlusion
    kind, rule, stripes, aspect, contour = (settings[name] for name in ("kind", "stripe_rule", "parts", "aspect", "contour"))
    check("kind", kind, KINDS)
    check("stripe_rule", rule, RULES)

    def one(key, image, parts, pictures, sides):
        key_jitter, key_geometry, key_occluder = jax.random.split(key, 3)
        image = image.astype(jnp.float32) / 255.0
        if any(jitter):
            image = appearance.colour_jitter(key_jitter, image, *jitter)
        image, parts = geometry.flip_pad_crop(key_geometry, image, parts, flip, pad)
        clean = occluded = appearance.normalise(image, mean, std)
        alpha = jnp.zeros(image.shape[:2])
        if kind == "erasing":
            occluded, alpha = erase(key_occluder, clean, erasing)
        elif kind == "npo":
            pasted, alpha = natural_occlusion(key_occluder, image, pictures, sides, aspect=aspect, contour=contour)
            occluded = jnp.where(alpha[..., None] > 0, appearance.normalise(pasted, mean, std), clean)
        covered = stripe_means((alpha > COVERED).astype(jnp.float32), stripes)
        if rule == "difference":  # in units of the picture before normalisation
            change = jnp.sum(jnp.abs(occluded - clean) * jnp.asarray(std, jnp.float32), axis=-1)
            change = jnp.where(alpha > 0, change, 0.0)  # zero to the last bit, however the two twins were rounded
            visible = visible_by_difference(stripe_means(change, stripes))
        else:
            visible = visible_by_coverage(covered)
        result = {"image": clean, "occluded": occluded, "visible": visible, "covered": covered}
        return result | ({} if parts is None else {"parts": parts, OCCLUDED_PARTS: covered_parts(parts, alpha)})

    return twins(one, pastes=kind == "npo")
