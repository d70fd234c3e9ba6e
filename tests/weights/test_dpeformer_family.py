"""Checkpoints of DPEFormer's official code on small random arrays: both directions, what is left out, what is computed with them,
and the method that uses them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpeformer as dpeformer_config
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.numerics.checkpoint import TorchFeatures, compare_features
from occreid_jax.train.start import load_weights
from occreid_jax.types import Meta
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import Description, recognise
from occreid_jax.weights.pth import read_pth
from occreid_jax.weights.sources import Origin
from occreid_jax.weights.trees import flatten, unflatten
from tests.nn.test_selection_of_tokens import averaged
from tests.nn.test_sub_vectors import written_out
from tests.weights.checkpoints import Numbers, same

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
WIDTH, DEPTH, PATCHES, IDENTITIES, PARTS, IMAGE = 32, 2, 8, 5, 4, (64, 32)
NOWHERE = Origin("elsewhere", ())
with np.load(REFERENCE / "dpeformer_vitb16_s16.npz", allow_pickle=False) as reference:
    STATE = json.loads(str(reference["state_json"]))  # names, shapes and types of the official model
# Sides of the official tensors -> those of a small model.
SMALL = {768: WIDTH, 1536: 2 * WIDTH, 2304: 3 * WIDTH, 3072: 4 * WIDTH, 6144: 8 * WIDTH, 129: 1 + PATCHES, 48: WIDTH // 16}
SMALL |= {20: IDENTITIES, 1000: 10}


def official(dead: bool = True) -> dict[str, np.ndarray]:
    """A checkpoint as the official training writes it, of a ViT of two blocks; ``dead`` adds what nothing is computed with."""
    draw, arrays = Numbers(8), {}
    for name, shape, dtype in STATE:
        block = name.split(".")[2] if name.startswith("base.blocks.") else "0"
        if int(block) >= DEPTH:
            continue
        array = draw(*(SMALL.get(side, side) for side in shape))
        array = 1 + array**2 if name.endswith("running_var") else array
        arrays[name] = np.array(7, np.int64) if dtype == "int64" else array
    return arrays if dead else {name: array for name, array in arrays.items() if not left_out(name)}


def left_out(name: str) -> bool:
    """By hand: what the official forward pass never reads, and counters."""
    start = ("REM_zx.", "b2.", "ffn", "base.fc.", "bottleneck_global.", "bottleneck_local.8.", "bottleneck_local.9.")
    start += ("bottleneck_local_stage2.", "classifier1_2.", "classifier1_3.", "classifier2.")
    start += tuple(f"classifier_local.{number}." for number in (0, 1, 2, 3, 8, 9))
    unused = ("param", "norm1", "attn", "norm2", "Block.attn.param")
    start += tuple(f"attention_global.{part}.{own}" for part in range(PARTS) for own in unused)
    return name.startswith(start) or name.endswith("num_batches_tracked")


def method_of(**settings):
    """The method at the size of the checkpoints here, and its config."""
    config = dpeformer_config.get_config(f"dataset=market1501,preset=official,backbone={WIDTH}x{DEPTH}x2")
    config.data.image_size, config.dtype = IMAGE, "float32"
    config.method.selection.least = 3
    config.method.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return methods.create(config, Meta(IDENTITIES, 3, IMAGE, 10)), config


def read(arrays):
    return recognise(arrays).read(arrays)


def test_there_and_back():
    arrays = official(dead=False)
    family = recognise(arrays)
    weights, entries, description = family.read(arrays)
    assert family.name == "dpeformer" and family is families.for_method("dpeformer")
    assert description == Description(WIDTH, DEPTH, PATCHES, None, IDENTITIES, 0)
    back, entries, again = family.write(weights)
    assert same(back, arrays) and again == description and len(entries) == len(arrays)
    cameras = arrays | {"base.sie_embed": Numbers()(6, 1, WIDTH)}
    weights, _, description = family.read(cameras)
    assert description.cameras == 6 and same(family.write(weights)[0], cameras)


def test_every_name_of_the_official_model_is_known():
    arrays = {name: np.zeros(shape, dtype) for name, shape, dtype in STATE}
    family = recognise(arrays)
    weights, entries, description = family.read(arrays)
    assert family.name == "dpeformer" and len(entries) == len(STATE) == 459 and description.identities == 20
    dropped = {entry.name for entry in entries if entry.fate == naming.LEFT_OUT}
    assert dropped == {name for name in arrays if left_out(name)}
    assert family.write(weights)[0].keys() == arrays.keys() - dropped


def test_what_is_left_out_says_why():
    weights, entries, _ = read(official())
    assert same(weights, read(official(dead=False))[0])
    notes = {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}
    for name, words in (
        ("REM_zx.2.linear1.weight", "module of Table VIII"),
        ("b2.0.0.attn.qkv.weight", "copies of the last block"),
        ("bottleneck_global.running_mean", "neck of the global feature, which the official code makes and no forward pass uses"),
        ("bottleneck_local.5.num_batches_tracked", "counts batches"),
        ("bottleneck_local_stage2.3.running_var", "second necks"),
        ("classifier_local.0.weight", "further classifiers"),
        ("attention_global.1.attn.q.weight", "second set of a blending module"),
        ("attention_global.1.Block.attn.param", "weight of an attention"),
        ("ffn2.layers2.norm.weight", "feed-forward layers"),
    ):
        assert words in notes[name]


def test_paths():
    arrays = official()
    weights, _, _ = read(arrays)
    for path, name in (
        ("params/backbone/norm/scale", "base.norm.weight"),
        ("params/fbm_2/pos_embedding", "attention_global.2.pos_embed"),
        ("params/fbm_0/norm_query/scale", "attention_global.0.Block.norm1.weight"),
        ("params/fbm_3/norm_global/bias", "attention_global.3.Block.norm2.bias"),
        ("params/fbm_1/norm_mlp/bias", "attention_global.1.Block.norm3.bias"),
        ("params/fbm_1/out/bias", "attention_global.1.Block.attn.proj.bias"),
        ("params/heads/part_1/neck/scale", "bottleneck_local.5.weight"),
        ("extra/batch_stats/part_3/neck/var", "bottleneck_local.7.running_var"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name])
    for path, name in (
        ("params/fbm_0/query/kernel", "attention_global.0.Block.attn.q.weight"),
        ("params/fbm_0/key_value/kernel", "attention_global.0.Block.attn.kv.weight"),
        ("params/fbm_3/fc1/kernel", "attention_global.3.Block.mlp.fc1.weight"),
        ("params/heads/memory/classifier/kernel", "classifier1.weight"),
        ("params/heads/final/classifier/kernel", "classifier1_4.weight"),
        ("params/heads/global/classifier/kernel", "classifier3.weight"),
        ("params/heads/part_0/classifier/kernel", "classifier_local.4.weight"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name].T)
    for leaf, path in (("weight", "params/heads/memory/neck/scale"), ("running_mean", "extra/batch_stats/memory/neck/mean")):
        expected = np.concatenate([arrays[f"bottleneck_local.{part}.{leaf}"] for part in range(PARTS)])
        np.testing.assert_array_equal(weights[path], expected)


def test_a_missing_tensor_is_named():
    arrays = official(dead=False)
    family = recognise(arrays)
    for name in arrays:
        with pytest.raises(UserError) as caught:
            family.read({other: array for other, array in arrays.items() if other != name})
        assert name in str(caught.value) and "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_go_together():
    draw = Numbers()
    for name, shape in (
        ("attention_global.1.pos_embed", (1, 3, 16)),
        ("attention_global.0.Block.attn.kv.weight", (16, 16)),
        ("attention_global.2.Block.mlp.fc1.weight", (32, 16)),
        ("bottleneck_local.6.running_mean", (WIDTH + 1,)),
        ("classifier1.weight", (IDENTITIES + 1, PARTS * WIDTH)),
        ("classifier1_4.weight", (IDENTITIES, WIDTH)),
        ("classifier_local.7.weight", (IDENTITIES + 1, WIDTH)),
    ):
        with pytest.raises(UserError, match=f"{name} is .*, where the other tensors ask for"):
            read(official() | {name: draw(*shape)})
    with pytest.raises(UserError, match="goes with it have different shapes"):
        read(official() | {"bottleneck_local.2.running_mean": draw(WIDTH + 1)})
    with pytest.raises(UserError, match="1 tensor is unexplained: ffn1.layers2.norm.weight"):
        read(official() | {"ffn1.layers2.norm.weight": draw(WIDTH)})


def test_models_without_names_in_official_checkpoints():
    weights, _, _ = read(official(dead=False))
    for path, words in (
        ("params/heads/global/neck/scale", "heads/global"),  # global_neck=True
        ("params/heads/final/neck/scale", "heads/final"),  # necks=separate
        ("params/fbm_0/conv_part/kernel", "fbm_0/conv_part"),
        ("params/backbone/projection", "backbone/projection"),
    ):
        with pytest.raises(UserError, match=f"{words} has no names in DPEFormer's checkpoints; .*preset=official"):
            families.for_method("dpeformer").write(weights | {path: np.zeros(WIDTH, np.float32)})


def written_out_features(arrays, images):
    """Tokens -> the first as global feature, plain products, count from 0, by rank, two poolings, the mixed batch, four necks.
    Features [B, P D] of normalised ``images``, from the official tensors but for the encoder, and the numbers of tokens."""
    method, _ = method_of()
    tree = unflatten({path: jnp.asarray(x) for path, x in read(arrays)[0].items()})
    tokens = np.asarray(method.backbone.apply({"params": tree["params"]["backbone"]}, images).tokens[:, 1:], np.float64)
    whole, scores, counts = tokens[:, 0], [], []
    for image in tokens:
        score = image @ image[np.argmax(image @ image[0])]
        ordered = np.sort(score)[::-1]
        counts.append(max(3, int(np.argmax(ordered[:-1] - ordered[1:]))))
        scores.append(score)
    pooled = [
        averaged(averaged(image[np.argsort(-score, kind="stable")[:count]], min(counts)), PARTS)
        for image, score, count in zip(tokens, scores, counts, strict=True)
    ]
    parts = []
    for part in range(PARTS):
        name = f"attention_global.{part}."
        own = {key.removeprefix(name): np.asarray(x, np.float64) for key, x in arrays.items() if key.startswith(name)}
        blended = written_out(blending(own), np.stack(pooled)[:, part], whole, 2, True)
        weight, bias, mean, var = (
            arrays[f"bottleneck_local.{PARTS + part}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        parts.append((blended - mean) / np.sqrt(var + 1e-5) * weight + bias)
    return np.concatenate(parts, axis=1), counts


def test_features_of_the_official_tensors():
    """A batch of the size that the official code had: its features depend on it."""
    arrays = official()
    raw = 255 * np.random.default_rng(1).integers(0, 2, (5, *IMAGE, 3), np.uint8)
    expected, counts = written_out_features(arrays, jnp.asarray(raw / 127.5 - 1, jnp.float32))
    assert len(set(counts)) > 1
    stored = TorchFeatures([str(number) for number in range(5)], expected.astype(np.float32), None)
    found = compare_features(method_of()[1], port.port({f"module.{name}": x for name, x in arrays.items()}), stored, raw)
    assert found.dimensions == PARTS * WIDTH and found.relative < 1e-4 and found.cosine > 0.999999
    fixed = compare_features(method_of(blending__scramble=False)[1], port.port(arrays), stored, raw)
    assert fixed.relative > 1e-2


def blending(own: dict) -> dict:
    """The official tensors of one blending module as `written_out` takes them."""

    def dense(name):
        return {"kernel": own[f"Block.{name}.weight"].T, "bias": own.get(f"Block.{name}.bias", 0.0)}

    def norm(number):
        return {"scale": own[f"Block.norm{number}.weight"], "bias": own[f"Block.norm{number}.bias"]}

    layers = {"query": "attn.q", "key_value": "attn.kv", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    p = {ours: dense(theirs) for ours, theirs in layers.items()} | {"pos_embedding": own["pos_embed"]}
    return p | {f"norm_{ours}": norm(number) for number, ours in enumerate(("query", "global", "mlp"), start=1)}


def test_in_the_method(tmp_path):
    arrays = official()
    path = str(port.write_ported(tmp_path, port.port({f"module.{name}": x for name, x in arrays.items()}), NOWHERE))
    facts = {"kind": "model", "family": "dpeformer", "identities": "5", "cameras": "0", "patches": "8"}
    assert facts.items() <= port.read_ported(path)[1].items()
    method, _ = method_of()
    params, extra = load_weights(method, *jax.jit(method.init)(jax.random.key(0)), path)
    found = {name: np.asarray(array) for name, array in flatten({"params": params, "extra": extra}).items()}
    assert found.pop("extra/bank").shape == (IDENTITIES, PARTS * WIDTH)
    assert same(found, read(arrays)[0])
    _, pickled = port.write_exported(tmp_path / "back", families.for_method("dpeformer").write(found | {
        "extra/bank": np.zeros((IDENTITIES, PARTS * WIDTH), np.float32)})[0])  # fmt: skip
    assert same(read_pth(pickled), official(dead=False))
