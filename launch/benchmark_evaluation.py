"""Times the evaluation (distances, CMC, mAP, mINP and a record per query) at the size of a public benchmark.

Random features with identity structure stand in for real ones. Beside it runs a plain numpy evaluation, a full stable argsort of
every row, and both are compared number by number. Each runs in a process of its own, so that neither counts the other's memory::

    python launch/benchmark_evaluation.py --size=market
    python launch/benchmark_evaluation.py --size=msmt17 --noreference

With ``--rerank`` the distances are re-ranked by k-reciprocal encoding first, and the plain version has full float32 matrices over
queries and gallery, as is usual. Three of them exist at a time, 4.5 GB at Market's size::

    python launch/benchmark_evaluation.py --rerank --size=quarter
    python launch/benchmark_evaluation.py --rerank=50,15,0.3 --size=market --noreference

With ``--masked`` every query has a mask through which it sees the whole gallery (DPM++), the distances are those of that method,
and the plain evaluation stands beside it instead of numpy's; a sample of the distances is compared with the direct formula::

    python launch/benchmark_evaluation.py --masked --size=market

With ``--visible`` every picture has a feature of the whole and eight of its parts, of which a random half is visible, and
pictures are compared by what both show (OGFR); the rest is as with ``--masked``::

    python launch/benchmark_evaluation.py --visible --size=market

Printed: wall seconds (compilation included), CPU seconds of all threads, and the peak memory beyond what the process held once
imports were done and the features were made. The load average tells how busy the machine was before.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import resource
import time

import numpy as np

# queries, gallery images, gallery images that are distractors, identities, cameras
SIZES = {
    "market": (3_368, 15_913, 2_798, 750, 6),
    "msmt17": (11_659, 82_161, 0, 3_060, 15),
    "quarter": (842, 3_978, 700, 188, 6),  # of market
    "small": (200, 1_000, 100, 50, 6),
}
REFERENCE_ROWS = 256  # queries per block of the numpy evaluation
SAMPLE = 16, 400  # queries and gallery images whose distances by masks or parts are compared with the direct formula
PARTS = 8  # of a picture's features with --visible, beside that of the whole


def make_features(size: str, dim: int, separation: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Random query and gallery features: ``separation`` times the identity's centre plus noise, float32 [N, dim], with labels."""
    queries, gallery, distractors, identities, cameras = SIZES[size]
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities + 1, dim), dtype=np.float32)
    made = {}
    for split, count in (("query", queries), ("gallery", gallery)):
        pids = rng.integers(1, identities + 1, count).astype(np.int32)
        if split == "gallery":
            pids[:distractors] = 0
            rng.shuffle(pids)
        features = np.empty((count, dim), np.float32)
        for first in range(0, count, 4096):  # in pieces: a full temporary would hide the memory that is measured later
            part = pids[first : first + 4096]
            noise = rng.standard_normal((len(part), dim), dtype=np.float32)
            features[first : first + 4096] = noise + separation * centres[part] * (part > 0)[:, None]
        made[split] = features
        made[f"{split}_pids"], made[f"{split}_camids"] = pids, rng.integers(0, cameras, count).astype(np.int32)
    return made


def numpy_blocks(query: np.ndarray, gallery: np.ndarray):
    """Squared Euclidean distances of normalised features, as plain numpy."""
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for first in range(0, len(query), REFERENCE_ROWS):
        part = query[first : first + REFERENCE_ROWS]
        yield slice(first, first + len(part)), np.maximum(2 - 2 * part @ gallery.T, 0)


def reference_metrics(blocks, query_pids, gallery_pids, query_camids, gallery_camids, max_rank: int = 50):
    """The definition, line by line: sort all, drop junk, read off the hits. Returns CMC, AP, INP and first hits."""
    average_precisions, penalties, first_hits = [], [], []
    for rows, block in blocks:
        order = np.argsort(block, axis=1, kind="stable")
        for query, ranked in enumerate(order, rows.start):
            same = gallery_pids[ranked] == query_pids[query]
            kept = same[~(same & (gallery_camids[ranked] == query_camids[query]))]
            ranks = np.flatnonzero(kept) + 1
            if len(ranks):
                average_precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
                penalties.append(len(ranks) / ranks[-1])
                first_hits.append(ranks[0])
    first_hits = np.array(first_hits)
    cmc = np.array([np.mean(first_hits <= rank) for rank in range(1, max_rank + 1)])
    return cmc, np.array(average_precisions), np.array(penalties), first_hits


def dense_rerank(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """k-reciprocal re-ranking with [N, N] matrices, N = Q + G, and a loop over images; float32 [Q, G]."""
    features = np.concatenate([query, gallery])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distance = np.maximum(2 - 2 * features @ features.T, 0)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable").astype(np.int32)
    code = np.zeros_like(distance)

    def mutual(image: int, k: int) -> np.ndarray:
        forward = order[image, : k + 1]
        return forward[(order[forward, : k + 1] == image).any(axis=1)]

    for image in range(len(features)):
        own = mutual(image, k1)
        whole = [own]
        for candidate in own:
            more = mutual(candidate, round(k1 / 2))
            if 3 * len(np.intersect1d(more, own)) > 2 * len(more):
                whole.append(more)
        chosen = np.unique(np.concatenate(whole))
        weights = np.exp(-distance[image, chosen])
        code[image, chosen] = weights / weights.sum()
    if k2 > 1:
        code = np.stack([code[nearest].mean(axis=0) for nearest in order[:, :k2]])
    holders = [np.flatnonzero(column) for column in code.T]
    result = lambda_value * distance[: len(query)]
    for image, row in enumerate(result):
        shared = np.zeros_like(row)
        for column in np.flatnonzero(code[image]):
            shared[holders[column]] += np.minimum(code[image, column], code[holders[column], column])
        row += (1 - lambda_value) * (1 - shared / (2 - shared))
    return result[:, len(query) :]


def measure(kind: str, arguments: argparse.Namespace, connection) -> None:
    """Runs one evaluation in this process and sends its figures through ``connection``."""
    import jax

    from occreid_jax import evaluation
    from occreid_jax.evaluation.rerank import PRESETS, rerank_blocks

    jax.devices()  # start the backend now: it is no part of the evaluation
    data = make_features(arguments.size, arguments.dim, arguments.separation)
    labels = data["query_pids"], data["gallery_pids"], data["query_camids"], data["gallery_camids"]
    features = data["query"], data["gallery"]
    settings = PRESETS.get(arguments.rerank)
    if kind in OTHER_DISTANCES:
        distance, richer, direct = OTHER_DISTANCES[kind]
        distance, features = distance(), richer(features)

    def our_blocks():
        if kind in OTHER_DISTANCES:
            return evaluation.blocks(distance, *features, arguments.block_rows)
        if settings:
            return rerank_blocks(evaluation.euclidean, *features, **settings, block_rows=arguments.block_rows)
        return evaluation.blocks(evaluation.euclidean, *features, arguments.block_rows)

    @functools.cache
    def dense():
        return dense_rerank(*features, **settings)

    def their_blocks():
        if settings:
            starts = range(0, len(dense()), REFERENCE_ROWS)
            return [(slice(first, first + REFERENCE_ROWS), dense()[first : first + REFERENCE_ROWS]) for first in starts]
        return numpy_blocks(*features)

    before, wall, cpu = peak_megabytes(), time.perf_counter(), time.process_time()
    if kind != "reference":
        numbers = from_result(evaluation.rank_metrics_blocks(our_blocks(), *labels))
    else:
        numbers = reference_metrics(their_blocks(), *labels)
    figures = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "megabytes": peak_megabytes() - before,
        "held": before,
        "numbers": numbers,
    }
    if kind == "reference":  # the same distances through both evaluations must give the same numbers; after the clock has stopped
        again = from_result(evaluation.rank_metrics_blocks(their_blocks(), *labels))
        figures["identical"] = all(np.array_equal(ours, theirs) for ours, theirs in zip(again, numbers, strict=True))
    if kind in OTHER_DISTANCES:
        sample = [{name: values[np.linspace(0, len(values) - 1, count).astype(int)] for name, values in side.items()}
                  for side, count in zip(features, SAMPLE, strict=True)]  # fmt: skip
        figures["difference"] = float(np.abs(np.asarray(distance(*sample)) - direct(*sample)).max())
    connection.send(figures)


def masked_distance():
    """The distance of DPM++."""
    import command  # noqa: F401  it puts the checkout, and with it the configs, on the path

    from configs import dpm_pp
    from occreid_jax import methods
    from occreid_jax.types import Meta

    config = dpm_pp.get_config("backbone=micro,text=false,row=dpm_hmg_hem")
    return methods.create(config, Meta(identities=2, cameras=2, image_size=(64, 32), images=2)).distance


def with_masks(features: tuple[np.ndarray, np.ndarray]) -> tuple[dict, dict]:
    """Query and gallery features as DPM++ gives them, with random masks of the queries between 0 and 1."""
    query, gallery = features
    masks = np.random.default_rng(1).random(query.shape, dtype=np.float32)
    return {"feature": query, "mask": masks}, {"feature": gallery}


def masked_directly(query: dict, gallery: dict) -> np.ndarray:
    """The formula of DPM++ with one masked gallery per query, float64 [Q, G]."""
    feature, mask, other = (x.astype(np.float64) for x in (query["feature"], query["mask"], gallery["feature"]))
    seen = unit(mask[:, None] * unit(other)[None])
    return 2 - 2 * np.einsum("qd,qgd->qg", unit(feature), seen)


def visible_distance():
    """The distance of OGFR."""
    from occreid_jax import evaluation

    return evaluation.visibility_weighted


def with_parts(features: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    """Query and gallery features as OGFR gives them: those of the parts are the whole's with its entries in another order, and
    half of the parts are visible."""
    rng, sides = np.random.default_rng(1), []
    for feature in features:
        parts = np.empty((len(feature), PARTS, feature.shape[1]), np.float32)
        for part in range(PARTS):  # one after the other: a stack of copies would hide the memory that is measured later
            parts[:, part] = np.roll(feature, part + 1, axis=1)
        visible = (rng.random((len(feature), PARTS)) < 0.5).astype(np.float32)
        sides.append({"global": feature, "parts": parts, "visible": visible})
    return sides


def visible_directly(query: dict, gallery: dict) -> np.ndarray:
    """The formula of OGFR with every difference of two vectors, float64 [Q, G]."""

    def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        one, other = unit(one.astype(np.float64)), unit(other.astype(np.float64))
        return np.stack([np.linalg.norm(row - other, axis=-1) for row in one])

    shared = query["visible"][:, None].astype(np.float64) * gallery["visible"][None]
    parts = np.stack([apart(query["parts"][:, part], gallery["parts"][:, part]) for part in range(PARTS)], axis=-1)
    return (apart(query["global"], gallery["global"]) + (shared * parts).sum(axis=-1)) / (shared.sum(axis=-1) + 1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# kind -> what gives its distance, what gives its features from plain ones, the formula written out
OTHER_DISTANCES = {
    "masked": (masked_distance, with_masks, masked_directly),
    "visible": (visible_distance, with_parts, visible_directly),
}


def from_result(result) -> tuple[np.ndarray, ...]:
    """The numbers of a `RankMetrics` in the form of `reference_metrics`."""
    valid = result.queries[result.queries["valid"]]
    return result.cmc, valid["average_precision"], valid["inverse_negative_penalty"], valid["first_hit"]


def peak_megabytes() -> float:
    """Most memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def run(kind: str, arguments: argparse.Namespace) -> dict:
    """Starts `measure` in a fresh process, prints its figures and returns them."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit this one's peak
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(kind, arguments, sender))
    process.start()
    sender.close()  # so that a crash over there ends the wait below
    try:
        figures = receiver.recv()
    except EOFError:
        raise SystemExit(f"the {kind} process ended without a result; its error is printed above") from None
    finally:
        process.join()
    cmc, average_precisions, penalties, _ = figures["numbers"]
    print(
        f"{kind:<11} wall {figures['wall']:7.2f} s   cpu {figures['cpu']:7.2f} s   peak memory +{figures['megabytes']:.0f} MiB "
        f"(before: {figures['held']:.0f} MiB)   rank-1 {cmc[0]:.6f}   mAP {average_precisions.mean():.6f}   "
        f"mINP {penalties.mean():.6f}   valid queries {len(penalties)}",
        flush=True,
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="market", help="whose numbers of images to use")
    parser.add_argument("--dim", type=int, default=768, help="feature length")
    parser.add_argument("--separation", type=float, default=0.3, help="identity structure; 0 makes independent random features")
    parser.add_argument("--block_rows", type=int, default=512, help="queries per block of distances")
    parser.add_argument(
        "--rerank",
        nargs="?",
        const="20,6,0.3",
        choices=["20,6,0.3", "50,15,0.3"],
        help="re-rank first, with these k1, k2 and lambda (default 20,6,0.3)",
    )
    parser.add_argument("--masked", action="store_true", help="the gallery seen through a mask of every query, beside plain")
    parser.add_argument("--visible", action="store_true", help="compared by the parts that both pictures show, beside plain")
    parser.add_argument("--reference", action="store_true", default=True, help="run the numpy evaluation too (default)")
    parser.add_argument("--noreference", dest="reference", action="store_false", help="leave the numpy evaluation out")
    arguments = parser.parse_args()
    queries, gallery, *_ = SIZES[arguments.size]
    print(f"{queries} queries x {gallery} gallery images x {arguments.dim} dimensions, {os.cpu_count()} cores")
    if arguments.rerank:
        print(f"k-reciprocal re-ranking, k1, k2, lambda = {arguments.rerank}")
    print("load average {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()), flush=True)
    others = [kind for kind in OTHER_DISTANCES if getattr(arguments, kind)]
    if len(others) + bool(arguments.rerank) > 1:
        parser.error("--masked, --visible and --rerank are measured apart; give one of them")
    ours = run("evaluation", arguments)
    for kind in others:
        other = run(kind, arguments)
        ratios = [f"{name} {other[name] / ours[name]:.2f}" for name in ("wall", "cpu", "megabytes")]
        print(f"{kind} to plain: {', '.join(ratios)}")
        print(f"{SAMPLE[0]} x {SAMPLE[1]} distances beside the direct formula: largest difference {other['difference']:.1e}")
    if arguments.reference and not others:
        theirs = run("reference", arguments)
        print(f"same distances through both: {'all numbers identical' if theirs['identical'] else 'NUMBERS DIFFER'}")
        names = ("CMC", "AP", "INP")
        apart = [
            f"{name} {np.abs(a - b).max():.1e}" for name, a, b in zip(names, ours["numbers"], theirs["numbers"], strict=False)
        ]
        print(f"each with its own distances, largest difference: {', '.join(apart)}")


if __name__ == "__main__":
    main()
