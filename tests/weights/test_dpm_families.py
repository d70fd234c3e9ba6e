"""Checkpoints of DPM and of SPT's selection network on small random arrays: both directions, and the method that uses them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpm_pp
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.numerics.checkpoint import TorchFeatures, compare_features
from occreid_jax.train.reopen import open_ported
from occreid_jax.train.start import initial_model, load_weights
from occreid_jax.types import Meta
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import Description, recognise
from occreid_jax.weights.families import dpm as dpm_family
from occreid_jax.weights.pth import read_pth
from occreid_jax.weights.sources import Origin
from occreid_jax.weights.trees import flatten
from tests.weights.checkpoints import DEPTH, PATCH, WIDTH, Numbers, dpm, same, spt_selection, timm, transreid

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
IMAGE, IDENTITIES, CAMERAS = (21 * PATCH, 10 * PATCH), 5, 6
NOWHERE = Origin("elsewhere", ())


def read(arrays):
    return recognise(arrays).read(arrays)


def fates(entries) -> dict[str, str]:
    return {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}


def method_of(recipe: str, weights: str = "", **settings):
    """The method of a recipe at the size of the checkpoints here, and its config."""
    config = dpm_pp.get_config(f"dataset=market1501,recipe={recipe},backbone={WIDTH}x{DEPTH}x2,stride={PATCH}")
    config.data.image_size, config.method.patch, config.dtype, config.init.weights = IMAGE, PATCH, "float32", weights
    config.method.update_from_flattened_dict(settings)
    return methods.create(config, Meta(IDENTITIES, CAMERAS, IMAGE, 10)), config


def written(folder, arrays, **options) -> str:
    return str(port.write_ported(folder, port.port(arrays, **options), NOWHERE))


# Names ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "settings"), [(dpm, {}), (dpm, {"cameras": 0}), (dpm, {"levels": 1}), (spt_selection, {})])
def test_there_and_back(make, settings):
    arrays = make(dead=False, **settings)
    family = recognise(arrays)
    weights, entries, description = family.read(arrays)
    assert family.name == {dpm: "dpm", spt_selection: "spt"}[make] and not fates(entries)
    cameras = settings.get("cameras", CAMERAS) if make is dpm else 0
    assert description == Description(WIDTH, DEPTH, 210, None, IDENTITIES, cameras)
    back, entries, again = family.write(weights)
    assert same(back, arrays) and again == description and len(entries) == len(arrays)
    assert same(family.read(back)[0], weights)
    more, entries, _ = family.read(make(**settings))
    assert same(more, weights)
    assert all("counts batches" in note or "no forward pass" in note for note in fates(entries).values())
    assert len(fates(entries)) == {dpm: 6, spt_selection: 3}[make]


def test_paths_of_dpm():
    arrays = dpm()
    weights, _, _ = read(arrays)
    for path, name in (
        ("params/visual/norm/scale", "base.norm.weight"),
        ("params/mask_generator/conv_1/bias", "base.ConvLayer.2.0.bias"),
        ("params/mask_generator/bn_2/scale", "base.ConvLayer.4.1.weight"),
        ("params/mask_generator/fc/bias", "base.attfc.bias"),
        ("extra/batch_stats/mask_generator/bn_0/var", "base.ConvLayer.0.1.running_var"),
        ("params/neck/bias", "bottleneck.bias"),
        ("extra/batch_stats/neck/mean", "bottleneck.running_mean"),
        ("params/prototypes/weight", "classifier.weight"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name])
    np.testing.assert_array_equal(weights["params/visual/camera_embed"], arrays["base.sie_embed"][:, 0])
    np.testing.assert_array_equal(weights["params/mask_generator/fc/kernel"], arrays["base.attfc.weight"].T)
    kernel = arrays["base.ConvLayer.0.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(weights["params/mask_generator/conv_0/kernel"], kernel)


def test_paths_of_the_selection_network():
    arrays = spt_selection()
    weights, _, _ = read(arrays)
    np.testing.assert_array_equal(weights["params/selection/decision/kernel"], arrays["base.mixfc.weight"].reshape(-1, 1))
    np.testing.assert_array_equal(weights["params/selection/decision/bias"], arrays["base.mixfc.bias"])
    np.testing.assert_array_equal(weights["params/selection/head/classifier/kernel"], arrays["classifier.weight"].T)
    np.testing.assert_array_equal(weights["params/selection/encoder/cls_token"], arrays["base.cls_token"])
    np.testing.assert_array_equal(weights["extra/batch_stats/selection/neck/var"], arrays["bottleneck.running_var"])


@pytest.mark.parametrize("make", [dpm, spt_selection])
def test_a_missing_tensor_is_named(make):
    arrays = make(dead=False)
    family = recognise(arrays)
    for name in arrays.keys() - {"base.sie_embed"}:  # the cameras may be absent
        with pytest.raises(UserError) as caught:
            family.read({other: array for other, array in arrays.items() if other != name})
        assert name in str(caught.value) and "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_go_together():
    draw = Numbers()
    for make, name, shape in (
        (dpm, "base.ConvLayer.2.0.weight", (WIDTH, WIDTH, 3, 3)),
        (dpm, "base.ConvLayer.0.1.running_var", (WIDTH,)),
        (dpm, "base.attfc.weight", (WIDTH, WIDTH + 1)),
        (dpm, "classifier.weight", (IDENTITIES, WIDTH + 1)),
        (dpm, "base.sie_embed", (CAMERAS, 1, WIDTH + 1)),
        (spt_selection, "base.mixfc.bias", (2,)),
        (spt_selection, "base.mixfc.weight", (2, DEPTH * WIDTH, 1, 1)),
        (spt_selection, "bottleneck.weight", (WIDTH + 1,)),
    ):
        with pytest.raises(UserError, match=f"{name} is .*, where the other tensors ask for"):
            read(make() | {name: draw(*shape)})
    for make, name in ((dpm, "base.ConvLayer.0.0.weight"), (spt_selection, "base.mixfc.weight")):
        array = make()[name]
        with pytest.raises(UserError, match=f"{name} reads {array.shape[1] - 1} channels, no multiple of the width {WIDTH}"):
            read(make() | {name: array[:, 1:]})
    with pytest.raises(UserError, match="base.mixfc.weight is no 1x1 convolution"):
        read(spt_selection() | {"base.mixfc.weight": draw(1, DEPTH * WIDTH, 3, 3)})
    for make, name in ((dpm, "base.ConvLayer.6.0.weight"), (dpm, "b1.0.norm1.weight"), (spt_selection, "base.sie_embed")):
        with pytest.raises(UserError, match=f"1 tensor is unexplained: {name}"):
            read(make() | {name: draw(CAMERAS, 1, WIDTH)})


def test_models_without_names_in_dpms_checkpoints():
    weights, _, _ = read(dpm(dead=False))
    for paths, words in (
        (["params/selection/decision/bias", "extra/batch_stats/selection/neck/mean"], "selection has no names"),
        (["params/text/norm/scale", "params/prompts/context", "extra/texts"], "prompts, text, texts have no names"),
        (["params/visual/projection", "params/visual/norm_pre/scale"], "visual/norm_pre, visual/projection have no names"),
        (["params/mask_generator/norm_0/scale"], "mask_generator/norm_0 has no names"),
    ):
        with pytest.raises(UserError, match=f"{words} in DPM's checkpoints; .*transfer.on=false, text=false") as caught:
            families.for_method("dpm_pp").write(weights | {path: np.zeros(WIDTH, np.float32) for path in paths})
        assert "\n" not in str(caught.value)


def test_without_a_mask_generator_it_is_the_vit_baseline():
    """So a run without masks leaves as the network that SPT calls its re-identification network."""
    arrays = transreid(jigsaw=False, dead=False)
    weights, _, _ = dpm_family.read(arrays)
    back = families.for_method("dpm_pp").write(weights)[0]
    assert same(back, arrays) and recognise(back).name == "transreid"


@pytest.mark.parametrize(
    ("name", "expected"), [("dpm_vitb16_s11", "dpm"), ("spt_sps_vitb16_s16", "spt"), ("spt_reid_vitb16_s16", "transreid")]
)
def test_every_name_of_the_official_models_is_known(name, expected):
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        state = json.loads(str(file["state_json"]))
    family = recognise(entry for entry, _, _ in state)
    assert family.name == expected
    weights, entries, description = family.read({entry: np.zeros(shape, dtype) for entry, shape, dtype in state})
    assert len(entries) == len(state) and description.identities == 20
    left_out = ("num_batches_tracked", "base.fc.weight", "base.fc.bias")
    assert family.write(weights)[0].keys() == {entry for entry, _, _ in state if not entry.endswith(left_out)}


# In the method ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cameras", [CAMERAS, 0])
def test_dpm_in_its_method(tmp_path, cameras):
    arrays = dpm(cameras)
    path = written(tmp_path, {f"module.{name}": array for name, array in arrays.items()})
    facts = {"kind": "model", "family": "dpm", "identities": "5", "cameras": str(cameras), "patches": "210"}
    assert facts.items() <= port.read_ported(path)[1].items()
    method, _ = method_of("dpm", camera=bool(cameras))
    params, extra = load_weights(method, *jax.jit(method.init)(jax.random.key(0)), path)
    found = {name: np.asarray(array) for name, array in flatten({"params": params, "extra": extra}).items()}
    assert not found.pop("extra/prototype_start").any()  # which a checkpoint does not know
    assert same(found, read(arrays)[0])
    batch = {"image": jnp.zeros((2, *IMAGE, 3)), "camid": jnp.zeros(2, jnp.int32)}
    features = jax.eval_shape(lambda p, e: method.embed(p, e, batch, "query"), params, extra)
    assert features["feature"].shape == features["mask"].shape == (2, WIDTH)
    _, pickled = port.write_exported(tmp_path / "back", families.for_method("dpm_pp").write(found)[0])
    assert same(read_pth(pickled), dpm(cameras, dead=False))


def test_the_selection_network_takes_its_place_beside_an_encoder(tmp_path):
    encoder = written(tmp_path / "encoder", timm(), grid=(6, 3))
    part = written(tmp_path / "part", spt_selection())
    method, config = method_of("spt", f"{encoder}, {part}")
    params, extra = initial_model(method, config)
    found = {name: np.asarray(array) for name, array in flatten({"params": params, "extra": extra}).items()}
    assert same({name: array for name, array in found.items() if "/selection/" in name}, read(spt_selection())[0])
    np.testing.assert_array_equal(found["params/visual/block_01/mlp/fc1/kernel"], timm()["blocks.1.mlp.fc1.weight"].T)
    saliency = jax.eval_shape(method.selection.saliency, params["selection"], jnp.zeros((2, *IMAGE, 3)))
    assert saliency.shape == (2, 210)
    swapped, _ = initial_model(*method_of("spt", f"{part},{encoder}"))
    np.testing.assert_array_equal(swapped["selection"]["encoder"]["cls_token"], timm()["cls_token"])  # the later one counts


def test_a_part_where_it_has_no_place(tmp_path):
    path = written(tmp_path, spt_selection())
    method, config = method_of("dpm", path)
    with pytest.raises(UserError, match="hold 'selection', which this method does not have"):
        initial_model(method, config)
    method, config = method_of("spt", path, **{"selection.stride": PATCH // 2})
    with pytest.raises(UserError, match="do not fit this model: 1 of another shape: selection/encoder/pos_embed"):
        initial_model(method, config)
    with pytest.raises(UserError, match="a part of a model alone cannot be evaluated; train with --config.init.weights="):
        open_ported(config, path, None)
    stored = TorchFeatures(["a"], np.zeros((1, WIDTH), np.float32), None)
    with pytest.raises(UserError, match="a part of a model, which alone gives no features"):
        compare_features(config, port.port(spt_selection()), stored, np.zeros((1, *IMAGE, 3), np.uint8))
    with pytest.raises(UserError, match="keeps the grid"):
        port.port(spt_selection(), (16, 8))
    assert same(port.export(port.read_ported(path)[0], "spt"), spt_selection(dead=False))


def test_features_of_dpm_beside_stored_ones():
    """Where an image has a mask beside its feature, the feature is compared."""
    method, config = method_of("dpm")
    ported = port.port(dpm())
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGE, 3), np.uint8)
    stored = TorchFeatures(["a", "b", "c"], np.ones((3, WIDTH), np.float32), np.arange(3))
    own = compare_features(config, ported, stored, images)
    assert own.dimensions == WIDTH and 0 < own.error < np.inf and not own.normalised
