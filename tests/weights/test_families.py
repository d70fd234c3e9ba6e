"""Each family of checkpoints on small random arrays. Numbers are checked by running the encoder in numpy in the source's own
convention and in JAX with the ported weights."""

import jax
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.nn.vit import Size, ViT
from occreid_jax.weights import families, naming
from occreid_jax.weights.families import Description, recognise
from occreid_jax.weights.trees import unflatten
from tests.weights.checkpoints import (
    DEPTH,
    HEADS,
    PATCH,
    SIDE,
    WIDTH,
    Numbers,
    dpm,
    google,
    hugging_face,
    run_google,
    run_hugging_face,
    run_timm,
    same,
    spt_selection,
    timm,
    transreid,
)


def read(arrays):
    return recognise(arrays).read(arrays)


def fates(entries) -> dict[str, str]:
    return {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}


@pytest.mark.parametrize("make, run", [(timm, run_timm), (hugging_face, run_hugging_face), (google, run_google)])
def test_the_ported_encoder_computes_what_the_source_computes(make, run):
    arrays = make()
    weights, entries, description = read(arrays)
    assert description == Description(WIDTH, DEPTH, SIDE * SIDE) and all(entry.fate == naming.USED for entry in entries)
    images = np.random.default_rng(9).standard_normal((2, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    encoder = ViT(Size(WIDTH, DEPTH, HEADS), images.shape[1:3], patch=PATCH, stride=PATCH)
    with jax.default_matmul_precision("highest"):
        tokens = encoder.apply({"params": unflatten(weights)}, images).tokens
    expected = run({name: array.astype(np.float64) for name, array in arrays.items()}, images.astype(np.float64))
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


# Encoders --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_timm_there_and_back(qkv_bias):
    arrays = timm(qkv_bias=qkv_bias)
    weights, _, _ = read(arrays)
    back, entries, _ = families.open_family("vit").write(weights | {"grid": np.array([SIDE, SIDE], np.int32)})
    assert same(back, arrays) and len(entries) == len(arrays)
    again, _, _ = read(back)
    assert same(again, weights)


@pytest.mark.parametrize("make", [hugging_face, google])
def test_other_encoders_leave_under_timms_names(make):
    weights, _, _ = read(make())
    family = recognise(make())
    assert family.kind == "encoder" and same(read(family.write(weights)[0])[0], weights)


def test_what_timm_files_hold_beside_the_encoder():
    draw = Numbers(4)
    more = {"head.weight": draw(10, WIDTH), "head.bias": draw(10), "pre_logits.fc.weight": draw(WIDTH, WIDTH)}
    more |= {"pre_logits.fc.bias": draw(WIDTH), "fc_norm.weight": draw(WIDTH), "fc_norm.bias": draw(WIDTH)}
    weights, entries, _ = read(timm() | more)
    assert same(weights, read(timm())[0]) and set(fates(entries)) == set(more)
    assert "classifier of the pretraining" in fates(entries)["head.weight"]


def test_distilled_deit():
    draw = Numbers(4)
    more = {"dist_token": draw(1, 1, WIDTH), "head_dist.weight": draw(10, WIDTH), "head_dist.bias": draw(10)}
    arrays = timm(prefix_rows=2) | more
    weights, entries, description = read(arrays)
    table = arrays["pos_embed"]
    np.testing.assert_array_equal(weights["pos_embed"], np.concatenate([table[:, :1], table[:, 2:]], axis=1))
    assert description.patches == SIDE * SIDE and set(fates(entries)) == set(more)
    (entry,) = (entry for entry in entries if entry.name == "pos_embed")
    assert entry.shape == table.shape and "distillation token" in entry.note


def test_flat_patches():
    arrays = timm()
    flat = arrays | {"patch_embed.proj.weight": arrays["patch_embed.proj.weight"].reshape(WIDTH, -1)}
    weights, entries, _ = read(flat)
    assert same(weights, read(arrays)[0])
    assert [entry.note for entry in entries if entry.name == "patch_embed.proj.weight"] == ["flat patches reshaped"]
    with pytest.raises(UserError, match="patch_embed.proj.weight has 50 columns, which are no square patches"):
        read(arrays | {"patch_embed.proj.weight": Numbers()(WIDTH, 50)})


def test_hugging_face_in_its_other_spellings():
    expected, _, _ = read(hugging_face())
    assert same(read(hugging_face(""))[0], expected) and same(read(hugging_face("deit."))[0], expected)
    memory = {}  # the names of transformers 5 in memory
    for name, array in hugging_face("").items():
        for old, new in (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(old, new)
        memory[name] = array
    assert same(read(memory)[0], expected)


def test_what_hugging_face_files_hold_beside_the_encoder():
    draw = Numbers(4)
    more = {"classifier.weight": draw(10, WIDTH), "classifier.bias": draw(10)}
    more |= {"vit.pooler.dense.weight": draw(WIDTH, WIDTH), "vit.pooler.dense.bias": draw(WIDTH)}
    weights, entries, _ = read(hugging_face() | more)
    assert same(weights, read(hugging_face())[0]) and set(fates(entries)) == set(more)


def test_distilled_deit_of_hugging_face():
    draw, arrays = Numbers(4), hugging_face("deit.")
    table = arrays["deit.embeddings.position_embeddings"]
    arrays["deit.embeddings.position_embeddings"] = np.insert(table, 1, 9.0, axis=1)
    more = {"cls_classifier.weight": draw(10, WIDTH), "distillation_classifier.bias": draw(10)}
    more["deit.embeddings.distillation_token"] = draw(1, 1, WIDTH)
    weights, entries, _ = read(arrays | more)
    np.testing.assert_array_equal(weights["pos_embed"], table)
    assert set(fates(entries)) == set(more)


def test_what_google_files_hold_beside_the_encoder():
    draw = Numbers(4)
    more = {"head/kernel": draw(WIDTH, 10), "head/bias": draw(10), "pre_logits/kernel": draw(WIDTH, WIDTH)}
    more["pre_logits/bias"] = draw(WIDTH)
    weights, entries, _ = read(google() | more)
    assert same(weights, read(google())[0]) and set(fates(entries)) == set(more)


# TransReID -------------------------------------------------------------------------------------------------------------------

MODELS = {
    "all of it": {},
    "without cameras": {"cameras": 0},
    "baseline": {"jigsaw": False, "cameras": 0},
    "baseline of ViT-S": {"jigsaw": False, "hidden": 24, "qkv_bias": False},
}


@pytest.mark.parametrize("case", MODELS)
def test_transreid_there_and_back(case):
    settings = MODELS[case]
    arrays = transreid(dead=False, **settings)
    weights, entries, description = read(arrays)
    assert not fates(entries)
    jigsaw, cameras = settings.get("jigsaw", True), settings.get("cameras", 6)
    assert description == Description(WIDTH, DEPTH, 210, None, 5, cameras, jigsaw)
    back, _, again = families.open_family("transreid").write(weights)
    assert same(back, arrays) and again == description and same(read(back)[0], weights)


def test_paths_of_transreid():
    arrays = transreid()
    weights, _, _ = read(arrays)
    np.testing.assert_array_equal(weights["params/backbone/camera_embed"], arrays["base.sie_embed"][:, 0])
    np.testing.assert_array_equal(weights["params/jpm/global/block/attn/qkv/kernel"], arrays["b1.0.attn.qkv.weight"].T)
    np.testing.assert_array_equal(weights["params/jpm/local/norm/scale"], arrays["b2.1.weight"])
    for number, end in enumerate(("", "_1", "_2", "_3", "_4")):
        head = f"params/heads/head_{number}"
        np.testing.assert_array_equal(weights[f"{head}/classifier/kernel"], arrays[f"classifier{end}.weight"].T)
        np.testing.assert_array_equal(weights[f"{head}/neck/scale"], arrays[f"bottleneck{end}.weight"])
        statistics = f"extra/batch_stats/head_{number}/neck"
        np.testing.assert_array_equal(weights[f"{statistics}/var"], arrays[f"bottleneck{end}.running_var"])
        np.testing.assert_array_equal(weights[f"{statistics}/mean"], arrays[f"bottleneck{end}.running_mean"])


def test_dead_weight_of_transreid():
    weights, entries, description = read(transreid())
    assert same(weights, read(transreid(dead=False))[0]) and description.depth == DEPTH
    reasons = fates(entries)
    assert "dead weight" in reasons["base.norm.weight"] and "dead weight" in reasons[f"base.blocks.{DEPTH - 1}.mlp.fc2.bias"]
    assert "no forward pass uses" in reasons["base.fc.weight"] and "counts batches" in reasons["bottleneck_4.num_batches_tracked"]
    assert len(reasons) == 2 + 12 + 2 + 5
    weights, entries, _ = read(transreid(jigsaw=False))
    assert set(fates(entries)) == {"base.fc.weight", "base.fc.bias", "bottleneck.num_batches_tracked"}
    assert "params/backbone/norm/scale" in weights


def test_margin_softmax_heads():
    arrays = transreid(jigsaw=False)
    expected, _, _ = read(arrays)
    turned = {"classifier.W": arrays["classifier.weight"].T} | arrays
    del turned["classifier.weight"]
    weights, _, description = read(turned)
    assert same(weights, expected) and description.identities == 5
    with pytest.raises(UserError, match="classifier.weight and classifier.W are both"):
        read(transreid(jigsaw=False) | {"classifier.W": turned["classifier.W"]})


def test_methods_without_pytorch_names():
    with pytest.raises(UserError, match="'colour_histogram' have no PyTorch names; those of baseline, .*transreid have"):
        families.for_method("colour_histogram")


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, name",
    [
        (timm, "blocks.0.norm1.weight"),
        (timm, "norm.bias"),
        (timm, "cls_token"),
        (hugging_face, "vit.encoder.layer.1.attention.attention.key.bias"),
        (hugging_face, "vit.encoder.layer.1.output.dense.weight"),
        (google, "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value/kernel"),
        (google, "Transformer/encoder_norm/scale"),
        (transreid, "b2.0.mlp.fc1.bias"),
        (transreid, "b2.1.weight"),
        (transreid, "classifier_3.weight"),
        (transreid, "bottleneck_2.running_var"),
        (transreid, "base.pos_embed"),
    ],
)
def test_a_missing_tensor_is_named(make, name):
    arrays = make()
    family = recognise(arrays)
    del arrays[name]
    with pytest.raises(UserError) as caught:
        family.read(arrays)
    assert name in str(caught.value) and "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_block_and_a_missing_bias_of_one_block():
    arrays = {name: array for name, array in timm(depth=3).items() if not name.startswith("blocks.1.")}
    with pytest.raises(UserError, match=r"blocks\.1\.norm1\.weight is missing"):
        read(arrays)
    arrays = timm()
    del arrays["blocks.1.attn.qkv.bias"]
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.bias is missing"):
        read(arrays)


@pytest.mark.parametrize("make", [timm, hugging_face, google, transreid])
def test_an_unexplained_tensor_is_named(make):
    with pytest.raises(UserError, match="1 tensor is unexplained: blocks.0.ls1.gamma"):
        read(make() | {"blocks.0.ls1.gamma": Numbers()(WIDTH)})


def test_tensors_that_do_not_go_together():
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight is \(8, 16\) here"):
        read(timm() | {"blocks.1.mlp.fc1.weight": Numbers()(16, WIDTH)})
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight is"):
        read(timm() | {"patch_embed.proj.weight": Numbers()(WIDTH, 1, PATCH, PATCH)})
    with pytest.raises(UserError, match=r"bottleneck_1\.weight has no place"):
        read(transreid(jigsaw=False) | {"bottleneck_1.weight": Numbers()(WIDTH)})
    with pytest.raises(UserError, match=r"classifier_2\.weight is \(8, 4\) here, .* \(8, 5\)"):
        read(transreid() | {"classifier_2.weight": Numbers()(4, WIDTH)})


def test_sizes_and_numbers_that_no_network_has():
    for name in ("blocks.99999.norm1.weight", f"blocks.{'9' * 5000}.norm1.weight"):
        with pytest.raises(UserError, match="1 tensor is unexplained"):
            read(timm() | {name: Numbers()(WIDTH)})
    with pytest.raises(UserError, match=r"blocks\.2\.norm1\.weight is missing"):
        read(timm() | {"blocks.9999.norm1.weight": Numbers()(WIDTH)})
    with pytest.raises(UserError, match="pos_embed has no positions for patches"):
        read(timm() | {"pos_embed": Numbers()(1, 1, WIDTH)})
    with pytest.raises(UserError, match="no square patches"):
        read(timm() | {"patch_embed.proj.weight": Numbers()(WIDTH, 0)})
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    with pytest.raises(UserError, match="different shapes"):
        read(google() | {name: Numbers()(WIDTH, 0, 4)})


def test_recognising():
    made = {"vit": timm, "vit_huggingface": hugging_face, "vit_google": google, "transreid": transreid}
    made |= {"dpm": dpm, "spt": spt_selection}
    assert made.keys() <= families.FAMILIES.keys()  # those of CLIP have tests of their own
    for name, make in made.items():
        assert recognise(make()).name == name
    with pytest.raises(UserError) as caught:
        recognise(["conv1.weight", "bn1.weight", "fc.weight", "layer1.0.conv1.weight"])
    assert "bn1.weight, conv1.weight, fc.weight and 1 more belong to no network" in str(caught.value)
    assert all(name in str(caught.value) for name in made) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="tensors of vit .* and of transreid"):
        recognise(timm() | transreid())
    with pytest.raises(UserError, match="tensors of dpm .* and of spt"):
        recognise(dpm() | spt_selection())
    with pytest.raises(UserError, match="this project's names already"):
        recognise(read(transreid())[0])
    with pytest.raises(UserError, match="this project's names already"):
        recognise(read(timm())[0])
    with pytest.raises(UserError, match="no family of checkpoints is called 'resnet'"):
        families.open_family("resnet")
