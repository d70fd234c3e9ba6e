"""Losses on distances between features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def l2_normalise(features: Array, epsilon: float = 1e-12) -> Array:
    """Features [..., D] divided by their L2 norm, float32; a zero vector stays zero."""
    features = features.astype(jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), epsilon)


def squared_distances(a: Array, b: Array) -> Array:
    """Squared Euclidean distances [A, B] between rows of [A, D] and [B, D], float32, never negative."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)[None, :]
    return jnp.maximum(squares - 2.0 * products, 0.0)


def batch_hard_triplet(features: Array, labels: Array, margin: float | None) -> Array:
    """Batch-hard triplet loss (Hermans et al. 2017) on Euclidean distances of features [B, D], labels int32 [B].

    ``margin=None`` is the soft margin log(1 + exp(d_ap - d_an)); a number is the hinge max(0, d_ap - d_an + margin). The
    hardest positive may be the anchor itself (distance 0), as in the originals. Rows without a negative count as zero.
    """
    distances = jnp.sqrt(jnp.maximum(squared_distances(features, features), 1e-12))
    same = labels[:, None] == labels[None, :]
    hardest_positive = jnp.max(jnp.where(same, distances, -jnp.inf), axis=1)
    hardest_negative = jnp.min(jnp.where(same, jnp.inf, distances), axis=1)
    has_negative = jnp.any(~same, axis=1)
    # A row without negatives must not send infinities into the gradient.
    difference = hardest_positive - jnp.where(has_negative, hardest_negative, hardest_positive)
    losses = jax.nn.softplus(difference) if margin is None else jax.nn.relu(difference + margin)
    return jnp.sum(jnp.where(has_negative, losses, 0.0)) / labels.shape[0]
