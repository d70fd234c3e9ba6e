"""Evaluation of any method: it sees features and a distance function only.

Public:

* `rank_metrics`, `rank_metrics_blocks`: CMC, mAP, mINP and a record per query, from a distance matrix or from blocks of it,
* `RankMetrics`, `QUERY_RECORD`: their result; `WRONG`, `RIGHT`, `JUNK`: the flags of its ranked lists,
* `normalize`, `euclidean`: the usual features and distance,
* `blocks`: any distance function, block by block,
* `visibility_weighted`: the distance of pictures by the parts that both show,
* `k_reciprocal`, `rerank_blocks`: k-reciprocal re-ranking of features, and of any method's distance,
* `average_query_expansion`: features averaged with those of their nearest neighbours,
* `score_shown`, `score_map`, `auroc`, `person_cells`, `covered_shares`: what a method looks at, against ground truth.

Typical use::

    pairs = evaluation.blocks(evaluation.euclidean, query_features, gallery_features, block_rows=512)
    result = evaluation.rank_metrics_blocks(pairs, query.pids, gallery.pids, query.camids, gallery.camids)
"""

from occreid_jax.evaluation.distance import blocks, euclidean, normalize
from occreid_jax.evaluation.expansion import average_query_expansion
from occreid_jax.evaluation.metrics import (
    JUNK,
    QUERY_RECORD,
    RIGHT,
    WRONG,
    RankMetrics,
    rank_metrics,
    rank_metrics_blocks,
)
from occreid_jax.evaluation.rerank import k_reciprocal, rerank_blocks
from occreid_jax.evaluation.selection import auroc, covered_shares, person_cells, score_map, score_shown
from occreid_jax.evaluation.visible_parts import visibility_weighted

__all__ = [
    "JUNK",
    "QUERY_RECORD",
    "RIGHT",
    "WRONG",
    "RankMetrics",
    "auroc",
    "average_query_expansion",
    "blocks",
    "covered_shares",
    "euclidean",
    "k_reciprocal",
    "normalize",
    "person_cells",
    "rank_metrics",
    "rank_metrics_blocks",
    "rerank_blocks",
    "score_map",
    "score_shown",
    "visibility_weighted",
]
