"""Scores of maps against the visible person and occluders: by brute force, by hand, by simulation, through an evaluation."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from occreid_jax import distributed
from occreid_jax.evaluation import selection
from occreid_jax.evaluation.evaluate import evaluate
from occreid_jax.parts import OCCLUDED
from occreid_jax.types import Dataset, Split

RNG = np.random.default_rng(5)
OPEN = np.zeros((3, 2, 2))  # nothing is covered


def brute_force(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_counts_pairs_and_half_of_the_ties(levels):
    scores = RNG.integers(0, levels, (4, 6, 3)).astype(np.float32) - 1
    positive = RNG.random((4, 6, 3)) < 0.3
    assert selection.auroc(scores, positive) == pytest.approx(brute_force(scores, positive), abs=1e-15)


def test_auroc_without_pairs_or_with_nan():
    scores = np.arange(6, dtype=np.float32)
    assert selection.auroc(scores, scores > 2) == 1.0 and selection.auroc(scores, scores < 3) == 0.0
    assert selection.auroc(np.zeros(6, np.float32), scores > 2) == 0.5
    assert selection.auroc(scores, np.ones(6, bool)) is None and selection.auroc(scores, np.zeros(6, bool)) is None
    assert selection.auroc(np.where(scores == 1, np.nan, scores), scores > 2) is None


def test_masks_by_hand():
    person = np.zeros((2, 2, 2), bool)
    person[0, 0] = True  # two of four cells
    person[1, 0, 0] = True  # one of four
    mask = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 1]]])  # one of two right; the only one wrong
    person_map = np.array([[0.1, 0.2], [0.9, 0.2]])
    assert selection.score_map(mask, person, OPEN[:2], person_map) == {
        "precision": 33.33, "recall": 33.33,
        # three cells are chosen once each, so the first of them by row count: the left column of the first picture and the
        # upper left cell of the second
        "constant_precision": 66.67, "constant_recall": 66.67,
        # the lower left and the upper right cell of the first picture, the lower left one of the second
        "training_precision": 33.33, "training_recall": 33.33,
        # two of the first picture's cells hold 2 * 2 / 4 persons, one of the second's 1 * 1 / 4: 1.25 of 3
        "random_precision": 41.67, "random_recall": 41.67,
        # the upper right cell alone is person in one picture only, and chosen in none
        "selected": 37.5, "place_auroc": 0.5, "person_cells": 37.5,
    }  # fmt: skip


def test_scores_beside_maps_that_never_look():
    """A map of places finds people that stand in the middle, and nothing place by place; what looks is the other way round."""
    middle = np.array([[0.1, 0.9, 0.2]])
    person = RNG.random((500, 1, 3)) < middle
    places = np.broadcast_to(middle, person.shape)
    looks = person - places + 0.01 * RNG.random(person.shape)  # the person above what the place says
    got = {name: selection.score_map(values, person, np.zeros(person.shape), middle) for name, values in
           (("places", places), ("looks", looks))}  # fmt: skip
    assert got["places"]["place_auroc"] == 0.5 and got["looks"]["place_auroc"] == 1
    by_places = round(selection.auroc(places, person), 4)
    assert by_places == round(brute_force(places, person), 4) > 0.7
    assert got["places"]["auroc"] == got["places"]["constant_auroc"] == got["places"]["training_auroc"] == by_places
    assert got["looks"]["training_auroc"] == by_places
    mean = np.broadcast_to(looks.mean(axis=0), person.shape)
    assert got["looks"]["constant_auroc"] == round(brute_force(mean, person), 4)


def test_as_many_cells_of_a_fixed_map():
    fixed = np.array([[0.5, 0.5, 0.1], [0.9, 0.0, 0.7]])
    got = selection.most_likely(fixed, np.array([0, 1, 3, 6]))
    expected = np.zeros((4, 6), bool)
    expected[1, 3] = expected[2, [3, 5, 0]] = True
    expected[3] = True
    assert np.array_equal(got, expected.reshape(4, 2, 3))


def test_a_random_selection_is_what_it_says():
    person = RNG.random((5, 4, 3)) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None, None]
    mask = RNG.random((5, 4, 3)) < np.array([0.9, 0.2, 0.5, 0.4, 0.6])[:, None, None]
    got = selection.score_map(mask, person, np.zeros((5, 4, 3)))
    hits = []
    for _ in range(4000):
        shuffled = RNG.permuted(mask.reshape(5, -1), axis=1).reshape(mask.shape)
        hits.append((shuffled & person).sum())
    assert got["random_precision"] == pytest.approx(100 * np.mean(hits) / mask.sum(), abs=0.5)
    assert got["random_recall"] == pytest.approx(100 * np.mean(hits) / person.sum(), abs=0.5)


def test_pictures_that_are_all_person_or_none_and_empty_selections():
    every, none = np.ones((1, 2, 2), bool), np.zeros((1, 2, 2), bool)
    got = selection.score_map(none, every, OPEN[:1])
    assert got["precision"] is None and got["random_precision"] is None and got["recall"] == 0 and got["selected"] == 0
    got = selection.score_map(every, none, OPEN[:1])
    assert got["recall"] is None and got["random_recall"] is None and got["precision"] == 0 and got["person_cells"] == 0
    got = selection.score_map(every, every, OPEN[:1])
    assert got["precision"] == got["random_precision"] == got["recall"] == got["random_recall"] == 100
    # such pictures count where others are there as well
    both = selection.score_map(np.concatenate([every, none, none]), np.concatenate([every, none, every]), OPEN)
    assert both["precision"] == 100 and both["recall"] == 50 and both["selected"] == 33.33
    assert selection.score_map(RNG.random((1, 2, 2)), every, OPEN[:1]) == {
        "auroc": None, "place_auroc": None, "constant_auroc": None, "covered_auroc": None, "covered_correlation": None,
        "person_cells": 100.0,
    }  # fmt: skip


def test_low_scores_find_covered_cells():
    parts = np.zeros((3, 8, 4), np.uint8)
    parts[0, 6:] = OCCLUDED | 5  # the first picture's last stripe as a whole
    parts[1, 6:, :2] = OCCLUDED  # half of the second's, background alone
    parts[2, 2, 0] = OCCLUDED  # an eighth of the third's second stripe
    covered = selection.covered_shares(parts, (4, 1))
    np.testing.assert_array_equal(covered[..., 0], [[0, 0, 0, 1], [0, 0, 0, 0.5], [0, 0.125, 0, 0]])
    person = selection.person_cells(parts, (4, 1))
    assert not person.any()
    told = np.array([[5.0, 5, 5, 0.2], [5, 5, 5, 0.6], [5, 4.9, 5, 0.5]])[..., None]  # one pair of two is right
    always_low = np.broadcast_to(np.array([4.0, 3, 2, 1])[:, None], (3, 4, 1))  # stripes that are often covered, whatever is seen
    got = [selection.score_map(values, person, covered) for values in (1 - covered, told, always_low)]
    assert [each["covered_auroc"] for each in got] == [1, 0.5, 0.5]
    first = np.array([1 / 3, 1 / 3, -2 / 3]) * 0.1  # second and fourth stripe of `told` less their means, and of what is covered
    last = np.array([0.2, 0.6, 0.5]) - 1.3 / 3
    second = np.array([-1 / 3, -1 / 3, 2 / 3]) * 0.125
    fourth = np.array([0.5, 0.0, -0.5])
    by_hand = (first @ second + last @ fourth) / ((first @ first + last @ last) * (second @ second + fourth @ fourth)) ** 0.5
    assert got[0]["covered_correlation"] == -1 and got[1]["covered_correlation"] == round(by_hand, 4)
    assert got[2]["covered_correlation"] is None  # nothing varies


def test_numbers_are_told_by_mean_and_deviation():
    found = selection.score_shown({"k": np.array([48, 50, 52], np.float32)}, np.zeros((3, 4, 2), np.uint8))
    assert found == {"k": {"mean": 50.0, "deviation": 1.633}}


def test_a_cell_is_person_from_half_of_its_pixels_on():
    parts = np.zeros((1, 8, 4), np.uint8)
    parts[0, :2, :2] = 3  # the whole first cell
    parts[0, 2:3, :2] = 1  # half of the second
    parts[0, 4, 0] = 1  # a quarter of the third
    parts[0, 6:, :2] = 4 | OCCLUDED  # covered
    parts[0, :, 3] = OCCLUDED  # an occluder over the background
    assert np.array_equal(selection.person_cells(parts, (4, 2))[0], [[1, 0], [1, 0], [0, 0], [0, 0]])


def test_cells_whose_borders_cut_pixels():
    parts = (RNG.random((3, 7, 5)) < 0.5).astype(np.uint8)
    fine = np.repeat(np.repeat(parts, 3, axis=1), 2, axis=2)  # every pixel in 3 x 2 pieces: a 3 x 2 grid fits
    expected = fine.reshape(3, 3, 7, 2, 5).sum(axis=(2, 4)) * 2 >= 35
    assert np.array_equal(selection.person_cells(parts, (3, 2)), expected)


def test_several_maps_are_numbered_from_one():
    parts = (RNG.random((70, 8, 4)) < 0.5).astype(np.uint8)
    maps = {"heads": RNG.random((70, 2, 4, 2)), "mask": RNG.random((70, 2, 2)) < 0.5}
    scores = selection.score_shown(maps, parts)
    assert list(scores) == ["heads 1", "heads 2", "mask"]
    person, covered = selection.person_cells(parts, (4, 2)), selection.covered_shares(parts, (4, 2))
    assert scores["heads 2"] == selection.score_map(maps["heads"][:, 1], person, covered)
    training = (RNG.random((40, 8, 4)) < 0.5).astype(np.uint8)
    person_map = selection.person_cells(training, (4, 2)).mean(axis=0)
    known = selection.score_shown(maps, parts, training)["heads 2"]
    assert known == selection.score_map(maps["heads"][:, 1], person, covered, person_map)
    assert known["training_auroc"] == round(brute_force(np.broadcast_to(person_map, person.shape), person), 4)


class Stub:
    """Mean brightness as feature; its map is the picture's redness, a mask and a number stand beside it."""

    evaluation_inputs = ("image",)
    comparisons = ()

    def __init__(self, maps: bool):
        self.maps, self.shapes = maps, set()

    def transform(self, batch):
        return batch | {"image": batch["image"].astype(jnp.float32)}

    def embed(self, params, extra, batch, role):
        assert "truth" not in batch
        return batch["image"].mean(axis=(1, 2)) * params

    def distance(self, query, gallery):
        return jnp.abs(query[:, None] - gallery[None]).sum(axis=-1)

    def measures(self, params, extra):
        return {"brightness": float(params)}

    def inspect(self, params, extra, batch):
        assert "truth" not in batch
        self.shapes.add(batch["image"].shape[0])
        red = batch["image"][..., 0].astype(jnp.bfloat16)
        return {"number": red.mean(axis=(1, 2))} | ({"red": red, "some": red > 100} if self.maps else {})


@pytest.mark.parametrize("devices", [1, 2])
def test_an_evaluation_scores_maps_where_there_is_truth(devices, tmp_path):
    images = RNG.integers(0, 256, (14, 4, 2, 3), np.uint8)
    parts = (RNG.random((5, 4, 2)) < 0.4).astype(np.uint8) | np.where(RNG.random((5, 4, 2)) < 0.3, OCCLUDED, 0).astype(np.uint8)
    rows = np.arange(14)
    pids, camids = (rows % 3).astype(np.int32) + 1, (rows >= 5).astype(np.int32)

    def part(rows):
        return Split(tmp_path, tuple(f"query/{row}.jpg" for row in rows), pids[rows], camids[rows])

    query, gallery = part(rows[:5]), part(rows[5:])
    lines = [f"query,{row}.jpg,{pids[row]},{camids[row]},none,,0.0,front" for row in range(5)]
    header = "folder,name,pid,camid,occlusion,occluder,covered_fraction,viewpoint"
    (tmp_path / "index.csv").write_text("\n".join([header, *lines]))
    dataset = Dataset("example", "example/std@1", gallery, query, gallery, truth=tmp_path)
    settings = ConfigDict({"batch_size": 2, "flip": False, "rerank": "", "expansion": ""})
    training = (RNG.random((6, 4, 2)) < 0.4).astype(np.uint8)
    columns = {"query": {"camid": query.camids, "image": images[:5], "truth": parts},
               "gallery": {"camid": gallery.camids, "image": images[5:]}, "train": {"truth": training}}  # fmt: skip

    def run(maps: bool = True, scored: bool = True):
        method = Stub(maps)
        found = evaluate(method, jnp.ones(()), {}, dataset, columns, settings, distributed.devices(devices), selection=scored)
        return method, found.results

    method, results = run()
    person, covered = parts == 1, (parts & OCCLUDED) / OCCLUDED
    red = jnp.asarray(images[:5, ..., 0]).astype(jnp.bfloat16).astype(jnp.float32)
    assert results["selection"] == {
        "number": selection.score_number(np.asarray(red.astype(jnp.bfloat16).mean(axis=(1, 2)), np.float32)),
        "red": selection.score_map(np.asarray(red), person, covered, (training == 1).mean(axis=0)),
        "some": selection.score_map(np.asarray(red) > 100, person, covered, (training == 1).mean(axis=0)),
    }
    assert results["selection"]["red"]["auroc"] == round(brute_force(np.asarray(red), person), 4)
    method, plain = run(scored=False)
    assert plain["selection"] == {} and not method.shapes
    assert results["measures"] == {"brightness": 1.0} and "measures" not in plain
    scored = {name: results[name] for name in ("selection", "measures")}
    assert {**plain, "seconds": 0, **scored} == {**results, "seconds": 0}
    method, nothing = run(maps=False)
    assert nothing["selection"] == {} and method.shapes == {devices}  # looked at in the abstract, never run
