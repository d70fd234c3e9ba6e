"""Losses on distances between features."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from occreid_jax.errors import UserError
from occreid_jax.vectors import unit_vectors

Array = jax.Array
DISTANCES = ("euclidean", "cosine")


def squared_distances(a: Array, b: Array) -> Array:
    """Squared Euclidean distances [A, B] between rows of [A, D] and [B, D], float32, never negative."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a * a, axis=-1)[:, None] + jnp.sum(b * b, axis=-1)[None, :]
    return jnp.maximum(squares - 2.0 * products, 0.0)


def batch_distances(features: Array, normalise: bool = False, distance: str = "euclidean") -> Array:
    """Distances [B, B] within one batch of features [B, D], float32, with finite gradients where two features are equal.

    ``"euclidean"`` is sqrt(max(d^2, 1e-12)) as in the originals, of unit vectors if ``normalise``. ``"cosine"`` is 2 - 2 cos,
    the squared distance of unit vectors, as in fast-reid.
    """
    if distance not in DISTANCES:
        raise UserError(f"triplet losses know the distances {', '.join(DISTANCES)}, not {distance!r}")
    if normalise or distance == "cosine":
        features = unit_vectors(features)
    squared = squared_distances(features, features)
    return squared if distance == "cosine" else jnp.sqrt(jnp.maximum(squared, 1e-12))


class HardestPairs(NamedTuple):
    """What batch-hard mining finds for each anchor."""

    positive: Array  # float32 [B], largest distance to a row of the same identity, the anchor itself among them
    negative: Array  # float32 [B], smallest distance to a row of another identity; infinite if there is none
    has_negative: Array  # bool [B]


def hardest_pairs(distances: Array, labels: Array, ignored: Array | None = None) -> HardestPairs:
    """Batch-hard mining (Hermans et al. 2017, equation 5) in distances [B, B] with labels int32 [B].

    ``ignored`` bool [B, B] marks pairs (anchor, other) of different identities that are no negatives.

    The originals reshape and therefore need equally many images of each identity; this form takes any batch.
    """
    same = labels[:, None] == labels[None, :]
    negative = ~same if ignored is None else ~same & ~ignored
    has_negative = jnp.any(negative, axis=1)
    # Picked by index: the gradient of a maximum finds it again by equality, which rounding can miss where XLA computes twice.
    furthest = jnp.argmax(jnp.where(same, distances, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(negative, distances, jnp.inf), axis=1)
    hardest_positive, hardest_negative = (
        jnp.take_along_axis(distances, index[:, None], axis=1)[:, 0] for index in (furthest, nearest)
    )
    hardest_negative = jnp.where(has_negative, hardest_negative, jnp.inf)
    return HardestPairs(hardest_positive, hardest_negative, has_negative)


def batch_hard_triplet(
    features: Array,
    labels: Array,
    margin: float | None,
    normalise: bool = False,
    hard_factor: float = 0.0,
    distance: str = "euclidean",
    ignored: Array | None = None,
) -> Array:
    """Batch-hard triplet loss (Hermans et al. 2017) on Euclidean distances of features [B, D], labels int32 [B].

    ``margin=None`` is the soft margin log(1 + exp(d_ap - d_an)); a number is the hinge max(0, d_ap - d_an + margin). The
    hardest positive may be the anchor itself (distance 0), as in the originals. Rows without a negative count as zero.

    ``normalise`` compares unit vectors. ``hard_factor`` makes every triplet harder, d_ap (1 + h) and d_an (1 - h), an option of
    TransReID's loss. ``distance`` is read by `batch_distances`, ``ignored`` by `hardest_pairs`.
    """
    distances = batch_distances(features, normalise, distance)
    hardest_positive, hardest_negative, has_negative = hardest_pairs(distances, labels, ignored)
    if hard_factor:
        hardest_positive, hardest_negative = hardest_positive * (1.0 + hard_factor), hardest_negative * (1.0 - hard_factor)
    # A row without negatives must not send infinities into the gradient.
    difference = hardest_positive - jnp.where(has_negative, hardest_negative, hardest_positive)
    losses = jax.nn.softplus(difference) if margin is None else jax.nn.relu(difference + margin)
    return jnp.sum(jnp.where(has_negative, losses, 0.0)) / labels.shape[0]


def weighted_triplet(
    features: Array, labels: Array, margin: float | None, normalise: bool = False, distance: str = "euclidean"
) -> Array:
    """Triplet loss with soft mining: weighted means of all positive and all negative distances.

    features [B, D], labels int32 [B]; margins as in `batch_hard_triplet`. The weighted regularised triplet of AGW (Ye et al.
    2021) in the form of fast-reid's ``hard_mining=False``, kept exactly: a positive weighs exp(d - largest positive d), a
    negative exp(-d), and 1e-6 is added to each sum of weights. Where all negatives are further away than about 14 their mean
    falls to 0 instead of to their distance: use it on unit vectors or on short features. A row without negatives has mean 0.
    """
    distances = batch_distances(features, normalise, distance)
    same = (labels[:, None] == labels[None, :]).astype(jnp.float32)

    def weighted_mean(score: Array, mask: Array) -> Array:
        # Masked entries count as 0 here, so the largest score of the negatives is 0: their weights are not shifted.
        largest = jnp.max(score * mask, axis=1, keepdims=True)
        weights = jnp.exp(score - largest) * mask
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + 1e-6)
        return jnp.sum(distances * mask * weights, axis=1)

    positive = weighted_mean(distances * same, same)
    negative = weighted_mean(-distances * (1.0 - same), 1.0 - same)
    difference = positive - negative
    return jnp.mean(jax.nn.softplus(difference) if margin is None else jax.nn.relu(difference + margin))


def centre_loss(features: Array, labels: Array, centres: Array) -> Array:
    """Mean squared distance of features [B, D] to the centre of their own class (Wen et al. 2016, equation 2, without the 1/2).

    centres [C, D], labels int32 [B]. As in TransReID, each squared distance is clipped to [1e-12, 1e12]. Gradients reach both
    features and centres.
    """
    differences = features.astype(jnp.float32) - centres.astype(jnp.float32)[labels]
    return jnp.mean(jnp.clip(jnp.sum(differences * differences, axis=-1), 1e-12, 1e12))
