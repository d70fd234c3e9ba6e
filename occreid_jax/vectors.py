"""Unit vectors: the one way in which features are brought to length 1, in losses, memories, networks and evaluation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
SMALLEST = 1e-12  # a length below which a vector counts as this long, as in torch's ``normalize``


def unit_vectors(features: Array) -> Array:
    """Features [..., D] divided by their L2 norm, float32. A zero vector stays zero and passes no gradient, instead of nan."""
    features = features.astype(jnp.float32)
    zero = jnp.sum(features * features, axis=-1, keepdims=True) == 0.0
    safe = jnp.where(zero, 1.0, features)
    return jnp.where(zero, 0.0, safe / jnp.maximum(jnp.linalg.norm(safe, axis=-1, keepdims=True), SMALLEST))
