"""Starting from another run: what belongs to its people and cameras starts anew, positions are resized, the rest is taken."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.nn.vit import resize_positions
from occreid_jax.train import state
from occreid_jax.train.checkpoint import Checkpoints
from occreid_jax.train.folder import claim_workdir
from occreid_jax.train.start import initial_model, same_cameras, same_training_set
from occreid_jax.types import Meta
from occreid_jax.weights.trees import flatten

TRAINED = Meta(12, 3, (64, 32), 48, (0, 1, 2), "market1501", "a hash")
MICRO = {"backbone": "micro", "patch": 16, "stride": 16}
NAMES = sorted(set(methods.NAMES) - {"colour_histogram"})
# What belongs to people and pictures, below params/: the words of a report on each method, so that nothing is left out.
BOUND = {
    "baseline": ["heads/head_0/classifier/kernel"],
    "transreid": [f"heads/head_{number}/classifier/kernel" for number in range(5)],
    "clip_reid": ["heads/head_0/classifier/kernel", "heads/head_1/classifier/kernel", "prompts/context"],
    "dpl_reid": [
        "heads/head_0/classifier/kernel", "heads/head_1/classifier/kernel", "prompts/context", "prompts/occluded_x",
        "prompts/occluded_y",
    ],
    "dpm_pp": ["prompts/context", "prototypes/weight", "selection/head/classifier/kernel"],
    "fed": [f"heads/classifier_{name}/kernel" for name in ("diffused", "erased", "global")],
    "dpeformer": [
        *(f"heads/{name}/classifier/kernel" for name in ("final", "global", "memory")),
        *(f"heads/part_{number}/classifier/kernel" for number in range(4)),
    ],
    "clip_pretraining": [],
    "ogfr": [f"heads/{name}/classifier/kernel" for name in ("encoder", "global", *(f"part_{part}" for part in range(1, 9)))],
}


def config_of(name, image_size=(64, 32), **settings):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.method.update({key: value for key, value in MICRO.items() if key in config.method})
    if config.method.get("text") and not name.startswith(("clip_reid", "dpl_reid")):
        config.method.backbone = "clip_micro"
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    config.method.update(settings)
    config.init.weights, config.data.image_size, config.dtype = "", image_size, "float32"
    return config


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A function name -> (run folder, parameters, extra) of a made-up run on `TRAINED` with a checkpoint of random numbers."""
    runs = {}

    def make(name):
        if name not in runs:
            folder, config = tmp_path_factory.mktemp(name), config_of(name)
            claim_workdir(folder, config, TRAINED)
            shapes = jax.eval_shape(methods.create(config, TRAINED).init, jax.random.key(0))
            rng = np.random.default_rng(0)

            def fill(leaf):
                whole = not np.issubdtype(leaf.dtype, np.floating)
                return jnp.zeros(leaf.shape, leaf.dtype) if whole else jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

            params, extra = jax.tree.map(fill, shapes)
            checkpoints = Checkpoints(folder)
            checkpoints.save(state.create(params, extra, 0).replace(step=jnp.int32(4)), {"stage": 0, "best": 0.0})
            checkpoints.wait()
            checkpoints.close()
            runs[name] = folder, flatten(params), flatten(extra)
        return runs[name]

    return make


def start(name, folder, meta, **settings):
    """(params, extra, initial params, lines) of a run on ``meta`` that starts from the run in ``folder``."""
    config, lines = config_of(name, meta.image_size, **settings), []
    method = methods.create(config, meta)
    initial, first = initial_model(method, config)
    config.init.run = str(folder)
    params, extra = initial_model(method, config, lines.append)
    return *map(flatten, (params, extra, initial, first)), lines


@pytest.mark.parametrize("name", NAMES)
def test_the_same_training_set_takes_everything(stored, name):
    folder, params, extra = stored(name)
    found, state_found, _, _, lines = start(name, folder, TRAINED)
    assert lines == []
    for ours, theirs in ((found, params), (state_found, extra)):
        assert ours.keys() == theirs.keys()
        for path, value in theirs.items():
            np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.mark.parametrize("people", [9, 12])
@pytest.mark.parametrize("name", NAMES)
def test_what_belongs_to_other_people_starts_anew(stored, name, people):
    """Also where there happen to be as many people: rows of a classifier would be other people's."""
    folder, params, extra = stored(name)
    meta = dataclasses.replace(TRAINED, identities=people, images=4 * people, training_set="another hash")
    found, state_found, initial, first, lines = start(name, folder, meta)
    assert sorted(path for path in found if np.array_equal(found[path], initial[path])) == sorted(BOUND[name])
    for path, value in found.items():
        np.testing.assert_array_equal(value, (initial if path in BOUND[name] else params)[path], err_msg=path)
    if BOUND[name]:
        (line,) = lines
        assert line.startswith(f"note: {folder} was trained on other pictures; what belongs to them starts anew: ")
        assert BOUND[name][0] in line
    for path, value in state_found.items():
        anew = ("bank", "tables/", "texts", "occluded_texts", "prototype_start")
        own = path.startswith(anew) or value.shape != extra[path].shape
        np.testing.assert_array_equal(value, (first if own else extra)[path], err_msg=path)


def test_vectors_of_other_cameras_start_anew(stored):
    folder, params, _ = stored("transreid")
    for changes in ({"camera_network": "dukemtmc"}, {"camera_numbers": (0, 1, 4)}, {"cameras": 2, "camera_numbers": (0, 1)}):
        found, _, initial, _, lines = start("transreid", folder, dataclasses.replace(TRAINED, **changes))
        assert lines == [
            f"note: {folder} was trained on other pictures; what belongs to them starts anew: backbone/camera_embed"
        ]
        np.testing.assert_array_equal(found["backbone/camera_embed"], initial["backbone/camera_embed"])
        np.testing.assert_array_equal(found["heads/head_0/classifier/kernel"], params["heads/head_0/classifier/kernel"])


POSITIONS = {
    "baseline": ["backbone/pos_embed"], "transreid": ["backbone/pos_embed"], "fed": ["backbone/pos_embed"],
    "dpeformer": ["backbone/pos_embed"], "clip_reid": ["visual/pos_embed"],
    "clip_pretraining": ["visual/pos_embed"], "dpl_reid": ["visual/pos_embed"],
    "dpm_pp": ["selection/encoder/pos_embed", "visual/pos_embed"], "ogfr": ["backbone/pos_embed", "teacher/mask_tokens"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_resized_to_another_picture_size(stored, name):
    folder, params, _ = stored(name)
    found, _, _, _, lines = start(name, folder, dataclasses.replace(TRAINED, image_size=(96, 32)))
    assert lines == [f"note: the positions of {folder} are resized to this run's patches: {', '.join(POSITIONS[name])}"]
    for path, value in found.items():
        prefix = 1 if path.endswith("pos_embed") else 0
        expected = resize_positions(params[path], (4, 2), (6, 2), prefix) if path in POSITIONS[name] else params[path]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6, err_msg=path)


def test_positions_are_resized_to_another_stride(stored):
    folder, params, _ = stored("baseline")
    found, _, _, _, lines = start("baseline", folder, TRAINED, stride=12)
    assert len(lines) == 1
    expected = resize_positions(params["backbone/pos_embed"], (4, 2), (5, 2))  # floor((64 - 16) / 12) + 1
    np.testing.assert_allclose(found["backbone/pos_embed"], expected, rtol=1e-6, atol=1e-6)


def test_positions_of_another_network_are_refused(stored):
    with pytest.raises(UserError, match="do not fit this model: .*of another shape"):
        start("baseline", stored("baseline")[0], dataclasses.replace(TRAINED, image_size=(96, 32)), backbone="64x2x4")


def test_what_older_runs_recorded():
    old = dataclasses.replace(TRAINED, training_set="", camera_network="")
    assert same_training_set(TRAINED, old) and same_cameras(TRAINED, old)
    assert not same_training_set(TRAINED, dataclasses.replace(old, images=47))
    assert not same_cameras(TRAINED, dataclasses.replace(old, cameras=2, camera_numbers=(0, 1)))
