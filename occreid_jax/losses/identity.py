"""Identity classification losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Mean softmax cross entropy of logits [B, C] against labels int32 [B], in nats, float32.

    ``smoothing`` spreads that share of the target evenly over all C classes (the convention of TransReID and torchreid:
    target = (1 - smoothing) one-hot + smoothing / C).
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    return -jnp.mean((1.0 - smoothing) * picked + smoothing * jnp.mean(log_probabilities, axis=-1))


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of rows of logits [B, C] whose largest entry is the label, float32."""
    return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
