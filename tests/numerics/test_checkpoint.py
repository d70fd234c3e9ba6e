"""A user's checkpoint beside stored features: what is read from the tensors, when it agrees, and what is said if not."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.numerics import checkpoint
from occreid_jax.types import Meta
from occreid_jax.weights.families import Description
from occreid_jax.weights.families import transreid as family
from occreid_jax.weights.port import Ported, port
from occreid_jax.weights.pth import read_pth, write_pth
from occreid_jax.weights.trees import flatten

COUNT = 5


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A checkpoint under PyTorch's names, pictures, and features of them computed apart from the code under test."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = importlib.import_module("configs.transreid").get_config("dataset=folder,stride=12,backbone=micro")
    config.dtype = "float32"
    method = methods.create(config, Meta(7, 3, (256, 128), 1))
    params, extra = jax.jit(method.init)(jax.random.key(0))
    trees = {"params": params, "extra": extra}
    arrays, _, _ = family.write({path: np.asarray(array) for path, array in flatten(trees).items()})
    write_pth(folder / "model.pth", arrays)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (COUNT, 256, 128, 3), np.uint8)
    names, camids = [f"person{number}.png" for number in range(COUNT)], np.arange(COUNT) % 3
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(folder / name)
    images = (jnp.asarray(pictures, jnp.float32) / 255.0 - 0.5) / 0.5
    embed = jax.jit(lambda params, extra, batch: method.embed(params, extra, batch, "query"))
    with jax.default_matmul_precision("highest"):
        features = embed(params, extra, {"image": images, "camid": jnp.asarray(camids)})
    np.savez(folder / "y.npz", names=names, features=np.asarray(features), camids=camids)
    return folder


def run(folder, features="y.npz", **changes):
    get_config = importlib.import_module("configs.transreid").get_config
    ported = port(read_pth(folder / "model.pth"))
    found = checkpoint.config_arguments(get_config("dataset=folder"), ported, ())
    config = get_config(",".join(["dataset=folder", *found]))
    config.method.update(changes)
    stored = checkpoint.read_torch_features(folder / features)
    images = checkpoint.read_images(folder, stored.names, (256, 128))
    return config, checkpoint.compare_features(config, ported, stored, images)


def test_the_tensors_tell_the_network(case):
    config, found = run(case)
    method = config.method
    assert (method.backbone, method.stride, method.camera, method.jpm) == ("micro", 12, True, True)
    assert found.images == COUNT and found.dimensions == 5 * 32 and not found.normalised
    assert found.relative < 1e-5 and found.cosine > 0.99999


@pytest.mark.parametrize(
    ("name", "facts", "backbone"),
    [
        ("clip_reid", dict(width=768, depth=12, tower="vit", embed=512, patch=16, text_width=512), "vit_b16"),
        ("clip_reid", dict(width=2048, depth=16, tower="resnet", embed=1024, text_width=512), "rn50"),
        ("transreid", dict(width=768, depth=12), "base"),
    ],
)
def test_one_size_of_encoder_is_told_from_clips(name, facts, backbone):
    """CLIP's ViT-B/16 is as wide and deep as the ImageNet encoder "base"; the space of its texts tells them apart."""
    weights = {"params/backbone/block_00/attn/qkv/bias": np.zeros(1)}
    ported = Ported("", "model", weights, [], Description(patches=128, **facts))
    config = importlib.import_module(f"configs.{name}").get_config("dataset=folder")
    assert f"backbone={backbone}" in checkpoint.config_arguments(config, ported, ())


def test_normalised_features_are_compared_normalised(case):
    with np.load(case / "y.npz") as file:
        arrays = dict(file)
    arrays["features"] = arrays["features"] / np.linalg.norm(arrays["features"], axis=1, keepdims=True)
    np.savez(case / "unit.npz", **arrays)
    _, found = run(case, "unit.npz")
    assert found.normalised and found.relative < 1e-5


def test_a_wrong_setting_shows(case):
    _, found = run(case, camera_scale=1.0)
    assert found.relative > 1e-3
    _, found = run(case, shift=4)
    assert found.relative > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "has no names; save one with numpy.savez"),
        ({"camids": None}, "vectors for 3 cameras; store 'camids'"),
        ({"camids": np.full(COUNT, 3)}, r"no vector for camera 4 \(with cameras 1 to 3\); store them"),
        ({"camids": np.zeros(2, int)}, "camids must be 5 whole numbers"),
        ({"features": np.zeros((COUNT, 4), np.float32)}, "have 4 dimensions, this method's 160"),
        ({"features": np.zeros((3, 4), np.float32)}, r"features \(3, 4\) and names \(5,\)"),
        ({"features": np.full((COUNT, 160), np.nan)}, "nan or infinity"),
        ({"names": ["absent.png"] * COUNT}, r"5 of 5 pictures cannot be used: absent.png \(missing\)"),
    ],
)
def test_wrong_features(case, changes, message):
    with np.load(case / "y.npz") as file:
        arrays = dict(file) | changes
    np.savez(case / "wrong.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=message):
        run(case, "wrong.npz")


def test_features_that_need_a_pickle_are_refused(case):
    np.savez(case / "objects.npz", names=np.array(["a", None], object), features=np.zeros((2, 3)))
    with pytest.raises(UserError, match="not a readable .npz file of plain arrays"):
        checkpoint.read_torch_features(case / "objects.npz")
    with pytest.raises(UserError, match="no such file"):
        checkpoint.read_torch_features(case / "absent.npz")
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.read_images(case / "absent", ["a"], (256, 128))
