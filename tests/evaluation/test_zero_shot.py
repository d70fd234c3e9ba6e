"""Captions found by pictures and attributes told by prompts, against figures that can be counted by hand."""

import numpy as np
import pytest

from occreid_jax.evaluation import zero_shot

EYE = np.eye(4, dtype=np.float32)


def test_captions_are_ranked_by_likeness():
    images = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 0, 1]], np.float32)
    found = zero_shot.caption_retrieval(images, EYE, np.array([0, 0, 3]))
    assert found["rank1"] == pytest.approx(66.67) and found["rank5"] == 100.0
    assert found["mean_rank"] == pytest.approx(4 / 3, abs=0.01)
    assert (found["pictures"], found["captions"]) == (3, 4)
    assert (found["chance_rank1"], found["chance_rank5"], found["chance_mean_rank"]) == (25.0, 100.0, 2.5)


def test_a_tie_is_no_success():
    images = np.array([[1, 0, 0, 0]], np.float32)
    found = zero_shot.caption_retrieval(images, np.stack([EYE[0], EYE[0], EYE[1]]), np.array([0]))
    assert found["rank1"] == 0.0 and found["mean_rank"] == 2.0
    constant = zero_shot.caption_retrieval(np.ones((5, 4), np.float32), np.ones((3, 4), np.float32), np.zeros(5, int))
    assert constant["rank1"] == 0.0 and constant["mean_rank"] == 3.0


def test_random_features_reach_what_chance_says():
    rng = np.random.default_rng(0)
    images, captions = rng.normal(size=(4000, 8)), rng.normal(size=(50, 8))
    found = zero_shot.caption_retrieval(images, captions, rng.integers(0, 50, 4000))
    for name in ("rank1", "rank5", "mean_rank"):
        assert found[name] == pytest.approx(found[f"chance_{name}"], rel=0.25)


def test_a_class_is_the_mean_of_its_prompts():
    classes = zero_shot.class_features(np.stack([EYE[0], EYE[1], EYE[2]]), [2, 1])
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 1, 0]], atol=1e-6)


def test_attribute_accuracy_and_its_majority():
    images = np.stack([EYE[0], EYE[0], EYE[1], EYE[2]])
    found = zero_shot.attribute_accuracy(images, EYE[:3], np.array([0, 0, 1, 0]))
    assert found == {
        "pictures": 4, "classes": 3, "accuracy": 75.0, "majority": 75.0, "chance": 50.0,
        "balanced": pytest.approx(100 * (2 / 3 + 1) / 2, abs=0.01),
    }  # fmt: skip


@pytest.mark.parametrize("named", range(3))
def test_naming_one_class_is_chance_and_may_be_far_below_the_most_frequent(named):
    labels = np.array(6 * [0] + 3 * [1] + [2])
    found = zero_shot.attribute_accuracy(np.tile(EYE[named], (10, 1)), EYE[:3], labels)
    assert found["accuracy"] == (60.0, 30.0, 10.0)[named] and found["majority"] == 60.0
    assert found["balanced"] == found["chance"] == pytest.approx(100 / 3, abs=0.01)


def test_likeness_is_the_mean_cosine_of_pairs():
    angles = np.array([0.0, 0.3, 1.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert zero_shot.likeness(features) == pytest.approx(np.mean(np.cos([0.3, 1.0, 0.7])), rel=1e-6)
    assert zero_shot.likeness(np.tile(EYE[0], (3, 1))) == 1.0


def test_nothing_to_compare_is_an_error():
    empty = np.zeros((0, 4), np.float32)
    with pytest.raises(ValueError, match="at least one picture"):
        zero_shot.caption_retrieval(empty, EYE, np.zeros(0, int))
    with pytest.raises(ValueError, match="at least one picture"):
        zero_shot.attribute_accuracy(empty, EYE, np.zeros(0, int))
    with pytest.raises(ValueError, match="at least two sentences"):
        zero_shot.likeness(EYE[:1])


def test_lines_show_chance_beside_every_figure():
    entry = {
        "captions": zero_shot.caption_retrieval(EYE, EYE, np.arange(4)),
        "attributes": {"gender": zero_shot.attribute_accuracy(EYE, EYE, np.arange(4))},
    }
    first, second = zero_shot.lines({"whole": entry})
    assert "R-1 100.0 (chance 25.0)" in first and "mean rank 1.0 (chance 2.5)" in first
    assert "gender" in second and "100.0 %" in second and "most frequent class: 25.0 %" in second
    assert "mean over classes 100.0 % (chance 25.0 %)" in second
