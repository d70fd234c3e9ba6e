"""What a method says about single pictures (`Method.inspect`), drawn over them and compared with ground truth.

Arrays are told apart by shape and type: float [B, h, w] is a heat map, bool or integer [B, h, w] a mask, a further axis in
front of h is several maps, [B] is a number for the caption. Names have a meaning where `evaluation.part_scores` gives them one:
erased cells are dark, one map per part is named by the part, and the visibility of parts is drawn as bars.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from occreid_jax.data.parsing import TruthRecord, read_truth
from occreid_jax.evaluation.part_scores import ERASED, VISIBLE, WORDS, is_part_map, visible_share, with_named_parts
from occreid_jax.parts import OCCLUDED, visible_person
from occreid_jax.report.pictures import bars, data_uri, heat_overlay, mask_overlay, resized, truth_overlay
from occreid_jax.report.samples import identity
from occreid_jax.train.setup import Setup

SHOWN = 8  # queries; also the batch size, so that one program serves all
SECONDS = 2.0  # the measurement over all queries is left out if it takes longer
MAPS = 9  # of an array with several maps per picture, this many are drawn


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What the template shows of `Method.inspect`."""

    cards: list[dict[str, Any]]  # one per query
    shares: list[dict[str, Any]]  # rows of the table: weight on the visible person
    measured: int  # queries behind the column "all queries"; 0: left out
    truth: bool  # ground truth stands beside the pictures
    occluded: bool  # the queries are known to be occluded


def inspect(setup: Setup, params: Any, extra: Any) -> Inspection | None:
    """Runs `Method.inspect` on a few queries, occluded ones where that is known; None if the method has nothing to show."""
    dataset = setup.dataset
    records = read_truth(dataset, "query") if dataset.truth is not None else None
    rows = choose_rows(records, len(dataset.query), SHOWN, setup.config.seed)
    inputs = tuple(setup.method.evaluation_inputs)
    wanted = ("image", *inputs, *(("truth",) if records else ()))
    columns = setup.columns("query", tuple(dict.fromkeys(wanted)), setup.config.data.test_filter)
    names = ("camid", *inputs)
    function = jax.jit(lambda params, extra, batch: setup.method.inspect(params, extra, setup.method.transform(batch)))

    def run(rows: np.ndarray) -> dict[str, np.ndarray]:
        return outputs(function, params, extra, {name: columns[name] for name in names}, rows)

    shown = run(rows)
    if setup.config.report.get("gradcam"):  # older runs do not name it
        shown |= evidence(setup, params, extra, columns, rows)
    if not any(True for _ in each_map(shown, 0)):
        return None
    visible = visible_person(np.asarray(columns["truth"][rows])) if records else None
    cards = [
        card(setup, columns, shown, place, int(row), records, None if visible is None else visible[place])
        for place, row in enumerate(rows)
    ]
    shares, measured = ([], 0) if visible is None else measure(run, columns["truth"], rows, shown, visible)
    return Inspection(cards, shares, measured, visible is not None, records is not None)


def evidence(setup: Setup, params: Any, extra: Any, columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """`Method.evidence` of the queries ``rows`` for showing the person of a gallery picture of theirs, by another camera where
    there is one: {"Grad-CAM": [n, h, w]}, or nothing for a method without an encoder. Queries without a match are compared with
    the first gallery picture."""
    query, gallery, method = setup.dataset.query, setup.dataset.gallery, setup.method
    partners = []
    for row in rows:
        same = gallery.pids == query.pids[row]
        elsewhere = np.flatnonzero(same & (gallery.camids != query.camids[row]))
        partners.append(int([*elsewhere, *np.flatnonzero(same), 0][0]))
    inputs = tuple(method.evaluation_inputs)
    others = setup.columns("gallery", inputs, setup.config.data.test_filter)

    def embed(params, extra, batch):
        return {"features": method.embed(params, extra, method.transform(batch), "gallery")}

    def show(params, extra, batch):
        features = batch.pop("features")
        found = method.evidence(params, extra, method.transform(batch), features)
        return {} if found is None else {"Grad-CAM": found}

    names = ("camid", *inputs)
    features = jax.jit(embed)(params, extra, batch_of({name: others[name] for name in names}, np.array(partners)))
    own = batch_of({name: columns[name] for name in names}, rows)
    return {name: np.asarray(maps)[: len(rows)] for name, maps in jax.jit(show)(params, extra, own | features).items()}


def outputs(function, params: Any, extra: Any, columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """What ``function`` gives for ``rows`` of raw ``columns``, by name, without the rows that pad."""
    found = jax.device_get(function(params, extra, batch_of(columns, rows)))
    return with_named_parts({name: np.asarray(values)[: len(rows)] for name, values in found.items()})


def batch_of(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """``rows`` of raw ``columns`` as a batch, padded to `SHOWN` rows so that what takes it is compiled once."""
    padded = np.concatenate([rows, np.zeros(SHOWN - len(rows), rows.dtype)])
    batch = {name: np.ascontiguousarray(column[padded]) for name, column in columns.items()}
    return batch | {"index": padded.astype(np.int32), "valid": np.arange(SHOWN) < len(rows)}


def choose_rows(records: tuple[TruthRecord, ...] | None, total: int, count: int, seed: int) -> np.ndarray:
    """Rows int64 of up to ``count`` queries: evenly from every kind of occlusion, or any where nothing is known of it."""
    order = np.random.default_rng(seed).permutation(total)
    kinds = sorted({record.occlusion for record in records} - {"none"}) if records else []
    if not kinds:
        return np.sort(order[:count])
    groups = [[row for row in order if records[row].occlusion == kind] for kind in kinds]
    turns = [group[turn] for turn in range(count) for group in groups if turn < len(group)]
    return np.array(turns[:count])


def each_map(shown: dict[str, np.ndarray], place: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, map [h, w]) of picture ``place``; several maps under one name are numbered from 1, or named by the part."""
    for name, values in shown.items():
        values = np.asarray(values)
        if values.ndim == 3:
            yield name, values[place]
        elif values.ndim == 4:
            words = WORDS if is_part_map(values) else range(1, min(values.shape[1], MAPS) + 1)
            for number, word in enumerate(words):
                yield f"{name} {word}", values[place, number]


def is_mask(values: np.ndarray) -> bool:
    return not jnp.issubdtype(values.dtype, jnp.inexact)  # numpy does not know bfloat16 for a float


def overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map [h, w] over its picture, drawn by its type."""
    return mask_overlay(picture, values != 0) if is_mask(values) else heat_overlay(picture, values)


def share_on(values: np.ndarray, visible: np.ndarray) -> float:
    """The share of a map's weight that lies on the visible person: sum of weight x visible part of the cell / sum of weight.

    ``values`` [h, w] (for a mask every chosen cell weighs 1), ``visible`` bool [H, W]. NaN for an empty map and for one with
    negative values, which has no shares.
    """
    weights = (values != 0).astype(np.float32) if is_mask(values) else np.asarray(values, np.float32)
    total = float(weights.sum())
    if not np.isfinite(total) or total <= 0 or weights.min() < 0:
        return float("nan")
    cells = resized(visible, weights.shape, Image.Resampling.BOX)
    return float((weights * cells).sum()) / total


def card(
    setup: Setup,
    columns: dict[str, np.ndarray],
    shown: dict[str, np.ndarray],
    place: int,
    row: int,
    records: tuple[TruthRecord, ...] | None,
    visible: np.ndarray | None,
) -> dict[str, Any]:
    """One query for the template: the picture, its maps, the truth if there is any, and captions."""
    picture = np.asarray(columns["image"][row])
    name = setup.dataset.query.names[row]
    pictures = [{"uri": data_uri(picture), "alt": f"query {name}", "caption": "query", "share": float("nan")}]
    for label, values in each_map(shown, place):
        share = share_on(values, visible) if visible is not None else float("nan")
        uri = data_uri(mask_overlay(picture, values == 0) if label == ERASED else overlay(picture, values))
        caption = f"{label} (dark)" if label == ERASED else label
        pictures.append({"uri": uri, "alt": f"{label} over query {name}", "caption": caption, "share": 100 * share})
    told = [f"{VISIBLE} {word}" for word in WORDS if f"{VISIBLE} {word}" in shown]
    if told:
        pictures.append(visibility(told, shown, place, columns, row if visible is not None else None, name))
    if visible is not None:
        covering = (np.asarray(columns["truth"][row]) & OCCLUDED) > 0
        uri = data_uri(truth_overlay(picture, visible, covering))
        alt = f"visible person in query {name}, from the renderer"
        pictures.append({"uri": uri, "alt": alt, "caption": "truth", "share": 100 * float(visible.mean())})
    others = {label: values for label, values in shown.items() if np.ndim(values) == 1 and label not in told}
    numbers = [f"{label} {float(values[place]):.3g}" for label, values in others.items()]
    note = ""
    if records:
        record = records[row]
        occluder = f" ({record.occluder})" if record.occluder not in ("", record.occlusion) else ""
        note = f"{record.occlusion}{occluder}, {100 * record.covered_fraction:.0f} % covered"
    return {"pictures": pictures, "note": "; ".join(filter(None, (note, *numbers))), **identity(setup.dataset.query, row)}


def visibility(told: list[str], shown: dict, place: int, columns: dict, row: int | None, name: str) -> dict[str, Any]:
    """How visible a method takes the parts to be, ``told`` names them, as bars for the template; with the true shares of the
    picture ``row``, where they are known."""
    words = [label.removeprefix(f"{VISIBLE} ") for label in told]
    truth = None
    if row is not None:
        truth = np.array([visible_share(np.asarray(columns["truth"][row])[None], WORDS.index(word))[0] for word in words])
    drawn = bars(words, np.array([float(shown[label][place]) for label in told]), truth)
    caption = "visible parts" + ("" if truth is None else " (line: true)")
    return {"uri": data_uri(drawn), "alt": f"visible parts of query {name}", "caption": caption, "share": float("nan")}


def measure(run, parts: np.ndarray, rows: np.ndarray, shown: dict, visible: np.ndarray) -> tuple[list[dict[str, Any]], int]:
    """Mean share on the visible person for every map, over the shown queries and, if that is quick, over all.

    Returns rows for the template and the number of queries behind the second mean (0: left out).
    """

    def shares(shown: dict, visible: np.ndarray) -> list[dict[str, float]]:
        return [{name: share_on(m, v) for name, m in each_map(shown, place)} for place, v in enumerate(visible)]

    few, many, areas = shares(shown, visible), [], []
    started = time.monotonic()
    for start in range(0, len(parts), SHOWN):
        piece = np.arange(start, min(start + SHOWN, len(parts)))
        seen = visible_person(np.asarray(parts[piece]))
        many += shares(run(piece), seen)
        areas += list(seen.mean(axis=(1, 2)))
        # Judged after every batch by the pace so far: a long set is given up early, not after two seconds.
        if (time.monotonic() - started) * len(parts) / (start + len(piece)) > SECONDS:
            many = []
            break
    result = [
        {"name": name, "shown": mean_of(few, name), "all": mean_of(many, name)}
        for name in few[0]
        if np.isfinite(mean_of(few, name))
    ]
    if result:
        chance = 100 * float(np.mean(areas)) if many else float("nan")
        area = 100 * float(visible.mean())
        result.append({"name": "the visible person's share of the picture (chance)", "shown": area, "all": chance})
    return result, len(many)


def mean_of(shares: list[dict[str, float]], name: str) -> float:
    """Mean in percent over the pictures where the share exists; NaN if there is none: Grad-CAM is of the shown pictures alone."""
    values = [entry[name] for entry in shares if np.isfinite(entry.get(name, np.nan))]
    return 100 * float(np.mean(values)) if values else float("nan")
