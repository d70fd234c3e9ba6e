"""The reader of reference files: weights by the recipe, inputs, and how a result is compared with a stored output."""

import json

import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.weights.reference import ReferenceFile, compare, normal, recipe_tensor


@pytest.mark.parametrize(
    ("name", "shape", "start"),
    [
        ("base.blocks.0.attn.qkv.weight", (2304, 768), [-0.04865763, -0.00110897, 0.01651892]),
        ("base.blocks.0.norm1.weight", (768,), [1.1021762]),
        ("base.pos_embed", (1, 129, 768), [0.00613867]),
        ("bottleneck.running_var", (768,), [1.0129999]),
    ],
)
def test_recipe_gives_the_published_values(name, shape, start):
    array = recipe_tensor(name, shape, 1)
    assert array.shape == shape and array.dtype == np.float32
    np.testing.assert_allclose(array.ravel()[: len(start)], start, rtol=1e-6, atol=1e-8)
    if name.endswith("qkv.weight"):
        assert np.abs(array).sum(dtype=np.float64) == pytest.approx(50939.7412, abs=1e-4)
    np.testing.assert_allclose(normal(101, (4, 3, 256, 128)).ravel()[:3], [-0.4471553, 1.7049392, -1.6190721], rtol=1e-6)


def test_recipe_by_kind():
    assert recipe_tensor("bn.num_batches_tracked", (), 1, integer=True) == 0
    assert recipe_tensor("attention_bias_idxs", (4, 4), 1, integer=True) is None
    scale = recipe_tensor("logit_scale", (), 1)
    assert scale.shape == () and scale == np.float32(4.6052)
    assert abs(recipe_tensor("gate", (), 1)) < 0.2 and recipe_tensor("gate", (), 1).shape == ()
    assert np.abs(recipe_tensor("bn.running_mean", (100,), 1)).max() > np.abs(recipe_tensor("bn.bias", (100,), 1)).max()


def write(path, **changes):
    arrays = {
        "state_json": json.dumps(
            [["a.weight", [3, 2], "float32"], ["ska.weight", [4], "float32"], ["b.running_mean", [2], "float32"],
             ["b.num_batches_tracked", [], "int64"]]
        ),
        "config_json": json.dumps({"B": 2, "H": 4, "W": 2, "gains": [["^ska", 0.5]]}),
        "seeds_json": json.dumps({"SEED": 3, "INPUT_SEED": 5}),
        "noise_json": json.dumps({"x": {"max_err": 1e-3}, "order": "equal"}),
        "in.images_head": normal(5, (2, 3, 4, 2)).ravel()[:8],
        "override.b.running_mean": np.array([7.0, 8.0], np.float32),
        "out.x": np.array([1.0, np.nan, 2.0], np.float32),
        "out.order": np.array([2, 0, 1]),
    }  # fmt: skip
    np.savez(path, **(arrays | changes))
    return path


def test_reader(tmp_path):
    file = ReferenceFile(write(tmp_path / "small.npz"))
    weights = dict(file.weights())
    np.testing.assert_array_equal(weights["a.weight"], recipe_tensor("a.weight", (3, 2), 3))
    np.testing.assert_array_equal(weights["ska.weight"], recipe_tensor("ska.weight", (4,), 3) * np.float32(0.5))
    np.testing.assert_array_equal(weights["b.running_mean"], [7.0, 8.0])
    assert weights["b.num_batches_tracked"] == 0
    assert file.images().shape == (2, 3, 4, 2)
    assert file.tagged("memory", (5,)).dtype == np.float32
    assert file.compare("x", [1.02, np.nan, 2.0]).passed
    assert not file.compare("x", [1.04, np.nan, 2.0]).passed
    assert file.compare("x", [1.01, np.nan, 2.0]).noise_multiple == pytest.approx(10.0, rel=1e-5)
    assert not file.compare("x", [1.0, 0.0, 2.0]).passed
    assert not file.compare("x", [np.nan, np.nan, 2.0]).passed
    assert not file.compare("x", [1.0]).passed
    assert file.compare("order", [2, 0, 1]).passed
    assert not file.compare("order", [0, 2, 1]).passed
    np.testing.assert_array_equal(file.input("images_head"), file.inputs["images_head"])
    sums = np.array([np.abs(array).sum(dtype=np.float64) for array in weights.values()])
    ReferenceFile(write(tmp_path / "good.npz", weights_l1_f64=sums)).check_weights()
    with pytest.raises(UserError, match="a.weight"):
        ReferenceFile(write(tmp_path / "bad.npz", weights_l1_f64=sums * 1.001)).check_weights()


def test_comparison_without_noise_allows_the_floor_only():
    reference = np.array([100.0, -50.0], np.float32)
    assert compare("y", reference + np.float32(1.5e-4), reference).passed
    assert not compare("y", reference + np.float32(3e-4), reference).passed
    assert np.isnan(compare("y", reference, reference).noise_multiple)
    assert compare("y", reference + np.float32(1e-4), reference).used == pytest.approx(0.5, abs=0.02)
    assert "TOO LARGE" in str(compare("y", reference + 1, reference))


def test_a_stated_allowance_replaces_the_usual_one_and_is_told():
    reference = np.array([1.0, 2.0])
    wide = compare("y", reference + 1e-3, reference, allowed=2e-3, reason="float16 sums")
    assert wide.passed and wide.verdict == "ok (allowed 2.0e-03: float16 sums)"
    narrow = compare("y", reference + 1e-9, reference, allowed=1e-12, reason="float64 sums")
    assert not narrow.passed and narrow.verdict == "TOO LARGE, allowed 1.0e-12: float64 sums"
    assert compare("y", reference[:1], reference, allowed=9.0).problem


def test_reader_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such"):
        ReferenceFile(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not a file of arrays")
    with pytest.raises(UserError, match="not a readable"):
        ReferenceFile(tmp_path / "text.npz")
    (tmp_path / "cut.npz").write_bytes(write(tmp_path / "whole.npz").read_bytes()[:700])
    with pytest.raises(UserError, match="not a readable"):
        ReferenceFile(tmp_path / "cut.npz")
    with pytest.raises(UserError, match="config_json is no JSON"):
        ReferenceFile(write(tmp_path / "other.npz", config_json="{"))
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="no outputs"):
        ReferenceFile(tmp_path / "plain.npz")
    file = ReferenceFile(write(tmp_path / "other.npz", **{"in.images_head": np.zeros(8, np.float32)}))
    with pytest.raises(UserError, match="other images"):
        file.images()
    with pytest.raises(UserError, match="no output"):
        file.compare("z", 0.0)
    with pytest.raises(UserError, match="lacks the input 'label'"):
        file.input("label")
    with pytest.raises(UserError, match="no SEED"):
        dict(ReferenceFile(write(tmp_path / "seedless.npz", seeds_json="{}")).weights())
