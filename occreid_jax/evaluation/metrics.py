"""CMC, mAP and mINP from distances, by the Market-1501 protocol, with a record for every query.

Protocol. For one query the gallery is sorted by (distance, gallery index). Images of the query's identity taken by the query's
own camera are junk and leave the list; everything else stays, distractors with pid 0 included. ``r_1 < .. < r_m`` are the
1-based ranks of the m true matches that remain. Then

* average precision = mean of ``k / r_k``, the precision at the hits,
* inverse negative penalty = ``m / r_m`` (Ye et al., "Deep learning for person re-identification: a survey and outlook"),
* CMC at rank k = share of queries with ``r_1 <= k``.

Queries without a match (m = 0) are left out of all means and counted.

Method. The formulas need no more than the ranks of the matches, so the gallery is not arg-sorted: only the distance *values* up
to that of the farthest match are sorted, and the matches are found in them by binary search. Equal values are then resolved by
gallery index.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

WRONG, RIGHT, JUNK = 0, 1, 2
"""Flags of a ranked list: another identity, a true match, the same identity seen by the query's own camera."""

QUERY_RECORD = np.dtype(
    [
        ("average_precision", np.float64),  # NaN without a match
        ("inverse_negative_penalty", np.float64),  # NaN without a match
        ("first_hit", np.int32),  # 1-based rank of the first match, 0 without a match
        ("matches", np.int32),  # gallery images of the same identity from other cameras
        ("junk", np.int32),  # gallery images of the same identity from the same camera
        ("valid", np.bool_),  # has at least one match
        ("tied_first_hit", np.bool_),  # the first match is exactly as far as an image of another identity
    ]
)

_CHUNK_VALUES = 1 << 20  # distances that a thread takes at a time, enough to make the hand-over cheap
_FEW_VALUES = 64  # up to so many tied values, one scan for each is cheaper than sorting the whole row


@dataclasses.dataclass(frozen=True, eq=False)
class RankMetrics:
    """Result of one evaluation. All shares are fractions between 0 and 1.

    ``ranked_indices`` and ``ranked_flags`` hold the head of the list over the *whole* gallery, in the order that the metrics use.
    Junk keeps its place there and is marked, so a picture can show it; ranks in ``queries`` do not count it.
    """

    cmc: np.ndarray  # float64 [max_rank], rank 1 first; beyond the length of the gallery the last value is repeated
    mAP: float
    mINP: float
    queries: np.ndarray  # QUERY_RECORD [Q], in query order
    skipped_queries: int  # queries without a match
    tied_first_hits: int  # valid queries whose first hit is decided by gallery order alone
    ranked_indices: np.ndarray  # int32 [Q, min(keep_ranked, G)], gallery rows
    ranked_flags: np.ndarray  # int8, same shape: WRONG, RIGHT or JUNK


def rank_metrics(
    distance: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    max_rank: int = 50,
    keep_ranked: int = 0,
    threads: int | None = None,
) -> RankMetrics:
    """Evaluates a whole distance matrix.

    Args:
      distance: [Q, G] numpy or JAX array, smaller is more alike. float32 and float64 are used as they are, 16-bit floats become
        float32 and integers float64. ``+inf`` is allowed.
      query_pids: integers [Q]; ``gallery_pids``: integers [G].
      query_camids: integers [Q]; ``gallery_camids``: integers [G].
      max_rank: length of the CMC curve.
      keep_ranked: number of gallery images to keep per query in ``ranked_indices``.
      threads: default: one per core, at most 4. The result does not depend on it.

    Raises:
      ValueError: shapes do not fit, a split is empty, a distance is NaN, or no query has a match.
    """
    distance = np.asarray(distance)
    if distance.ndim != 2:
        raise ValueError(f"distance has shape {distance.shape}; pass a matrix [queries, gallery images]")
    return rank_metrics_blocks(
        [(slice(0, len(distance)), distance)],
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        max_rank=max_rank,
        keep_ranked=keep_ranked,
        threads=threads,
    )


def rank_metrics_blocks(
    blocks: Iterable[tuple[slice | np.ndarray, np.ndarray]],
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    max_rank: int = 50,
    keep_ranked: int = 0,
    threads: int | None = None,
) -> RankMetrics:
    """Like `rank_metrics`, from an iterator over ``(rows, distances)``; one block is held at a time.

    ``rows`` is a slice or an integer array that says which queries the block holds, ``distances`` is [rows, G]. Blocks may come
    in any order and size, every query exactly once. The labels are checked before the first block is asked for.
    """
    labels = _Labels(query_pids, gallery_pids, query_camids, gallery_camids)
    if max_rank < 1 or keep_ranked < 0:
        raise ValueError(f"max_rank is {max_rank} and keep_ranked is {keep_ranked}; use max_rank >= 1 and keep_ranked >= 0")
    records = labels.new_records()
    query_count, gallery_count = labels.shape
    kept = min(keep_ranked, gallery_count)
    ranked_indices = np.zeros((query_count, kept), np.int32)
    ranked_flags = np.zeros((query_count, kept), np.int8)

    def evaluate(rows: np.ndarray, chunk: np.ndarray) -> None:
        chunk = np.ascontiguousarray(chunk)
        undefined = np.isnan(chunk.max(axis=1))  # the maximum of a row with a NaN is NaN
        if undefined.any():
            raise ValueError(f"distances of query row {rows[undefined.argmax()]} contain NaN; check the features for NaN or inf")
        for query, row in zip(rows, chunk, strict=True):
            own, junk = labels.same_identity(query)
            if records["valid"][query]:
                _evaluate_query(records[query : query + 1], row, own, junk)
            if kept:
                nearest = _nearest(row, kept)
                ranked_indices[query] = nearest
                ranked_flags[query, np.isin(nearest, own[~junk])] = RIGHT
                ranked_flags[query, np.isin(nearest, own[junk])] = JUNK

    visits = np.zeros(query_count, np.int32)
    chunk_rows = max(1, _CHUNK_VALUES // gallery_count)
    # Sorting releases the interpreter lock, so threads work on different rows at the same time.
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for rows, block in blocks:
            rows = np.arange(query_count)[rows]
            block = _as_distances(block, (len(rows), gallery_count))
            np.add.at(visits, rows, 1)
            if visits.max() > 1:
                raise ValueError(f"query row {visits.argmax()} comes twice; every query must be in exactly one block")
            parts = [slice(start, start + chunk_rows) for start in range(0, len(rows), chunk_rows)]
            # The loop raises what a thread raised, earliest rows first.
            for _ in pool.map(evaluate, [rows[part] for part in parts], [block[part] for part in parts]):
                pass
            del block  # let it go before the iterator makes the next one
    if not visits.all():
        raise ValueError(f"no block holds query row {visits.argmin()}; every query must be in exactly one block")
    return _summary(records, max_rank, ranked_indices, ranked_flags)


class _Labels:
    """Identities and cameras of both splits, with the gallery grouped by identity.

    Raises ValueError for wrong shapes, for an empty split, and if no query has a match.
    """

    def __init__(self, query_pids, gallery_pids, query_camids, gallery_camids):
        query_pids = _as_labels("query_pids", query_pids)
        gallery_pids = _as_labels("gallery_pids", gallery_pids)
        self.query_camids = _as_labels("query_camids", query_camids)
        self.gallery_camids = _as_labels("gallery_camids", gallery_camids)
        for name, pids, camids in (("query", query_pids, self.query_camids), ("gallery", gallery_pids, self.gallery_camids)):
            if len(pids) != len(camids):
                raise ValueError(f"{len(pids)} {name}_pids but {len(camids)} {name}_camids; pass one of each per {name} image")
            if not len(pids):
                raise ValueError(f"the {name} split is empty; check the reader and the folder that it reads")
        self.shape = len(query_pids), len(gallery_pids)
        self._order = np.argsort(gallery_pids, kind="stable")  # stable: rising gallery index within an identity
        grouped = gallery_pids[self._order]
        self._starts = np.searchsorted(grouped, query_pids, side="left")
        self._stops = np.searchsorted(grouped, query_pids, side="right")

    def same_identity(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Gallery rows of the query's identity in rising order, and which of them are junk (bool)."""
        own = self._order[self._starts[query] : self._stops[query]]
        return own, self.gallery_camids[own] == self.query_camids[query]

    def new_records(self) -> np.ndarray:
        """QUERY_RECORD [Q] with the counts filled in."""
        records = np.zeros(self.shape[0], QUERY_RECORD)
        records["average_precision"] = records["inverse_negative_penalty"] = np.nan
        records["junk"] = [np.count_nonzero(self.same_identity(query)[1]) for query in range(len(records))]
        records["matches"] = self._stops - self._starts - records["junk"]
        records["valid"] = records["matches"] > 0
        if not (self._stops > self._starts).any():
            raise ValueError("no query has a match: query and gallery share no identity; check how both splits number their pids")
        if not records["valid"].any():
            raise ValueError(
                "no query has a match: all gallery images of a query's identity come from the query's own camera; "
                "if the data set has no camera labels, give query and gallery different camids"
            )
        return records


def _evaluate_query(record: np.ndarray, row: np.ndarray, own: np.ndarray, junk: np.ndarray) -> None:
    """Fills one record (a view of length 1) from the distances ``row`` [G] and the result of `_Labels.same_identity`."""
    values = row[own]
    order = np.argsort(values, kind="stable")  # ``own`` rises, so this is the order by (distance, gallery index)
    values, junk = values[order], junk[order]
    right = ~junk
    matches, match_values = own[order][right], values[right]

    head = row[row <= match_values[-1]]  # nothing behind the farthest match counts
    head.sort()
    places = np.searchsorted(head, match_values, side="left")
    equals = np.searchsorted(head, match_values, side="right") - places
    tied = equals > 1
    if tied.any():
        places[tied] += _equals_before(row, matches[tied], match_values[tied])
    ranks = places + 1 - np.cumsum(junk)[right]

    hits = np.arange(1, len(ranks) + 1)
    record["average_precision"] = np.mean(hits / ranks)
    record["inverse_negative_penalty"] = len(ranks) / ranks[-1]
    record["first_hit"] = ranks[0]
    record["tied_first_hit"] = equals[0] > np.count_nonzero(values == match_values[0])


def _equals_before(row: np.ndarray, matches: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each gallery row in ``matches`` [n]: how many rows before it are at exactly the same distance ``values`` [n]."""
    distinct = np.unique(values)
    counts = np.empty(len(values), np.intp)
    if len(distinct) <= _FEW_VALUES:
        for value in distinct:
            chosen = values == value
            counts[chosen] = np.searchsorted(np.flatnonzero(row == value), matches[chosen])
        return counts
    order = np.argsort(row, kind="stable")
    places = np.empty(len(row), np.intp)
    places[order] = np.arange(len(row))
    return places[matches] - np.searchsorted(row[order], values, side="left")


def _nearest(row: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` gallery rows by (distance, gallery index)."""
    border = np.partition(row, count - 1)[count - 1]
    candidates = np.flatnonzero(row <= border)  # more than ``count`` if the border value is tied
    return candidates[np.argsort(row[candidates], kind="stable")[:count]]


def _summary(records: np.ndarray, max_rank: int, ranked_indices: np.ndarray, ranked_flags: np.ndarray) -> RankMetrics:
    valid = records[records["valid"]]
    first_hits = np.bincount(valid["first_hit"], minlength=max_rank + 1)[1 : max_rank + 1]
    return RankMetrics(
        cmc=np.cumsum(first_hits) / len(valid),
        mAP=float(valid["average_precision"].mean()),
        mINP=float(valid["inverse_negative_penalty"].mean()),
        queries=records,
        skipped_queries=len(records) - len(valid),
        tied_first_hits=int(np.count_nonzero(valid["tied_first_hit"])),
        ranked_indices=ranked_indices,
        ranked_flags=ranked_flags,
    )


def _as_labels(name: str, labels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(f"{name} has shape {labels.shape} and dtype {labels.dtype}; pass one integer per image")
    return labels


def _as_distances(block, shape: tuple[int, int]) -> np.ndarray:
    block = np.asarray(block)
    if block.shape != shape:
        raise ValueError(f"distances have shape {block.shape}, the labels ask for {shape}: a row per query, a column per image")
    if block.dtype in (np.float32, np.float64):
        return block
    if block.dtype.kind in "OSUcmM":
        raise ValueError(f"distances have dtype {block.dtype}; pass real numbers, best float32")
    return block.astype(np.float32 if block.dtype.itemsize == 2 and block.dtype.kind not in "iu" else np.float64)
