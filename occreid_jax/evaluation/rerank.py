"""k-reciprocal re-ranking (Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017).

Method. Let D be the distances among all images, queries first and gallery behind them, with every row divided by its maximum, and
N(i, k) the k + 1 images nearest to i, itself included.

* R(i) = images of N(i, k1) that have i among their own N(., k1). Each c in R(i) adds its own set r(c), built with k1 / 2 instead
  of k1 (rounded half to even), if more than two thirds of r(c) lie in R(i).
* V(i) = exp(-D(i, j)) on that set, divided by its sum, then averaged over the k2 images nearest to i.
* J(i, j) = 1 - s / (2 - s), s = sum over m of min(V(i, m), V(j, m)): the Jaccard distance.
* result = (1 - lambda) J + lambda D.

Images at equal distances are ordered by index. The V of one image has a few hundred entries, so it is kept sparse: no array here
has a row *and* a column for every image. Re-ranking uses the test set as a whole, also to compare two of its images; report such
numbers apart, with k1, k2 and lambda.

What D is. The paper takes the *squared* Euclidean distance, and so does `k_reciprocal`. Functions that take distances use them
as they are, whatever they measure: square them before if they are rooted. D(i, j) is the distance of image j when i asks, and
gallery images ask too. With an asymmetric distance every image thus has a list of its own: being mutual needs both lists, V(i)
and the lambda term come from the list of i, and nothing is averaged or transposed. If a distance masks one side or compares
shared parts only, D(i, i) may be more than 0; image i is then in its own N only if it is near enough. Images at infinite distance
are not neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from occreid_jax.evaluation.distance import euclidean, image_count
from occreid_jax.types import Array, Features

PRESETS = MappingProxyType(
    {
        "20,6,0.3": MappingProxyType({"k1": 20, "k2": 6, "lambda_value": 0.3}),  # the paper's
        "50,15,0.3": MappingProxyType({"k1": 50, "k2": 15, "lambda_value": 0.3}),  # common in code for transformers
    }
)
"""Usual settings: ``k_reciprocal(query, gallery, **PRESETS["20,6,0.3"])``."""

_PAIRS_AT_ONCE = 4096
_SETS_AT_ONCE = 4096  # images whose neighbour sets are expanded together; bounds a product with some hundred entries per image


def k_reciprocal(
    query: Array,
    gallery: Array,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    normalize: bool = True,
    block_rows: int = 512,
) -> np.ndarray:
    """Re-ranked distances of features under the squared Euclidean distance.

    Args:
      query: float [Q, D]; ``gallery``: float [G, D].
      k1: neighbours that must be mutual; ``k2``: lists to average over, 1 for none.
      lambda_value: share of the original distance in the result, 0 to 1.
      normalize: divide every row by its L2 norm first; False compares features as they are.
      block_rows: rows of distances held at a time; a block takes ``4 * block_rows * (Q + G)`` bytes.

    Returns:
      float32 [Q, G], 0 to 1.

    Raises:
      ValueError: settings out of range, a split is empty, or features are not finite.
    """
    distance_fn = euclidean if normalize else _plain_euclidean
    result = np.empty((image_count(query, "query"), image_count(gallery, "gallery")), np.float32)
    for rows, block in rerank_blocks(distance_fn, query, gallery, k1, k2, lambda_value, block_rows=block_rows):
        result[rows] = block
    return result


def rerank_blocks(
    distance_fn: Callable[[Features, Features], Array],
    query: Features,
    gallery: Features,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    block_rows: int = 512,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Re-ranks any method's distance, without a [Q, G] array; the blocks fit `rank_metrics_blocks`.

    Args:
      distance_fn: pure JAX function (features of R images, features of S images) -> [R, S], not negative, of which each value
        depends on its two images alone. It is asked for all pairs, so queries and gallery change places too.
      query: array or pytree of arrays, the first axis of each counts images.
      gallery: the same structure, with equal shapes behind the first axis.
      k1, k2, lambda_value, block_rows: as in `k_reciprocal`.

    Yields:
      ``(rows, distances)``: a slice of query rows and a float32 array [rows, G].

    Raises:
      ValueError: as `k_reciprocal`, or features of both sides do not fit together, or a distance is negative or NaN.
    """
    counts = image_count(query, "query"), image_count(gallery, "gallery")
    distances, pairs = _distances_among_all(distance_fn, query, gallery)
    yield from _rerank(distances, *counts, k1, k2, lambda_value, pairs, block_rows)


def k_reciprocal_from_blocks(
    distances: Callable[[np.ndarray], Array],
    query_count: int,
    gallery_count: int,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    pairs: Callable[[np.ndarray, np.ndarray], Array] | None = None,
    block_rows: int = 512,
) -> np.ndarray:
    """Re-ranks from a function that hands out rows of distances over queries and gallery.

    Args:
      distances: (images int32 [R]) -> [R, N], N = Q + G, queries first: the distances of all images when those ask. numpy or JAX,
        not negative, ``+inf`` allowed. R is always the same, so that a jitted function is compiled once; a call that needs fewer
        rows repeats the last one.
      query_count: Q; ``gallery_count``: G.
      k1, k2, lambda_value, block_rows: as in `k_reciprocal`.
      pairs: (images int32 [P], others int32 [P]) -> [P], the distances of single pairs. Without it ``distances`` is asked again
        for every image whose neighbour set reaches beyond its own list, which are most.

    Returns:
      float32 [Q, G].

    Raises:
      ValueError: settings or counts out of range, a block of another shape, a negative or NaN distance.
    """
    if query_count < 1 or gallery_count < 1:
        raise ValueError(f"{query_count} queries and {gallery_count} gallery images; re-ranking needs one of each at least")
    result = np.empty((query_count, gallery_count), np.float32)
    for rows, block in _rerank(distances, query_count, gallery_count, k1, k2, lambda_value, pairs, block_rows):
        result[rows] = block
    return result


def _rerank(distances, query_count, gallery_count, k1, k2, lambda_value, pairs, block_rows):
    """Checks the settings, encodes all images, then yields the blocks of the result."""
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"k1={k1}, k2={k2}, lambda_value={lambda_value}; use k1 >= 1, k2 >= 1 and lambda_value from 0 to 1")
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; use 1 or more")
    ask = _Rows(distances, query_count + gallery_count, block_rows)
    nearest, values, maxima = _nearest(ask, max(k1 + 1, k2))
    codes = _codes(nearest, values, maxima, k1, pairs or ask.pairs)
    if k2 > 1:
        near = np.isfinite(values[:, :k2])
        codes = _sparse(nearest[:, :k2], (near / np.maximum(near.sum(axis=1, keepdims=True), 1)).astype(np.float32)) @ codes
    # By column: for an image m, all gallery images whose code holds m.
    holders = codes[query_count:].tocsc()
    for rows, block in ask.blocks(query_count, lambda_value > 0):
        jaccard = np.stack([_jaccard(codes, holders, query) for query in range(rows.start, rows.stop)])
        if lambda_value > 0:  # otherwise an infinite distance would give NaN
            original = np.asarray(block)[: len(jaccard), query_count:] / maxima[rows, None]
            jaccard = (1 - lambda_value) * jaccard + lambda_value * original
        yield rows, jaccard.astype(np.float32, copy=False)


class _Rows:
    """Asks ``distances`` for the same number of rows each time, the next block before the last one is used."""

    def __init__(self, distances, count: int, block_rows: int):
        self.count, self._distances, self._block_rows = count, distances, min(block_rows, count)

    def ask(self, images: np.ndarray) -> Array:
        """[block_rows, N]; the last image stands in for missing ones."""
        images = np.pad(images, (0, self._block_rows - len(images)), mode="edge").astype(np.int32)
        block = self._distances(images)
        if np.shape(block) != (self._block_rows, self.count):
            raise ValueError(f"distances have shape {np.shape(block)} instead of {(self._block_rows, self.count)}")
        return block

    def blocks(self, stop: int, wanted: bool = True) -> Iterator[tuple[slice, Array | None]]:
        """Images 0 to ``stop`` in order; ``wanted=False`` gives the slices alone."""
        slices = [slice(first, min(first + self._block_rows, stop)) for first in range(0, stop, self._block_rows)]
        upcoming = None
        for rows, following in zip(slices, [*slices[1:], None], strict=True):
            block = upcoming if upcoming is not None or not wanted else self.ask(np.arange(rows.start, rows.stop))
            # Dispatch is asynchronous: the device works on the next block while this one is used.
            upcoming = self.ask(np.arange(following.start, following.stop)) if wanted and following else None
            yield rows, block

    def pairs(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Distances of single pairs, read from whole rows; ``images`` rises."""
        result = np.empty(len(images), np.float32)
        distinct = np.unique(images)
        for first in range(0, len(distinct), self._block_rows):
            asked = distinct[first : first + self._block_rows]
            start, stop = np.searchsorted(images, asked[0]), np.searchsorted(images, asked[-1], side="right")
            result[start:stop] = np.asarray(self.ask(asked))[np.searchsorted(asked, images[start:stop]), others[start:stop]]
        return result


def _nearest(ask: _Rows, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest images int32 [N, K] by (distance, index), their distances float32 [N, K], and the maximum of each row [N].

    Infinite distances do not count for the maximum, and a row of zeros has the maximum 1.
    """
    length = min(length, ask.count)
    nearest = np.empty((ask.count, length), np.int32)
    values = np.empty((ask.count, length), np.float32)
    maxima = np.empty(ask.count, np.float32)
    for rows, block in ask.blocks(ask.count):
        kept = rows.stop - rows.start
        found = [np.asarray(part)[:kept] for part in _head_of_lists(block, length)]
        values[rows], nearest[rows], maxima[rows], undefined = found
        if undefined.any():
            image = rows.start + undefined.argmax()
            raise ValueError(f"distances of image {image} (queries first) contain NaN; check the features for NaN or inf")
        # Rounding may take |a|^2 + |b|^2 - 2 a.b a little below 0, a similarity goes further.
        negative = values[rows, 0] < -1e-3 * np.maximum(maxima[rows], 1e-6)
        if negative.any():
            image = rows.start + negative.argmax()
            raise ValueError(f"image {image} has the distance {values[image, 0]:.3g}; re-ranking needs distances of 0 and more")
    return nearest, values, np.where(maxima > 0, maxima, np.float32(1))


@functools.partial(jax.jit, static_argnames="length")
def _head_of_lists(block: Array, length: int) -> tuple[Array, Array, Array, Array]:
    block = block.astype(jnp.float32)
    # 0 - x and not -x: the sort tells -0 from +0, and equal distances must fall in order of index.
    values, nearest = jax.lax.top_k(0 - block, length)
    largest = jnp.max(jnp.where(jnp.isfinite(block), block, 0), axis=1)
    return -values, nearest, largest, jnp.isnan(block).any(axis=1)


def _codes(nearest: np.ndarray, values: np.ndarray, maxima: np.ndarray, k1: int, pairs) -> sparse.csr_matrix:
    """V before averaging: float32 [N, N], sparse; every row that is not empty or zero has the sum 1."""
    count = len(nearest)
    lengths = k1 + 1, round(k1 / 2) + 1  # `round` goes half to even
    mutual, half = (_mutual(nearest[:, :length], np.isfinite(values[:, :length])) for length in lengths)
    sizes = np.diff(half.indptr)
    parts = []
    for first in range(0, count, _SETS_AT_ONCE):
        own = mutual[first : first + _SETS_AT_ONCE]
        shared = own.multiply(own @ half.T).tocsr()  # for every candidate: how much of its half-size set is in the own set
        joins = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.int32)
        joining = sparse.csr_matrix((joins, shared.indices, shared.indptr), shared.shape)
        joining.eliminate_zeros()
        parts.append(own + joining @ half)
    codes = sparse.vstack(parts, format="csr")
    codes.sort_indices()

    rows = np.repeat(np.arange(count), np.diff(codes.indptr))
    found = _look_up(nearest, values, rows, codes.indices)
    missing = np.flatnonzero(np.isnan(found))  # brought in by a neighbour, farther away than the own list goes
    if len(missing):
        found[missing] = pairs(rows[missing], codes.indices[missing])
    weights = np.exp(-found / maxima[rows])
    totals = np.bincount(rows, weights, minlength=count)
    totals[totals == 0] = 1  # an image at infinite distance from all others: its code stays zero
    return sparse.csr_matrix(((weights / totals[rows]).astype(np.float32), codes.indices, codes.indptr), codes.shape)


def _sparse(nearest: np.ndarray, data: np.ndarray) -> sparse.csr_matrix:
    """[N, N] with ``data`` [N, K] in the columns ``nearest`` [N, K]."""
    count, length = nearest.shape
    starts = np.arange(0, nearest.size + 1, length)
    return sparse.csr_matrix((data.ravel(), nearest.ravel(), starts), (count, count))


def _mutual(nearest: np.ndarray, near: np.ndarray) -> sparse.csr_matrix:
    """int32 [N, N] with 1 where each is in the other's list [N, K]; ``near`` [N, K] is false where an entry does not count."""
    member = _sparse(nearest, near.astype(np.int32))
    mutual = member.multiply(member.T).tocsr()
    mutual.eliminate_zeros()
    return mutual


def _look_up(nearest: np.ndarray, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Distances float32 [P] of the pairs (rows, columns) from the lists; NaN for a column that the row's list lacks."""
    count = len(nearest)
    order = np.argsort(nearest, axis=1)
    keys = (np.arange(count)[:, None] * count + np.take_along_axis(nearest, order, axis=1)).ravel()  # int64, rising
    wanted = rows * count + columns
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = np.take_along_axis(values, order, axis=1).ravel()[places]
    found[keys[places] != wanted] = np.nan
    return found


def _jaccard(codes: sparse.csr_matrix, holders: sparse.csc_matrix, query: int) -> np.ndarray:
    """J of one query against the gallery, float32 [G]."""
    own = slice(codes.indptr[query], codes.indptr[query + 1])
    columns = holders[:, codes.indices[own]]
    smaller = np.minimum(np.repeat(codes.data[own], np.diff(columns.indptr)), columns.data)
    shared = np.bincount(columns.indices, smaller, minlength=holders.shape[0])
    return (1 - shared / (2 - shared)).astype(np.float32)


def _distances_among_all(distance_fn, query: Features, gallery: Features):
    """``distances`` and ``pairs`` of `k_reciprocal_from_blocks` for a distance function; features go to the device once."""
    try:
        features = jax.tree.map(lambda *sides: np.concatenate([np.asarray(side) for side in sides]), query, gallery)
    except ValueError as error:
        raise ValueError(f"query and gallery features do not fit together, re-ranking needs all pairs: {error}") from error

    features = jax.device_put(features)

    def choose(features, images):
        return jax.tree.map(lambda leaf: leaf[images], features)

    @jax.jit
    def distances(features, images):
        return distance_fn(choose(features, images), features)

    @jax.jit
    def pairs(features, images, others):
        def pair(image, other):
            return distance_fn(choose(features, image[None]), choose(features, other[None]))[0, 0]

        return jax.vmap(pair)(images, others)

    def pairs_in_chunks(images, others):
        result = np.empty(len(images), np.float32)
        for first in range(0, len(images), _PAIRS_AT_ONCE):
            part = slice(first, min(first + _PAIRS_AT_ONCE, len(images)))
            filled = (0, first + _PAIRS_AT_ONCE - part.stop)
            chosen = (np.pad(side[part], filled, mode="edge") for side in (images, others))
            result[part] = np.asarray(pairs(features, *chosen))[: part.stop - first]
        return result

    return functools.partial(distances, features), pairs_in_chunks


def _plain_euclidean(query: Array, gallery: Array) -> Array:
    """Squared Euclidean distance of features as they are, float32 [Q, G]."""
    query, gallery = query.astype(jnp.float32), gallery.astype(jnp.float32)
    products = jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(query * query, axis=-1)[:, None] + jnp.sum(gallery * gallery, axis=-1)[None, :]
    return jnp.maximum(squares - 2 * products, 0.0)
