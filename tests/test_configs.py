"""Every config with every dataset: valid, built and stepped at full size by shapes alone, nothing computed."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from occreid_jax import config as configuration
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.nn.attention import CHOICES
from occreid_jax.train import state
from occreid_jax.train.plan import make_plan
from occreid_jax.train.start import load_weights, shipped
from occreid_jax.train.step import StageStep
from occreid_jax.types import Meta
from occreid_jax.weights.port import read_ported
from occreid_jax.weights.trees import encoder_paths

FILES = (Path(__file__).parent.parent / "configs").glob("*.py")
CONFIGS = sorted(path.stem for path in FILES if path.stem not in ("common", "__init__"))
STEPPED = ("synthetic", "market1501", "folder")  # the other datasets bring no other shapes than these
REPEATED = ("dataset=folder", "size=small", "split=holistic", "grid=fine")  # shapes of the others once more: with the slow tests
ARGUMENTS = [*(f"dataset={name}" for name in STEPPED[:2]), "size=full"]
CASES = [pytest.param(name, argument, id=f"{name}-{argument}") for name in CONFIGS for argument in ARGUMENTS]
CASES += [
    pytest.param(name, argument, id=f"{name}-{argument}", marks=pytest.mark.slow)
    for name in CONFIGS
    for argument in REPEATED
    if (name, argument) != ("colour_histogram", "grid=fine")  # which has no patches
]


def prepared(name: str, argument: str):
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    configuration.validate(config)
    preset = common.DATASETS[config.data.name]
    labels = np.repeat(np.arange(preset["identities"]), 8)
    meta = Meta(preset["identities"], preset["cameras"], tuple(config.data.image_size), len(labels))
    return config, labels, methods.create(config, meta)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_init_and_one_step_of_every_stage_at_full_size(name, argument):
    step_by_shapes(*prepared(name, argument))


def step_by_shapes(config, labels: np.ndarray, method) -> None:
    """One step of every stage by shapes alone: nothing changes its shape or type, and metrics are scalars."""
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    stages = method.stages()
    if not stages:
        return
    plan = make_plan(stages, labels, config.seed, config.loop.accumulate, 1)
    for stage in plan.stages:
        step = StageStep(method, stage, params, config.loop.accumulate)
        current = jax.eval_shape(lambda p=params, e=extra: state.create(p, e, 0))
        current = current.replace(opt_state=jax.eval_shape(step.init, params))
        size = tuple(config.data.image_size)
        tables = {
            "image": jax.ShapeDtypeStruct((len(labels), *size, 3), jnp.uint8),
            "parts": jax.ShapeDtypeStruct((len(labels), *size), jnp.uint8),
            "parsed": jax.ShapeDtypeStruct((len(labels),), jnp.bool_),
            "caption": jax.ShapeDtypeStruct((len(labels), 4, 40), jnp.int32),
            "facts": jax.ShapeDtypeStruct((len(labels), 13), jnp.int32),
            "closed_facts": jax.ShapeDtypeStruct((55, 11), jnp.int32),
            "closed_kinds": jax.ShapeDtypeStruct((55,), jnp.int32),
            "open_facts": jax.ShapeDtypeStruct((324, 16), jnp.int32),
            "camid": jax.ShapeDtypeStruct((len(labels),), jnp.int32),
            "label": jax.ShapeDtypeStruct((len(labels),), jnp.int32),
            "occluders": jax.ShapeDtypeStruct((8, 32, 32, 4), jnp.uint8),
            "occluder_sides": jax.ShapeDtypeStruct((8, 2), jnp.int32),
        }
        rows = jax.ShapeDtypeStruct((1, stage.batch_size), jnp.int32)
        after, metrics = jax.eval_shape(step.from_tables, current, tables, rows)
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, current, after)
        assert all(jax.tree.leaves(same))  # nothing changes its shape or type during training
        assert all(value.shape == (1,) for value in metrics.values())


@pytest.mark.parametrize("dataset", [name for name in common.DATASETS if name not in STEPPED])
@pytest.mark.parametrize("name", CONFIGS)
def test_other_datasets_are_valid_and_built(name, dataset):
    config, _, _ = prepared(name, f"dataset={dataset}")
    assert config.data.name == dataset and tuple(config.data.image_size) == (256, 128)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_distances_have_the_stated_shapes(name):
    config, _, method = prepared(name, "")
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((4, *config.data.image_size, 3), jnp.uint8),
        "parts": jax.ShapeDtypeStruct((4, *config.data.image_size), jnp.uint8),
        "parsed": jax.ShapeDtypeStruct((4,), jnp.bool_),
        "camid": jax.ShapeDtypeStruct((4,), jnp.int32),
        "index": jax.ShapeDtypeStruct((4,), jnp.int32),
        "valid": jax.ShapeDtypeStruct((4,), bool),
    }

    def embed(params, extra, raw):
        return method.embed(params, extra, method.transform(raw), "query")

    features = jax.eval_shape(embed, params, extra, batch)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(features))
    distance = jax.eval_shape(method.distance, features, features)
    assert distance.shape == (4, 4) and distance.dtype == jnp.float32


TINY = sorted(set(CONFIGS) - {"colour_histogram"})  # configs whose encoder starts from the tiny CLIP, or makes it


@pytest.mark.parametrize("name", TINY)
def test_the_fine_grid_cuts_as_many_patches_as_the_papers(name):
    config = importlib.import_module(f"configs.{name}").get_config("grid=fine")
    coarse = importlib.import_module(f"configs.{name}").get_config()
    assert set(prepared(name, "grid=fine")[2].grids.values()) == {(16, 8)}
    assert set(prepared(name, "")[2].grids.values()) == {(8, 4)}
    assert config.method.stride == 8 and coarse.method.stride == 16
    if name != "clip_pretraining":
        assert (config.init.weights, coarse.init.weights) == ("tiny_clip_fine", "tiny_clip")
    for wrong, told in (("grid=finer", "unknown grid 'finer'"), ("grid=fine,dataset=folder", "for the small pictures")):
        with pytest.raises(ValueError, match=told):
            importlib.import_module(f"configs.{name}").get_config(wrong)


STARTED = [
    (name, grid)
    for name in CONFIGS
    for grid in ("coarse", "fine")
    if name not in ("clip_pretraining", "colour_histogram")  # the one makes the weights, the other has none
]


@pytest.mark.parametrize(("name", "grid"), STARTED)
def test_the_weights_that_ship_fit_and_are_taken(name, grid):
    """The demo of every method begins with every array of the tiny CLIP's image tower, but its projection where there is none."""
    config = importlib.import_module(f"configs.{name}").get_config(f"grid={grid}")
    assert config.init.weights == {"coarse": "tiny_clip", "fine": "tiny_clip_fine"}[grid]
    method = methods.create(config, Meta(64, 6, tuple(config.data.image_size), 1024))
    params, extra = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(method.init, jax.random.key(0)))
    loaded, _ = load_weights(method, params, extra, config.init.weights)
    taken = {np.asarray(leaf, np.float32).tobytes() for leaf in jax.tree.leaves(loaded)}
    tower = encoder_paths(read_ported(shipped(config.init.weights))[0])
    left = [path for path, value in tower.items() if np.asarray(value, np.float32).tobytes() not in taken]
    assert set(left) <= {"grid", "projection"}


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="unknown config argument 'datset'; this config knows"):
        common.parse_arg("datset=x", dataset="synthetic")
    with pytest.raises(ValueError, match="should look like stride=16"):
        common.parse_arg("stride=wide", stride=16)
    parsed = common.parse_arg("stride=12,camera", stride=16, camera=False, name="x")
    assert (parsed.stride, parsed.camera, parsed.name) == (12, True, "x")


def test_validation_names_the_key():
    config = importlib.import_module("configs.baseline").get_config()
    config.dtype = "float16"
    with pytest.raises(UserError, match="config.dtype is 'float16'; it must be one of auto, float32, bfloat16"):
        configuration.validate(config)
    config.dtype, config.attention = "auto", "flash"
    with pytest.raises(UserError, match="config.attention is 'flash'; it must be one of auto, xla"):
        configuration.validate(config)
    assert configuration.CHOICES["attention"] == CHOICES


def test_configs_survive_json():
    config = importlib.import_module("configs.baseline").get_config()
    again = configuration.from_dict(configuration.to_dict(config))
    assert configuration.differences(configuration.to_dict(config), configuration.to_dict(again)) == []
    again.stages.main.epochs = 3
    assert configuration.differences(configuration.to_dict(config), configuration.to_dict(again)) == [
        f"stages.main.epochs: {config.stages.main.epochs} -> 3"
    ]


def test_a_run_of_older_settings_is_read_under_todays_names():
    config = importlib.import_module("configs.clip_reid").get_config("backbone=rn50")
    old = configuration.to_dict(config)
    old["method"]["network"] = old["method"].pop("backbone")
    assert configuration.to_dict(configuration.from_dict(old)) == configuration.to_dict(config)
