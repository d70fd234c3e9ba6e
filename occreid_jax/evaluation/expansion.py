"""Average query expansion: every feature is replaced by a weighted mean of itself and its nearest neighbours.

Chum et al., "Total recall: automatic query expansion with a generative feature model for object retrieval", ICCV 2007, take equal
weights; Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019, weigh by similarity to the
power alpha. As is usual in re-identification, gallery features are expanded too, and neighbours come from queries and gallery
together. Like re-ranking this uses the test set as a whole; report such numbers apart, with k and alpha.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.evaluation.distance import image_count, normalize
from occreid_jax.types import Array


def average_query_expansion(
    query: Array, gallery: Array, k: int, alpha: float = 0.0, *, block_rows: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Expands the features of both splits.

    Args:
      query: float [Q, D]; ``gallery``: float [G, D]. Neighbours are found by cosine, the mean is taken of the features as they
        are: with other than L2-normalised features, long ones count for more.
      k: images in a mean, the image itself included (as its own nearest).
      alpha: weight of a neighbour = cosine ** alpha, 0 for equal weights. Negative cosines count as 0.
      block_rows: rows of similarities held at a time; a block takes ``4 * block_rows * (Q + G)`` bytes.

    Returns:
      query float32 [Q, D] and gallery float32 [G, D], not normalised. The weighted sum is divided by k, not by the sum of
      weights; that changes the length of a feature alone.

    Raises:
      ValueError: ``k``, ``alpha`` or ``block_rows`` out of range, a split is empty, both have features of different lengths, or
        a feature is not finite.
    """
    query_count, gallery_count = image_count(query, "query"), image_count(gallery, "gallery")
    if not 1 <= k <= query_count + gallery_count or alpha < 0 or block_rows < 1:
        raise ValueError(
            f"k={k}, alpha={alpha}, block_rows={block_rows} with {query_count + gallery_count} images; "
            "use k from 1 to the number of images, alpha >= 0 and block_rows >= 1"
        )
    if query.shape[1:] != gallery.shape[1:] or query.ndim != 2:
        raise ValueError(f"features have shapes {query.shape} and {gallery.shape}; pass [images, dimensions] of one length")
    features = np.concatenate([np.asarray(query, np.float32), np.asarray(gallery, np.float32)])
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(f"features of image {finite.argmin()} (queries first) are not finite")
    on_device = jax.device_put(features)
    directions = jax.jit(normalize)(on_device)

    @jax.jit
    def expand(features, directions, rows):
        similarity = jnp.matmul(directions[rows], directions.T, precision=jax.lax.Precision.HIGHEST)
        values, nearest = jax.lax.top_k(similarity, k)
        weights = jnp.maximum(values, 0.0) ** alpha  # 0 ** 0 is 1
        return jnp.einsum("rk,rkd->rd", weights, features[nearest], precision=jax.lax.Precision.HIGHEST) / k

    expanded = np.empty_like(features)
    block_rows = min(block_rows, len(features))
    for first in range(0, len(features), block_rows):
        rows = np.minimum(np.arange(first, first + block_rows), len(features) - 1)  # one shape, compiled once
        expanded[first : first + block_rows] = np.asarray(expand(on_device, directions, rows))[: len(features) - first]
    return expanded[:query_count], expanded[query_count:]
