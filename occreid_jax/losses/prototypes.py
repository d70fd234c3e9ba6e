"""Cosines between features and prototypes of which a mask per feature keeps some dimensions (DPM, DPM++).

Source: DPM++ (arXiv 2605.06637) Eq. 8 to 10 and Table IV; Tan et al., ACM MM 2022.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.vectors import unit_vectors

Array = jax.Array
SIDES = ("prototype", "feature", "both")
ORDERS = ("before", "after")
SMALLEST = 1e-24  # of a squared norm, so that a root is finite and has a finite slope


def masked_cosines(
    features: Array, prototypes: Array, masks: Array, side: str = "prototype", order: str = "before",
    own_masks: Array | None = None,
) -> Array:  # fmt: skip
    """Likeness of features [B, D] and prototypes [C, D] under masks [B, D] (one per feature), float32 [B, C].

    Rows are brought to unit length, masked and, with ``order="before"``, brought to unit length again, so that scaling a mask
    by a constant changes nothing. ``side`` says which rows the mask multiplies: the "prototype" (the published method), the
    "feature", or "both"; with ``order="after"`` the first two are the same. Two matrix products: no [B, C, D] array is made.

    ``own_masks`` [C, D] are those of prototypes that are features of pictures themselves: where masks refine features, each of
    them is multiplied with its own as well, and with ``order="before"`` brought to unit length again.
    """
    if side not in SIDES or order not in ORDERS:
        raise ValueError(f"masks know the sides {', '.join(SIDES)} and the orders {', '.join(ORDERS)}, not {side!r}, {order!r}")

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)

    features, prototypes, masks = unit_vectors(features), unit_vectors(prototypes), masks.astype(jnp.float32)
    if own_masks is not None:
        prototypes = prototypes * own_masks.astype(jnp.float32)
        prototypes = unit_vectors(prototypes) if order == "before" else prototypes
    squared_masks = masks * masks
    cosines = product(features * (squared_masks if side == "both" else masks), prototypes)
    if order == "after":
        return cosines
    if side != "feature":
        cosines = cosines * jax.lax.rsqrt(jnp.maximum(product(squared_masks, prototypes * prototypes), SMALLEST))
    if side != "prototype":
        squares = jnp.sum(squared_masks * features * features, axis=-1, keepdims=True)
        cosines = cosines * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST))
    return cosines
