"""Label maps of own pictures by a parsing model: a tiny SegFormer with random weights, made here."""

import json

import numpy as np
import pytest

from occreid_jax.data import labels, parsing_model
from occreid_jax.errors import UserError


@pytest.fixture
def model(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    names = dict(enumerate(labels.CLASSES["atr"]))
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, id2label=names,
        label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    told = {"size": {"height": 64, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(told))
    return tmp_path / "model"


@pytest.mark.slow  # imports torch
@pytest.mark.torch
def test_own_pictures_are_labelled(model, market_tree, tmp_path):
    from PIL import Image

    root, out = market_tree(), tmp_path / "labels"
    opened = parsing_model.parsing_model(str(model))
    broken = root / "query" / "0005_c1_9.jpg"
    broken.write_bytes(b"no picture")
    done = []
    written, left_out = parsing_model.label_pictures(root, out, opened, "tiny", lambda *told: done.append(told))
    assert written == 12 and left_out == ["query/0005_c1_9.jpg (not an image)"] and done[-1] == (13, 13)
    broken.unlink()

    # the first of them by hand: the picture at the size that the processor names, normalised by its numbers
    import torch
    from transformers import SegformerForSemanticSegmentation

    picture = Image.open(root / "query" / "0005_c1_0.jpg")
    values = (np.asarray(picture.resize((32, 64), Image.Resampling.BILINEAR), np.float32) / 255 - 0.5) / 0.25
    with torch.no_grad():
        network = SegformerForSemanticSegmentation.from_pretrained(model).eval()
        logits = network(torch.tensor(values.transpose(2, 0, 1)[None])).logits
        big = torch.nn.functional.interpolate(logits, (picture.height, picture.width), mode="bilinear", align_corners=False)
    classes = big[0].argmax(0).numpy().astype(np.uint8)
    expected = labels.with_sides(labels.class_table("atr", "")[classes])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "query" / "0005_c1_0.png")), expected)

    from occreid_jax.data import open_dataset

    parsing = labels.find_labels(open_dataset("market1501", root), str(out))
    assert parsing.kind == "label_map" and all(parsing.parsed(role).all() for role in labels.ROLES)
    assert parsing_model.label_pictures(root, out, opened, "tiny", lambda *told: None) == (0, [])


@pytest.mark.slow
@pytest.mark.torch
def test_models_that_cannot_be_used(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config["id2label"]["3"] = "umbrella"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="classes umbrella are no part of a person"):
        parsing_model.parsing_model(str(model))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model for semantic segmentation can be opened there"):
        parsing_model.parsing_model(str(tmp_path / "empty"))


def test_without_torch(monkeypatch):
    monkeypatch.setattr(parsing_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need PyTorch: pip install 'occreid_jax\[torch\]'"):
        parsing_model.parsing_model("anything")
