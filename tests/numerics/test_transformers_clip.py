"""CLIP's towers agree with Hugging Face's PyTorch implementation, block by block, and what is wrong is found."""

import dataclasses
import importlib.util
import math

import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.numerics import transformers_clip
from occreid_jax.numerics.transformers_clip import ALLOWED, Comparison, compare


def test_what_is_compared_is_a_share_of_the_largest_value():
    assert Comparison("x", 0.5, 2.0).relative == 0.25
    assert Comparison("x", 0.0, 0.0).relative == 0 and math.isinf(Comparison("x", 0.1, 0.0).relative)


def test_without_torch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs torch, which is not installed: pip install torch$"):
        compare()


def small(tmp_path, **text):
    """A folder with a CLIP of Hugging Face whose towers differ in every size."""
    transformers = pytest.importorskip("transformers")
    vision = dict(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = (
        dict(
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=50,
            max_position_embeddings=12,
            eos_token_id=49,
            bos_token_id=48,
            pad_token_id=0,
        )
        | text
    )
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ALLOWED)
def test_towers_agree(dtype):
    pytest.importorskip("torch")
    description, found = compare("random:micro", dtype)
    names = [f"{tower} {what}" for tower in ("image", "text") for what in ("block 1", "block 2", "features")] + ["logits"]
    assert [each.name for each in found] == names and "ViT of patch 16, width 32, depth 2" in description
    assert all(each.relative <= ALLOWED[dtype] and each.largest > 0.01 for each in found), found
    if dtype == "bfloat16":
        assert max(each.relative for each in found) > 1e-4


@pytest.mark.torch
def test_a_model_in_a_folder(tmp_path):
    pytest.importorskip("torch")
    description, found = compare(small(tmp_path / "plain"))
    assert "width 24, depth 3" in description and len(found) == 3 + 2 + 3
    assert all(each.relative <= ALLOWED["float32"] for each in found), found
    _, found = compare(small(tmp_path / "old", eos_token_id=2))
    assert all(each.relative <= ALLOWED["float32"] for each in found), found


@pytest.mark.torch
def test_what_is_wrong_is_found(monkeypatch):
    """A block whose weights did not arrive shows, and so does everything after it in that tower and nothing in the other one."""
    pytest.importorskip("torch")
    port = transformers_clip.port

    def broken(arrays):
        ported = port(arrays)
        path = "params/text/block_01/mlp/fc1/kernel"
        return dataclasses.replace(ported, weights=ported.weights | {path: ported.weights[path][::-1].copy()})

    monkeypatch.setattr(transformers_clip, "port", broken)
    _, found = compare("random:micro")
    assert {each.name for each in found if each.relative > ALLOWED["float32"]} == {"text block 2", "text features", "logits"}


@pytest.mark.torch
def test_sources_that_cannot_be_compared(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="transformers cannot open it as a CLIPModel"):
        compare(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="random:rn50: unknown network; known: micro, "):
        compare("random:rn50")
    with pytest.raises(UserError, match="not those of OpenAI's CLIP, quick_gelu"):
        compare(small(tmp_path / "gelu", hidden_act="gelu"))
    with pytest.raises(UserError, match="no multiple of its tower's width"):
        compare(small(tmp_path / "odd", intermediate_size=40))


@pytest.mark.torch
def test_every_text_ends_once(tmp_path):
    pytest.importorskip("torch")
    config = transformers_clip.random_model("micro").config
    pictures, ids = transformers_clip.inputs(config)
    end = config.text_config.eos_token_id
    assert ((ids == end).sum(axis=1) == 1).all() and (ids.max(axis=1) == end).all()
    assert len(set(np.argmax(ids, axis=1))) == len(ids) and pictures.shape[1:] == (224, 224, 3)
