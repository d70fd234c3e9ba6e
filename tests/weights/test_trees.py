"""Merging named arrays into a parameter tree: nothing missing, unused or wrongly shaped passes in silence."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from occreid_jax.errors import UserError
from occreid_jax.weights.read import read_weights
from occreid_jax.weights.trees import flatten, merge, merge_encoder, unflatten

PARAMS = {"a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "classifier": {"kernel": jnp.zeros((3, 5))}}


def test_flatten_and_back():
    flat = flatten(PARAMS)
    assert set(flat) == {"a/kernel", "a/bias", "classifier/kernel"}
    assert flatten(unflatten(flat)).keys() == flat.keys()


def test_values_are_taken_with_the_targets_type():
    weights = {name: np.ones(value.shape, np.float16) for name, value in flatten(PARAMS).items()}
    merged = flatten(merge(PARAMS, weights))
    assert all(value.dtype == jnp.float32 and bool((value == 1).all()) for value in merged.values())


def test_skipped_parameters_may_be_missing_or_of_another_shape():
    weights = {"a/kernel": np.ones((2, 3)), "a/bias": np.ones(3)}
    weights |= {"classifier/kernel": np.ones((3, 9)), "classifier/x": np.ones(1)}
    merged = merge(PARAMS, weights, skip="^classifier/")
    assert not np.asarray(merged["classifier"]["kernel"]).any()
    del weights["classifier/kernel"]
    merge(PARAMS, weights, skip="^classifier/")


def test_every_problem_is_named_at_once():
    weights = {"a/kernel": np.ones((3, 2)), "b/kernel": np.ones(1), "classifier/kernel": np.ones((3, 5))}
    with pytest.raises(UserError) as caught:
        merge(PARAMS, weights, source="these weights")
    text = str(caught.value)
    assert "these weights do not fit this model" in text and "1 missing: a/bias" in text and "1 unused: b/kernel" in text
    assert "a/kernel (3, 2) instead of (2, 3)" in text and "\n" not in text


def test_reading_safetensors(tmp_path):
    save_file({"x": np.arange(3.0)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read_weights(tmp_path / "x.safetensors")["x"], np.arange(3.0))
    with pytest.raises(UserError, match="no such weights file"):
        read_weights(tmp_path / "y.safetensors")
    (tmp_path / "z.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_weights(tmp_path / "z.safetensors")
    (tmp_path / "z.pth").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="must be a .safetensors file"):
        read_weights(tmp_path / "z.pth")


def test_weights_for_patches_of_another_size_are_told():
    params = {"patch_embed": {"kernel": jnp.zeros((8, 8, 3, 4))}}
    weights = {"patch_embed": {"kernel": np.zeros((16, 16, 3, 4), np.float32)}}
    told = r"for patches of 16 pixels and this encoder cuts 8; of those that ship, .* tiny_clip_fine for 8 \(grid=fine\)"
    with pytest.raises(UserError, match=told) as error:
        merge_encoder(params, weights, (16, 8))
    assert "\n" not in str(error.value)


def test_registers_start_anew_where_the_weights_have_none_and_are_never_lost():
    positions = np.zeros((1, 9, 4), np.float32)
    weights = {"pos_embed": positions + 1, "grid": np.array([4, 2])}
    own = np.full((1, 3, 4), 7.0, np.float32)
    merged = merge_encoder({"pos_embed": positions, "register_tokens": own}, weights, (4, 2))
    np.testing.assert_array_equal(merged["register_tokens"], own)
    np.testing.assert_array_equal(merged["pos_embed"], positions + 1)
    trained = weights | {"register_tokens": own + 1}
    merged = merge_encoder({"pos_embed": positions, "register_tokens": own}, trained, (4, 2))
    np.testing.assert_array_equal(merged["register_tokens"], own + 1)
    with pytest.raises(UserError, match="have 3 registers; set config.method.registers=3, it is 0"):
        merge_encoder({"pos_embed": positions}, trained, (4, 2))
