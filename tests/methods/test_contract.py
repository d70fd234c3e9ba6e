"""What every method must keep, whatever it is: found through the name table, run on micro networks."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.types import Meta

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)
MICRO = {"backbone": "micro", "network": "micro", "patch": 16, "stride": 16}


@pytest.fixture(params=sorted(methods.NAMES))
def method(request):
    config = importlib.import_module(f"configs.{request.param}").get_config()
    for key, value in MICRO.items():
        if key in config.method:
            config.method[key] = value
    if config.method.get("text") and "backbone" in config.method:
        config.method.backbone = "clip_micro"  # texts need a CLIP
    config.data.image_size = META.image_size
    return methods.create(config, META)


def raw_batch(count: int = 8) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, *META.image_size, 3), np.uint8)),
        "parts": jnp.asarray(rng.integers(0, 9, (count, *META.image_size), np.uint8)),
        "caption": jnp.asarray(rng.integers(1, 100, (count, 4, 12), np.int32)),
        "camid": jnp.asarray(rng.integers(0, 3, count).astype(np.int32)),
        "label": jnp.asarray(np.repeat(np.arange(count // 4), 4).astype(np.int32)),
        "index": jnp.arange(count, dtype=jnp.int32),
        "valid": jnp.ones(count, bool),
    }


def library() -> dict:
    """What a stage may name in ``shared``: occluders of 32 x 32 pixels, and how high and wide they were."""
    rng = np.random.default_rng(1)
    return {
        "occluders": jnp.asarray(rng.integers(0, 256, (8, 32, 32, 4), np.uint8)),
        "occluder_sides": jnp.asarray(rng.integers(8, 64, (8, 2)).astype(np.int32)),
    }


def embed(method, params, extra, batch, role="gallery"):
    return jax.jit(lambda p, e, b: method.embed(p, e, method.transform(b), role))(params, extra, batch)


def test_features_are_deterministic_finite_and_one_per_image(method):
    params, extra = jax.jit(method.init)(jax.random.key(0))
    features = embed(method, params, extra, raw_batch())
    chex.assert_tree_all_finite(features)
    assert all(leaf.shape[0] == 8 for leaf in jax.tree.leaves(features))
    chex.assert_trees_all_equal(features, embed(method, params, extra, raw_batch()))


def test_a_feature_depends_on_its_own_image_alone(method):
    params, extra = jax.jit(method.init)(jax.random.key(0))
    batch, other = raw_batch(), raw_batch()
    other["image"] = other["image"].at[1:].set(0)
    first = jax.tree.map(lambda x: x[0], embed(method, params, extra, batch))
    chex.assert_trees_all_close(first, jax.tree.map(lambda x: x[0], embed(method, params, extra, other)), atol=1e-5)


def test_distance_of_blocks_is_the_block_of_distances(method):
    params, extra = jax.jit(method.init)(jax.random.key(0))
    query, gallery = (embed(method, params, extra, raw_batch(), role) for role in ("query", "gallery"))
    whole = method.distance(query, gallery)
    assert whole.shape == (8, 8) and whole.dtype == jnp.float32
    block = method.distance(jax.tree.map(lambda x: x[2:5], query), gallery)
    np.testing.assert_allclose(block, whole[2:5], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_losses_are_finite_and_extra_keeps_its_structure(method, dtype):
    method.config.dtype = dtype
    method = methods.create(method.config, META)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    for stage in method.stages():
        batch = raw_batch()
        prepared = {name: table[batch["index"]] for name, table in extra.get("tables", {}).items() if name in stage.inputs}
        shared = {name: table for name, table in library().items() if name in stage.shared}
        batch = stage.augment(jax.random.key(1), batch | prepared | shared)

        def loss(params, extra, batch, stage=stage):
            return method.loss(params, extra, batch, jax.random.key(2), stage, jnp.float32(0.5))

        (value, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, extra, batch)
        assert value.dtype == jnp.float32
        chex.assert_tree_all_finite((value, aux, gradients))
        chex.assert_trees_all_equal_shapes_and_dtypes(extra, aux.extra)
        assert all(metric.shape == () for metric in aux.metrics.values())


def test_parameters_are_float32(method):
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_inspect_returns_arrays_per_image(method):
    params, extra = jax.jit(method.init)(jax.random.key(0))
    for value in method.inspect(params, extra, method.transform(raw_batch())).values():
        assert value.shape[0] == 8


def test_illustrations_have_a_shape_that_the_report_can_draw(method):
    batch = method.transform(raw_batch())
    key = jax.random.key(3)
    shown = jax.eval_shape(lambda key, batch: method.illustrate(*method.init(key), batch, key), key, batch)
    for name, value in shown.items():
        shape = value.shape
        pictures = len(shape) == 5 and shape[4] == 3
        assert jnp.issubdtype(value.dtype, jnp.floating) and 0 not in shape, name
        assert pictures or len(shape) == 1 or (len(shape) == 2 and shape[0] == shape[1]), (name, shape)


def test_unknown_method():
    config = importlib.import_module("configs.baseline").get_config()
    config.method.name = "fed2"
    with pytest.raises(ValueError, match="unknown method 'fed2'; known: baseline"):
        methods.create(config, META)
