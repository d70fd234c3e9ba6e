"""CLIP's checkpoints by every name, on small random arrays under names written out by hand."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from occreid_jax.errors import UserError
from occreid_jax.nn.clip import TextTransformer, clip_visual
from occreid_jax.nn.clip_resnet import ModifiedResNet, ResNetSize
from occreid_jax.nn.vit import Size, resize_positions
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import clip, recognise
from occreid_jax.weights.sources import Origin, read_source
from occreid_jax.weights.trees import flatten
from tests.weights.checkpoints import Numbers, same, timm
from tests.weights.clip_checkpoints import (
    CONTEXT,
    DEPTH,
    EMBED,
    PATCH,
    POOL,
    SIDE,
    STAGES,
    STEM,
    TEXT_WIDTH,
    VOCABULARY,
    WIDTH,
    hugging_face,
    image_resnet,
    image_vit,
    openai_resnet,
    openai_vit,
    text,
    timm_tower,
)

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"


def read(arrays):
    return recognise(arrays).read(arrays)


def fates(entries) -> dict[str, str]:
    return {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}


# What is computed here from the ported weights -------------------------------------------------------------------------------


def test_ported_weights_are_those_of_this_projects_networks():
    """Same paths and shapes as the networks' own initial values."""
    text_tower = TextTransformer(Size(TEXT_WIDTH, DEPTH, 2), EMBED, CONTEXT, VOCABULARY)
    size = Size(WIDTH, DEPTH, 2)
    vit = clip_visual("micro", (16, 16), size=size, patch=PATCH, stride=PATCH, projection_width=EMBED)
    resnet = ModifiedResNet(ResNetSize(STEM, STAGES, 4), (64, 64), EMBED, last_stride=2)
    for arrays, network, side in ((openai_vit(), vit, 16), (openai_resnet(), resnet, 64)):
        weights, _, _ = read(arrays)
        key = jax.random.key(0)
        own = jax.eval_shape(network.init, key, np.zeros((1, side, side, 3), np.float32))
        expected = {f"params/visual/{path}": leaf.shape for path, leaf in flatten(own["params"]).items()}
        expected |= {f"extra/batch_stats/visual/{path}": leaf.shape for path, leaf in flatten(own.get("batch_stats", {})).items()}
        own = jax.eval_shape(text_tower.init, key, np.zeros((1, CONTEXT), np.int32))
        expected |= {f"params/text/{path}": leaf.shape for path, leaf in flatten(own["params"]).items()}
        assert expected | {"params/logit_scale": ()} == {path: array.shape for path, array in weights.items()}


# Names -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [openai_vit, openai_resnet, lambda: image_vit("visual."), lambda: image_resnet("visual.")])
def test_openai_there_and_back(make):
    arrays = make()
    weights, entries, description = read(arrays)
    assert not fates(entries) and all(array.dtype == np.float32 for array in weights.values())
    back, entries, again = families.open_family("clip").write(weights | {"grid": np.array([4, 4], np.int32)})
    assert same(back, arrays) and len(entries) == len(arrays) and again == description
    assert same(read(back)[0], weights)


def test_paths_of_the_vit_and_the_text():
    arrays = openai_vit()
    weights, _, description = read(arrays)
    assert {path: array.shape for path, array in weights.items() if "block_" not in path} == {
        "params/visual/patch_embed/kernel": (PATCH, PATCH, 3, WIDTH),
        "params/visual/cls_token": (1, 1, WIDTH),
        "params/visual/pos_embed": (1, 1 + SIDE * SIDE, WIDTH),
        "params/visual/norm_pre/scale": (WIDTH,),
        "params/visual/norm_pre/bias": (WIDTH,),
        "params/visual/norm/scale": (WIDTH,),
        "params/visual/norm/bias": (WIDTH,),
        "params/visual/projection": (WIDTH, EMBED),
        "params/text/token_embedding": (VOCABULARY, TEXT_WIDTH),
        "params/text/pos_embed": (CONTEXT, TEXT_WIDTH),
        "params/text/norm/scale": (TEXT_WIDTH,),
        "params/text/norm/bias": (TEXT_WIDTH,),
        "params/text/projection": (TEXT_WIDTH, EMBED),
        "params/logit_scale": (),
    }
    block = "transformer.resblocks.1."
    for start, tower in (("params/visual/block_01/", f"visual.{block}"), ("params/text/block_01/", block)):
        for path, name in (("norm1/scale", "ln_1.weight"), ("norm2/bias", "ln_2.bias"), ("attn/qkv/bias", "attn.in_proj_bias")):
            np.testing.assert_array_equal(weights[start + path], arrays[tower + name])
        for path, name in (("attn/qkv", "attn.in_proj_"), ("attn/proj", "attn.out_proj."), ("mlp/fc1", "mlp.c_fc.")):
            np.testing.assert_array_equal(weights[f"{start}{path}/kernel"], arrays[f"{tower}{name}weight"].T)
    np.testing.assert_array_equal(weights["params/visual/projection"], arrays["visual.proj"])
    assert (description.width, description.depth, description.patches, description.embed) == (WIDTH, DEPTH, SIDE * SIDE, EMBED)
    assert (description.tower, description.patch, description.stages) == ("vit", PATCH, None)
    assert (description.text_width, description.text_depth, description.text_positions) == (TEXT_WIDTH, DEPTH, CONTEXT)
    assert description.vocabulary == VOCABULARY and "text of width 12 and depth 2" in str(description)


def test_paths_of_the_resnet():
    arrays = openai_resnet()
    weights, _, description = read(arrays)
    visual, statistics = "params/visual/", "extra/batch_stats/visual/"
    for path, name in (
        ("conv3", "conv3"),
        ("layer1_1/conv2", "layer1.1.conv2"),
        ("layer4_0/downsample_conv", "layer4.0.downsample.0"),
    ):
        array = arrays[f"visual.{name}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(weights[f"{visual}{path}/kernel"], array)
    for path, name in (("bn1", "bn1"), ("layer2_0/bn3", "layer2.0.bn3"), ("layer3_0/downsample_bn", "layer3.0.downsample.1")):
        np.testing.assert_array_equal(weights[f"{visual}{path}/scale"], arrays[f"visual.{name}.weight"])
        np.testing.assert_array_equal(weights[f"{statistics}{path}/var"], arrays[f"visual.{name}.running_var"])
        np.testing.assert_array_equal(weights[f"{statistics}{path}/mean"], arrays[f"visual.{name}.running_mean"])
    for path, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "c")):
        np.testing.assert_array_equal(weights[f"{visual}attnpool/{path}/kernel"], arrays[f"visual.attnpool.{name}_proj.weight"].T)
    assert weights[f"{visual}attnpool/pos_embed"].shape == (1, 5, POOL)
    assert (description.tower, description.stages, description.depth, description.width) == ("resnet", STAGES, 5, POOL)
    assert "ResNet of 2-1-1-1 blocks" in str(description) and description.metadata()["stages"] == "2x1x1x1"


def test_what_openai_stores_beside_the_towers():
    sizes = {name: np.array(7, np.int64) for name in ("input_resolution", "context_length", "vocab_size")}
    buffers = {"attn_mask": Numbers()(4, 4), "transformer.resblocks.0.attn_mask": Numbers()(4, 4)}
    weights, entries, _ = read(openai_vit() | sizes | buffers)
    assert same(weights, read(openai_vit())[0]) and set(fates(entries)) == set(sizes) | set(buffers)
    arrays = image_resnet("visual.", counts=True) | text() | {"logit_scale": np.array(4.6, np.float32)}
    weights, entries, _ = read(arrays)
    assert same(weights, read(openai_resnet())[0]) and all("num_batches_tracked" in name for name in fates(entries))


def test_half_precision_becomes_float32():
    half = {name: array.astype(np.float16) for name, array in openai_resnet().items()}
    weights, entries, _ = read(half)
    assert same(weights, read({name: array.astype(np.float32) for name, array in half.items()})[0])
    assert {entry.note for entry in entries} == {"float16 made float32"}


def test_the_same_network_by_every_name():
    expected, _, description = read(openai_vit())
    beside = {f"{tower}_model.embeddings.position_ids": np.arange(9)[None] for tower in ("vision", "text")}
    weights, entries, again = read(hugging_face() | beside)
    assert same(weights, {path: expected[path] for path in weights}) and weights.keys() == expected.keys()
    assert again == description and set(fates(entries)) == set(beside)
    assert recognise(hugging_face()).name == "clip_huggingface"
    image = {path: array for path, array in expected.items() if path.startswith("params/visual/")}
    weights, entries, alone = read(timm_tower())
    assert same(weights, {path: image[path] for path in weights}) and weights.keys() == image.keys()
    assert fates(entries) == {"head.bias": "zeros: the projection has no bias"} and "no text tower" in str(alone)
    assert alone.text_width is None and recognise(timm_tower()).name == "clip_timm" and recognise(timm()).name == "vit"
    for name in ("clip_huggingface", "clip_timm"):
        assert same(families.open_family(name).write(expected)[0], families.open_family("clip").write(expected)[0])


def test_image_towers_without_their_projection():
    bare = {name: array for name, array in timm_tower().items() if not name.startswith("head.")}
    with pytest.raises(UserError, match="head.weight is missing, which holds the projection .* OpenAI"):
        read(bare)
    with pytest.raises(UserError, match="head is a classifier .* in the place of the projection"):
        read(bare | {"head.weight": Numbers()(10, WIDTH), "head.bias": Numbers()(10)})
    vision = {name: array for name, array in hugging_face().items() if name.startswith("vision_model.")}
    with pytest.raises(UserError, match="visual_projection.weight is missing"):
        read(vision)
    assert read(vision | {"visual_projection.weight": hugging_face()["visual_projection.weight"]})[2].text_width is None


# What is refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [openai_vit, openai_resnet, hugging_face, timm_tower])
def test_a_missing_tensor_is_named(make):
    arrays = make()
    family = recognise(arrays)
    for name in arrays:
        if name == "head.bias":
            continue
        with pytest.raises(UserError) as caught:
            family.read({other: array for other, array in arrays.items() if other != name})
        message = str(caught.value)
        assert "missing" in message and "\n" not in message
        assert name in message


@pytest.mark.parametrize("make", [openai_vit, openai_resnet, hugging_face, timm_tower])
def test_an_unexplained_tensor_is_named(make):
    for name in ("visual.transformer.resblocks.0.ls_1.gamma", "logit_bias"):
        with pytest.raises(UserError, match=f"1 tensor is unexplained: {name}"):
            read(make() | {name: Numbers()(WIDTH)})


def test_tensors_that_do_not_go_together():
    draw = Numbers()
    for make, name, shape in (
        (openai_vit, "visual.proj", (WIDTH, 5)),
        (openai_vit, "visual.transformer.resblocks.1.mlp.c_fc.weight", (5, WIDTH)),
        (openai_vit, "visual.ln_pre.weight", (5,)),
        (openai_vit, "text_projection", (TEXT_WIDTH, 5)),
        (openai_vit, "logit_scale", (1,)),
        (openai_vit, "token_embedding.weight", (VOCABULARY, 5)),
        (openai_resnet, "visual.layer3.0.conv1.weight", (5, 16 * STEM, 1, 1)),
        (openai_resnet, "visual.layer4.0.downsample.1.running_var", (5,)),
        (openai_resnet, "visual.attnpool.k_proj.weight", (5, POOL)),
    ):
        with pytest.raises(UserError, match="this is another network"):
            read(make() | {name: draw(*shape)})
    with pytest.raises(UserError, match="visual.layer5.0.conv1.weight has no place"):
        read(openai_resnet() | {"visual.layer5.0.conv1.weight": draw(4, 4, 1, 1)})
    with pytest.raises(UserError, match="no positions"):
        read(openai_resnet() | {"visual.attnpool.positional_embedding": draw(1, POOL)})
    with pytest.raises(UserError, match="visual.class_embedding is missing|visual.conv1.weight"):
        read(text() | {"logit_scale": np.array(4.6, np.float32)})


# Grids and files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, path, side", [(openai_vit, "pos_embed", 4), (openai_resnet, "attnpool/pos_embed", 2)])
def test_positions_and_their_grid(make, path, side):
    path, own = f"params/visual/{path}", port.port(make())
    assert own.kind == "clip" and own.weights["grid"].tolist() == [side, side] and own.weights["grid"].dtype == np.int32
    other = port.port(make(), (6, 3))
    expected = np.asarray(resize_positions(own.weights[path], (side, side), (6, 3)))
    np.testing.assert_array_equal(other.weights[path], expected)
    assert other.weights["grid"].tolist() == [6, 3] and other.description.patches == 18
    (entry,) = (entry for entry in other.entries if entry.fate == naming.RESIZED)
    assert entry.path == path and f"{side}x{side} to 6x3" in entry.note
    assert port.port(make(), (side, side)).weights[path].tobytes() == own.weights[path].tobytes()


def test_positions_that_are_no_square_grid():
    arrays = image_vit("visual.", patches=16 * 8)
    with pytest.raises(UserError, match="128 positions are no square grid; .*--grid=16x8"):
        port.port(arrays)
    assert port.port(arrays, (16, 8)).description.grid == (16, 8)


def test_written_read_again_and_exported(tmp_path):
    for make, facts in (
        (openai_vit, {"tower": "vit", "width": "8", "depth": "2", "patch": "4", "grid": "4x4", "vocabulary": "30"}),
        (openai_resnet, {"tower": "resnet", "stages": "2x1x1x1", "grid": "2x2", "text_positions": "10", "embed": "6"}),
    ):
        out = tmp_path / make.__name__
        path = port.write_ported(out, port.port(make()), Origin("elsewhere", ()))
        weights, metadata = port.read_ported(path)
        assert metadata["kind"] == "clip" and facts.items() <= metadata.items()
        exported = port.export(weights, metadata["family"])
        assert same(exported, {name: make()[name] for name in exported}) and exported.keys() == make().keys()
        port.write_exported(tmp_path / f"{make.__name__}_back", exported)
        assert same(
            port.port(read_source(str(tmp_path / f"{make.__name__}_back" / "model.pth"))[0]).weights, port.port(make()).weights
        )
        with safe_open(path, "numpy") as file:
            assert file.metadata()["format"] == "occreid_jax"


@pytest.mark.parametrize("name", [path.name for path in REFERENCE.glob("clip_text_raw.npz")])
def test_every_name_of_the_official_text_tower_is_known(name):
    with np.load(REFERENCE / name, allow_pickle=False) as file:
        state = json.loads(str(file["state_json"]))
    rules = clip.openai_rules(resnet=False)
    assert len(state) == 150 and all(naming.to_path(rules, entry[0]) for entry in state)
