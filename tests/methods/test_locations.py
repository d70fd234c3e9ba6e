"""Where the location comes from: truth, constant and chance against formulas, and how FED and DPEFormer use them."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.evaluation import selection
from occreid_jax.methods import locations
from occreid_jax.parts import OCCLUDED
from occreid_jax.types import Meta, PrepareContext

META = Meta(identities=4, cameras=3, image_size=(32, 16), images=8)
RNG = np.random.default_rng(0)
PARTS = (RNG.integers(0, 9, (8, 32, 16)) * RNG.integers(0, 2, (8, 32, 16)) + OCCLUDED * RNG.integers(0, 2, (8, 32, 16))).astype(
    np.uint8
)


@pytest.mark.parametrize("grid", [(4, 2), (4, 1), (5, 3), (32, 16)])
def test_shares_of_cells_are_those_of_the_evaluation(grid):
    visible = selection.cell_areas(PARTS, grid, lambda parts: (parts > 0) & (parts < OCCLUDED)) / (32 * 16)
    found = locations.visible_shares(jnp.asarray(PARTS), grid)
    assert found.dtype == jnp.float32 and found.shape == (8, *grid)
    np.testing.assert_allclose(found, visible, atol=1e-6)
    np.testing.assert_allclose(locations.cell_shares(PARTS >= OCCLUDED, grid), selection.covered_shares(PARTS, grid), atol=1e-6)


def test_what_of_the_person_nothing_covers():
    parts = np.zeros((1, 8, 4), np.uint8)
    parts[0, :2] = 1  # a stripe full of person
    parts[0, 2:4, :2] = 4
    parts[0, 3, :] |= OCCLUDED  # of the second stripe's four pixels of person two, and two of background
    parts[0, 4:6, 0] = 5 | OCCLUDED  # all that the third has
    parts[0, 6, :3] = OCCLUDED  # nobody in the last; three of eight pixels are covered
    np.testing.assert_array_equal(locations.uncovered_shares(jnp.asarray(parts), (4, 1))[0, :, 0], [1, 0.5, 0, 0.625])


def test_chance_does_not_know_the_batch():
    key = locations.role_key(0, "query")
    scores = np.asarray(locations.random_scores(key, jnp.arange(500), (4, 2)))
    np.testing.assert_array_equal(locations.random_scores(key, jnp.asarray([7, 3]), (4, 2)), scores[[7, 3]])
    assert 0 <= scores.min() and scores.max() < 1 and abs(scores.mean() - 0.5) < 0.02 and len(np.unique(scores)) > 3900
    for other in (locations.role_key(0, "gallery"), locations.role_key(1, "query")):
        assert not np.any(np.asarray(locations.random_scores(other, jnp.arange(500), (4, 2))) == scores)


def test_share_of_the_gap():
    assert locations.share_of_gap(30.0, 20.0, 60.0) == 0.25 and locations.share_of_gap(10.0, 20.0, 60.0) == -0.25
    assert locations.share_of_gap(30.0, 20.0, 20.0) is None and locations.share_of_gap(30.0, 20.0, 10.0) is None


# FED and DPEFormer --------------------------------------------------------------------------------------------------------


@functools.cache
def create(name: str, train: str = "learned", test: str = "learned", row: str = ""):
    config = importlib.import_module(f"configs.{name}").get_config(f"backbone=micro{row and f',row={row}'}")
    config.method.location.update(train=train, test=test)
    config.data.image_size = META.image_size
    config.method.update(patch=8, stride=8)
    config.stages.main.augment.occlusion.kind = "none"
    return methods.create(config, META)


@functools.cache
def started(name: str):
    method = create(name)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    return params, extra


def batch(mean=None) -> dict:
    images = RNG.normal(size=(8, *META.image_size, 3)).astype(np.float32)
    found = {
        "image": jnp.asarray(images), "occluded": jnp.asarray(images[::-1].copy()), "visible": jnp.ones((8, 4)),
        "covered": jnp.zeros(8), "camid": jnp.zeros(8, jnp.int32), "label": jnp.arange(8) // 2,
        "index": jnp.arange(8, dtype=jnp.int32), "valid": jnp.ones(8, bool), "parts": jnp.asarray(PARTS),
        "occluded_parts": jnp.asarray(PARTS | OCCLUDED),
    }  # fmt: skip
    return found if mean is None else found | {locations.MEAN: jnp.broadcast_to(mean, (8, *mean.shape))}


def test_tables_that_a_source_needs():
    for name in ("fed", "dpeformer"):
        method = create(name, "truth", "constant")
        (stage,) = method.stages()
        assert stage.inputs == ("image", "parts") and method.evaluation_inputs == ("image", locations.MEAN)
        plain = create(name)
        assert plain.stages()[0].inputs == plain.evaluation_inputs == ("image",)
    assert create("fed").location_grid == (4, 1) and create("dpeformer").location_grid == (4, 2)


def test_sources_that_make_no_sense():
    with pytest.raises(UserError, match="config.method.location.test is 'true'; it must be one of learned, random, constant, tr"):
        create("fed", test="true")
    for name, row in (("fed", "npo_fdm"), ("dpeformer", "roa_blending"), ("dpeformer", "baseline"), ("dpeformer", "fixed_128")):
        assert create(name, row=row).localises is None
        with pytest.raises(UserError, match="location.train is 'truth', but these settings leave nothing to localise"):
            create(name, train="truth", row=row)


def test_fed_multiplies_stripes_with_the_source():
    params, extra = started("fed")
    own = batch(jnp.asarray([[0.1], [0.2], [0.3], [0.4]]))
    encoded = create("fed").encode(params, own["image"], own["camid"])
    np.testing.assert_array_equal(encoded.weights, encoded.scores)
    expected = {
        "truth": locations.uncovered_shares(own["parts"], (4, 1))[..., 0],
        "constant": np.broadcast_to([0.1, 0.2, 0.3, 0.4], (8, 4)),
        "random": locations.random_scores(locations.role_key(0, "gallery"), own["index"], (4, 1))[..., 0],
    }
    for source, weights in expected.items():
        found = create("fed", test=source).embed(params, extra, own, "gallery")
        feature = (np.asarray(weights)[..., None] * encoded.parts).reshape(8, -1) / np.sqrt(1 + 1e-5)  # necks that saw nothing
        np.testing.assert_allclose(found, feature, atol=1e-5)


def test_stripes_that_are_not_seen_may_keep_a_weight():
    params, _ = started("fed")
    own = batch()
    config = create("fed", test="truth").config.copy_and_resolve_references()
    config.method.least_weight = 0.25
    method = methods.create(config, META)
    found = method.encode(params, own["image"], own["camid"])
    np.testing.assert_allclose(found.weights, 0.25 + 0.75 * found.scores, atol=1e-6)
    np.testing.assert_allclose(found.erased, found.weights[..., None] * found.parts, atol=1e-6)
    found = method.encode(params, own["image"], own["camid"], location=method.location_of(own, "query"))
    truth = locations.uncovered_shares(own["parts"], (4, 1))[..., 0]
    np.testing.assert_allclose(found.weights, 0.25 + 0.75 * truth, atol=1e-6)


def test_dpeformer_ranks_tokens_by_the_source():
    params, extra = started("dpeformer")
    mean = jnp.asarray(RNG.random((4, 2)), jnp.float32)
    own = batch(mean)
    learned = create("dpeformer").encode(params, own["image"], own["camid"]).selection
    expected = {
        "truth": locations.visible_shares(own["parts"], (4, 2)),
        "constant": np.broadcast_to(mean, (8, 4, 2)),
        "random": locations.random_scores(locations.role_key(0, "query"), own["index"], (4, 2)),
    }
    for source, scores in expected.items():
        method = create("dpeformer", test=source)
        shown = method.inspect(params, extra, own)
        np.testing.assert_allclose(shown["scores"], scores, atol=1e-6)
        np.testing.assert_array_equal(shown["k"], learned.count)
        for row, count, values in zip(shown["selected"], learned.count, scores, strict=True):
            best = np.argsort(-np.ravel(values), kind="stable")[: int(count)]
            np.testing.assert_array_equal(np.flatnonzero(row), np.sort(best))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fed", "dpeformer"])
def test_both_views_of_a_training_batch_have_their_own_truth(name):
    method = create(name, train="truth")
    params, extra = started(name)
    own, seen = batch(), []
    original = method.encode

    def encode(*arguments, location=None, **settings):
        seen.append(location)
        return original(*arguments, location=location, **settings)

    method.encode = encode
    try:
        total, aux = method.loss(params, extra, own, jax.random.key(0), method.stages()[0], jnp.float32(0))
    finally:
        del method.encode
    truths = [method.true_location(own[view]) for view in ("parts", "occluded_parts")]
    np.testing.assert_array_equal(seen[0][0::2], truths[0])
    np.testing.assert_array_equal(seen[0][1::2], truths[1])
    assert np.isfinite(total) and (name == "dpeformer" or aux.metrics["score_clean"] > 0)  # OEM is still taught
    own["index"] = own["index"] + 5
    chance = create(name, train="random")
    first, second = (chance.location_of_views(own, jax.random.key(seed), ["parts"] * 2) for seed in (0, 1))
    assert not np.any(np.asarray(first[0::2]) == first[1::2]) and not np.any(np.asarray(first) == second)


@pytest.mark.slow
def test_the_memory_begins_under_the_training_source():
    """FED with the paper's start of the first bank: means of what the source weighs."""
    params, extra = started("fed")
    own = batch()
    config = create("fed", train="truth").config.copy_and_resolve_references()
    config.method.bank_first = "erased"
    method = methods.create(config, META)

    def run(function, inputs):
        assert inputs == ("image", "parts")
        return np.asarray(function(params, extra, {name: own[name] for name in (*inputs, "camid", "index", "valid")}))

    context = PrepareContext(params, extra, jax.random.key(1), np.arange(8) // 2, np.zeros(8), run)
    found = method.prepare(method.stages()[0], 0, context)["bank"]["erased"]
    parts = method.encode(params, own["image"], own["camid"]).parts
    erased = (locations.uncovered_shares(own["parts"], (4, 1)) * parts).reshape(4, 2, -1).mean(axis=1)
    np.testing.assert_allclose(found, erased / np.sqrt(1 + 1e-5), atol=1e-5)
