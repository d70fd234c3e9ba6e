"""Dynamic token selection (DPSM): which patch tokens show the person, found by the widest gap between their sorted similarities,
and their adaptive average pooling into parts. Pure functions of arrays with static shapes: how many are selected is data.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435), section III-A,
Eq. 1 to 6.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PROXIES = ("patch", "cls")
ORDERS = ("spatial", "rank")


class Selection(NamedTuple):
    """What `select_tokens` finds. No gradient flows through any of it."""

    weights: Array  # float32 [B, parts, N]: row p averages the tokens of part p and sums to 1
    selected: Array  # bool [B, N]
    count: Array  # int32 [B], the number of selected tokens
    found: Array  # int32 [B], the number before the minimum: the first tokens up to the widest gap
    scores: Array  # float32 [B, N], similarity to the proxy
    proxy: Array  # int32 [B], the patch that is most like the cls token


def bin_weights(places: Array, kept: Array, count: Array, parts: int) -> Array:
    """Adaptive average pooling of ``count`` tokens into ``parts`` bins, as a matrix: float32 [..., parts, N].

    ``places`` int32 [..., N] is each token's place among the kept ones, ``kept`` bool [..., N], ``count`` int32 [...]. Bin p
    runs from floor(p k / P) to ceil((p + 1) k / P), as in torch's adaptive pooling: neighbours share a token where P does not
    divide k, and no bin is empty, even for k < P.
    """
    bins, count = jnp.arange(parts), count[..., None]
    start, end = bins * count // parts, ((bins + 1) * count + parts - 1) // parts
    places = places[..., None, :]
    inside = kept[..., None, :] & (places >= start[..., None]) & (places < end[..., None])
    return inside / (end - start)[..., None].astype(jnp.float32)


def stripe_weights(tokens: int, parts: int) -> Array:
    """Adaptive average pooling of all tokens in their own order, float32 [parts, tokens]."""
    return bin_weights(jnp.arange(tokens), jnp.ones(tokens, bool), jnp.int32(tokens), parts)


def pool(weights: Array, tokens: Array) -> Array:
    """Weighted sums of tokens [B, N, D] under weights [B, parts, N] or [parts, N], float32 [B, parts, D]."""
    return jnp.matmul(weights, tokens.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def select_tokens(
    cls: Array,
    tokens: Array,
    *,
    least: int | Array,
    parts: int,
    proxy: str = "patch",
    order: str = "spatial",
    fixed: int | Array = 0,
    ignore_first_gap: bool = False,
    normalise: bool = True,
) -> Selection:
    """Selects patch tokens float [B, N, D] by their similarity to a proxy; cls is float [B, D].

    The proxy is the patch most like the cls token (Eq. 1), or with ``proxy="cls"`` that token itself. Scores are similarities
    to it (Eq. 2), the proxy's own 1 among them. They are sorted (Eq. 3), and the k tokens before the widest gap are selected
    (Eq. 4 to 6), at least ``least`` of them, or ``fixed`` whatever the gaps are if that is not 0. ``ignore_first_gap`` leaves
    out the gap behind the best score, which for the proxy is 1 minus the second best. ``normalise`` compares unit vectors.

    ``order`` says which selected tokens share a part: "spatial" keeps them as they stand in the image, from its top to its
    bottom, "rank" sorts them by score. Ties keep the order of the tokens. ``least`` and ``fixed`` may be traced. ValueError for
    unknown words and for too few tokens to have a gap.
    """
    for name, value, choices in (("proxy", proxy, PROXIES), ("order", order, ORDERS)):
        if value not in choices:
            raise ValueError(f"unknown {name} '{value}'; it must be one of {', '.join(choices)}")
    total, first = tokens.shape[1], int(ignore_first_gap)
    if total < 2 + first:
        raise ValueError(f"{total} tokens have no gap to be selected by")
    cls, tokens = jax.lax.stop_gradient((cls.astype(jnp.float32), tokens.astype(jnp.float32)))
    if normalise:
        unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
        cls, tokens = unit(cls), unit(tokens)
    similar = lambda one: jnp.einsum("bd,bnd->bn", one, tokens, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    scores = similar(cls)
    closest = jnp.argmax(scores, axis=1)
    if proxy == "patch":
        scores = similar(jnp.take_along_axis(tokens, closest[:, None, None], axis=1)[:, 0])
    ranking = jnp.argsort(-scores, axis=1, stable=True)
    ranks = jnp.argsort(ranking, axis=1)
    ordered = jnp.take_along_axis(scores, ranking, axis=1)
    gaps = ordered[:, :-1] - ordered[:, 1:]
    found = jnp.argmax(gaps[:, first:], axis=1) + first + 1  # gap i, from 1, lies behind the i-th best token
    count = jnp.where(jnp.asarray(fixed) > 0, fixed, jnp.maximum(found, least))
    count = jnp.clip(count, 1, total)
    selected = ranks < count[:, None]
    places = ranks if order == "rank" else jnp.cumsum(selected, axis=1) - 1
    integer = lambda x: x.astype(jnp.int32)  # noqa: E731
    return Selection(
        bin_weights(places, selected, count, parts), selected, integer(count), integer(found), scores, integer(closest)
    )
