"""What a method says of single body parts and of what it erases, scored against the parts that the renderer knows. Numpy only.

Three things that `Method.inspect` may give have a meaning by their name or form, whatever the method:

* ``erased`` bool [N, h, w]: cells that a method takes out of a picture (`score_erased`),
* a float array [N, 9, h, w]: one map for the background and one for every part of `occreid_jax.parts.PARTS` (`score_part_map`),
* ``visible head``, ``visible left arm`` ... float [N], or ``visible`` float [N, 8]: how far a part is visible, 0 .. 1
  (`score_visibility`).

Everything else is scored by `occreid_jax.evaluation.selection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from occreid_jax.evaluation.selection import (
    auroc,
    auroc_by_place,
    cell_areas,
    correlation,
    most_likely,
    percent,
    rounded,
    score_shown,
)
from occreid_jax.parts import OCCLUDED, PART_BITS, PARTS, visible_person

ERASED, VISIBLE = "erased", "visible"
KINDS = ("background", "occluder", "person")
WORDS = tuple(part.replace("_", " ") for part in PARTS)
Scores = dict[str, dict[str, Any]]


def score_inspected(shown: Mapping[str, np.ndarray], parts: np.ndarray, training: np.ndarray | None = None) -> Scores:
    """Every map and number of ``shown`` by name, against ``parts`` uint8 [N, H, W]. ``training`` uint8 [M, H, W] are the labels
    of the training pictures, where they are known."""
    shown = with_named_parts(shown)
    maps = {name: values for name, values in shown.items() if is_part_map(values)}
    told = {f"{VISIBLE} {word}": part for part, word in enumerate(WORDS) if f"{VISIBLE} {word}" in shown}
    scores = score_shown({name: each for name, each in shown.items() if name not in maps and name not in told}, parts, training)
    if ERASED in shown and shown[ERASED].ndim == 3:
        scores[f"{ERASED}, by kind"] = score_erased(shown[ERASED] != 0, parts, training)
    for name, values in maps.items():
        scores |= score_part_map(name, values, parts, training)
    return scores | {name: score_visibility(shown[name], part, parts, training) for name, part in told.items()}


def with_named_parts(shown: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``shown`` with every array [N, 8] as eight numbers that are named by the part."""
    found = {}
    for name, values in shown.items():
        rows = values.ndim == 2 and values.shape[1] == len(PARTS) - 1
        found |= {f"{name} {word}": values[:, place] for place, word in enumerate(WORDS[1:])} if rows else {name: values}
    return found


def is_part_map(values: np.ndarray) -> bool:
    """Whether an array is a map for the background and one for each part."""
    return values.ndim == 4 and values.shape[1] == len(PARTS) and np.issubdtype(values.dtype, np.floating)


# Erasing --------------------------------------------------------------------------------------------------------------


def score_erased(chosen: np.ndarray, parts: np.ndarray, training: np.ndarray | None) -> dict[str, float | None]:
    """What the cells of ``chosen`` bool [N, h, w] are, in percent of them: ``background``, ``occluder`` and ``person``.

    A cell is what fills most of it: the visible person, an occluder whatever is behind it, or neither. ``random_*`` is what as
    many cells of every picture at random are on average, ``constant_*`` those that are chosen most often, ``training_*`` those
    that are least often person in the training set. ``recall_*`` is the percentage of a kind's cells that are chosen; at random
    it would be ``selected`` for each. What does not exist is None.
    """
    grid = chosen.shape[1:]
    kinds, counts = cell_kinds(parts, grid), chosen.reshape(len(chosen), -1).sum(axis=1)
    masks = {"": chosen, "constant_": most_likely(chosen.mean(axis=0), counts)}
    if training is not None:
        masks["training_"] = most_likely(-(cell_kinds(training, grid) == KINDS.index("person")).mean(axis=0), counts)
    scores: dict[str, float | None] = {}
    for name, mask in masks.items():
        scores |= {f"{name}{kind}": percent(int((mask & (kinds == k)).sum()), int(mask.sum())) for k, kind in enumerate(KINDS)}
    for k, kind in enumerate(KINDS):
        share = (kinds == k).reshape(len(kinds), -1).mean(axis=1)
        scores[f"random_{kind}"] = percent(float((share * counts).sum()), int(counts.sum()))
        scores[f"recall_{kind}"] = percent(int((chosen & (kinds == k)).sum()), int((kinds == k).sum()))
    return scores | {"selected": percent(int(counts.sum()), chosen.size)}


def cell_kinds(parts: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """int64 [N, h, w]: which of `KINDS` fills most of every cell; of equal ones the last."""
    whole = parts.shape[1] * parts.shape[2]
    person, occluder = (cell_areas(parts, grid, each) for each in (visible_person, lambda labels: labels & OCCLUDED > 0))
    areas = np.stack([person, occluder, whole - person - occluder])
    return len(KINDS) - 1 - areas.argmax(axis=0)


# Parts ----------------------------------------------------------------------------------------------------------------


def score_part_map(name: str, values: np.ndarray, parts: np.ndarray, training: np.ndarray | None) -> Scores:
    """Scores of maps float [N, 9, h, w], the background's first, against the part that is visible in most of every cell.

    Each part has ``auroc`` of its cells over all pictures together, ``place_auroc`` of a cell compared with the same cell of
    other pictures (a fixed map: 0.5), ``constant_auroc`` of the map's mean over all pictures, ``training_auroc`` of how often a
    cell is that part in the training set, and ``cells``, the percentage of cells that are that part. Under ``name`` alone stand
    the percentages of cells that are called right by the highest map, by the highest mean (``constant_accuracy``) and by what
    they are most often in the training set (``training_accuracy``).
    """
    grid = values.shape[2:]
    truth = cell_parts(parts, grid)
    fixed = {"constant": values.mean(axis=0, dtype=np.float64)}
    if training is not None:
        known = cell_parts(training, grid)
        fixed["training"] = np.stack([(known == part).mean(axis=0) for part in range(len(PARTS))])
    called = {"": values.argmax(axis=1)} | {f"{each}_": maps.argmax(axis=0) for each, maps in fixed.items()}
    scores: Scores = {name: {f"{each}accuracy": percent(int((own == truth).sum()), truth.size) for each, own in called.items()}}
    for part, word in enumerate(WORDS):
        where, own = truth == part, values[:, part]
        found = {"auroc": rounded(auroc(own, where)), "place_auroc": rounded(auroc_by_place(own, where))}
        for each, maps in fixed.items():
            found[f"{each}_auroc"] = rounded(auroc(np.broadcast_to(maps[part], where.shape), where))
        scores[f"{name} {word}"] = found | {"cells": percent(int(where.sum()), where.size)}
    return scores


def cell_parts(parts: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """int64 [N, h, w]: the part that is visible in most of every cell, 0 for background, which what is covered is too; of equal
    ones the first."""
    areas = [cell_areas(parts, grid, lambda labels, part=part: is_visible(labels, part)) for part in range(1, len(PARTS))]
    background = parts.shape[1] * parts.shape[2] - np.sum(areas, axis=0)
    return np.stack([background, *areas]).argmax(axis=0)


def is_visible(labels: np.ndarray, part: int) -> np.ndarray:
    """bool of ``labels``' shape: pixels of a part that nothing covers."""
    return (labels & PART_BITS == part) & (labels & OCCLUDED == 0)


def score_visibility(values: np.ndarray, part: int, parts: np.ndarray, training: np.ndarray | None) -> dict[str, float | None]:
    """Scores of what a method says of a part's visibility, float [N], against the share of the part that is visible.

    ``auroc``: how often a picture that shows at least half of the part has a higher value than one that does not; ``correlation``
    with the share; ``accuracy``: percentage of pictures in which the value and the share are on the same side of a half, and the
    same for one answer to all pictures: the better one (``constant_accuracy``), and the one that the training set gives
    (``training_accuracy``). ``seen``: percentage of pictures that show at least half.
    """
    share = visible_share(parts, part)
    seen, count = share >= 0.5, len(share)
    scores = {
        "auroc": rounded(auroc(values, seen)),
        "correlation": rounded(correlation(values, share)),
        "accuracy": percent(int(((values >= 0.5) == seen).sum()), count),
        "constant_accuracy": percent(int(max(seen.sum(), count - seen.sum())), count),
    }
    if training is not None:
        answer = (visible_share(training, part) >= 0.5).mean() >= 0.5
        scores["training_accuracy"] = percent(int((seen == answer).sum()), count)
    return scores | {"seen": percent(int(seen.sum()), count)}


def visible_share(parts: np.ndarray, part: int) -> np.ndarray:
    """float64 [N]: which share of a part's pixels nothing covers; 0 where the picture has none, because the part is behind others
    or outside."""
    shares = np.zeros(len(parts))
    for row, labels in enumerate(parts):
        labels = np.asarray(labels)
        there = int((labels & PART_BITS == part).sum())
        shares[row] = is_visible(labels, part).sum() / there if there else 0.0
    return shares
