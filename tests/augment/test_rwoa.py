"""Occluders in whole frames: soft edges, matched colours, places, and the other ways to hide a part of a picture."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.augment import frames, rwoa, standard
from occreid_jax.errors import UserError

HALF = (0.5, 0.5, 0.5)


def settings(kind="rwoa", **changes):
    values = dict(kind=kind, probability=0.5, flip=0.5, align=True, erode=1, blur=1.5, cells=(8, 4), least_kept=0.5)
    return SimpleNamespace(**(values | changes))


def augmentation(kind="rwoa", erasing=0.0, **changes):
    return SimpleNamespace(flip=0.5, pad=4, jitter=(0.0,) * 4, erasing=erasing, occlusion=settings(kind, **changes))


def library(count=3, side=32):
    """Frames with a box that is not transparent: rows 16 to 31, columns 8 to 23; red, green and blue."""
    pictures = np.zeros((count, side, side, 4), np.uint8)
    for number in range(count):
        pictures[number, 16:, 8:24] = [255 * (number == channel) for channel in range(3)] + [255]
    sides = np.tile(np.array([[64, 32]], np.int32), (count, 1))
    return {"occluders": jnp.asarray(pictures.reshape(count, side, -1)), "occluder_sides": jnp.asarray(sides)}


def pictures(count=16, shape=(64, 32)):
    return jax.random.uniform(jax.random.key(0), (count, *shape, 3))


def hidden(kind, count=16, **changes):
    images = pictures(count)
    given = library() | {rwoa.PARTNER: rwoa.partners(images)}
    keys = jax.random.split(jax.random.key(2), count)
    found, used = jax.jit(lambda images: rwoa.hide_all(settings(kind, **changes), HALF, HALF, keys, images, given))(images)
    return images, found, np.asarray(used)


def test_a_step_becomes_soft():
    kernel = frames.blur_weights(21, 1.5)[10, 6:15]
    half = [0.00761, 0.03607, 0.10959, 0.21344]
    np.testing.assert_allclose(kernel, [*half, 0.26656, *half[::-1]], atol=1e-5)
    step = jnp.repeat(jnp.array([0.0, 1.0]), 6)[None, :, None] * jnp.ones((3, 1, 1))
    soft = frames.blur(step, 1.5)[1, :, 0]
    expected = [0, 0, 0.0076, 0.0437, 0.1533, 0.3667, 0.6333, 0.8467, 0.9563, 0.9924, 1, 1]
    np.testing.assert_allclose(soft, expected, atol=1e-4)
    np.testing.assert_array_equal(frames.blur_weights(4, 0.0), np.eye(4))


def test_erosion_takes_a_pixel_off_objects_but_not_off_the_frame():
    alpha = jnp.zeros((5, 5)).at[1:, 1:4].set(1.0)
    expected = np.zeros((5, 5))
    expected[2:, 2] = 1
    np.testing.assert_array_equal(frames.erode(alpha, 1), expected)
    np.testing.assert_array_equal(frames.erode(alpha, 0), alpha)


def test_matched_colours_of_the_sheet():
    clean = jnp.array([0.2, 0.4, 0.6, 0.8]).reshape(1, 4, 1)
    pasted = frames.composite(clean, jnp.ones((1, 4, 1)), jnp.array([[0.0, 0, 0.5, 1]]))
    np.testing.assert_allclose(pasted.ravel(), [0.2, 0.4, 0.8, 1.0], atol=1e-6)
    assert (float(pasted.mean()), float(pasted.std())) == pytest.approx((0.6, 0.316228), abs=1e-6)
    np.testing.assert_allclose(frames.align(pasted, clean).ravel(), [0.217157, 0.358579, 0.641421, 0.782843], atol=1e-6)
    second = jnp.array([0.2, 0.4, 1.0, 1.0]).reshape(1, 4, 1)
    np.testing.assert_allclose(frames.align(second, clean).ravel(), [0.218199, 0.343444, 0.719179, 0.719179], atol=1e-6)


def test_matching_is_by_channel_and_over_the_whole_frame():
    clean, pasted = jax.random.uniform(jax.random.key(1), (2, 16, 8, 3)) * jnp.array([1.0, 0.5, 0.2])
    found = frames.align(pasted, clean)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), clean.mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(found.std(axis=(0, 1)), clean.std(axis=(0, 1)), atol=1e-6)
    flat = frames.align(jnp.full((4, 4, 3), 0.3), clean)
    np.testing.assert_allclose(flat, jnp.broadcast_to(clean.mean(axis=(0, 1)), (4, 4, 3)), atol=1e-6)


def test_no_dark_fringe_stands_round_an_object():
    """A white object on white: whatever its soft edge reaches, nothing darker than the picture appears."""
    white = jnp.zeros((32, 32, 4)).at[16:, 8:24].set(1.0)
    layer = frames.lay(white, (64, 32), (0, 0, 64, 32), False)
    colour, alpha = frames.feather(layer, 1, 1.5)
    reached = alpha > 1e-3
    assert float(alpha[20, 16]) < 0.01 < float(alpha[33, 16]) and float(alpha[60, 16]) == pytest.approx(1.0)
    np.testing.assert_allclose(colour[reached], 1.0, atol=2e-3)


def test_a_frame_keeps_its_place():
    _, found, used = hidden("rwoa", probability=1.0, flip=0.0, align=False)
    assert used.all()
    inside = np.zeros((64, 32), bool)
    inside[37:, 12:20] = True  # the box of `library` without its soft edge
    assert (np.asarray(found.alpha)[:, inside] > 0.99).all() and (np.asarray(found.alpha)[:, :24] < 1e-3).all()
    colours = np.asarray(found.image)[:, 50, 16]
    assert {tuple(np.rint(colour)) for colour in colours} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_pictures_without_an_occluder_are_untouched():
    for kind in rwoa.KINDS:
        images, found, used = hidden(kind, probability=0.5)
        np.testing.assert_array_equal(np.asarray(found.image)[~used], np.asarray(images)[~used])
        assert not np.asarray(found.alpha)[~used].any()
        changed = np.any(np.asarray(found.image) != np.asarray(images), axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, used)
        assert (0 < used.sum() < len(used)) == (kind != "none")


def test_matched_pictures_have_their_own_statistics():
    images, found, used = hidden("rwoa", probability=1.0)
    unclipped = jax.vmap(frames.align)(found.pasted, images)
    np.testing.assert_allclose(unclipped.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.image, jnp.clip(unclipped, 0, 1), atol=1e-6)
    plain = hidden("rwoa", probability=1.0, align=False)[1]
    np.testing.assert_array_equal(plain.image, plain.pasted)


def test_the_other_placement_moves_the_object():
    """OIA: a wide object spans the picture with its lower edge in the lower half; a tall one is as high as the picture."""
    _, found, _ = hidden("oia", count=64, probability=1.0, align=False, erode=0, blur=0.0)
    rows = np.asarray(found.alpha).max(axis=2) > 0.5
    lower = np.array([np.flatnonzero(row)[-1] for row in rows])
    upper = np.array([np.flatnonzero(row)[0] for row in rows])
    assert (lower >= 31).all() and lower.max() - lower.min() > 10
    # The box is 32 x 16 pixels of the frame: twice as high as wide is not tall, so it is as wide as 0.8 to 1.2 pictures, cut to
    # three quarters of the height.
    assert ((lower - upper + 1) <= 49).all()
    wide = (np.asarray(found.alpha).max(axis=1) > 0.5).sum(axis=1)
    assert (wide >= 25).all()


def test_half_of_the_cells_are_hidden_behind_the_mean():
    images, found, _ = hidden("hide_and_seek", count=64, probability=1.0)
    cells = np.asarray(found.alpha).reshape(64, 8, 8, 4, 8)
    assert (cells == cells[:, :, :1, :, :1]).all() and 0.45 < cells.mean() < 0.55
    shown = np.asarray(found.alpha)[..., None] == 0
    np.testing.assert_array_equal(np.asarray(found.image), np.where(shown, images, 0.5))


def test_a_box_of_another_picture():
    images, found, _ = hidden("cutmix", count=64, probability=1.0)
    inside = np.asarray(found.alpha)[..., None] == 1
    np.testing.assert_array_equal(np.asarray(found.image), np.where(inside, np.roll(images, 1, axis=0), images))
    shares = inside.mean(axis=(1, 2, 3))
    assert 0.15 < shares.mean() < 0.5 and shares.max() > 0.6  # even shares, of which the picture's edges cut off some


def test_a_crop_is_stretched_over_the_frame():
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 64)[:, None, None], (64, 32, 3))
    found = jax.vmap(lambda key: rwoa.cropping(key, ramp, settings("cropping")))(jax.random.split(jax.random.key(0), 32))
    spans = np.asarray(found.image[:, -2, 16, 0] - found.image[:, 1, 16, 0])
    assert (spans > 0.44).all() and (spans < 0.98).all() and spans.max() - spans.min() > 0.3


def test_one_box_of_noise():
    images, found, _ = hidden("erasing", probability=1.0)
    changed = np.any(np.asarray(found.image) != np.asarray(images), axis=3)
    np.testing.assert_array_equal(changed, np.asarray(found.alpha) == 1)


def test_the_whole_augmentation():
    raw = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 64, 32, 3), np.uint8))} | library()
    augment = jax.jit(rwoa.occluding(augmentation("rwoa", erasing=0.5), HALF, HALF))
    found = augment(jax.random.key(3), raw)
    assert not {"occluders", "occluder_sides"} & set(found) and found["image"].dtype == jnp.float32
    occluded = np.asarray(found["occluded"]) == 1
    assert 0 < occluded.sum() < 16
    np.testing.assert_array_equal(np.asarray(found["covered"]) > 0, occluded)
    parts = jnp.ones((16, 64, 32), jnp.uint8)
    marked = augment(jax.random.key(3), raw | {"parts": parts})
    np.testing.assert_array_equal(marked["image"], found["image"])
    np.testing.assert_array_equal(np.any(np.asarray(marked["parts"]) >= 16, axis=(1, 2)), occluded)


def test_without_a_kind_it_is_the_standard_augmentation():
    raw = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), np.uint8))}
    config = augmentation("none", erasing=0.5)
    found, expected = (jax.jit(make(config, HALF, HALF))(jax.random.key(1), raw) for make in (rwoa.occluding, standard))
    np.testing.assert_array_equal(found["image"], expected["image"])
    with pytest.raises(UserError, match="augment.occlusion.kind is 'paste'; it must be one of rwoa, oia, hide_and_seek"):
        rwoa.occluding(augmentation("paste"), HALF, HALF)


def test_frames_keep_objects_where_they_stand():
    from occreid_jax import synthetic

    drawn = dict(synthetic.standing_occluders(0, 20))
    assert len(drawn) == 20 and all(frame.shape == (256, 128, 4) for frame in drawn.values())
    kinds = [name.split()[0] for name in drawn]
    assert {kinds.count(kind) for kind in kinds} == {2}
    for name, frame in drawn.items():
        rows = np.flatnonzero((frame[..., 3] > 127).any(axis=1))
        assert 0.03 < np.mean(frame[..., 3] > 127) <= 0.6, name
        if name.split()[0] in ("car", "bicycle", "barrier", "bush", "cart", "person"):
            assert rows[0] >= 20 and rows[-1] > 230, name  # stands on the ground, and somebody looks out above it
        if name.split()[0] == "umbrella":
            assert rows[-1] < 0.4 * 256
    again = dict(synthetic.standing_occluders(0, 3))
    assert all((again[name] == drawn[name]).all() for name in again)
