"""Adaptive average pooling of tokens, as torch's ``AdaptiveAvgPool1d`` cuts them: bin p of P runs from floor(p k / P) to
ceil((p + 1) k / P) of k tokens. Neighbours share a token where P does not divide k, and no bin is empty, even for k < P.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def bounds(bins: int | Array, count: int | Array, parts: int) -> tuple[int | Array, int | Array]:
    """First token of a bin and the one behind its last, of ``count`` tokens in ``parts`` bins: whole numbers or int32 arrays."""
    return bins * count // parts, ((bins + 1) * count + parts - 1) // parts


def part_pool(tokens: Array, parts: int) -> Array:
    """Means of all tokens in their own order, which row by row are stripes of an image: [B, N, D] -> [B, parts, D]."""
    edges = [bounds(part, tokens.shape[1], parts) for part in range(parts)]
    return jnp.stack([jnp.mean(tokens[:, start:end], axis=1) for start, end in edges], axis=1)


def bin_weights(places: Array, kept: Array, count: Array, parts: int) -> Array:
    """The pooling of ``count`` chosen tokens as a matrix, float32 [..., parts, N]: a row averages the tokens of one bin.

    ``places`` int32 [..., N] is each token's place among the kept ones, ``kept`` bool [..., N], ``count`` int32 [...].
    """
    return bins_of(places, kept, count, jnp.arange(parts), parts)


def bin_weights_by_way(places: Array, kept: Array, count: Array, between: Array, parts: int) -> Array:
    """`bin_weights` in two poolings: ``count`` tokens into ``between`` int32 [] bins, and these into ``parts``."""
    most = places.shape[-1]
    bins = jnp.arange(most)
    first = bins_of(places, kept, count, bins, between)
    second = bin_weights(bins, bins < between, between, parts)
    return jnp.matmul(second, first, precision=jax.lax.Precision.HIGHEST)


def bins_of(places: Array, kept: Array, count: Array, bins: Array, parts: int | Array) -> Array:
    """Rows of `bin_weights` for the numbers ``bins`` int32 [M] of ``parts``, which may be traced: float32 [..., M, N]."""
    start, end = bounds(bins, count[..., None], parts)
    places = places[..., None, :]
    inside = kept[..., None, :] & (places >= start[..., None]) & (places < end[..., None])
    return inside / (end - start)[..., None].astype(jnp.float32)


def stripe_weights(kept: Array, parts: int) -> Array:
    """The pooling of the kept tokens of every stripe, of all its tokens where none is kept, as a matrix: float32 [..., parts, N].

    ``kept`` bool [..., N]. The stripes are those of `part_pool`.
    """
    edges = [bounds(part, kept.shape[-1], parts) for part in range(parts)]
    stripes = jnp.stack([(jnp.arange(kept.shape[-1]) >= start) & (jnp.arange(kept.shape[-1]) < end) for start, end in edges])
    inside = stripes & kept[..., None, :]
    inside = jnp.where(jnp.any(inside, axis=-1, keepdims=True), inside, stripes).astype(jnp.float32)
    return inside / jnp.sum(inside, axis=-1, keepdims=True)


def pool(weights: Array, tokens: Array) -> Array:
    """Weighted sums of tokens [B, N, D] under weights [B, parts, N] or [parts, N], float32 [B, parts, D]."""
    return jnp.matmul(weights, tokens.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
