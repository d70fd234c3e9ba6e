"""OGFR's obstacles: where they may lie and how large they are, what both twins share, and labels behind them."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from occreid_jax.augment import erasing
from occreid_jax.augment.obstacle import obstacle
from occreid_jax.errors import UserError
from occreid_jax.parts import OCCLUDED

HALF = (0.5, 0.5, 0.5)
OWN = dict(kind="obstacle", probability=1.0, area=(0.1, 0.5), jitter=0.0, flip=0.5, rectangles=True)


def augmented(count: int = 64, parts=None, **changes):
    config = ml_collections.ConfigDict(common.standard_augment(flip=0.0, pad=0, erasing=0.0) | {"occlusion": OWN | changes})
    images = np.random.default_rng(0).integers(0, 200, (count, 64, 32, 3)).astype(np.uint8)
    library = np.zeros((2, 8, 8, 4), np.uint8)
    library[..., 0] = 255  # red
    library[:, :, :4, 3] = 255  # their left half is opaque
    batch = {"image": images, "occluders": library.reshape(2, 8, 32), "occluder_sides": np.full((2, 2), 8, np.int32)}
    batch |= {} if parts is None else {"parts": parts}
    return images, jax.jit(obstacle(config, HALF, HALF))(jax.random.key(1), batch)


def test_whole_boxes_of_the_library_s_colour():
    images, out = augmented()
    assert "occluders" not in out
    np.testing.assert_allclose(out["image"], images / 127.5 - 1, atol=1e-6)
    changed = np.any(np.abs(out["occluded"] - out["image"]) > 1e-6, axis=-1)
    places, sides = [], []
    for own, picture in zip(changed, np.asarray(out["occluded"]), strict=True):
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        assert own[box].all() and own.sum() == own[box].size  # a rectangle, and nothing else
        np.testing.assert_allclose(picture[box], np.broadcast_to([1, -1, -1], picture[box].shape), atol=1e-5)
        places.append((rows[0], columns[0]))
        sides.append(own[box].shape)
    areas = np.prod(sides, axis=1) / (64 * 32)
    np.testing.assert_allclose(out["covered"], areas, atol=1e-6)
    # Sides are rounded to pixels; a box that does not fit is drawn again, so the largest are rarer.
    assert 0.09 < areas.min() < 0.2 and 0.3 < areas.max() < 0.53
    ratios = np.array(sides)[:, 0] / np.array(sides)[:, 1]
    assert ratios.min() > erasing.ASPECT[0] * 0.85 and ratios.max() < erasing.ASPECT[1] * 1.15
    assert len(set(places)) > 50


def test_outlines_and_mirrors():
    covered = augmented(rectangles=False)[1]["covered"] / augmented()[1]["covered"]
    assert 0.3 < float(covered.min()) and float(covered.max()) < 0.7 and abs(float(covered.mean()) - 0.5) < 0.03
    ends = [augmented(rectangles=False, flip=flip)[1]["occluded"] for flip in (0.0, 1.0)]
    assert np.abs(ends[0] - ends[1]).max() > 0.5


def test_how_often_and_in_which_colours():
    often = np.asarray(augmented(400, probability=0.25)[1]["covered"] > 0).mean()
    assert abs(often - 0.25) < 0.07
    out = augmented(8, jitter=0.5)[1]
    changed = np.any(np.abs(out["occluded"] - out["image"]) > 1e-6, axis=-1)
    reds = [float(picture[own][:, 0].mean()) for picture, own in zip(np.asarray(out["occluded"]), changed, strict=True)]
    assert np.ptp(reds) > 0.2


def test_labels_behind_the_obstacle():
    parts = np.full((16, 64, 32), 4, np.uint8)
    _, out = augmented(16, parts)
    changed = np.any(np.abs(out["occluded"] - out["image"]) > 1e-6, axis=-1)
    np.testing.assert_array_equal(out["parts"], parts)
    np.testing.assert_array_equal(out["occluded_parts"], np.where(changed, 4 | OCCLUDED, 4))


def test_without_obstacles_and_with_a_wrong_word():
    _, out = augmented(4, kind="none")
    np.testing.assert_array_equal(out["occluded"], out["image"])
    assert not jnp.any(out["covered"])
    with pytest.raises(UserError, match="augment.occlusion.kind is 'npo'; it must be one of obstacle, none"):
        augmented(4, kind="npo")
