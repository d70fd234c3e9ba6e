"""What the report shows of the data: ranked lists as they were evaluated, and training pictures after augmentation."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from occreid_jax.data.occluders import TABLES as SHARED
from occreid_jax.evaluation.metrics import JUNK, RIGHT, WRONG
from occreid_jax.report.pictures import data_uri, denormalise
from occreid_jax.train.setup import MEAN, Setup
from occreid_jax.types import Split, Stage

TABLES = ("image", "parts", "parsed", MEAN)  # what `Setup.columns` gives for stages of pictures
RANKS = 10  # gallery pictures shown of every list
RANKED_HEIGHT = 192  # pixels; keeps the file small when pictures are 256 pixels high
WORDS = {RIGHT: "right", WRONG: "wrong", JUNK: "junk"}


# Ranked lists -------------------------------------------------------------------------------------------------------------


def choose_queries(records: np.ndarray, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Up to ``count`` valid queries as (heading, rows): a third each of the worst, the best and random others.

    ``records`` is QUERY_RECORD [Q]. No query comes twice. The random ones depend on ``seed`` alone; equal values keep the order
    of the queries.
    """
    valid = np.flatnonzero(records["valid"])
    count = min(count, len(valid))
    rising = valid[np.argsort(records["average_precision"][valid], kind="stable")]
    best_count, random_count = count // 3, count // 3
    worst = rising[: count - best_count - random_count]
    rest = rising[len(worst) :]
    best = rest[np.argsort(-records["average_precision"][rest], kind="stable")][:best_count]
    others = np.setdiff1d(rest, best)
    chosen = np.sort(np.random.default_rng(seed).permutation(others)[:random_count])
    groups = [("Worst queries", worst), ("Best queries", best), ("Random queries", chosen)]
    return [(heading, rows) for heading, rows in groups if len(rows)]


def ranked_list(setup: Setup, evaluation: dict[str, np.ndarray], tables: dict[str, np.ndarray], query: int) -> dict[str, Any]:
    """One query and the head of its list, exactly as the evaluation stored it, ready for the template.

    Ranks do not count junk, as in the metric; a junk picture keeps its place and has no rank.
    """
    dataset, record = setup.dataset, evaluation["queries"][query]
    indices, flags = evaluation["ranked_indices"][query, :RANKS], evaluation["ranked_flags"][query, :RANKS]
    ranks = np.cumsum(flags != JUNK)
    entries = []
    for index, flag, rank in zip(indices, flags, ranks, strict=True):
        word, rank = WORDS[int(flag)], None if flag == JUNK else int(rank)
        place = f"rank {rank}" if rank else "not counted"
        entries.append(
            {
                "uri": data_uri(tables["gallery"][index], RANKED_HEIGHT),
                "kind": word,
                "rank": rank,
                "alt": f"gallery picture, {place}, {word}: {dataset.gallery.names[index]}",
                **identity(dataset.gallery, index),
            }
        )
    return {
        "uri": data_uri(tables["query"][query], RANKED_HEIGHT),
        "alt": f"query {dataset.query.names[query]}",
        "average_precision": 100.0 * float(record["average_precision"]),
        "first_hit": int(record["first_hit"]),
        "matches": int(record["matches"]),
        "entries": entries,
        **identity(dataset.query, query),
    }


def identity(split: Split, row: int) -> dict[str, Any]:
    """Who and where, as file names count them: cameras from 1; None where they are not known."""
    camera = int(split.camids[row]) + 1 if split.cameras else None
    return {"pid": int(split.pids[row]), "camera": camera, "name": split.names[row]}


# Augmentation -------------------------------------------------------------------------------------------------------------


def augmented(setup: Setup, extra: Any, count: int) -> tuple[str, list[dict[str, Any]]]:
    """(stage name, rows for the template) of the first stage that trains on pictures; ("", []) if there is none.

    Each row is a training picture as stored and what two draws of the stage's own ``augment`` make of it: every float array
    [B, H, W, 3] of the augmented batch is a picture, so that a method with several views shows them all.
    """
    prepared = extra.get("tables", {}) if hasattr(extra, "get") else {}
    stage = next((stage for stage in setup.method.stages() if showable(stage, prepared)), None)
    count = min(count, len(setup.dataset.train))
    if stage is None or not count:
        return "", []
    order = np.random.default_rng(setup.config.seed).permutation(len(setup.dataset.train))
    rows = np.sort(order[:count]).astype(np.int32)
    names = tuple(name for name in stage.inputs if name in TABLES)
    tables = setup.columns("train", names, setup.config.data.train_filter)
    columns = {**tables, **prepared, "label": setup.labels}
    raw = {name: np.asarray(columns[name][rows]) for name in dict.fromkeys((*stage.inputs, "camid", "label"))}
    raw |= {"index": rows, "valid": np.ones(len(rows), bool)} | (setup.shared(stage.shared) if stage.shared else {})
    augment = jax.jit(stage.augment)
    draws = [jax.device_get(augment(jax.random.fold_in(jax.random.key(setup.config.seed), draw), raw)) for draw in (1, 2)]
    settings = setup.config.method
    mean, std = tuple(settings.mean), tuple(settings.std)
    result = []
    for place, row in enumerate(rows):
        pictures = [{"uri": data_uri(raw["image"][place]), "alt": f"original training picture {setup.dataset.train.names[row]}"}]
        for number, batch in enumerate(draws, start=1):
            for name, values in batch.items():
                if is_view(values, len(rows)):
                    alt = f"draw {number} of {name} of the same picture"
                    pictures.append({"uri": data_uri(denormalise(values[place], mean, std)), "alt": alt})
        result.append({"pictures": pictures, **identity(setup.dataset.train, row)})
    return stage.name, result


def showable(stage: Stage, prepared: dict[str, Any]) -> bool:
    """Whether a stage trains on pictures and all its tables are at hand."""
    known = all(name in TABLES or name in prepared for name in stage.inputs) and set(stage.shared) <= set(SHARED)
    return "image" in stage.inputs and known


def is_view(values: Any, count: int) -> bool:
    """A float array [count, H, W, 3] with sides that a picture can have."""
    shape = np.shape(values)
    floats = np.issubdtype(np.asarray(values).dtype, np.floating)
    return floats and len(shape) == 4 and shape[0] == count and shape[3] == 3 and min(shape[1:3]) >= 8
