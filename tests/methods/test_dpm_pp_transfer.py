"""DPM++: which patches are transferred, as the network learned or another source says, and what a report shows of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.methods import locations
from occreid_jax.methods.base import LOCATION_KEY
from occreid_jax.methods.dpm_pp import METRIC
from tests.methods.test_dpm_pp import FIXED, META, batch, create, stage_of, started


def halves() -> np.ndarray:
    """Body-part labels uint8 [12, 64, 32]: the person fills the upper half of pictures 0 to 5, the lower half of the others."""
    parts = np.zeros((12, *META.image_size), np.uint8)
    parts[:6, :32] = parts[6:, 32:] = 4
    return parts


def test_illustrations():
    method = create(**FIXED)
    params, extra = started()
    parts = jnp.full((12, *META.image_size), 4, jnp.uint8)  # a person everywhere
    shown = method.illustrate(params, extra, batch() | {"parts": parts}, jax.random.key(0))
    assert shown["correlation of the heads"].shape == (2, 2)
    panels = shown["target, partner, salient patches of the partner, new sample"]
    assert panels.shape == (8, 4, *META.image_size, 3)
    salient = method.selection.mask(method.selection.saliency(params["selection"], batch()["image"]), method.visual.grid)
    transfer = method.transfer.partners(jax.random.split(jax.random.key(0))[0], salient, batch()["label"], probability=1.0)
    assert transfer.used.all()
    image, partner = np.asarray(batch()["image"]), np.asarray(transfer.partner)
    pixels = np.kron(np.asarray(salient).reshape(12, 4, 2), np.ones((1, 16, 16), bool))[..., None]
    for row in range(8):
        target, lender, hole = image[row], image[partner[row]], pixels[partner[row]]
        made = np.where(hole, target, lender)
        for panel, expected in zip(panels[row], (target, lender, np.where(hole, lender, 0), made), strict=True):
            np.testing.assert_allclose(panel, expected, atol=1e-6)
    covered = np.asarray(shown["covered share of the person"])
    np.testing.assert_allclose(covered, 1 - np.asarray(salient)[partner].mean(axis=1), atol=1e-5)
    target = create(**FIXED | {"transfer.hole_of": "target"})
    shown = target.illustrate(params, extra, batch(), jax.random.key(0))
    panels = shown["target, partner, salient patches of the target, new sample"]
    for row in range(8):
        np.testing.assert_allclose(panels[row, 2], np.where(pixels[row], image[row], 0), atol=1e-6)
        np.testing.assert_allclose(panels[row, 3], np.where(pixels[row], image[row], image[partner[row]]), atol=1e-6)


def test_how_much_of_either_person_a_sample_shows():
    """All cells of the lower half are salient: pictures of the first six keep nothing of their person, and all of a donor's of
    the same kind is left; of the others it is the other way round."""
    method = create(**FIXED, **{"location.train": "truth"})
    lower = jnp.zeros((12, 4, 2)).at[:, 2:].set(1.0)
    shown = method.transfer.illustrate({}, batch() | {"parts": jnp.asarray(halves())}, jax.random.key(0), lower)
    key, _ = jax.random.split(jax.random.key(0))
    partner = np.asarray(method.transfer.partners(key, lower.reshape(12, -1) > 0, batch()["label"], probability=1.0).partner)
    target_lower, donor_lower = np.arange(12) >= 6, partner >= 6
    assert {(bool(t), bool(d)) for t, d in zip(target_lower, donor_lower, strict=True)} == {
        (t, d) for t in (False, True) for d in (False, True)
    }
    kept, strange = target_lower.astype(float), (~donor_lower).astype(float)
    np.testing.assert_allclose(shown["covered share of the person"], 1 - kept, atol=1e-5)
    np.testing.assert_allclose(shown["share of the donor's person left"], strange, atol=1e-5)
    np.testing.assert_array_equal(shown["donor > target"], (strange > kept).astype(float))


@pytest.mark.parametrize("source", ["truth", "constant", "random"])
def test_salient_patches_of_another_source(source):
    """They meet the threshold of the learned ones; no selection network is built or trained for them."""
    method = create(**FIXED, **{"location.train": source})
    assert method.selection is None and [stage.name for stage in method.stages()] == ["prompts", METRIC]
    assert stage_of(method, METRIC).inputs == ("image", *locations.TABLES[source])
    params, extra = started()
    mean = np.random.default_rng(0).random((4, 2)).astype(np.float32)
    own = batch() | {"parts": jnp.asarray(halves()), locations.MEAN: jnp.broadcast_to(mean, (12, 4, 2))}
    key = jax.random.key(3)
    chance = locations.random_scores(jax.random.fold_in(key, LOCATION_KEY), own["index"], (4, 2))
    cells = {"truth": halves()[:, ::16, ::16] > 0, "constant": np.broadcast_to(mean >= 0.5, (12, 4, 2)), "random": chance >= 0.5}
    found = jax.jit(method.recombination)(params, own, key)
    np.testing.assert_array_equal(found.salient, np.asarray(cells[source]).reshape(12, 8))
    if source == "truth":
        np.testing.assert_array_equal(method.true_location(own["parts"]), halves()[:, ::16, ::16] > 0)
        _, aux = method.loss(params, extra, own, key, stage_of(method, METRIC), jnp.float32(0))
        assert float(aux.metrics["selected"]) == 0.5 and float(aux.metrics["transferred"]) == 1


def test_nothing_is_localised_without_transfer():
    assert create(transfer__on=False).localises is None and create().localises.when == ("train",)
