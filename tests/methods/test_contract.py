"""What every method must keep, whatever it is: found through the name table, run on micro networks."""

import fnmatch
import importlib
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import config as configuration
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.methods.base import ENCODER_RANGES
from occreid_jax.train import state
from occreid_jax.train.plan import make_plan
from occreid_jax.train.step import COLUMNS, StageStep
from occreid_jax.types import Meta

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)
MICRO = {"backbone": "micro", "patch": 16, "stride": 16}


class Initial(NamedTuple):
    """A method and its initial values, made once and shared by the tests of this file."""

    method: Any
    params: Any
    extra: Any


def micro_config(name: str):
    config = importlib.import_module(f"configs.{name}").get_config()
    for key, value in MICRO.items():
        if key in config.method:
            config.method[key] = value
    if config.method.get("text") and not name.startswith(("clip_reid", "dpl_reid")):
        config.method.backbone = "clip_micro"  # texts need a CLIP
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    config.data.image_size = META.image_size
    for stage in config.stages.values():
        stage.sampler.batch_size = 8
    return config


@pytest.fixture(scope="module", params=sorted(methods.NAMES))
def initial(request):
    method = methods.create(micro_config(request.param), META)
    return Initial(method, *jax.jit(method.init)(jax.random.key(0)))


def raw_batch(count: int = 8) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, *META.image_size, 3), np.uint8)),
        "parts": jnp.asarray(rng.integers(0, 9, (count, *META.image_size), np.uint8)),
        "parsed": jnp.arange(count) % 4 > 0,
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


def shown_by(method):
    """A function (params, extra, raw batch) -> features of both roles and maps; in one program, which runs the encoder once."""

    def show(params, extra, batch):
        batch = method.transform(batch)
        features = {role: method.embed(params, extra, batch, role) for role in ("query", "gallery")}
        return features | {"inspect": method.inspect(params, extra, batch)}

    return jax.jit(show)


@pytest.fixture(scope="module")
def shown(initial):
    """What `shown_by` gives for `raw_batch`."""
    return shown_by(initial.method)(initial.params, initial.extra, raw_batch())


def test_features_are_deterministic_finite_and_one_per_image(initial, shown):
    method, params, extra = initial
    features = shown["gallery"]
    chex.assert_tree_all_finite(features)
    assert all(leaf.shape[0] == 8 for leaf in jax.tree.leaves(features))
    chex.assert_trees_all_equal(features, shown_by(method)(params, extra, raw_batch())["gallery"])


def test_a_feature_depends_on_its_own_image_alone(initial, shown):
    method, params, extra = initial
    other = raw_batch()
    other["image"] = other["image"].at[1:].set(0)
    first, alone = (jax.tree.map(lambda x: x[0], each["gallery"]) for each in (shown, shown_by(method)(params, extra, other)))
    chex.assert_trees_all_close(first, alone, atol=1e-5)


def test_distance_of_blocks_is_the_block_of_distances(initial, shown):
    method, query, gallery = initial.method, shown["query"], shown["gallery"]
    whole = method.distance(query, gallery)
    assert whole.shape == (8, 8) and whole.dtype == jnp.float32
    block = method.distance(jax.tree.map(lambda x: x[2:5], query), gallery)
    np.testing.assert_allclose(block, whole[2:5], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_losses_are_finite_and_extra_keeps_its_structure(initial, dtype):
    config = initial.method.config.copy_and_resolve_references()
    config.dtype = dtype
    method = methods.create(config, META)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    for stage in method.stages():
        batch = raw_batch()
        prepared = {name: table[batch["index"]] for name, table in extra.get("tables", {}).items() if name in stage.inputs}
        shared = {name: table for name, table in library().items() if name in stage.shared}
        batch = jax.jit(stage.augment)(jax.random.key(1), batch | prepared | shared)

        def loss(params, extra, batch, stage=stage):
            return method.loss(params, extra, batch, jax.random.key(2), stage, jnp.float32(0.5))

        (value, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, extra, batch)
        assert value.dtype == jnp.float32
        chex.assert_tree_all_finite((value, aux, gradients))
        chex.assert_trees_all_equal_shapes_and_dtypes(extra, aux.extra)
        assert all(metric.shape == () for metric in aux.metrics.values())


@pytest.mark.slow
def test_three_epochs_compile_every_stage_once(initial):
    method, params, extra = initial
    rng, labels = np.random.default_rng(4), np.repeat(np.arange(META.identities), META.images // META.identities)
    for plan in make_plan(method.stages(), labels, 0, 1, 1).stages:
        step = StageStep(method, plan, params)
        # The step gives its state away, and other tests need these values.
        current = jax.tree.map(lambda x: x.copy(), state.create(params, extra, 0).replace(opt_state=step.init(params)))
        columns = raw_batch(META.images) | library()
        tables = {name: columns[name] for name in (*plan.stage.inputs, *COLUMNS, *plan.stage.shared) if name in columns}
        chex.clear_trace_counter()
        traced = jax.jit(chex.assert_max_traces(step.from_tables, n=1), donate_argnums=0)
        for epoch in range(3):
            for rows in plan.rows(epoch)[:1]:
                images = {"image": jnp.asarray(rng.integers(0, 256, columns["image"].shape, np.uint8))}
                current, metrics = traced(current, tables | (images if "image" in tables else {}), jnp.asarray(rows)[None])
        assert np.isfinite(metrics["loss"]).all()
    chex.clear_trace_counter()


def test_parameters_are_float32(initial):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial.params))


def test_inspect_returns_arrays_per_image(shown):
    for value in shown["inspect"].values():
        assert value.shape[0] == 8


def test_illustrations_have_a_shape_that_the_report_can_draw(initial):
    method, params, extra = initial

    def illustrate(params, extra, batch, key):
        return method.illustrate(params, extra, method.transform(batch), key)

    for name, value in jax.eval_shape(illustrate, params, extra, raw_batch(), jax.random.key(3)).items():
        shape = value.shape
        pictures = len(shape) == 5 and shape[4] == 3
        assert jnp.issubdtype(value.dtype, jnp.floating) and 0 not in shape, name
        assert pictures or len(shape) == 1 or (len(shape) == 2 and shape[0] == shape[1]), (name, shape)


@pytest.mark.parametrize("name", sorted(methods.NAMES))
def test_settings_outside_of_a_methods_ranges_are_told(name):
    """Every range is that of a setting, or of several, and a number below or above it is refused in the words of all ranges."""
    config = micro_config(name)
    settings = configuration.flatten(configuration.to_dict(config.method))
    shared = {pattern for pattern, _, _ in ENCODER_RANGES}
    for pattern, least, most in methods.method_class(name).ranges:
        keys = [key for key in settings if fnmatch.fnmatchcase(key, pattern)]
        assert keys or pattern in shared, pattern
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        for key in (key for key in keys if settings[key] is not None):
            for value in (least - 1,) if most is None else (least - 1, most + 1):
                changed = config.copy_and_resolve_references()
                changed.method.update_from_flattened_dict({key: type(settings[key])(value)})
                told = f"config.method.{key} is {type(settings[key])(value)}; it must be {bounds}"
                with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
                    methods.create(changed, META)


def test_unknown_method():
    config = importlib.import_module("configs.baseline").get_config()
    config.method.name = "fed2"
    with pytest.raises(ValueError, match="unknown method 'fed2'; known: baseline"):
        methods.create(config, META)
