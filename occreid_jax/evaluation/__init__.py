"""Evaluation of any method: it sees features and a distance function only.

Public:

* `rank_metrics`, `rank_metrics_blocks`: CMC, mAP, mINP and a record per query, from a distance matrix or from blocks of it,
* `RankMetrics`, `QUERY_RECORD`: their result; `WRONG`, `RIGHT`, `JUNK`: the flags of its ranked lists,
* `normalize`, `euclidean`: the usual features and distance,
* `blocks`: any distance function, block by block.

Typical use::

    pairs = evaluation.blocks(evaluation.euclidean, query_features, gallery_features, block_rows=512)
    result = evaluation.rank_metrics_blocks(pairs, query.pids, gallery.pids, query.camids, gallery.camids)
"""

from occreid_jax.evaluation.distance import blocks, euclidean, normalize
from occreid_jax.evaluation.metrics import (
    JUNK,
    QUERY_RECORD,
    RIGHT,
    WRONG,
    RankMetrics,
    rank_metrics,
    rank_metrics_blocks,
)

__all__ = [
    "JUNK",
    "QUERY_RECORD",
    "RIGHT",
    "WRONG",
    "RankMetrics",
    "blocks",
    "euclidean",
    "normalize",
    "rank_metrics",
    "rank_metrics_blocks",
]
