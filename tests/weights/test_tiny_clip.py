"""The tiny CLIP that ships: written as halves, read as float32, whole, small, and described by its card."""

import jax
import numpy as np
import pytest

from occreid_jax.assets import asset
from occreid_jax.files import read_json
from occreid_jax.nn.clip import clip_size, clip_text, clip_visual
from occreid_jax.nn.prompt import person_prompt
from occreid_jax.vocabulary import tiny_vocabulary
from occreid_jax.weights.port import read_ported
from occreid_jax.weights.tiny_clip import ASSETS, halved, write_tiny_clip
from occreid_jax.weights.trees import flatten, unflatten

IMAGE = (128, 64)


def networks(name):
    return clip_visual(name, IMAGE), clip_text(name, len(tiny_vocabulary()))


def initial(name):
    """A function of a key: the initial values of both towers and the scale."""
    visual, text = networks(name)
    images, ids = np.zeros((1, *IMAGE, 3), np.float32), np.zeros((1, 4), np.int32)
    return lambda key: {
        "visual": visual.init(key, images)["params"],
        "text": text.init(key, ids)["params"],
        "logit_scale": np.float32(2.5),
    }


def test_what_is_written_is_read_as_float32(tmp_path):
    params = jax.jit(initial("micro"))(jax.random.key(0))
    path = write_tiny_clip(tmp_path / "micro", params, clip_size("micro"), (8, 4), {"seed": 3})
    arrays, metadata = read_ported(path.parent)
    assert (metadata["kind"], metadata["family"], metadata["grid"]) == ("clip", "tiny_clip", "8x4")
    assert (metadata["width"], metadata["text_width"], metadata["vocabulary"]) == ("32", "16", str(len(tiny_vocabulary())))
    np.testing.assert_array_equal(arrays.pop("grid"), [8, 4])
    wanted = flatten({"params": halved(params)})
    assert set(arrays) == set(wanted)
    for name, value in wanted.items():
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], value)
        np.testing.assert_allclose(value, np.asarray(flatten({"params": params})[name]), rtol=1e-3, atol=1e-6)
    assert read_json(path.parent / "card.json") == {"seed": 3}


SHIPPED = {"tiny": ("tiny_clip", (8, 4)), "tiny_fine": ("tiny_clip_fine", (16, 8))}  # network -> asset and grid


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request):
    """Name of the network, arrays, metadata."""
    return request.param, *read_ported(asset(SHIPPED[request.param][0]))


def test_the_shipped_weights_fit_their_network(shipped):
    name, arrays, metadata = shipped[0], dict(shipped[1]), shipped[2]
    assert metadata["kind"] == "clip" and metadata["family"] == "tiny_clip" and ASSETS[name] == SHIPPED[name][0]
    np.testing.assert_array_equal(arrays.pop("grid"), SHIPPED[name][1])
    params = jax.eval_shape(initial(name), jax.random.key(0))
    shapes = {path: np.shape(value) for path, value in flatten({"params": params}).items()}
    assert {path: value.shape for path, value in arrays.items()} == shapes
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert (asset(ASSETS[name]) / "weights.safetensors").stat().st_size < 6e6


def test_the_shipped_text_tower_tells_sentences_apart(shipped):
    name, arrays, _ = shipped
    params = unflatten({path: value for path, value in arrays.items() if path != "grid"})["params"]
    vocabulary, (_, text) = tiny_vocabulary(), networks(name)
    told = ["a photo of a person wearing red trousers", "a photo of a person wearing dark red trousers",
            "a photo of a person wearing blue shoes"]  # fmt: skip
    rows = vocabulary.rows(np.concatenate([vocabulary.tokenize(told), person_prompt().ids[None]]))
    features = np.array(jax.jit(text.apply)({"params": params["text"]}, rows))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    likeness = features @ features.T
    assert likeness[0, 1] > likeness[0, 2] and likeness[~np.eye(4, dtype=bool)].max() < 0.999


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_shows_chance_beside_every_figure(name):
    card = read_json(asset(ASSETS[name]) / "card.json")
    assert card["command"].startswith("python launch/pretrain_clip.py") and "synthetic" in card["what"]
    assert {"seed", "versions", "steps", "pictures_seen", "seconds", "cpu_seconds"} <= set(card)
    assert card["data"]["train"] == {"images": 24000, "identities": 3000, "cameras": 24} and card["synthetic_seed"] == 0
    for kind in ("whole", "occluded"):
        captions = card["zero_shot"][kind]["captions"]
        assert captions["captions"] == 200 and captions["rank1"] > 3 * captions["chance_rank1"]
        assert captions["mean_rank"] < 0.5 * captions["chance_mean_rank"]
        for attribute in ("upper_colour", "lower_colour"):
            entry = card["zero_shot"][kind]["attributes"][attribute]
            assert entry["accuracy"] > 2 * entry["majority"]
