"""CLIP-ReID's checkpoints on small random arrays, and the names that the official model gives its tensors."""

import json
from pathlib import Path

import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import clip_reid, recognise
from occreid_jax.weights.pth import read_pth
from occreid_jax.weights.sources import Origin
from tests.weights.checkpoints import Numbers, same
from tests.weights.clip_checkpoints import (
    CONTEXT,
    DEPTH,
    EMBED,
    PATCH,
    POOL,
    STAGES,
    TEXT_WIDTH,
    WIDTH,
    image_resnet,
    image_vit,
    openai_vit,
    text,
)


def read(arrays):
    return recognise(arrays).read(arrays)


def fates(entries) -> dict[str, str]:
    return {entry.name: entry.note for entry in entries if entry.fate == naming.LEFT_OUT}


REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
IDENTITIES, CAMERAS, BEFORE, WORDS = 5, 6, 3, 2


def clipreid(resnet: bool = False, cameras: int = 0, prompts: bool = True, counts: bool = False) -> dict[str, np.ndarray]:
    """A checkpoint as the official training writes it; ``counts`` adds what nothing is computed with, ``prompts`` False is the
    baseline."""
    draw, width = Numbers(20), POOL if resnet else WIDTH
    arrays = {"cv_embed": draw(cameras, width)} if cameras else {}
    for end, size in (("", width), ("_proj", EMBED)):
        arrays[f"classifier{end}.weight"] = draw(IDENTITIES, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"bottleneck{end}.{leaf}"] = draw(size)
        if counts:
            arrays[f"bottleneck{end}.num_batches_tracked"] = np.array(7, np.int64)
    arrays |= image_resnet("image_encoder.", 8, counts) if resnet else image_vit("image_encoder.", 21 * 10)
    if prompts:
        arrays["prompt_learner.cls_ctx"] = draw(IDENTITIES, WORDS, TEXT_WIDTH)
        arrays["prompt_learner.token_prefix"] = draw(1, BEFORE, TEXT_WIDTH)
        arrays["prompt_learner.token_suffix"] = draw(1, CONTEXT - BEFORE - WORDS, TEXT_WIDTH)
        arrays |= text("text_encoder.", tokens=False)
    return arrays


CASES = [{}, {"cameras": CAMERAS}, {"resnet": True}, {"prompts": False}, {"prompts": False, "resnet": True}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back(case):
    arrays = clipreid(**case)
    weights, entries, description = read(arrays)
    assert recognise(arrays).name == "clipreid" and not fates(entries)
    assert description.identities == IDENTITIES and description.cameras == case.get("cameras", 0)
    assert description.tower == ("resnet" if case.get("resnet") else "vit") and description.embed == EMBED
    assert description.text_depth == (DEPTH if case.get("prompts", True) else None) and description.vocabulary is None
    back, entries, again = families.open_family("clipreid").write(weights)
    assert same(back, arrays) and again == description and len(entries) == len(arrays)
    assert same(read(back)[0], weights)


def test_paths():
    arrays = clipreid(cameras=CAMERAS)
    weights, _, description = read(arrays)
    assert "210 positions" in str(description) and f"ViT of patch {PATCH}" in str(description)
    for path, name in (
        ("params/visual/camera_embed", "cv_embed"),
        ("params/prompts/context", "prompt_learner.cls_ctx"),
        ("extra/prompt/prefix", "prompt_learner.token_prefix"),
        ("extra/prompt/suffix", "prompt_learner.token_suffix"),
        ("params/visual/norm_pre/scale", "image_encoder.ln_pre.weight"),
        ("params/text/norm/bias", "text_encoder.ln_final.bias"),
        ("params/heads/head_0/neck/scale", "bottleneck.weight"),
        ("params/heads/head_1/neck/bias", "bottleneck_proj.bias"),
        ("extra/batch_stats/heads/head_0/neck/mean", "bottleneck.running_mean"),
        ("extra/batch_stats/heads/head_1/neck/var", "bottleneck_proj.running_var"),
    ):
        np.testing.assert_array_equal(weights[path], arrays[name])
    np.testing.assert_array_equal(weights["params/heads/head_0/classifier/kernel"], arrays["classifier.weight"].T)
    np.testing.assert_array_equal(weights["params/heads/head_1/classifier/kernel"], arrays["classifier_proj.weight"].T)
    weights, _, description = read(clipreid(resnet=True))
    assert weights["params/visual/attnpool/pos_embed"].shape == (1, 9, POOL)
    assert "extra/batch_stats/visual/layer4_0/downsample_bn/var" in weights and description.stages == STAGES


def test_what_is_left_out():
    weights, entries, _ = read(clipreid(resnet=True, counts=True))
    assert same(weights, read(clipreid(resnet=True))[0])
    assert {note for note in fates(entries).values()} == {"counts batches; nothing is computed with it"}
    weights, entries, description = read(clipreid(resnet=True) | {"cv_embed": Numbers()(CAMERAS, POOL)})
    assert same(weights, read(clipreid(resnet=True))[0]) and description.cameras == 0
    assert "the forward pass with a ResNet never reads" in fates(entries)["cv_embed"]


def test_what_the_official_model_does_not_know_stays_here():
    """A token embedding and a temperature of CLIP, and what a run computed: the official loader fails on such names."""
    more = {"text_encoder.token_embedding.weight": Numbers()(30, TEXT_WIDTH), "logit_scale": np.array(4.6, np.float32)}
    weights, _, description = read(clipreid() | more)
    assert weights["params/text/token_embedding"].shape == (30, TEXT_WIDTH) and description.vocabulary == 30
    weights |= {"extra/texts": Numbers()(IDENTITIES, EMBED), "extra/tables/feature": Numbers()(9, EMBED)}
    assert same(families.open_family("clipreid").write(weights)[0], clipreid())


def test_a_whole_model_is_ported(tmp_path):
    arrays = clipreid(cameras=CAMERAS, counts=True)
    ported = port.port({f"module.{name}": array for name, array in arrays.items()})
    assert ported.kind == "model" and "grid" not in ported.weights
    facts = {"family": "clipreid", "identities": "5", "cameras": "6", "tower": "vit", "embed": "6", "patches": "210"}
    weights, metadata = port.read_ported(port.write_ported(tmp_path / "here", ported, Origin("elsewhere", ())))
    assert facts.items() <= metadata.items()
    _, pickled = port.write_exported(tmp_path / "there", port.export(weights, "clipreid"))
    assert same(read_pth(pickled), {name: clipreid(cameras=CAMERAS)[name] for name in read_pth(pickled)})
    with pytest.raises(UserError, match="keeps the grid"):
        port.port(arrays, (16, 8))


@pytest.mark.parametrize("resnet", [False, True])
def test_a_missing_tensor_is_named(resnet):
    arrays = clipreid(resnet)
    family = recognise(arrays)
    for name in arrays:
        with pytest.raises(UserError) as caught:
            family.read({other: array for other, array in arrays.items() if other != name})
        assert name in str(caught.value) and "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_go_together():
    draw = Numbers()
    for name, shape in (
        ("prompt_learner.cls_ctx", (IDENTITIES - 1, WORDS, TEXT_WIDTH)),
        ("prompt_learner.token_suffix", (1, CONTEXT - BEFORE - WORDS + 1, TEXT_WIDTH)),
        ("classifier_proj.weight", (IDENTITIES + 1, EMBED)),
        ("bottleneck_proj.running_var", (WIDTH,)),
        ("cv_embed", (CAMERAS, WIDTH + 1)),
        ("text_encoder.text_projection", (TEXT_WIDTH, EMBED + 1)),
    ):
        with pytest.raises(UserError, match=f"{name} is .*, where the other tensors ask for"):
            read(clipreid(cameras=CAMERAS) | {name: draw(*shape)})
    with pytest.raises(UserError, match="take 9 and 2 of 10 text positions, which leaves none"):
        read(clipreid() | {"prompt_learner.token_prefix": draw(1, 9, TEXT_WIDTH)})
    with pytest.raises(UserError, match="1 tensor is unexplained: image_encoder.head.weight"):
        read(clipreid() | {"image_encoder.head.weight": draw(4, 4)})
    with pytest.raises(UserError, match="tensors of clip .* and of clipreid"):
        recognise(clipreid() | openai_vit())


@pytest.mark.parametrize("name", sorted(path.name for path in REFERENCE.glob("clipreid_*.npz")))
def test_every_name_of_the_official_model_is_known(name):
    with np.load(REFERENCE / name, allow_pickle=False) as file:
        state = json.loads(str(file["state_json"]))
    weights, entries, description = read({entry: np.zeros(shape, dtype) for entry, shape, dtype in state})
    assert len(entries) == len(state) and all(naming.USED == entry.fate or entry.note.startswith("counts") for entry in entries)
    assert description.tower == ("resnet" if "rn50" in name else "vit") and description.text_positions == 77
    assert description.identities == 20 and (description.cameras > 0) == ("nosie" not in name and "rn50" not in name)
    back = clip_reid.write(weights)[0]
    assert back.keys() == {entry for entry, _, _ in state if not entry.endswith("num_batches_tracked")}
