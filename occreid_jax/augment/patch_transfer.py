"""Saliency-guided patch transfer: one image's salient patches shown through the hole that another's leave in its scene.

Source: Tan et al., "Occluded Person Re-identification via Saliency-Guided Patch Transfer", AAAI 2024; DPM++ (arXiv 2605.06637)
Eq. 5 to 7; their official code. Works on patch tokens and on masks of the patch grid; everything has static shapes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PARTNERS = ("best", "official", "random")
FALLBACKS = ("none", "first")
HOLES = ("partner", "target")
COMPARED = ("unrolled", "rolled")
CHOICES = {
    "partners": PARTNERS,
    "threshold_on": COMPARED,
    "hole_of": HOLES,
    "fallback": FALLBACKS,
    "ignore_negatives": ("symmetric", "anchor", "none"),
}
RANGES = (
    ("probability", 0, 1),
    ("top_share", 0, 1),
    ("roll_step", 1, None),
    ("least_area", 0, 1),
    ("among", 0, None),
)
"""What the settings of a method that has it may be, as `MethodBase.choices` and ``ranges``."""
EMPTY = -1.0  # the score of a candidate whose mask is empty: never chosen
ROUNDING = 1e-6  # of a share of the patches: 0.28 of 25 are 7, not 8
SMALL = 1e-4  # random amount that breaks ties: many candidates have the score 1


class Transfer(NamedTuple):
    """Who lends its scene to whom. ``partner`` of an image that stays as it is, is the image itself."""

    partner: Array  # int32 [B], row of the image whose scene and hole are used
    used: Array  # bool [B], whether the image is recombined


def rolled_overlaps(masks: Array, grid: tuple[int, int], step: int = 1) -> Array:
    """OIoU of every image with every candidate under every shift, float32 [B, W, B] (DPM++ Eq. 6).

    ``masks`` bool or 0/1 [B, h w], row-major. Entry [i, s, j] is the share of candidate j's salient patches that image i's cover
    once they are rolled ``s * step`` columns to the right, cyclically; W is the number of shifts, w / step rounded up. A
    candidate without salient patches scores `EMPTY`.
    """
    masks = masks.astype(jnp.float32)
    maps = masks.reshape(-1, *grid)
    shifts = range(0, grid[1], step)
    rolled = jnp.stack([jnp.roll(maps, shift, axis=2).reshape(masks.shape) for shift in shifts], axis=1)
    area = jnp.sum(masks, axis=-1)
    shared = jnp.einsum("isn,jn->isj", rolled, masks, precision=jax.lax.Precision.HIGHEST)
    # Without the barrier XLA multiplies by 1 / area, which puts 21 / 30 above a threshold of 0.7 and unties equal shares.
    divisor = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.maximum(area, 1.0), shared.shape))
    return jnp.where(area > 0, shared / divisor, EMPTY)


def choose_partners(
    rng: Array,
    masks: Array,
    grid: tuple[int, int],
    labels: Array,
    *,
    probability: float,
    partners: str = "best",
    threshold: float = 0.7,
    rolling: bool = True,
    rolling_threshold: float = 0.0,
    roll_step: int = 1,
    top_share: float = 0.1,
    threshold_on: str = "unrolled",
    exclude_same_identity: bool = False,
    least_area: float = 0.0,
    fallback: str = "none",
) -> Transfer:
    """Draws a partner for every image of a batch, from masks [B, h w] and labels int32 [B].

    ``partners``:
      "best"      each candidate has its best score over all shifts (``rolling``; otherwise unshifted). Of the best
                  k = max(1, floor(``top_share`` B)) candidates, the image itself excluded, those count whose OIoU exceeds
                  ``threshold`` (``threshold_on`` "unrolled" or "rolled") and whose best score exceeds ``rolling_threshold``;
                  one of them is drawn evenly.
      "official"  SPT's code: the k best of all (shift, candidate) pairs, the very best left out, drawn evenly among those
                  that are another image and exceed ``threshold`` unrolled. There a candidate may stand several times.
      "random"    any other image that has salient patches at all.

    An image is recombined with ``probability``, if a candidate counts. ``fallback`` says what happens if none does: "none"
    leaves it as it is, "first" takes the best pair whatever it scores (SPT's code after 100 failures), which may be the image
    itself and then changes nothing. At least a share ``least_area`` of a candidate's patches is salient, and one is.
    """
    check_words(partners, fallback, threshold_on)
    count, top = masks.shape[0], max(1, int(top_share * masks.shape[0]))
    key_tie, key_pick, key_use = jax.random.split(rng, 3)
    barred = barred_pairs(masks, labels, least_area, exclude_same_identity)
    if partners == "random":
        first = partner = jax.random.categorical(key_pick, jnp.where(barred, -1e9, 0.0), axis=1)
        possible = ~jnp.all(barred, axis=1)
    else:
        scores = rolled_overlaps(masks, grid, roll_step)
        unrolled = scores[:, 0]
        best = jnp.max(scores, axis=1) if rolling else unrolled
        if partners == "best":
            candidate, value, first = best_candidates(key_tie, best, barred, top)
        else:
            candidate, value, first = official_candidates(scores if rolling else scores[:, :1], top)
        overlap = jnp.take_along_axis(unrolled if threshold_on == "unrolled" else best, candidate, axis=1)
        counts = (overlap > threshold) & (value > rolling_threshold) & ~jnp.take_along_axis(barred, candidate, axis=1)
        pick = jax.random.categorical(key_pick, jnp.where(counts, 0.0, -1e9), axis=1)[:, None]
        partner = jnp.take_along_axis(candidate, pick, axis=1)[:, 0]
        possible = jnp.any(counts, axis=1)
    if fallback == "first":
        partner = jnp.where(possible, partner, first)
        possible = possible | ~jnp.take_along_axis(barred, first[:, None], axis=1)[:, 0]
    used = possible & jax.random.bernoulli(key_use, probability, (count,))
    partner = jnp.where(used, partner, jnp.arange(count)).astype(jnp.int32)
    return Transfer(partner, used & (partner != jnp.arange(count)))


def choose_in_shares(
    rng: Array, masks: Array, grid: tuple[int, int], labels: Array, *, shares: int = 1, **settings
) -> Transfer:
    """`choose_partners` in each of ``shares`` equal shares of a batch, which are its consecutive images [B / shares].

    Whoever shares its tokens lies near then: where a batch is spread over devices, none has to fetch those of the whole batch.
    ``top_share`` counts candidates of a share. What is drawn depends on the number of shares and never on that of devices.
    """
    if shares == 1:
        return choose_partners(rng, masks, grid, labels, **settings)

    def choose(rng: Array, masks: Array, labels: Array) -> Transfer:
        return choose_partners(rng, masks, grid, labels, **settings)

    found = jax.vmap(choose)(jax.random.split(rng, shares), cut(masks, shares), cut(labels, shares))
    first = jnp.arange(0, len(labels), len(labels) // shares, dtype=jnp.int32)[:, None]
    return Transfer((found.partner + first).reshape(-1), found.used.reshape(-1))


def cut(array: Array, shares: int) -> Array:
    """[B, ...] -> [shares, B / shares, ...]."""
    return array.reshape(shares, -1, *array.shape[1:])


def fewest_shares(count: int, most: int, together: int = 1) -> int | None:
    """Into how many equal shares a batch of ``count`` images is cut if none may have more than ``most`` (0: there is no limit).

    ``together`` neighbours show one identity and stay in one share. None if a share would not have two identities.
    """
    if not most or count <= most:
        return 1
    identities = count // together
    fits = (shares for shares in range(2, identities // 2 + 1) if identities % shares == 0 and count // shares <= most)
    return next(fits, None)


def check_words(partners: str, fallback: str, threshold_on: str) -> None:
    """ValueError for a word that `choose_partners` does not know."""
    for name, value, known in (
        ("partners", partners, PARTNERS), ("fallback", fallback, FALLBACKS), ("threshold_on", threshold_on, COMPARED),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"unknown {name} '{value}'; it must be one of {', '.join(known)}")


def barred_pairs(masks: Array, labels: Array, least_area: float, exclude_same_identity: bool) -> Array:
    """Who never serves whom, bool [B, B] (image, candidate): nobody himself, nor a mask of less than a share ``least_area``."""
    least = max(math.ceil(least_area * masks.shape[-1] - ROUNDING), 1)
    barred = jnp.eye(len(masks), dtype=bool) | (jnp.sum(masks, axis=-1) < least)[None, :]
    return barred | (labels[:, None] == labels[None, :]) if exclude_same_identity else barred


def best_candidates(rng: Array, best: Array, barred: Array, top: int) -> tuple[Array, Array, Array]:
    """The ``top`` candidates by their best scores [B, B], ties broken at random, barred ones (bool [B, B]) last: candidates int32
    [B, k], their scores, and the first of them [B]."""
    ranked = jnp.where(barred, EMPTY, best) + SMALL * jax.random.uniform(rng, best.shape)
    _, candidate = jax.lax.top_k(ranked, min(top, len(best)))
    return candidate, jnp.take_along_axis(best, candidate, axis=1), candidate[:, 0]


def official_candidates(scores: Array, top: int) -> tuple[Array, Array, Array]:
    """As `best_candidates`, of all pairs of shift and candidate in scores [B, W, B]: ranks 1 to ``top`` - 1, and rank 0 as the
    first. A batch too small for that uses rank 1."""
    count = len(scores)
    flat = scores.reshape(count, -1)
    value, index = jax.lax.top_k(flat, min(max(top, 2), flat.shape[1]))
    return index[:, 1:] % count, value[:, 1:], index[:, 0] % count


def hole_owner(partner: Array, hole_of: str) -> Array:
    """Row int32 [B] of the image whose salient patches each image of a batch is shown through: its partner's or its own."""
    if hole_of not in HOLES:
        raise ValueError(f"unknown hole_of '{hole_of}'; it must be one of {', '.join(HOLES)}")
    return partner if hole_of == "partner" else jnp.arange(len(partner))


def recombine(tokens: Array, masks: Array, partner: Array, hole_of: str = "partner", shares: int = 1) -> Array:
    """Tokens float [B, N, D] of recombined images (Eq. 7): image i where its partner's mask [B, N] is 1, the partner elsewhere.

    ``partner`` int32 [B]; an image that is its own partner stays exactly as it is. The paper lost the symbol of the mask; the
    official code has the "partner"'s, the one direction that fits OIoU's denominator, and ``hole_of="target"`` takes the
    image's own. Works for anything with the patch as its second axis, such as masks [B, N, 1]. With ``shares`` partners are those
    of `choose_in_shares`.
    """
    if shares > 1:
        within = cut(partner, shares) % (len(partner) // shares)
        made = jax.vmap(lambda *share: recombine(*share, hole_of))(cut(tokens, shares), cut(masks, shares), within)
        return made.reshape(tokens.shape)
    hole = masks[hole_owner(partner, hole_of)].astype(tokens.dtype)[..., None]
    changed = hole * tokens + (1 - hole) * tokens[partner]
    own = (partner == jnp.arange(len(partner))).reshape(-1, *[1] * (tokens.ndim - 1))
    return jnp.where(own, tokens, changed)


def ignored_negatives(labels: Array, transfer: Transfer, symmetric: bool = True) -> Array:
    """Pairs bool [B, B] (anchor, other) that are no negatives, since one of them shows the other's identity (DPM++ 3.4).

    Anchor i that borrowed from identity c is not pushed away from images of c; ``symmetric`` adds the reverse: an anchor of
    identity c is not pushed away from i. Labels int32 [B].
    """
    donor = labels[transfer.partner]
    rows = (transfer.used & (donor != labels))[:, None] & (labels[None, :] == donor[:, None])
    return rows | rows.T if symmetric else rows


def left_out_identity(labels: Array, transfer: Transfer) -> Array:
    """The identity int32 [B] whose logit does not count for a row: its partner's if that is another one, otherwise -1."""
    donor = labels[transfer.partner]
    return jnp.where(transfer.used & (donor != labels), donor, -1)
