"""Occluded twins: pasting against Pillow's resize, the geometry and the labels of the papers, and what both twins share."""

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import common
from occreid_jax.augment import npo, paste, roa, standard
from occreid_jax.errors import UserError
from occreid_jax.parts import FLIP_PARTS, OCCLUDED

HALF = (0.5, 0.5, 0.5)
ROA = dict(kind="roa", least_area=0.5, most_area=0.75, balanced=False, hard=False, probability=1.0, flip=0.5)
ROA |= dict(erased_area=(0.02, 1 / 3), noise="after")
NPO = dict(kind="npo", stripe_rule="difference", aspect=2.0, contour=False, parts=4)


def recipe(base, **changes):
    """A config of the augmentation; ``flip``, ``pad``, ``jitter`` and ``erasing`` are its own, the rest is ``occlusion``'s."""
    own = {name: changes.pop(name) for name in ("flip", "pad", "jitter", "erasing") if name in changes}
    return ml_collections.ConfigDict(common.standard_augment(**own) | {"occlusion": base | changes})


def cutouts(count=3, side=24, seed=0):
    """Random smooth RGBA pictures, uint8 [count, side, side, 4]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 4)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((side, side))) for picture in coarse])


SOLID = np.array([200, 100, 50])


def solid(side=8):
    """An opaque square of one colour."""
    return np.concatenate([np.tile(SOLID, (side, side, 1)), np.full((side, side, 1), 255)], axis=2).astype(np.uint8)


def batch(count=4, height=64, width=32, **more):
    images = np.random.default_rng(1).integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    library = {"occluders": cutouts(), "occluder_sides": np.array([[90, 30], [40, 60], [50, 50]], np.int32)}
    return {"image": images, **library, **more}


# Pasting --------------------------------------------------------------------------------------------------------------------


def with_pillow(image, cutout, top, left, height, width, flip):
    """The same in Pillow: premultiplied float channels, antialiased bilinear resize, paste."""
    source = cutout.astype(np.float32) / 255
    source[..., :3] *= source[..., 3:]
    source = source[:, ::-1] if flip else source

    def resize(channel):
        return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.Resampling.BILINEAR))

    layer = np.stack([resize(channel) for channel in np.moveaxis(source, 2, 0)], axis=2)
    whole = np.zeros((*image.shape[:2], 4), np.float32)
    whole[top : top + height, left : left + width] = layer
    return image * (1 - whole[..., 3:]) + whole[..., :3], whole[..., 3]


BOXES = [(0, 0, 64, 32), (16, 0, 48, 32), (0, 11, 9, 7), (3, 5, 24, 24), (7, 2, 13, 29), (63, 31, 1, 1), (0, 0, 50, 17)]


def test_pasting_equals_pillow_for_enlargement_and_reduction():
    image = np.random.default_rng(2).random((64, 32, 3)).astype(np.float32)
    run = jax.jit(chex.assert_max_traces(paste.paste, n=1))
    for box in BOXES:
        for flip in (False, True):
            for cutout in cutouts(2):
                found = run(image, cutout, *box, flip)
                for ours, theirs in zip(found, with_pillow(image, cutout, *box, flip), strict=True):
                    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    chex.clear_trace_counter()


def test_every_picture_takes_the_object_of_its_number():
    library, sides = batch()["occluders"], batch()["occluder_sides"]
    numbers = np.array([2, 0, 1, 0])
    pictures, own = jax.vmap(paste.pick, in_axes=(None, None, 0))(library, sides, numbers)
    np.testing.assert_array_equal(pictures, library[numbers])
    flat = library.reshape(*library.shape[:2], -1)  # as devices keep it
    np.testing.assert_array_equal(jax.vmap(paste.pick, in_axes=(None, None, 0))(flat, sides, numbers)[0], pictures)
    np.testing.assert_array_equal(own, sides[numbers])
    assert pictures.dtype == jnp.uint8


def test_flipping_twice_is_nothing():
    image, cutout = jnp.zeros((64, 32, 3)), cutouts(1)[0]
    run = jax.jit(paste.paste)
    plain, mirrored = run(image, cutout, 3, 5, 40, 20, False), run(image, cutout, 3, 5, 40, 20, True)
    chex.assert_trees_all_close(run(image, cutout[:, ::-1], 3, 5, 40, 20, True), plain, atol=1e-6)
    np.testing.assert_allclose(mirrored[1][:, 5:25], plain[1][:, 5:25][:, ::-1], atol=1e-6)


def test_a_solid_colour_stays_and_covers_its_box_exactly():
    image = jnp.full((64, 32, 3), 0.25)
    run = jax.jit(paste.paste, static_argnames="hard")
    for box in BOXES:
        for hard in (False, True):
            found, alpha = run(image, solid(24), *box, False, hard=hard)
            inside = np.asarray(alpha) > 0.5
            assert inside.sum() == box[2] * box[3] and inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]].all()
            np.testing.assert_allclose(np.asarray(found)[inside] - SOLID / 255, 0, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(found)[~inside], 0.25)


def test_hidden_colours_never_show_and_a_hard_edge_is_all_or_nothing():
    cutout = np.zeros((24, 24, 4), np.uint8)
    cutout[..., :3] = (0, 255, 0)
    cutout[6:18, 6:18] = solid(12)
    image, run = jnp.full((64, 32, 3), 0.5), jax.jit(paste.paste, static_argnames="hard")
    soft, alpha = run(image, cutout, 0, 0, 64, 32, False)
    assert 0 < float(alpha[alpha > 0].min()) < 0.5
    expected = 0.5 * (1 - alpha[..., None]) + SOLID / 255 * alpha[..., None]
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    hard, mask = run(image, cutout, 0, 0, 64, 32, False, hard=True)
    np.testing.assert_array_equal(mask, alpha > 0.5)
    np.testing.assert_allclose(hard, np.where(mask[..., None] > 0, SOLID / 255, 0.5), atol=1e-6)


def test_what_lies_outside_the_picture_is_cut_off():
    image, cutout = np.zeros((64, 32, 3), np.float32), cutouts(1)[0]
    found, alpha = jax.jit(paste.paste)(image, cutout, -8, 20, 40, 30, False)
    wide, wide_alpha = with_pillow(np.zeros((80, 64, 3), np.float32), cutout, 0, 20, 40, 30, False)
    np.testing.assert_allclose(found, wide[8:72, :32], atol=2e-6)
    np.testing.assert_allclose(alpha, wide_alpha[8:72, :32], atol=2e-6)


# Realistic occlusion --------------------------------------------------------------------------------------------------------


def places(sides, u, size=(256, 128)):
    """The three boxes of an object whose area is at the fraction ``u`` of one half to three quarters."""
    share = 0.5 + 0.25 * u
    return [tuple(int(x) for x in roa.placement(jnp.array(sides), jnp.float32(share), corner, *size)) for corner in range(3)]


def test_boxes_of_the_sheet():
    assert places((300, 100), 0.4) == [(0, 0, 256, 76), (0, 0, 256, 76), (0, 52, 256, 76)]
    assert places((300, 100), 0.0)[0][2:] == (256, 64) and places((300, 100), 1.0)[0][2:] == (256, 96)
    assert places((100, 50), 0.4) == [(0, 0, 153, 128), (103, 0, 153, 128), (0, 0, 153, 128)]  # exactly twice is not tall
    assert places((80, 120), 0.0) == [(0, 0, 128, 128), (128, 0, 128, 128), (0, 0, 128, 128)]
    assert [box[0] for box in places((80, 120), 1.0)] == [0, 64, 0] and places((80, 120), 1.0)[0][2:] == (192, 128)
    assert places((300, 100), 0.4, (128, 64))[2] == (0, 26, 128, 38)


@pytest.mark.parametrize("balanced", [False, True])
def test_places_of_many_draws(balanced):
    run = jax.jit(jax.vmap(
        lambda key, sides: roa.realistic_occlusion(key, jnp.zeros((64, 32, 3)), solid()[None], sides[None], balanced=balanced)[1],
        in_axes=(0, None)))  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 3000)
    wide, tall = np.asarray(run(keys, jnp.array([50, 50]))) > 0.5, np.asarray(run(keys, jnp.array([99, 33]))) > 0.5
    for bottom, area, length in ((wide[:, -1].any(1), wide.mean((1, 2)), 64), (tall[:, :, -1].any(1), tall.mean((1, 2)), 32)):
        assert abs(bottom.mean() - (0.5 if balanced else 1 / 3)) < 0.03
        assert area.min() == 0.5 and area.max() == 0.75 - 1 / length
        assert abs(area.mean() - 0.625 + 0.5 / length) < 0.01  # evenly distributed and truncated
    assert wide.any(2).sum(1).max() < 64 and wide.any(1).all() and tall.any(2).all()


@pytest.mark.parametrize("occlude, whole", [(roa.realistic_occlusion, "rectangles"), (npo.natural_occlusion, "contour")])
def test_rectangles_cover_what_contours_leave_free(occlude, whole):
    image, pictures, sides = jnp.zeros((64, 32, 3)), jnp.asarray(cutouts()), jnp.full((3, 2), 50)
    run = jax.jit(occlude, static_argnames=whole)
    for number in range(5):
        results = [run(jax.random.key(number), image, pictures, sides, **{whole: setting})[1] for setting in (True, False)]
        box, contour = results if whole == "rectangles" else results[::-1]
        rows = np.flatnonzero(np.asarray(box).any(1))
        np.testing.assert_allclose(box[rows[0] : rows[-1] + 1], 1.0, atol=1e-6)
        assert float(jnp.sum(contour)) < 0.8 * float(jnp.sum(box)) and not (contour[box == 0] > 0).any()


# Non-pedestrian occlusion ---------------------------------------------------------------------------------------------------


def band(top=0, height=0, values=(1.0,), shape=(256, 128)):
    """Change [H, W] of ``values`` a stripe of equal height inside a band of rows."""
    change = np.zeros(shape, np.float32)
    change[top : top + height] = np.repeat(values, shape[0] // len(values))[top : top + height, None]
    return change


def labels(change):
    return npo.visible_by_difference(npo.stripe_means(jnp.asarray(change), 4)).tolist()


def test_stripe_labels_of_the_sheet():
    assert npo.stripe_means(band(0, 85), 4).tolist() == [1.0, 0.328125, 0.0, 0.0]
    assert labels(band(0, 64)) == [0, 1, 1, 1] and labels(band(0, 85)) == [0, 1, 1, 1]
    assert labels(band(0, 86)) == [0, 0, 1, 1] and labels(band(160, 96)) == [1, 1, 0, 0]
    side = np.zeros((256, 128), np.float32)
    side[:, :40] = 1.0
    assert npo.stripe_means(side, 4).tolist() == [0.3125] * 4 and labels(side) == [1, 1, 1, 1]
    assert labels(band(0, 256, (0.30, 0.05, 0.0, 0.0))) == [0, 1, 1, 1]
    assert labels(band(0, 256, (0.10, 0.25, 0.0, 0.0))) == [0, 0, 1, 1]
    assert labels(band(0, 256, (0.05, 0.25, 0.0, 0.0))) == [1, 0, 1, 1]
    assert labels(band()) == [1, 1, 1, 1]  # nothing changed
    for height, seen in ((112, [0, 1, 1, 1]), (113, [0, 0, 1, 1])):
        assert npo.visible_by_coverage(npo.stripe_means(band(0, height), 4)).tolist() == seen


def test_stripes_of_a_height_that_does_not_divide():
    values = np.random.default_rng(0).random((2, 10, 6)).astype(np.float32)
    expected = np.stack([values[:, rows].mean((1, 2)) for rows in (slice(0, 4), slice(4, 7), slice(7, 10))], axis=1)
    np.testing.assert_allclose(npo.stripe_means(values, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(256, 128), (128, 64)])
def test_geometry_of_ten_thousand_draws(size):
    height, width = size
    keys = jax.random.split(jax.random.key(0), 10_000)
    vertical = jnp.arange(10_000) % 2 == 0
    draw = jax.jit(jax.vmap(lambda key, upright: npo.draw_box(key, upright, height, width)))
    top, left, tall, wide = (np.asarray(x) for x in draw(keys, vertical))
    assert (tall[::2] == height).all() and set(wide[::2]) == set(range(width // 4, width // 2 + 1))
    assert (wide[1::2] == width).all() and set(tall[1::2]) == set(range(height // 4, height // 2 + 1))
    assert ((top == 0) | (top + tall == height)).all() and ((left == 0) | (left + wide == width)).all()
    assert abs((top[1::2] > 0).mean() - 0.5) < 0.03 and abs((left[::2] > 0).mean() - 0.5) < 0.03


def test_only_horizontal_occluders_change_colour():
    image, run, changed = jnp.zeros((64, 32, 3)), jax.jit(npo.natural_occlusion), 0
    for number in range(6):
        colours = []
        for sides in ([30, 10], [20, 10]):
            found, alpha = map(np.asarray, run(jax.random.key(number), image, solid()[None], np.array([sides])))
            assert np.ptp(found[alpha > 0.5], axis=0).max() < 1e-6  # one colour stays one colour
            colours.append(found[alpha > 0.5][0])
        np.testing.assert_allclose(colours[0], SOLID / 255, atol=1e-6)
        changed += np.abs(colours[1] - SOLID / 255).max() > 0.05
    assert changed >= 4


# Batches --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, base", [(roa.roa, ROA | {"hard": True}), (npo.npo, NPO)], ids=["roa", "npo"])
def test_twins_share_their_geometry_and_parts_move_along(make, base):
    parts = np.random.default_rng(3).integers(0, 9, (6, 64, 32)).astype(np.uint8)
    raw = batch(6, parts=parts, label=np.arange(6))
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(make(recipe(base, pad=4), HALF, HALF), n=1))
    out = run(jax.random.key(0), raw)
    assert {"occluders", "occluder_sides"} & set(out) == set() and out["label"].tolist() == list(range(6))
    assert out["image"].shape == out["occluded"].shape == (6, 64, 32, 3) and out["occluded"].dtype == jnp.float32
    same = np.isclose(out["image"], out["occluded"], atol=1e-5).all(-1)
    covered = np.asarray(out["occluded_parts"]) >= OCCLUDED
    assert same[~covered].all() and same[covered].mean() < 0.02 and 0.1 < covered.mean() < 0.75
    np.testing.assert_array_equal(np.asarray(out["occluded_parts"]) & 15, out["parts"])
    share = covered.reshape(6, 4, -1).mean(2)
    np.testing.assert_allclose(out["covered"], share.mean(1) if make is roa.roa else share, atol=1e-6)
    for number in range(6):  # the picture tells how it was moved: its labels must have gone with it
        found = np.asarray(out["image"][number]) * 0.5 + 0.5
        matches = [
            np.array_equal(np.pad(labels, 4)[y : y + 64, x : x + 32], out["parts"][number])
            for image, labels in ((raw["image"][number], parts[number]),
                                  (raw["image"][number][:, ::-1], FLIP_PARTS[parts[number][:, ::-1]]))
            for y in range(9) for x in range(9)
            if np.allclose(np.pad(image / 255, ((4, 4), (4, 4), (0, 0)))[y : y + 64, x : x + 32], found, atol=1e-5)
        ]  # fmt: skip
        assert matches == [True]
    again, other = run(jax.random.key(0), raw), run(jax.random.key(1), raw)
    chex.assert_trees_all_equal(out, again)
    assert float(jnp.abs(out["occluded"] - other["occluded"]).max()) > 0.1
    alone = run(jax.random.key(0), raw | {"image": np.concatenate([raw["image"][:1], np.zeros_like(raw["image"][1:])])})
    np.testing.assert_array_equal(alone["occluded"][0], out["occluded"][0])  # whatever is beside it
    chex.clear_trace_counter()


@pytest.mark.parametrize("make, base", [(roa.roa, ROA), (npo.npo, NPO)], ids=["roa", "npo"])
def test_twins_without_a_library(make, base):
    raw = batch()
    del raw["occluders"], raw["occluder_sides"]
    none = jax.jit(make(recipe(base, kind="none", jitter=(0.1, 0.1, 0.1, 0.0)), HALF, HALF))(jax.random.key(0), raw)
    np.testing.assert_array_equal(none["image"], none["occluded"])
    assert not none["covered"].any() and (base is ROA or none["visible"].all())
    erased = jax.jit(make(recipe(base, kind="erasing", erasing=1.0), HALF, HALF))(jax.random.key(0), raw)
    changed = (np.asarray(erased["image"]) != np.asarray(erased["occluded"])).any(-1)
    assert 0.01 < changed.mean() < 0.4
    share = changed.reshape(4, 4, -1).mean(2)
    np.testing.assert_allclose(erased["covered"], share.mean(1) if base is ROA else share, atol=1e-6)
    plain = jax.jit(make(recipe(base, flip=0.0, pad=0, kind="none"), HALF, HALF))(jax.random.key(0), raw)
    expected = standard(ml_collections.ConfigDict(common.standard_augment(flip=0.0, pad=0, erasing=0.0)), HALF, HALF)
    np.testing.assert_allclose(plain["image"], expected(jax.random.key(0), {"image": raw["image"]})["image"], atol=1e-6)


def test_how_much_is_erased():
    """Of a picture, before its sides are rounded to whole pixels."""
    raw = {"image": np.full((256, 64, 32, 3), 128, np.uint8)}
    for shares in ((0.02, 1 / 3), (0.05, 0.4), (0.3, 0.4)):
        settings = recipe(ROA, kind="erasing", erasing=1.0, erased_area=shares)
        covered = np.asarray(jax.jit(roa.roa(settings, HALF, HALF))(jax.random.key(0), raw)["covered"])
        rounded = (0.5 * (64 + 32) + 0.25) / (64 * 32)
        assert shares[0] - rounded <= covered.min() < shares[0] + 0.1 * (shares[1] - shares[0]) + rounded
        assert shares[1] + rounded >= covered.max() > shares[1] - 0.1 * (shares[1] - shares[0]) - rounded


def test_noise_before_pictures_are_normalised():
    """The same numbers stand in the box, normalised with the picture or not."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    raw = {"image": np.random.default_rng(4).integers(0, 256, (8, 64, 32, 3)).astype(np.uint8)}
    after, before = (
        jax.jit(roa.roa(recipe(ROA, kind="erasing", erasing=1.0, noise=noise), mean, std))(jax.random.key(0), raw)
        for noise in ("after", "before")
    )
    np.testing.assert_array_equal(after["image"], before["image"])
    inside = (np.abs(np.asarray(after["image"]) - np.asarray(after["occluded"])) > 1e-4).any(-1)
    assert 0.02 < inside.mean() < 1 / 3
    found, plain = np.asarray(before["occluded"]), np.asarray(after["occluded"])
    np.testing.assert_allclose(found[inside], (plain[inside] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(found[~inside], plain[~inside], atol=1e-6)
    assert abs(plain[inside].std() - 1) < 0.05


def test_objects_are_mirrored_with_the_stated_probability():
    cutout = np.concatenate([np.tile([255, 0, 0, 255], (24, 12, 1)), np.tile([0, 0, 255, 255], (24, 12, 1))], axis=1)
    raw = batch(64) | {"occluders": cutout[None].astype(np.uint8), "occluder_sides": np.array([[50, 50]], np.int32)}
    for probability in (0.0, 0.5, 1.0):
        run = jax.jit(roa.roa(recipe(ROA | {"flip": probability}, pad=0), HALF, HALF))
        seen = np.asarray(run(jax.random.key(0), raw)["occluded"])[:, 30:34, 2].reshape(-1, 3)  # every object reaches these rows
        red, blue = ((np.abs(seen - colour) < 1e-4).all(-1) for colour in ([1, -1, -1], [-1, -1, 1]))
        assert (red | blue).mean() > 0.9
        assert abs(blue.sum() / (red | blue).sum() - probability) < (0.2 if probability == 0.5 else 1e-9)


def test_an_object_is_pasted_with_the_stated_probability():
    raw = batch(64)
    covered = jax.jit(roa.roa(recipe(ROA, probability=0.25, kind="cut_and_paste"), HALF, HALF))(jax.random.key(0), raw)["covered"]
    assert 5 <= int((covered > 0).sum()) <= 28 and float(covered[covered > 0].min()) >= 0.46
    whole = jax.jit(roa.roa(recipe(ROA, kind="cut_and_paste"), HALF, HALF))(jax.random.key(0), raw)["covered"]
    assert float(whole.min()) >= 0.46  # the box's share, truncated to whole pixels


def test_labels_of_a_batch_follow_the_rule():
    raw = batch(32) | {"occluder_sides": np.full((3, 2), 50, np.int32)}  # horizontal ones
    run = jax.jit(npo.npo(recipe(NPO), HALF, HALF))
    official = run(jax.random.key(0), raw)
    paper = jax.jit(npo.npo(recipe(NPO, stripe_rule="coverage"), HALF, HALF))(jax.random.key(0), raw)
    np.testing.assert_array_equal(official["covered"], paper["covered"])
    np.testing.assert_array_equal(paper["visible"], 1.0 - (paper["covered"] > 0.75))
    hidden = np.asarray(official["visible"]) == 0
    assert hidden.any(1).all() and (np.asarray(official["covered"])[hidden] > 0).all()
    assert hidden.sum() >= (np.asarray(paper["visible"]) == 0).sum() > 0
    upright = run(jax.random.key(0), raw | {"occluder_sides": np.array([[61, 30]] * 3, np.int32)})
    assert upright["visible"].all() and (np.asarray(upright["covered"]) > 0.2).all()


def test_another_picture_of_the_person_as_twin():
    """Groups of three: the twin of each is the next one, as augmented, with its labels and its camera."""
    raw = batch(6, parts=np.random.default_rng(5).integers(0, 9, (6, 64, 32), np.uint8), camid=np.arange(6, dtype=np.int32))
    made = jax.jit(roa.roa(recipe(ROA, kind="other_image"), HALF, HALF, 3))(jax.random.key(0), raw)
    following = np.array([1, 2, 0, 4, 5, 3])
    for name, twin in (("image", "occluded"), ("parts", "occluded_parts"), ("camid", "occluded_camid")):
        np.testing.assert_array_equal(made[twin], np.asarray(made[name])[following])
    assert not made["covered"].any() and not np.array_equal(made["image"], made["occluded"])
    with pytest.raises(UserError, match="occlusion.kind is 'other_image', which needs several pictures of a person side by side"):
        roa.roa(recipe(ROA, kind="other_image"), HALF, HALF)


def test_unknown_words_are_named():
    with pytest.raises(UserError, match="augment.occlusion.kind is 'npo'; it must be one of roa"):
        roa.roa(recipe(ROA, kind="npo"), HALF, HALF)
    with pytest.raises(UserError, match="augment.occlusion.noise is 'never'; it must be one of after, before"):
        roa.roa(recipe(ROA, noise="never"), HALF, HALF)
    with pytest.raises(UserError, match="augment.occlusion.stripe_rule is 'area'; it must be one of difference, coverage"):
        npo.npo(recipe(NPO, stripe_rule="area"), HALF, HALF)
    with pytest.raises(KeyError, match="occluders"):
        roa.roa(recipe(ROA), HALF, HALF)(jax.random.key(0), {"image": np.zeros((1, 64, 32, 3), np.uint8)})
