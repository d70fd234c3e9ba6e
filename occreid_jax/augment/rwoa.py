"""Real-world occlusion augmentation (RWOA) and what the paper compares it with: ways to hide a part of single pictures.

Source: DPL-ReID (arXiv 2605.19527), sections 3.1 and 4.4. Comparisons: random erasing (Zhong et al. 2020), random cropping,
Hide-and-Seek (Kumar Singh and Lee 2017), CutMix (Yun et al. 2019), and OIA's placement (FCFormer, Wang et al. 2024), which the
paper only names: objects are put where their shape allows, in place of where they stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from occreid_jax.augment import appearance, erasing, frames, geometry, image_keys, standard
from occreid_jax.augment.paste import COVERED, LIBRARY, check, covered_parts, pick, resampling

Array = jax.Array

PASTED = ("rwoa", "oia")  # kinds that need a library of frames
KINDS = (*PASTED, "hide_and_seek", "cutmix", "cropping", "erasing", "none")
TALL = 2.0  # OIA: an object is tall if it is more than so many times as high as wide
PARTNER = "partner"  # the other picture that CutMix cuts from, uint8 [B, H, W, 3]


class Hidden(NamedTuple):
    """A picture of which a part is hidden."""

    image: Array  # float32 [H, W, 3] in 0..1
    alpha: Array  # float32 [H, W], how much of each pixel is covered; 0 everywhere for cropping
    pasted: Array  # float32 [H, W, 3] before the colours were matched; ``image`` where nothing is matched


def rwoa(key: Array, image: Array, frame: Array, sides: Array, settings) -> Hidden:
    """A frame uint8 [S, S, 4] laid over the whole picture, mirrored with probability ``settings.flip``, softened and matched."""
    mirrored = jax.random.bernoulli(key, settings.flip)
    height, width = image.shape[:2]
    return laid(image, frames.premultiplied(frame), (0, 0, height, width), mirrored, settings)


def oia(key: Array, image: Array, frame: Array, sides: Array, settings) -> Hidden:
    """The object of a frame placed by its shape alone: tall ones as high as the picture at any column, others as wide as it, or
    as much wider as they were, with their lower edge in the lower half."""
    key_flip, key_place, key_size = jax.random.split(key, 3)
    height, width = image.shape[:2]
    top, left, tall, wide = frames.object_box(frame)
    own = (tall * sides[0]) / jnp.maximum(wide * sides[1], 1.0)  # height over width, as it was drawn
    scale, place = jax.random.uniform(key_size, minval=0.8, maxval=1.2), jax.random.uniform(key_place)
    is_tall = own > TALL
    box_height = jnp.where(is_tall, height * 1.0, jnp.minimum(scale * width * own, 0.75 * height))
    box_width = jnp.where(is_tall, jnp.minimum(height / own, 0.6 * width), scale * width)
    box_top = jnp.where(is_tall, 0.0, height * (0.5 + 0.5 * place) - box_height)
    box_left = jnp.where(is_tall, place * width - 0.5 * box_width, 0.5 * (width - box_width))
    # The whole frame is stretched so that the object's own box comes to lie in the wanted one.
    whole_height, whole_width = box_height / tall, box_width / wide
    mirrored = jax.random.bernoulli(key_flip, settings.flip)
    left = jnp.where(mirrored, 1.0 - left - wide, left)
    box = (box_top - top * whole_height, box_left - left * whole_width, whole_height, whole_width)
    return laid(image, frames.premultiplied(frame), box, mirrored, settings)


def laid(image: Array, frame: Array, box, mirrored: Array, settings) -> Hidden:
    """A frame over a picture, with soft edges and, with ``settings.align``, the picture's colours."""
    layer = frames.lay(frame, image.shape[:2], box, mirrored)
    colour, alpha = frames.feather(layer, settings.erode, settings.blur)
    pasted = frames.composite(image, colour, alpha)
    matched = jnp.clip(frames.align(pasted, image), 0.0, 1.0) if settings.align else pasted
    return Hidden(matched, alpha, pasted)


def hide_and_seek(key: Array, image: Array, fill: tuple[float, ...], settings) -> Hidden:
    """Every cell of a grid of ``settings.cells`` rows and columns hidden with probability 1/2 behind the mean colour ``fill``."""
    hidden = jax.random.bernoulli(key, 0.5, tuple(settings.cells)).astype(jnp.float32)
    rows, columns = (jnp.arange(side) * cells // side for side, cells in zip(image.shape[:2], settings.cells, strict=True))
    alpha = hidden[rows][:, columns]
    return whole(frames.composite(image, jnp.broadcast_to(jnp.asarray(fill), image.shape), alpha), alpha)


def cutmix(key: Array, image: Array, partner: Array) -> Hidden:
    """A box of another picture at its own place; its share is even between 0 and 1, its sides those of the picture times the
    root of it. The picture keeps its label: here it is a way to hide."""
    key_share, key_row, key_column = jax.random.split(key, 3)
    scale = jnp.sqrt(jax.random.uniform(key_share))
    inside = []
    for key_place, length in zip((key_row, key_column), image.shape[:2], strict=True):
        middle = jax.random.uniform(key_place) * length
        place = jnp.arange(length) + 0.5
        inside.append(jnp.abs(place - middle) < 0.5 * scale * length)
    alpha = (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)
    return whole(frames.composite(image, partner, alpha), alpha)


def cropping(key: Array, image: Array, settings) -> Hidden:
    """A part of the picture, between ``settings.least_kept`` and all of either side, stretched over the whole frame."""
    matrices = []
    for key_side, length in zip(jax.random.split(key), image.shape[:2], strict=True):
        key_share, key_start = jax.random.split(key_side)
        kept = jax.random.uniform(key_share, minval=settings.least_kept, maxval=1.0) * length
        start = jax.random.uniform(key_start) * (length - kept)
        matrices.append(resampling(length, -start * length / kept, length * length / kept, length))
    cut = jnp.einsum("yi,ijc,xj->yxc", matrices[0], image, matrices[1], precision=frames.EXACT)
    return whole(cut, jnp.zeros(image.shape[:2]))


def erased(key: Array, image: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Hidden:
    """One box of noise, which is N(0, 1) once pictures are normalised."""
    noisy, inside = erasing.erase_box(key, appearance.normalise(image, mean, std), 1.0)
    noisy = noisy * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)
    return whole(jnp.where(inside[..., None], noisy, image), inside.astype(jnp.float32))


def whole(image: Array, alpha: Array) -> Hidden:
    return Hidden(image, alpha, image)


def hider(settings, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[..., tuple[Hidden, Array]]:
    """``hide(key, image, partner, library)`` of one picture float32 [H, W, 3] in 0..1 -> `Hidden` and whether it was, bool [].

    ``settings`` is a config's block ``occlusion``: ``kind`` (one of `KINDS`), ``probability`` that a picture is changed at all,
    and those that the functions above name. ``partner`` float32 [H, W, 3] or None, ``library`` the arrays that `LIBRARY` names or
    (None, None). A picture that is not changed is the one given to the last bit. Raises `UserError` for an unknown kind.
    """
    kind = settings.kind
    check("kind", kind, KINDS)

    def chosen(key: Array, image: Array, partner: Array | None, library: tuple[Array | None, Array | None]) -> Hidden:
        if kind in PASTED:
            pictures, sides = library
            key_number, key = jax.random.split(key)
            number = jax.random.randint(key_number, (), 0, len(pictures))
            frame, own = pick(pictures, sides, number)
            return (rwoa if kind == "rwoa" else oia)(key, image, frame, own, settings)
        if kind == "hide_and_seek":
            return hide_and_seek(key, image, mean, settings)
        if kind == "cutmix":
            return cutmix(key, image, partner)
        return cropping(key, image, settings) if kind == "cropping" else erased(key, image, mean, std)

    def hide(key: Array, image: Array, partner: Array | None, library) -> tuple[Hidden, Array]:
        key_use, key_how = jax.random.split(key)
        if kind == "none":
            return whole(image, jnp.zeros(image.shape[:2])), jnp.zeros((), bool)
        used = jax.random.bernoulli(key_use, settings.probability)
        found = chosen(key_how, image, partner, library)
        plain = whole(image, jnp.zeros_like(found.alpha))
        return jax.tree.map(lambda a, b: jnp.where(used, a, b), found, plain), used

    return hide


def partners(images: Array, together: int = 1) -> Array:
    """Another picture of the batch for every one, [B, ...] -> [B, ...]: ``together`` of a person stand side by side."""
    return jnp.roll(images, together, axis=0)


def hide_all(settings, mean, std, keys: Array, images: Array, batch: Mapping[str, Any]) -> tuple[Hidden, Array]:
    """`hider` on pictures float32 [B, H, W, 3] in 0..1 with one key each; ``batch`` has the library where one is needed, and
    `PARTNER` for CutMix."""
    hide = hider(settings, mean, std)
    library = tuple(batch[name] for name in LIBRARY) if settings.kind in PASTED else (None, None)
    partner = batch.get(PARTNER)
    return jax.vmap(hide, in_axes=(0, 0, None if partner is None else 0, None))(keys, images, partner, library)


def occluding(config, mean: tuple[float, ...], std: tuple[float, ...], together: int = 1) -> Callable[[Array, dict], dict]:
    """The training augmentation: hide, flip, pad and crop, jitter, normalise, erase.

    ``config`` has what `augment.standard` reads and ``occlusion``, see `hider`. Returns ``augment(rng, batch)``; the batch needs
    the library (`LIBRARY`) for the kinds in `PASTED`. The result has none any more, ``image`` float32 [B, H, W, 3] normalised,
    ``occluded`` float32 [B], 1 where a picture was changed, and ``covered`` float32 [B], the share of pixels that are covered by
    more than half. ``parts`` moves along and gets the occluder. With kind "none" it is `augment.standard` itself.
    """
    settings = config.occlusion
    check("kind", settings.kind, KINDS)
    plain = standard(config, mean, std)
    if settings.kind == "none":
        return plain
    flip, pad, jitter, erase = config.flip, config.pad, tuple(config.jitter), config.erasing

    def one(key, image, parts):
        key_geometry, key_jitter, key_erase = jax.random.split(key, 3)
        image, parts = geometry.flip_pad_crop(key_geometry, image, parts, flip, pad)
        if any(jitter):
            image = appearance.colour_jitter(key_jitter, image, *jitter)
        image = appearance.normalise(image, mean, std)
        return (erasing.random_erasing(key_erase, image, erase) if erase else image), parts

    def augment(rng: Array, batch: dict) -> dict:
        key_hide, key_rest = jax.random.split(rng)
        images, parts = batch["image"].astype(jnp.float32) / 255.0, batch.get("parts")
        given = batch | ({PARTNER: partners(images, together)} if settings.kind == "cutmix" else {})
        keys = image_keys(key_hide, len(images))
        hidden, used = hide_all(settings, mean, std, keys, images, given)
        if parts is not None:
            parts = covered_parts(parts, hidden.alpha)
        image, parts = jax.vmap(one)(image_keys(key_rest, len(images)), hidden.image, parts)
        covered = jnp.mean(hidden.alpha > COVERED, axis=(1, 2))
        changed = {"image": image, "occluded": used.astype(jnp.float32), "covered": covered}
        rest = {name: value for name, value in batch.items() if name not in LIBRARY}
        return rest | changed | ({} if parts is None else {"parts": parts})

    return augment
