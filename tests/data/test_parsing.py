"""Body-part labels and the ground truth of synthetic sets."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.data import DataError, open_dataset
from occreid_jax.data.parsing import read_truth
from occreid_jax.parts import FLIP_PARTS, OCCLUDED, PARTS, flip_parts, visible_person


def test_flip_exchanges_left_and_right():
    assert FLIP_PARTS.shape == (256,) and FLIP_PARTS.dtype == np.uint8
    for value, part in enumerate(PARTS):
        swapped = part.replace("left", "?").replace("right", "left").replace("?", "right")
        assert PARTS[FLIP_PARTS[value]] == swapped
        assert FLIP_PARTS[value | OCCLUDED] == FLIP_PARTS[value] | OCCLUDED
    np.testing.assert_array_equal(FLIP_PARTS[FLIP_PARTS], np.arange(256))
    parts = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(flip_parts(jnp.asarray(parts)), flip_parts(parts))
    assert flip_parts(jnp.asarray(parts)).dtype == jnp.uint8


def test_visible_person():
    parts = np.array([0, 1, 8, 16, 17, 24], np.uint8)
    expected = [False, True, True, False, False, False]
    assert visible_person(parts).tolist() == expected and visible_person(jnp.asarray(parts)).tolist() == expected


def test_truth_follows_the_split(market_tree, tmp_path):
    dataset = open_dataset("market1501", market_tree())
    with pytest.raises(DataError, match="no ground truth"):
        read_truth(dataset, "query")
    dataset = dataclasses.replace(dataset, truth=tmp_path / "truth")
    with pytest.raises(DataError, match="is missing"):
        read_truth(dataset, "query")
    (tmp_path / "truth").mkdir()
    index = tmp_path / "truth" / "index.csv"
    # columns in another order, and lines too
    index.write_text(
        "name,folder,camid,pid,occluder,occlusion,viewpoint,covered_fraction\n"
        "0009_c2_0.jpg,query,1,9,,none,back,0\n"
        "0005_c1_0.jpg,query,0,5,car,object,front,0.25\n"
    )
    first, second = read_truth(dataset, "query")
    assert (first.pid, first.occluder, first.covered_fraction) == (5, "car", 0.25)
    assert (second.pid, second.occlusion, second.viewpoint) == (9, "none", "back")
    with pytest.raises(DataError, match="no line for 4 pictures"):
        read_truth(dataset, "gallery")
    index.write_text("name,folder\na,b\n")
    with pytest.raises(DataError, match="no column pid"):
        read_truth(dataset, "query")
    index.write_text("folder,name,pid,camid,occlusion,occluder,covered_fraction,viewpoint\nquery,a.jpg,x,0,,,0,\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_truth(dataset, "query")
