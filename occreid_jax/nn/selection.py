"""Dynamic token selection (DPSM): which patch tokens show the person, found by the widest gap between their sorted similarities,
and the weights of `occreid_jax.nn.pooling` that pool them into parts. Pure functions of arrays with static shapes: how many are
selected is data.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435), section III-A,
Eq. 1 to 6.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from occreid_jax.nn.pooling import bin_weights, bin_weights_by_way, stripe_weights
from occreid_jax.vectors import unit_vectors

Array = jax.Array
PROXIES = ("patch", "cls")
ORDERS = ("spatial", "rank", "stripes")


class Selection(NamedTuple):
    """What `select_tokens` finds. No gradient flows through any of it."""

    weights: Array  # float32 [B, parts, N]: row p averages the tokens of part p and sums to 1
    selected: Array  # bool [B, N]
    count: Array  # int32 [B], the number of selected tokens
    by_gap: Array  # int32 [B], the number before the minimum: the first tokens up to the widest gap
    scores: Array  # float32 [B, N] that rank the tokens: similarities to the proxy, or those that were given
    proxy: Array  # int32 [B], the patch that is most like the global feature
    between: Array  # int32 [B], bins that the tokens pass on their way into parts; ``count`` where they pass none


def select_tokens(
    whole: Array,
    tokens: Array,
    *,
    least: int | Array,
    parts: int,
    proxy: str = "patch",
    order: str = "spatial",
    fixed: int | Array = 0,
    ignore_first_gap: bool = False,
    normalise: bool = True,
    zero_based: bool = False,
    by_batch: bool = False,
    valid: Array | None = None,
    ranked_by: Array | None = None,
) -> Selection:
    """Selects patch tokens float [B, N, D] by their similarity to a proxy; the global feature ``whole`` is float [B, D].

    The proxy is the patch most like the global feature (Eq. 1), or with ``proxy="cls"`` that feature itself. Scores are
    similarities to it (Eq. 2), the proxy's own 1 among them. They are sorted (Eq. 3), and the k tokens before the widest gap are
    selected (Eq. 4 to 6), at least ``least`` of them, or ``fixed`` whatever the gaps are if that is not 0. ``ignore_first_gap``
    leaves out the gap behind the best score, which for the proxy is 1 minus the second best. ``normalise`` compares unit vectors.

    ``order`` says which selected tokens share a part: "spatial" keeps them as they stand in the image, from its top to its
    bottom, "rank" sorts them by score; both cut them into equal numbers. "stripes" (ours) leaves every token in its stripe of the
    image: the selected ones of a stripe are averaged, or all of it where none is selected. Ties keep the order of the tokens.
    ``ranked_by`` float32 [B, N] ranks the tokens in place of the similarities, which then say how many are selected and no more.
    ``least`` and ``fixed`` may be traced. ValueError for unknown words and for too few tokens to have a gap.

    Two slips of the official code are settings. ``zero_based`` takes the number of the widest gap, counted from 0, for the number
    of tokens: one too few. ``by_batch`` pools every image's tokens first into as many bins as the image of the batch with the
    fewest has tokens: what an image gives depends on the others. ``valid`` bool [B] leaves out images that only pad the batch.
    """
    for name, value, choices in (("proxy", proxy, PROXIES), ("order", order, ORDERS)):
        if value not in choices:
            raise ValueError(f"unknown {name} '{value}'; it must be one of {', '.join(choices)}")
    total, first = tokens.shape[1], int(ignore_first_gap)
    if total < 2 + first:
        raise ValueError(f"{total} tokens have no gap to be selected by")
    scores, closest = proxy_scores(whole, tokens, proxy, normalise)
    ranking = jnp.argsort(-scores, axis=1, stable=True)
    ordered = jnp.take_along_axis(scores, ranking, axis=1)
    if ranked_by is not None:
        scores = jax.lax.stop_gradient(ranked_by)
        ranking = jnp.argsort(-scores, axis=1, stable=True)
    ranks = jnp.argsort(ranking, axis=1)
    gaps = ordered[:, :-1] - ordered[:, 1:]
    by_gap = jnp.argmax(gaps[:, first:], axis=1) + first + (not zero_based)  # gap i, from 1, lies behind the i-th best token
    count = jnp.clip(jnp.where(jnp.asarray(fixed) > 0, fixed, jnp.maximum(by_gap, least)), 1, total)
    selected = ranks < count[:, None]
    count, by_gap, closest = (x.astype(jnp.int32) for x in (count, by_gap, closest))
    if order == "stripes":
        return Selection(stripe_weights(selected, parts), selected, count, by_gap, scores, closest, count)
    places = ranks if order == "rank" else jnp.cumsum(selected, axis=1) - 1
    if not by_batch:
        return Selection(bin_weights(places, selected, count, parts), selected, count, by_gap, scores, closest, count)
    fewest = jnp.min(count if valid is None else jnp.where(valid, count, total))
    weights = bin_weights_by_way(places, selected, count, fewest, parts)
    return Selection(weights, selected, count, by_gap, scores, closest, jnp.full_like(count, fewest))


def proxy_scores(whole: Array, tokens: Array, proxy: str, normalise: bool) -> tuple[Array, Array]:
    """Eq. 1 and 2: scores float32 [B, N] of the tokens, and the patch int32 [B] that is most like the global feature."""
    whole, tokens = jax.lax.stop_gradient((whole.astype(jnp.float32), tokens.astype(jnp.float32)))
    if normalise:
        whole, tokens = unit_vectors(whole), unit_vectors(tokens)
    scores = similarities(whole, tokens)
    closest = jnp.argmax(scores, axis=1)
    if proxy == "patch":
        scores = similarities(jnp.take_along_axis(tokens, closest[:, None, None], axis=1)[:, 0], tokens)
    return scores, closest


def similarities(one: Array, tokens: Array) -> Array:
    """Products float32 [B, N] of one vector [B, D] with every token [B, N, D] of its image."""
    return jnp.einsum("bd,bnd->bn", one, tokens, precision=jax.lax.Precision.HIGHEST)
