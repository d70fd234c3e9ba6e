"""REINFORCE for an agent that decides patch by patch, one step per picture (OGFR, arXiv 2507.08520, Eq. 9 to 11).

An action ``kept`` bool [B, N] is drawn from Bernoulli(sigmoid(logits)); the reward says how much better the picture's identity is
recognised than without erasing. All float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
REDUCTIONS = ("mean", "sum")
CERTAIN = 0.05  # a baseline above 1 - CERTAIN counts as that, or a picture that fails would be worth -49


def log_probability(logits: Array, kept: Array, reduction: str = "mean") -> Array:
    """Log-probability float32 [B] of the actions ``kept`` bool [B, N]: a z - log(1 + e^z), their mean or sum over the patches."""
    each = jnp.where(kept, logits, 0.0) - jax.nn.softplus(logits)
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction '{reduction}'; it must be one of {', '.join(REDUCTIONS)}")
    return jnp.mean(each, axis=-1) if reduction == "mean" else jnp.sum(each, axis=-1)


def reward(score: Array, baseline: Array, certain: float = CERTAIN, bound: float = 1.0, centred: bool = False) -> Array:
    """Eq. 10, (p - b) / (1 - b), float32 [B], of scores p [B] in 0 .. 1 and baselines b, [] or [B]; no gradient goes through it.

    1 - b is at least ``certain`` and the result within +-``bound``; ``centred`` subtracts the batch's mean afterwards.
    """
    score, baseline = jax.lax.stop_gradient((score, baseline))
    gain = jnp.clip((score - baseline) / jnp.maximum(1.0 - baseline, certain), -bound, bound)
    return gain - jnp.mean(gain) if centred else gain


def policy_loss(logits: Array, kept: Array, gain: Array, reduction: str = "mean") -> Array:
    """-mean(r log pi), float32 []: its gradient is that of Eq. 11 with the sign of a loss, over N with the reduction "mean"."""
    return -jnp.mean(jax.lax.stop_gradient(gain) * log_probability(logits, kept, reduction))


def entropy(logits: Array) -> Array:
    """Mean entropy of the decisions in nats, float32 []: log 2 for a coin, 0 for an agent that no longer tries."""
    return jnp.mean(jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits))


def running_mean(old: Array, new: Array, count: Array) -> Array:
    """Eq. 9: the mean of ``count`` earlier values, ``old``, and of ``new``."""
    return (old * count + new) / (count + 1)
