"""The distance of pictures by what is visible in both: the whole and every shared part, averaged.

Source: arXiv 2507.08520, Eq. 25; the form is that of Miao et al., ICCV 2019, and of BPBreID.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from occreid_jax.types import Array
from occreid_jax.vectors import SMALLEST


def visibility_weighted(query: Mapping[str, Array], gallery: Mapping[str, Array]) -> Array:
    """Mean Euclidean distance of unit vectors over the whole picture and the parts that both pictures show, float32 [Q, G].

    ``(|q - g| + sum_k v_k |q_k - g_k|) / (1 + sum_k v_k)`` with ``v_k`` the product of both visibilities; the root is taken,
    since the mean of squares ranks otherwise. A pair that shares no part is as far as its whole pictures are. In 0 .. 2.

    Args:
      query: ``global`` [Q, D], ``parts`` [Q, K, D] of any length, ``visible`` float32 [Q, K] in 0 .. 1.
      gallery: the same with G pictures.

    Parts are added up one after the other: of K + 1 matrices [Q, G] two exist at a time. Like every distance by products, one
    below 1e-3 is not exact: the square is off by 1e-7.
    """
    seen = query["visible"].astype(jnp.float32), gallery["visible"].astype(jnp.float32)

    def add(part: Array, total: Array) -> Array:
        vectors = (jax.lax.dynamic_index_in_dim(side["parts"], part, axis=1, keepdims=False) for side in (query, gallery))
        one, other = (jax.lax.dynamic_index_in_dim(visible, part, axis=1, keepdims=False) for visible in seen)
        return total + one[:, None] * other[None, :] * distances(*vectors)

    total = jax.lax.fori_loop(0, seen[0].shape[1], add, distances(query["global"], gallery["global"]))
    return total / (jnp.matmul(seen[0], seen[1].T, precision=jax.lax.Precision.HIGHEST) + 1.0)


def distances(query: Array, gallery: Array) -> Array:
    """Euclidean distances of unit vectors, [Q, D] x [G, D] -> float32 [Q, G].

    Lengths are taken out of the products: unit vectors of the whole gallery, made anew for every block of queries and every part,
    would take as long as the products themselves.
    """
    query, gallery = query.astype(jnp.float32), gallery.astype(jnp.float32)
    products = jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    (shrunk, square), (other_shrunk, other_square) = lengths(query), lengths(gallery)
    cosines = products * shrunk[:, None] * other_shrunk[None, :]
    return jnp.sqrt(jnp.maximum(square[:, None] + other_square[None, :] - 2.0 * cosines, 0.0))


def lengths(features: Array) -> tuple[Array, Array]:
    """What makes rows [N, D] unit vectors when they are multiplied by it, and the squared length of those: both float32 [N].
    Both are 0 for a row of zeros, which stays one, as in `unit_vectors`."""
    squares = jnp.sum(features * features, axis=-1)
    zero = squares == 0.0
    return jnp.where(zero, 0.0, 1.0 / jnp.maximum(jnp.sqrt(squares), SMALLEST)), jnp.where(zero, 0.0, 1.0)
