"""Distances, CMC, mAP, mINP, query expansion and re-ranking, as TransReID, torchreid and fast-reid compute them.

Ranks are discrete, so the usual tolerance is no measure for them: metrics must agree to the rounding of the stored type. Only
where they do not, `tied_range` says how far each number can move because two gallery images are equally far in float32, so that
either order is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.evaluation.distance import blocks, euclidean
from occreid_jax.evaluation.expansion import average_query_expansion
from occreid_jax.evaluation.metrics import RankMetrics, rank_metrics
from occreid_jax.evaluation.rerank import k_reciprocal
from occreid_jax.losses.margin import cosine_logits
from occreid_jax.numerics.kind import NUMBER, Kind, first_words, grouped
from occreid_jax.types import Array
from occreid_jax.weights.reference import Comparison, ReferenceFile

LAMBDA = 0.3  # TransReID's evaluator passes this lambda_value; its keys name k1 and k2 only
COSINE_LIMIT = 1e-5  # TransReID's arccos distance keeps cosines this far from -1 and 1
SHARE = 6e-8  # half a step of float32 below 1
SUM = 1e-12  # of float64 means over some hundred queries
ROUNDINGS = 8.0  # steps of float32, of the largest distance, within which two distances count as tied
HALF_STEPS = 2e-3  # two steps of float16 in a sum near 1, twice as steep in the Jaccard distance; files say "about 2e-3" too
HALF_MEAN = 1e-4  # mAP, when a few of many float16 distances lie one step further

HALF = "float16: a few of its roundings may fall to the other side"


# Re-ranking by its definition -------------------------------------------------------------------------------------------------


def by_definition(
    distance: np.ndarray, query_count: int, k1: int, k2: int, lambda_value: float, kept: type = np.float64
) -> np.ndarray:
    """k-reciprocal re-ranking of a full matrix [N, N], step by step; [Q, N - Q]. See `occreid_jax.evaluation.rerank`.

    ``kept`` is the type in which V and the Jaccard distance are stored and added up: TransReID takes float16. It is slow, and no
    part of an evaluation: it shows what float16 alone changes.
    """
    distance = distance / distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")

    def mutual(k):
        lists = [set(row) for row in order[:, : k + 1].tolist()]
        return [{other for other in own if image in lists[other]} for image, own in enumerate(lists)]

    code = np.zeros(distance.shape, kept)
    halves = mutual(int(np.around(k1 / 2)))
    for image, own in enumerate(mutual(k1)):
        whole = own.union(*(halves[c] for c in own if len(halves[c] & own) > 2 / 3 * len(halves[c])))
        columns = sorted(whole)
        weights = np.exp(-distance[image, columns])
        code[image, columns] = weights / weights.sum()
    if k2 > 1:
        code = np.stack([code[order[image, :k2]].mean(axis=0) for image in range(len(distance))])
    result = []
    for image in range(query_count):
        shared = np.zeros(len(distance), kept)
        for column in np.flatnonzero(code[image]):
            shared += np.minimum(code[image, column], code[:, column])
        jaccard = (1 - shared / (2 - shared)).astype(kept)
        result.append((1 - lambda_value) * jaccard + lambda_value * distance[image])  # a float16 product if J is float16
    return np.array(result)[:, query_count:]


def float16_effect(features: np.ndarray, query_count: int, k1: int, k2: int, lambda_value: float, normalise: bool) -> np.ndarray:
    """What keeping V and J in float16 adds to the re-ranked distances [Q, G] of features [N, D], by the definition."""
    features = features.astype(np.float64)
    if normalise:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    squares = (features**2).sum(axis=1)
    distance = np.maximum(squares[:, None] + squares[None] - 2 * features @ features.T, 0.0)
    np.fill_diagonal(distance, 0.0)
    settings = (distance, query_count, k1, k2, lambda_value)
    return by_definition(*settings, kept=np.float16) - by_definition(*settings)


# Metrics ----------------------------------------------------------------------------------------------------------------------


def labels(file: ReferenceFile) -> list[np.ndarray]:
    """Identities of queries and gallery, then cameras; stored as four inputs, or as two with the gallery behind the queries."""
    if "pid" in file.inputs:
        count = int(file.config["num_query"])
        found = [part for name in ("pid", "cam") for part in (file.input(name)[:count], file.input(name)[count:])]
    else:
        found = [file.input(name) for name in ("q_pid", "g_pid", "q_cam", "g_cam")]
    for side, pids, cameras in zip(("queries", "gallery"), found[:2], found[2:], strict=True):
        if len(pids) != len(cameras):
            raise UserError(f"{file.path}: stores {len(pids)} identities but {len(cameras)} cameras of the {side}")
    return found


def numbers(metrics: RankMetrics) -> dict[str, np.ndarray]:
    """Metrics under the names of the files: one AP and INP for each valid query, in query order."""
    valid = metrics.queries[metrics.queries["valid"]]
    return {
        "cmc": metrics.cmc,
        "AP_f64": valid["average_precision"],
        "INP_f64": valid["inverse_negative_penalty"],
        "mAP_f64": np.asarray(metrics.mAP),
        "mINP_f64": np.asarray(metrics.mINP),
    }


def tied_range(distance: np.ndarray, file: ReferenceFile, max_rank: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Smallest and largest value of each metric when images within `ROUNDINGS` of a match may stand before or behind it."""
    query_pids, gallery_pids, *cameras = labels(file)
    size = ROUNDINGS * float(np.finfo(np.float32).eps) * float(np.abs(distance).max())
    same = size * (query_pids[:, None] == gallery_pids[None])
    least, most = (
        numbers(rank_metrics(distance.astype(np.float64) + shift, query_pids, gallery_pids, *cameras, max_rank=max_rank))
        for shift in (same, -same)
    )
    return {name: (least[name], most[name]) for name in least}


def compare_metrics(
    file: ReferenceFile, stem: str, parts: list[str], distance: np.ndarray, exact: bool = False, half: bool = False
) -> Iterator[Comparison]:
    """Every metric among ``parts`` of the outputs ``stem.part``, from distances [Q, G].

    ``cmc``, also with its length (``cmc20``), is a share of queries stored as float32; the others are float64. ``exact`` says
    that the distances themselves are stored, ``half`` that the official ones passed through float16.
    """
    wanted = {part: re.sub(r"^cmc\d+$", "cmc", part) for part in parts}
    length = max([file.outputs[f"{stem}.{part}"].size for part, name in wanted.items() if name == "cmc"], default=1)
    metrics = rank_metrics(distance, *labels(file), max_rank=length)
    own, queries = numbers(metrics), int(metrics.queries["valid"].sum())
    tied = None
    for part, name in wanted.items():
        if name not in own:
            continue
        key, allowed, reason = f"{stem}.{part}", SUM, "float64 means"
        values, stored = own[name], file.outputs[key]
        if name == "cmc":
            values, allowed, reason = values[: stored.size], SHARE, "shares stored in float32"
        if half:
            # One query whose first match changes places with a neighbour moves the CMC by 1 / queries.
            allowed, reason = (1 / queries + SHARE if name == "cmc" else HALF_MEAN), HALF
        comparison = file.compare(key, values, allowed, reason)
        if not comparison.passed and not exact and stored.shape == values.shape:
            tied = tied or tied_range(distance, file, length)
            least, most = (bound[: stored.size] if name == "cmc" else bound for bound in tied[name])
            comparison = file.compare(key, np.clip(stored, least, most), allowed, f"{reason}; either order of float32 ties")
        yield comparison


# Kinds ------------------------------------------------------------------------------------------------------------------------


def plain_squares(query: Array, gallery: Array) -> Array:
    """Squared Euclidean distances float32 [Q, G] of features as they are; rounding may take them below 0, as officially."""
    squares = jnp.sum(query * query, axis=-1)[:, None] + jnp.sum(gallery * gallery, axis=-1)[None]
    return squares - 2 * jnp.matmul(query, gallery.T, precision="highest")


def half_cosine_distance(query: Array, gallery: Array) -> Array:
    """1 - cosine, half the squared distance of unit vectors."""
    return euclidean(query, gallery) / 2


def arccos_distance(query: Array, gallery: Array) -> Array:
    """Angles, TransReID's other distance."""
    return jnp.arccos(jnp.clip(cosine_logits(query, gallery), -1 + COSINE_LIMIT, 1 - COSINE_LIMIT))


# What the files call a distance -> the function of query and gallery features.
NAMED = {
    "transreid.norm": euclidean,
    "transreid.raw": plain_squares,
    "torchreid.euclidean": plain_squares,
    "torchreid.cosine": half_cosine_distance,
    "fastreid.euclidean": plain_squares,
    "fastreid.cosine": half_cosine_distance,
}


def split(file: ReferenceFile, name: str = "feat") -> tuple[np.ndarray, np.ndarray]:
    """Features of queries and gallery, stored one behind the other."""
    features, count = file.input(name), len(file.input("q_pid"))
    return features[:count], features[count:]


def matrix(function, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return np.concatenate([block for _, block in blocks(function, query, gallery)])


def in_double(query: np.ndarray, gallery: np.ndarray, normalise: bool) -> np.ndarray:
    """Squared Euclidean distances float64 [Q, G]."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if normalise:
        query, gallery = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery))
    return ((query**2).sum(1)[:, None] + (gallery**2).sum(1)[None]) - 2 * query @ gallery.T


def rows(values: np.ndarray, part: str) -> np.ndarray | None:
    """The rows that a name such as ``dist_rows0_10`` ends with; all of them without."""
    found = re.search(r"_rows(\d+)_(\d+)$", part)
    return values[int(found[1]) : int(found[2])] if found else values


def compare_features(file: ReferenceFile) -> Iterator[Comparison]:
    """Distances and metrics of features: the key names the code base, the distance, and re-ranking or expansion settings."""
    query, gallery = split(file)
    if "valid_query" in file.outputs:
        yield file.compare("valid_query", rank_metrics(matrix(euclidean, query, gallery), *labels(file)).queries["valid"])
    for stem, parts in grouped(key for key in file.outputs if "." in key).items():
        library, _, name = stem.partition(".")
        reranked = re.fullmatch(rf"(norm|raw)_rerank(\d+)_(\d+)(?:_l({NUMBER}))?", name)
        expanded = re.fullmatch(rf"aqe(\d+)_({NUMBER})", name)
        if stem in NAMED:
            distance = matrix(NAMED[stem], query, gallery)
            for part in parts:
                if part.startswith("dist_rows"):
                    yield file.compare(f"{stem}.{part}", rows(distance, part))
            yield from compare_metrics(file, stem, parts, distance)
        elif library == "float64_distances" and name in ("raw", "norm"):
            yield from compare_metrics(file, stem, parts, in_double(query, gallery, name == "norm"))
        elif stem == "transreid":
            for part in parts:
                if re.fullmatch(r"arccos(_rows\d+_\d+)?", part):
                    yield file.compare(f"{stem}.{part}", rows(matrix(arccos_distance, query, gallery), part))
        elif library == "transreid" and reranked:
            settings = int(reranked[2]), int(reranked[3]), float(reranked[4] or LAMBDA)
            normalise = reranked[1] == "norm"
            distance = k_reciprocal(query, gallery, *settings, normalize=normalise)
            distance = distance + float16_effect(file.input("feat"), len(query), *settings, normalise)
            yield from compare_metrics(file, stem, parts, distance, half=True)
        elif library == "fastreid" and expanded:
            new = dict(zip(("query_feat", "gallery_feat"), average_query_expansion(
                query, gallery, k=int(expanded[1]), alpha=float(expanded[2])), strict=True))  # fmt: skip
            for part in parts:
                kind = re.sub(r"_rows\d+_\d+$", "", part)
                if kind in new:
                    yield file.compare(f"{stem}.{part}", rows(new[kind], part))
            yield from compare_metrics(file, stem, parts, matrix(half_cosine_distance, *new.values()))


def compare_distances(file: ReferenceFile) -> Iterator[Comparison]:
    """Metrics of given distances [Q, G]: each key is a code base and a metric."""
    for stem, parts in grouped(file.outputs).items():
        if stem in ("transreid", "torchreid", "fastreid"):
            yield from compare_metrics(file, stem, parts, file.input("distmat"), exact=True)


def compare_reranking(file: ReferenceFile) -> Iterator[Comparison]:
    """Re-ranked distances [Q, G] for each ``norm`` or ``raw`` and ``k20_6_l0.3``: k1, k2 and lambda."""
    query, gallery = split(file)
    pattern = rf"(transreid_fp16|torchreid_fp32)\.(norm|raw)\.k(\d+)_(\d+)_l({NUMBER})"
    for key in file.outputs:
        if not (found := re.fullmatch(pattern, key)):
            continue
        settings, normalise = (int(found[3]), int(found[4]), float(found[5])), found[2] == "norm"
        distance = k_reciprocal(query, gallery, *settings, normalize=normalise)
        if found[1] == "torchreid_fp32":
            yield file.compare(key, distance)
        else:
            effect = float16_effect(file.input("feat"), len(query), *settings, normalise)
            yield file.compare(key, distance + effect, HALF_STEPS, HALF)


def has_metrics(file: ReferenceFile) -> bool:
    return {"q_pid", "g_pid", "q_cam", "g_cam"} <= file.inputs.keys() and any(key.endswith(".mAP_f64") for key in file.outputs)


FEATURES = Kind(lambda file: has_metrics(file) and "feat" in file.inputs, compare_features)
DISTANCES = Kind(lambda file: has_metrics(file) and "distmat" in file.inputs, compare_distances)
RERANKING = Kind(lambda file: bool(first_words(file) & {"transreid_fp16", "torchreid_fp32"}), compare_reranking)
