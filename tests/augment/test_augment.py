"""Augmentation: what each function does to a picture, and that a picture's fate depends on its own key alone."""

import re

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from occreid_jax import augment
from occreid_jax.augment import appearance, erasing, geometry
from occreid_jax.parts import FLIP_PARTS

HALF = (0.5, 0.5, 0.5)


def recipe(**changes):
    return ml_collections.ConfigDict(common.standard_augment(**changes))


def picture(height=32, width=16):
    return np.random.default_rng(0).integers(1, 255, (height, width, 3)).astype(np.uint8)


@pytest.fixture(params=["cpu", "accelerator"])
def platform(request, monkeypatch):
    """Runs a test with what CPUs do and with what is lowered for all other platforms."""
    if request.param == "accelerator":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    return request.param


def test_without_anything_only_normalises():
    image = picture()
    out = augment.standard(recipe(flip=0.0, pad=0, erasing=0.0), HALF, HALF)(jax.random.key(0), {"image": image[None]})
    np.testing.assert_allclose(out["image"][0], image / 255.0 / 0.5 - 1.0, atol=1e-6)


def test_flip_moves_the_parts_along(platform):
    image, parts = picture(), np.arange(512).reshape(32, 16).astype(np.uint8)  # every label, twice
    flipped, moved = geometry.flip_pad_crop(jax.random.key(0), jnp.asarray(image), jnp.asarray(parts), 1.0, 0)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(moved, FLIP_PARTS[parts[:, ::-1]])


@pytest.mark.parametrize("scale", [1, np.float32(1 / 255)])  # whole numbers, and float32 after colour jitter
def test_crop_is_a_window_of_the_padded_picture(platform, scale):
    image = picture() * scale
    assert image.dtype == (np.uint8 if scale == 1 else np.float32)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    seen = set()
    crop = jax.jit(lambda key: geometry.flip_pad_crop(key, jnp.asarray(image), None, 0.0, 3)[0])
    for number in range(60):
        out = crop(jax.random.key(number))
        places = [
            (row, column)
            for row in range(7)
            for column in range(7)
            if np.array_equal(padded[row : row + 32, column : column + 16], out)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert {row for row, _ in seen} == set(range(7)) and {column for _, column in seen} == set(range(7))


def test_erasing_replaces_one_box_of_the_stated_size_by_noise(platform):
    image = jnp.full((128, 64, 3), 7.0)
    areas, erased = [], 0
    run = jax.jit(lambda key: erasing.random_erasing(key, image, 0.5))
    for number in range(200):
        changed = np.asarray((run(jax.random.key(number)) != 7.0).any(-1))
        if not changed.any():
            continue
        erased += 1
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()  # one full rectangle
        areas.append(box.size / changed.size)
        assert 0.25 < len(rows) / len(columns) < 4.0
    assert 75 <= erased <= 125
    assert 0.015 < min(areas) and max(areas) < 0.36 and 0.12 < np.mean(areas) < 0.22


def test_erasing_noise_is_standard_normal(platform):
    image = jnp.zeros((128, 64, 3))
    values = np.concatenate([
        np.asarray(x)[np.asarray(x) != 0] for x in (erasing.random_erasing(jax.random.key(i), image, 1.0) for i in range(8))
    ])
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1.0) < 0.03
    assert len(np.unique(values)) > 0.99 * len(values)  # every pixel and channel has a number of its own


def test_what_a_program_does_is_settled_by_the_platform_it_is_lowered_for():
    """Counted in the programs for one batch of pictures, lowered here without an accelerator."""
    batch = {"image": jax.ShapeDtypeStruct((4, 32, 16, 3), jnp.uint8)}
    traced = jax.jit(augment.standard(recipe(pad=2), HALF, HALF)).trace(jax.random.key(0), batch)
    programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu", "cuda")}
    per_pixel = {name: len(re.findall(r"stablehlo.gather.*-> tensor<4x32x16x3xf32>", text)) for name, text in programs.items()}
    assert per_pixel == {"cpu": 1, "tpu": 0, "cuda": 0}
    slices = {name: len(re.findall(r"stablehlo.gather.*-> tensor<4x32x16x3xui8>", text)) for name, text in programs.items()}
    assert slices == {"cpu": 1, "tpu": 0, "cuda": 0}


def test_colour_jitter_stays_in_range_and_is_off_at_zero():
    image = jnp.asarray(picture() / 255.0, jnp.float32)
    out = appearance.colour_jitter(jax.random.key(3), image, 0.3, 0.3, 0.2, 0.2)
    assert float(out.min()) >= 0.0 and float(out.max()) <= 1.0
    assert float(jnp.abs(out - image).max()) > 0.02
    np.testing.assert_allclose(appearance.colour_jitter(jax.random.key(3), image, 0.0, 0.0, 0.0, 0.0), image, atol=1e-6)


def test_hue_shift_against_the_standard_library():
    import colorsys

    rng = np.random.default_rng(0)
    for colour in rng.uniform(size=(20, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected = colorsys.hsv_to_rgb((hue + 0.15) % 1.0, saturation, value)
        np.testing.assert_allclose(appearance.shift_hue(jnp.asarray(colour), jnp.float32(0.15)), expected, atol=1e-5)
    np.testing.assert_allclose(appearance.shift_hue(jnp.full((2, 3), 0.4), jnp.float32(0.3)), 0.4, atol=1e-6)


def test_a_picture_keeps_its_fate_whatever_is_beside_it_and_on_any_number_of_devices():
    images = np.stack([picture()] * 8)
    run = jax.jit(augment.standard(recipe(pad=2, jitter=(0.1, 0.1, 0.1, 0.0)), HALF, HALF))
    alone = run(jax.random.key(5), {"image": images})["image"]
    changed = images.copy()
    changed[1:] = 0
    np.testing.assert_array_equal(run(jax.random.key(5), {"image": changed})["image"][0], alone[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded = jax.device_put(images, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    chex.assert_trees_all_close(run(jax.random.key(5), {"image": sharded})["image"], alone, atol=1e-6)
