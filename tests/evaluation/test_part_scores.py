"""Scores of erased cells, part maps and visibilities: by hand, by brute force, and of a truth that is given back."""

import itertools

import numpy as np
import pytest

from occreid_jax.evaluation import part_scores
from occreid_jax.evaluation.part_scores import KINDS, WORDS
from occreid_jax.parts import OCCLUDED, PARTS

RNG = np.random.default_rng(3)
GRID = (4, 2)


def labels(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 16, 8]: cells of 4 x 4 pixels with one label each, a third of them covered."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, len(PARTS), (count, *GRID)) + OCCLUDED * (rng.random((count, *GRID)) < 0.3)
    return cells.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


def test_what_is_erased_by_hand():
    """One picture: two cells of the person, one of them covered, two of background, one under an occluder."""
    parts = np.array([[4, OCCLUDED | 4], [0, OCCLUDED]], np.uint8)[None].repeat(4, axis=1).repeat(4, axis=2)
    chosen = np.array([[[False, True], [True, True]]])
    training = np.array([[4, 0], [4, 4]], np.uint8)[None].repeat(4, axis=1).repeat(4, axis=2)
    got = part_scores.score_erased(chosen, parts, training)
    thirds = {"background": 33.33, "occluder": 66.67, "person": 0.0}
    assert {name: got[name] for name in KINDS} == thirds == {name: got[f"constant_{name}"] for name in KINDS}
    # the cell that is no person in training first, then the others by row
    assert [got[f"training_{name}"] for name in KINDS] == [33.33, 33.33, 33.33]
    assert [got[f"random_{name}"] for name in KINDS] == [25.0, 50.0, 25.0]
    assert [got[f"recall_{name}"] for name in KINDS] == [100.0, 100.0, 0.0] and got["selected"] == 75.0


def test_a_cell_is_what_fills_most_of_it():
    parts = np.zeros((1, 4, 4), np.uint8)
    parts[0, 0] = 3
    parts[0, 1, :3] = OCCLUDED | 3
    assert part_scores.cell_kinds(parts, (1, 1))[0, 0] == KINDS.index("background")
    parts[0, 2] = OCCLUDED
    assert part_scores.cell_kinds(parts, (1, 1))[0, 0] == KINDS.index("occluder")
    parts[0, 3] = parts[0, 1] = 2
    assert part_scores.cell_kinds(parts, (1, 1))[0, 0] == KINDS.index("person")
    assert part_scores.cell_parts(parts, (1, 1))[0, 0] == 2
    parts[0, 1] = OCCLUDED | 2  # background and what is covered, half of the cell
    assert part_scores.cell_parts(parts, (1, 1))[0, 0] == 0


def test_maps_that_are_the_truth_and_maps_that_never_look():
    parts, training = labels(40, 0), labels(60, 1)
    truth = part_scores.cell_parts(parts, GRID)
    exact = np.stack([truth == part for part in range(9)], axis=1).astype(np.float32)
    fixed = np.broadcast_to(exact.mean(axis=0), exact.shape)
    found = part_scores.score_inspected({"correlation": exact, "flat": fixed}, parts, training)
    assert set(found) == {name + tail for name in ("correlation", "flat") for tail in ("", *(f" {word}" for word in WORDS))}
    assert found["correlation"]["accuracy"] == 100 and found["flat"]["accuracy"] == found["correlation"]["constant_accuracy"] < 60
    for part, word in enumerate(WORDS):
        own = found[f"correlation {word}"]
        assert own["auroc"] == own["place_auroc"] == 1 and found[f"flat {word}"]["place_auroc"] == 0.5
        assert own["cells"] == round(100 * float((truth == part).mean()), 2)
        known = (part_scores.cell_parts(training, GRID) == part).mean(axis=0)
        pairs = itertools.product(*(np.broadcast_to(known, truth.shape)[where] for where in (truth == part, truth != part)))
        won = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
        assert own["training_auroc"] == pytest.approx(won, abs=1e-4)


def test_visibility_against_the_share_that_is_visible():
    parts = np.zeros((4, 8, 4), np.uint8)
    parts[:, :2] = 1
    parts[1, 0] |= OCCLUDED  # half of the head
    parts[2, :2] |= OCCLUDED
    parts[3] = 4  # a picture without a head
    assert part_scores.visible_share(parts, 1).tolist() == [1, 0.5, 0, 0]
    training = parts[:3]
    told = {"visible head": np.array([0.9, 0.2, 0.4, 0.1], np.float32)}
    got = part_scores.score_inspected(told, parts, training)["visible head"]
    by_hand = np.corrcoef([0.9, 0.2, 0.4, 0.1], [1, 0.5, 0, 0])[0, 1]
    assert got == {
        "auroc": 0.75,  # 0.2 is not above 0.4
        "correlation": round(float(by_hand), 4), "accuracy": 75.0, "constant_accuracy": 50.0, "training_accuracy": 50.0,
        "seen": 50.0,
    }  # fmt: skip
    together = {"visible": RNG.random((4, 8)).astype(np.float32)}
    named = part_scores.score_inspected(together, parts, training)
    assert list(named) == [f"visible {word}" for word in WORDS[1:]]
    alone = part_scores.score_visibility(together["visible"][:, 3], 4, parts, training)
    assert named["visible torso"] == alone


def test_other_names_and_forms_are_scored_as_before():
    parts = labels(6, 2)
    shown = {"keep": RNG.random((6, *GRID)), "erased": RNG.random((6, *GRID)) < 0.4, "three": RNG.random((6, 3, *GRID))}
    found = part_scores.score_inspected(shown, parts)
    assert list(found) == ["keep", "erased", "three 1", "three 2", "three 3", "erased, by kind"]
    assert "precision" in found["erased"] and "training_person" not in found["erased, by kind"]
