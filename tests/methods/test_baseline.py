"""The baseline's own parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baseline
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.types import Meta
from occreid_jax.weights.trees import flatten

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)


def create(argument: str = "", **settings):
    config = baseline.get_config(argument)
    config.method.update({"backbone": "micro", "stride": 16} | settings)
    config.data.image_size = META.image_size
    return methods.create(config, META)


def batch(count: int = 4) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(count, 64, 32, 3)).astype(np.float32)),
        "parts": jnp.asarray(np.tile(np.array([0, 4, 20, 16], np.uint8)[:, None], (count, 16, 32)).reshape(count, 64, 32)),
        "camid": jnp.zeros(count, jnp.int32),
    }


def test_oracle_blanks_everything_but_the_visible_person():
    method = create("person_mask=true")
    assert method.evaluation_inputs == ("image", "parts") == method.stages()[0].inputs
    shown = np.asarray(method.images(batch()))
    assert not shown[:, 0::4].any() and not shown[:, 2::4].any() and not shown[:, 3::4].any()
    np.testing.assert_array_equal(shown[:, 1::4], batch()["image"][:, 1::4])


def test_camera_embedding_changes_features():
    method = create("camera=true")
    params, extra = jax.jit(method.init)(jax.random.key(0))
    one, other = batch(), batch() | {"camid": jnp.full(4, 2)}
    difference = method.embed(params, extra, one, "query") - method.embed(params, extra, other, "query")
    assert float(jnp.abs(difference).max()) > 1e-3
    assert "camera_embed" not in create().init(jax.random.key(0))[0]["backbone"]


def test_attention_sums_to_one_over_the_grid():
    method = create()
    params, extra = jax.jit(method.init)(jax.random.key(0))
    attention = method.inspect(params, extra, batch())["attention"]
    assert attention.shape == (4, 4, 2)
    np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1.0, rtol=1e-5)


def test_pretrained_weights_must_fit():
    method = create()
    params, extra = jax.jit(method.init)(jax.random.key(0))
    weights = {name: np.asarray(value) + 1 for name, value in flatten(params["backbone"]).items()}
    weights["grid"] = np.array([4, 2])
    loaded, _ = method.load_pretrained(params, extra, weights)
    np.testing.assert_array_equal(loaded["backbone"]["norm"]["scale"], weights["norm/scale"])
    head, before = loaded["heads"]["head_0"], params["heads"]["head_0"]
    np.testing.assert_array_equal(head["classifier"]["kernel"], before["classifier"]["kernel"])
    with pytest.raises(UserError, match="1 missing: norm/bias"):
        method.load_pretrained(params, extra, {name: value for name, value in weights.items() if name != "norm/bias"})
    with pytest.raises(UserError, match="1 unused: head/kernel"):
        method.load_pretrained(params, extra, weights | {"head/kernel": np.zeros(3)})
    with pytest.raises(UserError, match=r"of another shape: norm/bias \(3,\) instead of \(32,\)"):
        method.load_pretrained(params, extra, weights | {"norm/bias": np.zeros(3)})


def test_pretrained_positions_are_resized_to_the_grid():
    method = create()
    params, extra = jax.jit(method.init)(jax.random.key(0))
    weights = {name: np.asarray(value) for name, value in flatten(params["backbone"]).items()}
    weights["pos_embed"] = np.ones((1, 1 + 14 * 14, 32), np.float32)
    loaded, _ = method.load_pretrained(params, extra, weights)
    np.testing.assert_allclose(loaded["backbone"]["pos_embed"], np.ones((1, 9, 32)), rtol=1e-6)


def test_unknown_backbone():
    with pytest.raises(UserError, match="config.method.backbone: unknown 'huge'"):
        create(backbone="huge")


def test_histogram_counts_pixels():
    from configs import colour_histogram

    config = colour_histogram.get_config()
    config.method.bins = 2
    method = methods.create(config, META)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 0, :, 0] = 255
    features = method.embed({}, {}, {"image": jnp.asarray(image)}, "query")
    np.testing.assert_allclose(np.asarray(features)[0] ** 2, [0.75, 0, 0, 0, 0.25, 0, 0, 0], atol=1e-6)
