"""Distances between query and gallery features, block by block.

`euclidean` is the usual distance; a method may bring its own function of the same form. `blocks` runs either one without ever
holding the full [Q, G] matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from occreid_jax.losses.metric import squared_distances
from occreid_jax.types import Array, Features
from occreid_jax.vectors import unit_vectors as normalize


def euclidean(query: Array, gallery: Array) -> Array:
    """Squared Euclidean distance of L2-normalised features, without the root: ``|q|^2 + |g|^2 - 2 q.g``.

    It lies in [0, 4] and ranks like the cosine.

    Args:
      query: float [Q, D], any length per row.
      gallery: float [G, D].

    Returns:
      float32 [Q, G]. Rounding can make the sum slightly negative (about 1e-7), such values become 0.
    """
    return squared_distances(normalize(query), normalize(gallery))


def blocks(
    distance_fn: Callable[[Features, Features], Array], query: Features, gallery: Features, block_rows: int = 512
) -> Iterator[tuple[slice, np.ndarray]]:
    """Runs ``distance_fn`` on ``block_rows`` queries at a time against the whole gallery.

    The function is compiled once: every call gets the same shapes, the last block is filled up with copies of the last query.
    The gallery goes to the device once. While the caller works on a block the device computes the next, so two blocks exist at a
    time.

    Args:
      distance_fn: pure JAX function (query features of R images, gallery features of G images) -> [R, G].
      query: array or pytree of arrays, the first axis of each counts images.
      gallery: the same for the gallery.
      block_rows: queries per block; a block takes ``4 * block_rows * G`` bytes.

    Yields:
      ``(rows, distances)``: a slice of query rows and a numpy array [rows, G].

    Raises:
      ValueError: a split is empty, leaves disagree about the number of images, or ``distance_fn`` returns another shape.
    """
    query_count, gallery_count = image_count(query, "query"), image_count(gallery, "gallery")
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; use 1 or more")
    block_rows = min(block_rows, query_count)
    query = jax.tree.map(np.asarray, query)
    gallery = jax.device_put(gallery)
    compiled = jax.jit(distance_fn)

    def start(first: int) -> Array:
        rows = np.minimum(np.arange(first, first + block_rows), query_count - 1)
        return compiled(jax.device_put(jax.tree.map(lambda leaf: leaf[rows], query)), gallery)

    upcoming = start(0)
    if upcoming.shape != (block_rows, gallery_count):
        expected = block_rows, gallery_count
        raise ValueError(f"distance_fn returned shape {upcoming.shape} instead of {expected}: [queries, gallery images]")
    for first in range(0, query_count, block_rows):
        current, last = upcoming, min(first + block_rows, query_count)
        # Dispatch is asynchronous: the device starts on the next block before this one is handed out.
        upcoming = start(last) if last < query_count else None
        yield slice(first, last), np.asarray(current)[: last - first]


def image_count(features: Features, name: str = "features") -> int:
    """Number of images in a pytree of features: the length of the first axis, which all leaves must share."""
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(features)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(f"leaves of the {name} features have first axes {sorted(counts)}; all must count the same images")
    (count,) = counts.pop()
    if not count:
        raise ValueError(f"there are no {name} features; check that the split is not empty")
    return count
