"""What a method attends to or selects, scored against the visible person and the occluders that the renderer knows. Numpy only.

A person stands in the middle of a crop, so a map of places that never looks at a picture finds it well. Every score therefore
stands beside three references: cells at random, the map's own mean over all pictures, and the person map of the training set.

Arrays are told apart by shape and type, as in the report: float maps are scores of cells, bool or integer maps choose cells;
[N, h, w] is one map per picture, [N, k, h, w] are several, numbered from 1; [N] is a number per picture. A cell is a box of the
h x w grid over the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from occreid_jax.parts import OCCLUDED, overlaps, visible_person

BLOCK = 64  # pictures of labels looked at at once


def score_shown(
    shown: Mapping[str, np.ndarray], parts: np.ndarray, training: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """Every map and number of ``shown`` by name: `score_map` against ``parts`` uint8 [N, H, W], or mean and deviation [N].

    ``training`` uint8 [M, H, W] are the body parts of the training pictures, where they are known.
    """
    grids: dict[tuple[int, int], tuple[np.ndarray | None, ...]] = {}
    scores = {name: score_number(values) for name, values in shown.items() if values.ndim < 3}
    for name, values in each_map({name: values for name, values in shown.items() if values.ndim > 2}):
        grid = values.shape[1:]
        if grid not in grids:
            person_map = None if training is None else person_cells(training, grid).mean(axis=0)
            grids[grid] = person_cells(parts, grid), covered_shares(parts, grid), person_map
        scores[name] = score_map(values, *grids[grid])
    return scores


def score_number(values: np.ndarray) -> dict[str, float]:
    """``mean`` and ``deviation`` (of the population) of numbers, [N] or [N, k]."""
    values = np.asarray(values, np.float64)
    return {"mean": round(float(values.mean()), 4), "deviation": round(float(values.std()), 4)}


def each_map(maps: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, map [N, h, w]) of every map; several under one name are numbered from 1."""
    for name, values in maps.items():
        if values.ndim == 3:
            yield name, values
        else:
            for number in range(values.shape[1]):
                yield f"{name} {number + 1}", values[:, number]


def score_map(
    values: np.ndarray, person: np.ndarray, covered: np.ndarray, person_map: np.ndarray | None = None
) -> dict[str, Any]:
    """Scores of one map [N, h, w] against ``person`` bool [N, h, w] and ``covered`` float [N, h, w], the share of each cell that
    an occluder covers; over the cells of all pictures together. ``person_map`` float [h, w] is the share of training pictures
    in which a cell is person.

    A float map gives ``auroc`` (0 .. 1), how well it tells person from the rest; ``covered_auroc``, how often a cell of which at
    least half is covered scores *lower* than the same cell of another picture that is not; and ``covered_correlation``, Pearson's
    with the covered share, both as differences from the cell's mean over all pictures. Comparing a place with itself alone keeps
    out that occluders stand low and that a map may be low there too. A bool or integer map gives, in percent, ``precision`` and
    ``recall`` of its cells that are not 0, and the share ``selected``. Both give ``person_cells``, the percentage of cells that
    are person, and

    * ``place_auroc``: how often a cell that is person scores higher than the same cell of another picture where it is not. A map
      that is the same for all pictures has 0.5 there, whatever it is;
    * ``constant_*``: the same measures of the map's mean over all pictures in place of it; of a map that chooses, those of as
      many cells in every picture, the ones that it chooses most often;
    * ``training_*``: those of ``person_map``, in which no picture of the test has a part; left out where there is none;
    * ``random_precision``, ``random_recall``: what choosing as many cells of every picture at random reaches on average (the
      AUROC of random scores is 0.5).

    A value that does not exist (no cell chosen, no person, NaN in the map, nothing varies) is None.
    """
    person, cells = person.astype(bool), max(1, int(np.prod(person.shape[1:])))
    is_score = np.issubdtype(values.dtype, np.floating)
    fixed = {"constant": np.mean(values if is_score else values != 0, axis=0, dtype=np.float64)}
    fixed |= {} if person_map is None else {"training": person_map}
    if is_score:
        scores = {"auroc": rounded(auroc(values, person)), "place_auroc": rounded(auroc_by_place(values, person))}
        for name, map_ in fixed.items():
            scores[f"{name}_auroc"] = rounded(auroc(np.broadcast_to(map_, person.shape), person))
        scores |= {
            "covered_auroc": rounded(auroc_by_place(-values, covered >= 0.5)),
            "covered_correlation": rounded(correlation(*(centred(each) for each in (values, covered)))),
        }
    else:
        chosen = values != 0
        counts, persons = (each.reshape(len(each), -1).sum(axis=1) for each in (chosen, person))
        fixed = {"": chosen} | {f"{name}_": most_likely(map_, counts) for name, map_ in fixed.items()}
        hits = {name: float((mask & person).sum()) for name, mask in fixed.items()}
        hits["random_"] = float((counts * persons).sum()) / cells
        scores = {}
        for name, found in hits.items():
            scores |= {
                f"{name}precision": percent(found, int(counts.sum())),
                f"{name}recall": percent(found, int(persons.sum())),
            }
        scores |= {"selected": percent(int(counts.sum()), chosen.size), "place_auroc": rounded(auroc_by_place(chosen, person))}
    return scores | {"person_cells": percent(int(person.sum()), person.size)}


def most_likely(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool [N, h, w]: in picture i the ``counts[i]`` cells of one map float [h, w] that are highest there, of equal ones the
    first by row. ``counts`` int [N]."""
    rank = np.empty(values.size, np.int64)
    rank[np.argsort(-values, axis=None, kind="stable")] = np.arange(values.size)
    return (rank < counts[:, None]).reshape(-1, *values.shape)


def centred(maps: np.ndarray) -> np.ndarray:
    """float64 [N, h, w]: differences from every cell's mean over the pictures."""
    return np.asarray(maps, np.float64) - np.mean(maps, axis=0, dtype=np.float64)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def percent(part: float, whole: int) -> float | None:
    return round(100.0 * part / whole, 2) if whole else None


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """How often a positive scores higher than a negative, over all pairs of both, with half for a tie.

    ``scores`` float [...], ``positive`` bool [...]. Exact: the pairs are counted as integers. None if there is no pair or a score
    is NaN.
    """
    won, pairs = pairs_won(np.ravel(scores), np.ravel(positive))
    return None if not pairs or np.isnan(scores).any() else won / (2 * pairs)


def auroc_by_place(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """`auroc` of [N, h, w] over the pairs of pictures that differ at a cell, every cell compared with itself alone."""
    columns = zip(scores.reshape(len(scores), -1).T, positive.reshape(len(positive), -1).T, strict=True)
    won, pairs = np.sum([pairs_won(*column) for column in columns], axis=0).tolist()
    return None if not pairs or np.isnan(scores).any() else won / (2 * pairs)


def pairs_won(scores: np.ndarray, positive: np.ndarray) -> tuple[int, int]:
    """Twice the number of pairs in which a positive scores higher, a tie counting half, and the number of pairs; both [N]."""
    values, place = np.unique(scores, return_inverse=True)
    above = np.bincount(place[positive], minlength=len(values)).astype(np.int64)
    below = np.bincount(place[~positive], minlength=len(values)).astype(np.int64)
    lower = np.cumsum(below) - below  # negatives with a smaller score
    return int((above * (2 * lower + below)).sum()), int(above.sum()) * int(below.sum())


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays of one shape, -1 .. 1; None if one is constant or not finite."""
    pair = np.stack([np.ravel(first), np.ravel(second)]).astype(np.float64)
    if not pair.size or not np.isfinite(pair).all() or (np.ptp(pair, axis=1) == 0).any():
        return None
    return float(np.corrcoef(pair)[0, 1])


def person_cells(parts: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [N, h, w]: cells of which the visible person fills at least half. ``parts`` uint8 [N, H, W], ``grid`` (h, w).

    Pixels that a cell's border cuts count with the part that lies inside. Areas are counted as integers, so a half is a half.
    """
    return 2 * cell_areas(parts, grid, visible_person) >= parts.shape[1] * parts.shape[2]


def covered_shares(parts: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """float64 [N, h, w]: the share of each cell's area that an occluder covers, person or background behind it."""
    return cell_areas(parts, grid, lambda labels: labels & OCCLUDED > 0) / (parts.shape[1] * parts.shape[2])


def cell_areas(parts: np.ndarray, grid: tuple[int, int], chosen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """float64 [N, h, w]: area of the pixels that ``chosen`` picks in every cell; a cell as a whole has H W. Whole numbers."""
    height, width = parts.shape[1:]
    rows, columns = overlaps(height, grid[0]), overlaps(width, grid[1])
    result = np.empty((len(parts), *grid))
    for start in range(0, len(parts), BLOCK):
        pixels = chosen(np.asarray(parts[start : start + BLOCK])).astype(np.float64)
        result[start : start + BLOCK] = rows @ pixels @ columns.T
    return result
