"""Checkpoints of FED on small random arrays: both directions, what is left out, and the method that uses them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fed as fed_config
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.numerics.checkpoint import TorchFeatures, compare_features
from occreid_jax.train.reopen import check_features
from occreid_jax.train.start import load_weights
from occreid_jax.types import Meta
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import Description, recognise
from occreid_jax.weights.pth import read_pth
from occreid_jax.weights.sources import Origin
from occreid_jax.weights.trees import flatten
from tests.weights.checkpoints import DEPTH, PATCH, WIDTH, Numbers, batch_norm, same, timm

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
IMAGE, IDENTITIES, PARTS = (21 * PATCH, 10 * PATCH), 5, 4
NOWHERE = Origin("elsewhere", ())


def fed(cameras: int = 0, dead: bool = True) -> dict[str, np.ndarray]:
    """A checkpoint of FED as its training writes it; ``dead`` adds what nothing is computed with."""
    draw, arrays, wide = Numbers(7), timm("base.", patches=21 * 10), PARTS * WIDTH
    if cameras:
        arrays["base.sie_embed"] = draw(cameras, 1, WIDTH)
    arrays |= {"cross_attention.q.weight": draw(wide, wide), "cross_attention.kv.weight": draw(2 * wide, wide)}
    arrays |= {"cross_attention.proj.weight": draw(wide, wide), "cross_attention.proj.bias": draw(wide)}
    for part in range(PARTS):
        name = f"mask_detection.{part}"
        arrays |= {f"{name}.0.weight": draw(WIDTH // 4, WIDTH), f"{name}.0.bias": draw(WIDTH // 4)}
        arrays |= {f"{name}.1.weight": draw(WIDTH // 4), f"{name}.1.bias": draw(WIDTH // 4)}
        arrays |= {f"{name}.2.weight": draw(1, WIDTH // 4), f"{name}.2.bias": draw(1)}
        arrays |= batch_norm(f"bottleneck_local.{part}", WIDTH, draw, dead)
        if dead:
            arrays |= batch_norm(f"bottleneck_local_stage2.{part}", WIDTH, Numbers(), True)
            arrays[f"classifier_local.{part}.weight"] = Numbers()(IDENTITIES, WIDTH)
    for name in ("ffn2", "ffn3"):
        inner = f"{name}.layers2"
        arrays |= {f"{inner}.norm.weight": draw(WIDTH), f"{inner}.norm.bias": draw(WIDTH)}
        arrays |= {f"{inner}.fn.net.0.weight": draw(8 * WIDTH, WIDTH), f"{inner}.fn.net.0.bias": draw(8 * WIDTH)}
        arrays |= {f"{inner}.fn.net.3.weight": draw(WIDTH, 4 * WIDTH), f"{inner}.fn.net.3.bias": draw(WIDTH)}
    for number, width in ((1, wide), (2, wide), (3, WIDTH)):
        arrays[f"classifier{number}.weight"] = draw(IDENTITIES, width)
    if dead:
        arrays |= {"base.fc.weight": Numbers()(10, WIDTH), "base.fc.bias": Numbers()(10)}
    return arrays


def method_of(**settings):
    """The method at the size of the checkpoints here, and its config."""
    config = fed_config.get_config(f"dataset=market1501,preset=official,backbone={WIDTH}x{DEPTH}x2,stride={PATCH}")
    config.data.image_size, config.method.patch, config.dtype = IMAGE, PATCH, "float32"
    config.method.update(settings)
    return methods.create(config, Meta(IDENTITIES, 3, IMAGE, 10)), config


def read(arrays):
    return recognise(arrays).read(arrays)


@pytest.mark.parametrize("cameras", [0, 6])
def test_there_and_back(cameras):
    arrays = fed(cameras, dead=False)
    family = recognise(arrays)
    weights, entries, description = family.read(arrays)
    assert family.name == "fed" and family is families.for_method("fed")
    assert description == Description(WIDTH, DEPTH, 210, None, IDENTITIES, cameras)
    back, entries, again = family.write(weights)
    assert same(back, arrays) and again == description and len(entries) == len(arrays)
    more, entries, _ = family.read(fed(cameras))
    assert same(more, weights)
    notes = {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}
    assert len(notes) == 2 + PARTS * (1 + 5 + 1)
    assert "never calls" in notes["bottleneck_local_stage2.3.running_var"] and "no loss" in notes["classifier_local.0.weight"]
    assert "counts batches" in notes["bottleneck_local.1.num_batches_tracked"] and "ImageNet" in notes["base.fc.bias"]


def test_paths():
    arrays = fed()
    weights, _, _ = read(arrays)
    for path, name in (
        ("params/backbone/norm/scale", "base.norm.weight"),
        ("params/oem/oem_2/norm/bias", "mask_detection.2.1.bias"),
        ("params/oem/oem_3/score/bias", "mask_detection.3.2.bias"),
        ("params/necks/neck_1/scale", "bottleneck_local.1.weight"),
        ("params/necks/neck_1/bias", "bottleneck_local.1.bias"),
        ("extra/batch_stats/necks/neck_0/var", "bottleneck_local.0.running_var"),
        ("params/fdm/attend/out/bias", "cross_attention.proj.bias"),
        ("params/fdm/ffn1/norm/scale", "ffn2.layers2.norm.weight"),
        ("params/fdm/ffn2/fc2/bias", "ffn3.layers2.fn.net.3.bias"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name])
    for path, name in (
        ("params/oem/oem_0/compress/kernel", "mask_detection.0.0.weight"),
        ("params/fdm/attend/query/kernel", "cross_attention.q.weight"),
        ("params/fdm/attend/key_value/kernel", "cross_attention.kv.weight"),
        ("params/fdm/ffn1/fc1/kernel", "ffn2.layers2.fn.net.0.weight"),
        ("params/heads/classifier_erased/kernel", "classifier1.weight"),
        ("params/heads/classifier_diffused/kernel", "classifier2.weight"),
        ("params/heads/classifier_global/kernel", "classifier3.weight"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name].T)


def test_a_missing_tensor_is_named():
    arrays = fed(dead=False)
    family = recognise(arrays)
    for name in arrays:
        with pytest.raises(UserError) as caught:
            family.read({other: array for other, array in arrays.items() if other != name})
        assert name in str(caught.value) and "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_go_together():
    draw = Numbers()
    for name, shape in (
        ("mask_detection.1.0.weight", (WIDTH // 4, WIDTH + 1)),
        ("mask_detection.0.2.bias", (2,)),
        ("bottleneck_local.2.running_mean", (WIDTH + 1,)),
        ("cross_attention.kv.weight", (PARTS * WIDTH, PARTS * WIDTH)),
        ("ffn3.layers2.fn.net.0.weight", (4 * WIDTH, WIDTH)),
        ("classifier1.weight", (IDENTITIES + 1, PARTS * WIDTH)),
        ("classifier3.weight", (IDENTITIES, WIDTH + 1)),
    ):
        with pytest.raises(UserError, match=f"{name} is .*, where the other tensors ask for"):
            read(fed() | {name: draw(*shape)})
    with pytest.raises(UserError, match="bottleneck_local.4.weight has no place beside the other tensors"):
        read(fed() | {"bottleneck_local.4.weight": draw(WIDTH)})
    with pytest.raises(UserError, match="1 tensor is unexplained: ffn1.layers1.norm.weight"):
        read(fed() | {"ffn1.layers1.norm.weight": draw(WIDTH)})


def test_models_without_names_in_feds_checkpoints():
    weights, _, _ = read(fed(dead=False))
    for path, words in (
        ("params/second_necks/neck_0/scale", "second_necks has no names"),
        ("extra/batch_stats/neck/mean", "neck has no names"),
        ("params/backbone/projection", "backbone/projection has no names"),
    ):
        with pytest.raises(UserError, match=f"{words} in FED's checkpoints; .*necks=shared"):
            families.for_method("fed").write(weights | {path: np.zeros(WIDTH, np.float32)})


def test_every_name_of_the_official_model_is_known():
    with np.load(REFERENCE / "fed_vitb16_s16.npz", allow_pickle=False) as file:
        state = json.loads(str(file["state_json"]))
    family = recognise(entry for entry, _, _ in state)
    weights, entries, description = family.read({entry: np.zeros(shape, dtype) for entry, shape, dtype in state})
    assert family.name == "fed" and len(entries) == len(state) == 239 and description.identities == 20
    left_out = sum(entry.fate == naming.LEFT_OUT for entry in entries)
    assert len(family.write(weights)[0]) == len(state) - left_out and left_out == 2 + 4 * (1 + 5 + 1)


def test_in_the_method(tmp_path):
    arrays = fed()
    path = str(port.write_ported(tmp_path, port.port({f"module.{name}": x for name, x in arrays.items()}), NOWHERE))
    facts = {"kind": "model", "family": "fed", "identities": "5", "cameras": "0", "patches": "210"}
    assert facts.items() <= port.read_ported(path)[1].items()
    method, _ = method_of()
    params, extra = load_weights(method, *jax.jit(method.init)(jax.random.key(0)), path)
    found = {name: np.asarray(array) for name, array in flatten({"params": params, "extra": extra}).items()}
    assert found.pop("extra/bank/erased").shape == (IDENTITIES, PARTS * WIDTH)
    assert same(found, read(arrays)[0])
    batch = {"image": jnp.zeros((2, *IMAGE, 3)), "camid": jnp.zeros(2, jnp.int32)}
    assert jax.eval_shape(lambda p, e: method.embed(p, e, batch, "query"), params, extra).shape == (2, PARTS * WIDTH)
    brought = port.read_ported(path)[0]
    check_features(method, params, extra, brought, "the weights")
    with pytest.raises(UserError, match="the weights lack bank/erased, which only a training makes"):
        check_features(method_of(test_feature="diffused")[0], params, extra, brought, "the weights")
    run = found | {"extra/bank/erased": np.zeros((IDENTITIES, PARTS * WIDTH), np.float32)}
    _, pickled = port.write_exported(tmp_path / "back", families.for_method("fed").write(run)[0])
    assert same(read_pth(pickled), fed(dead=False))


def test_features_beside_stored_ones():
    _, config = method_of()
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGE, 3), np.uint8)
    stored = TorchFeatures(["a", "b", "c"], np.ones((3, PARTS * WIDTH), np.float32), None)
    own = compare_features(config, port.port(fed()), stored, images)
    assert own.dimensions == PARTS * WIDTH and 0 < own.error < np.inf
