"""Terms between a teacher and a student that see the same picture, and between a map of parts and its labels.

Source: OGFR, arXiv 2507.08520, Eq. 17 to 21, all as means: the sums that are printed would drown the identity terms. Gradients
reach both sides; a caller stops that of the teacher.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.vectors import unit_vectors

Array = jax.Array


def mean_squared(teacher: Array, student: Array) -> Array:
    """Mean squared difference of two arrays of one shape, float32 [] (Eq. 17)."""
    return jnp.mean(jnp.square(teacher.astype(jnp.float32) - student.astype(jnp.float32)))


def cosine_distance(teacher: Array, student: Array) -> Array:
    """Mean of 1 - cos over vectors [..., D], float32 [] (Eq. 18)."""
    return jnp.mean(1.0 - jnp.sum(unit_vectors(teacher) * unit_vectors(student), axis=-1))


def divergence(teacher: Array, student: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) of the softmax of logits [..., C] over ``temperature``, mean over rows, float32 [] (Eq. 19)."""
    teacher, student = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature, axis=-1) for x in (teacher, student))
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def map_cross_entropy(maps: Array, labels: Array, scale: float = 1.0, counts: Array | None = None) -> Array:
    """Cross entropy of softmax(scale maps) against labels, mean over cells and pictures, float32 [] (Eq. 21).

    ``maps`` float32 [B, P, h, w], ``labels`` int [B, h, w] in 0 .. P - 1; ``counts`` bool [B] is False for pictures without
    labels, which have no part in the mean; where none has labels it is 0.
    """
    log_probabilities = jax.nn.log_softmax(scale * maps, axis=1)
    own = jnp.arange(maps.shape[1])[:, None, None] == labels[:, None].astype(jnp.int32)
    losses = -jnp.mean(jnp.sum(jnp.where(own, log_probabilities, 0.0), axis=1), axis=(1, 2))
    if counts is None:
        return jnp.mean(losses)
    return jnp.sum(jnp.where(counts, losses, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
