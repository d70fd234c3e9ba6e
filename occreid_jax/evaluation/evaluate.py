"""One evaluation from parameters to results: embed, compare block by block, rank, summarise."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.data.parsing import read_truth
from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError
from occreid_jax.evaluation.distance import blocks
from occreid_jax.evaluation.embed import embed_split
from occreid_jax.evaluation.expansion import average_query_expansion
from occreid_jax.evaluation.metrics import RankMetrics, rank_metrics_blocks
from occreid_jax.evaluation.part_scores import score_inspected
from occreid_jax.evaluation.rerank import rerank_blocks
from occreid_jax.passes import run_pass
from occreid_jax.types import Dataset, Method

KEPT_RANKS = 20  # places of every ranked list that a report can show
COLLAPSED = 1 - 1e-4  # mean cosine above which features are called nearly equal; untrained encoders stay below 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """``results`` is what results.json holds; ``metrics`` has the per-query records and ranked lists behind it."""

    results: dict[str, Any]
    metrics: RankMetrics
    likeness: float = float("nan")  # mean cosine of two pictures' features, NaN where it was not taken; see `mean_cosine`

    @property
    def doubts(self) -> tuple[str, ...]:
        """One sentence if the ranking says less than it seems to, because features or distances do not tell pictures apart."""
        told, tied = [], self.results["tied_first_hits"]
        if self.likeness > COLLAPSED:
            told.append(f"the features of all pictures are nearly equal (mean cosine {self.likeness:.6f})")
        if tied:
            counted = self.results["queries"] - self.results["skipped_queries"]
            first = f"{tied:,} of {counted:,} first hits"
            told.append(f"{first} are exactly as far as another person's picture: their order is chance")
        return (f"note: {'; '.join(told)}",) if told else ()

    @property
    def compared(self) -> tuple[str, ...]:
        """One line with the mAP of `Method.comparisons`, if there are any."""
        found = [f"{name} {values['mAP']:.1f}" for name, values in self.results["comparisons"].items()]
        return (f"mAP by what is compared: {'; '.join(found)}",) if found else ()

    @property
    def summary(self) -> str:
        """The line that train and evaluate end with."""
        r = self.results
        return (
            f"mAP {r['mAP']:.1f}  R-1 {r['rank1']:.1f}  R-5 {r['rank5']:.1f}  R-10 {r['rank10']:.1f}  "
            f"mINP {r['mINP']:.1f}  ({r['protocol']})"
        )


def evaluate(
    method: Method,
    params: Any,
    extra: Any,
    dataset: Dataset,
    columns: Mapping[str, Mapping[str, np.ndarray]],
    settings,
    devices: Devices,
    task=lambda description, total: contextlib.nullcontext(),
    selection: bool = False,
) -> Evaluation:
    """Evaluates under the dataset's protocol.

    ``columns`` maps "query" and "gallery" to their tables, ``settings`` is ``config.evaluation``. ``task(description, total)``
    gives a context manager that takes progress calls. With ``selection``, `Method.comparisons` are ranked too, and what the
    method attends to in queries is scored against the dataset's ground truth, if both exist; ``columns["query"]`` must then hold
    ``truth`` uint8 [N, H, W], body-part labels, and ``columns["train"]`` may, for reference. Raises `UserError` if features are
    not finite or nothing can be matched.
    """
    started = time.monotonic()
    # Ground truth is for the scores below: no method sees it under this name.
    own = {
        role: {name: table for name, table in tables.items() if name != "truth"}
        for role, tables in columns.items()
        if role != "train"
    }
    features, compared = {}, selection and bool(method.comparisons)
    for role in ("query", "gallery"):
        with task(f"embedding {role}", len(own[role]["camid"])) as progress:
            features[role] = embed_split(
                method, params, extra, own[role], role, settings.batch_size, devices, settings.flip, progress, compared
            )
    beside = {role: pair[1] for role, pair in features.items()} if compared else {}
    features = {role: pair[0] for role, pair in features.items()} if compared else features
    query, gallery = dataset.query, dataset.gallery
    try:
        metrics = rank_metrics_blocks(
            distances(method, features, settings),
            query.pids, gallery.pids, query.camids, gallery.camids,
            keep_ranked=KEPT_RANKS,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{dataset.protocol}: {error}") from error
    results = summarise(metrics, dataset)
    # Both use the test set as a whole, so their figures must not pass for plain ones.
    for name in ("expansion", "rerank"):
        results["protocol"] += f"+{name}={settings[name]}" if settings[name] else ""
    if compared:
        results["comparisons"] = comparisons(method, beside, dataset)
    if selection and dataset.truth is not None:
        shown = inspect_split(method, params, extra, own["query"], settings.batch_size, devices, task)
        results["selection"] = score_inspected(shown, columns["query"]["truth"], columns.get("train", {}).get("truth"))
    if selection and (told := method.measures(params, extra)):
        results["measures"] = {name: round(value, 6) for name, value in told.items()}
    results["parameters_sha256"] = parameters_hash(params, extra)
    results["seconds"] = round(time.monotonic() - started, 2)
    return Evaluation(results, metrics, mean_cosine(features))


def comparisons(method: Method, features: Mapping[str, Any], dataset: Dataset) -> dict[str, dict[str, float]]:
    """``mAP`` and ``rank1`` in percent of each of `Method.comparisons`, without query expansion and re-ranking; ``features`` maps
    "query" and "gallery" to what they need."""
    query, gallery, found = dataset.query, dataset.gallery, {}
    for name in method.comparisons:
        pairs = blocks(functools.partial(method.compare, name), features["query"], features["gallery"])
        metrics = rank_metrics_blocks(pairs, query.pids, gallery.pids, query.camids, gallery.camids)
        found[name] = {"mAP": round(100.0 * float(metrics.mAP), 4), "rank1": round(100.0 * float(metrics.cmc[0]), 4)}
    return found


def mean_cosine(features: Mapping[str, Any]) -> float:
    """Mean cosine of two of all pictures' features, -1 .. 1: near 1 if a network gives every picture the same.

    ``features`` maps "query" and "gallery" to a method's pytrees, leaves [N, ...]; what one role alone has is left out. Of
    several features of a picture the one counts that tells pictures apart best, so a mask that is the same for all says nothing.
    NaN if none is a vector of floats.
    """

    def cosine(*roles: Any) -> float:
        flat = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in roles]
        if not jnp.issubdtype(flat[0].dtype, jnp.floating) or flat[0].shape[1] == 1:
            return float("inf")
        flat = [leaf.astype(np.float32) for leaf in flat]
        # The squared length of the mean unit vector is the mean over all pairs, without a matrix of them.
        sums = [(1 / np.maximum(np.linalg.norm(leaf, axis=1), 1e-30)) @ leaf for leaf in flat]
        mean = np.sum(sums, axis=0, dtype=np.float64) / sum(map(len, flat))
        return min(1.0, float(mean @ mean))

    query, gallery = (dict(jax.tree_util.tree_leaves_with_path(features[role])) for role in ("query", "gallery"))
    found = min((cosine(query[path], gallery[path]) for path in query.keys() & gallery.keys()), default=np.inf)
    return found if np.isfinite(found) else float("nan")


def distances(method: Method, features: Mapping[str, Any], settings) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of the method's distance, with query expansion before and re-ranking after it if ``settings`` asks for them."""
    query, gallery = features["query"], features["gallery"]
    if settings.expansion:
        if not isinstance(query, np.ndarray | jax.Array):
            raise UserError("config.evaluation.expansion needs one feature per image; this method has several, leave it empty")
        k, alpha = settings.expansion.split(",")
        query, gallery = average_query_expansion(query, gallery, int(k), float(alpha))
    if settings.rerank:
        k1, k2, share = settings.rerank.split(",")
        return rerank_blocks(method.distance, query, gallery, int(k1), int(k2), float(share))
    return blocks(method.distance, query, gallery)


@functools.lru_cache(maxsize=4)
def make_inspect(method: Method, devices: Devices):
    """The jitted function (params, extra, raw batch) -> what `inspect_split` gives of a batch, nothing of a method without maps.

    Kept like `occreid_jax.evaluation.embed.make_embed`.
    """

    def shown(params, extra, batch):
        found = {
            name: values.astype(jnp.float32) if values.ndim < 3 or jnp.issubdtype(values.dtype, jnp.inexact) else values != 0
            for name, values in method.inspect(params, extra, method.transform(batch)).items()
            if values.ndim in (1, 2, 3, 4)
        }
        return found if any(values.ndim > 2 for values in found.values()) else {}

    return jax.jit(shown, in_shardings=(devices.replicated, devices.replicated, devices.rows), out_shardings=devices.replicated)


def inspect_split(
    method: Method, params: Any, extra: Any, columns: Mapping[str, np.ndarray], batch_size: int, devices: Devices, task
) -> dict[str, np.ndarray]:
    """What `Method.inspect` gives for every row of ``columns``, by name: maps float32 or bool, [N, h, w] or [N, k, h, w], and
    numbers float32 [N] or [N, k].

    Nothing is run if the method has no map.
    """
    function, total = make_inspect(method, devices), len(columns["camid"])
    raw = {name: jax.ShapeDtypeStruct((devices.count, *table.shape[1:]), table.dtype) for name, table in columns.items()}
    raw |= {name: jax.ShapeDtypeStruct((devices.count,), dtype) for name, dtype in (("index", np.int32), ("valid", bool))}
    if not function.eval_shape(params, extra, raw):
        return {}
    with task("inspecting query", total) as progress:
        return run_pass(lambda batch: function(params, extra, batch), columns, batch_size, devices, progress)


def summarise(metrics: RankMetrics, dataset: Dataset) -> dict[str, Any]:
    """Percentages and counts as results.json names them."""

    def percent(fraction: float) -> float:
        return round(100.0 * float(fraction), 4)

    results = {
        "protocol": dataset.protocol,
        "mAP": percent(metrics.mAP),
        "mINP": percent(metrics.mINP),
        **{f"rank{rank}": percent(metrics.cmc[rank - 1]) for rank in (1, 5, 10)},
        "queries": len(dataset.query),
        "gallery": len(dataset.gallery),
        "skipped_queries": metrics.skipped_queries,
        "tied_first_hits": metrics.tied_first_hits,
        "per_occlusion": {},
        "per_covered": {},
        "selection": {},
        "comparisons": {},
    }
    if dataset.truth is not None:
        records = read_truth(dataset, "query")
        results["per_occlusion"] = per_group(metrics, [record.occlusion for record in records])
        covered = np.array([record.covered_fraction for record in records])
        results["per_covered"] = per_group(metrics, [f"{10 * tenth} to {10 * tenth + 10} %" for tenth in tenths(covered)])
    return results


def per_group(metrics: RankMetrics, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Number of queries, mAP and rank 1 in percent of each group of queries, by name; ``groups`` names every query's. Queries
    without a match are left out, as everywhere."""
    found, groups = {}, np.array(groups)
    for name in sorted(set(groups.tolist())):
        chosen = metrics.queries[(groups == name) & metrics.queries["valid"]]
        if len(chosen):
            precision, first = chosen["average_precision"].mean(), (chosen["first_hit"] == 1).mean()
            measured = {name: round(100.0 * float(value), 4) for name, value in (("mAP", precision), ("rank1", first))}
            found[name] = {"queries": len(chosen)} | measured
    return found


def tenths(fractions: np.ndarray) -> np.ndarray:
    """int64 [N], 0 .. 9: which tenth of the whole a fraction float [N] in 0 .. 1 lies in; a border belongs to the upper one."""
    return np.clip(np.floor(10.0 * np.asarray(fractions, np.float64) + 1e-9).astype(np.int64), 0, 9)


def parameters_hash(*trees: Any) -> str:
    """SHA-256 over the bytes of all leaves and their paths: equal only for bit-equal parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        value = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
