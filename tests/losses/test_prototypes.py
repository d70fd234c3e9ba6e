"""Masked prototypes, margins on them, what is left out for a recombined image: the sheet's numbers and direct formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.losses import regularisers
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.losses.margin import angular_margin
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.losses.prototypes import ORDERS, SIDES, masked_cosines

PROTOTYPES = jnp.array([[2.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 3, 4]])
FEATURES = jnp.array([[1.0, 1, 1, 1], [3, 0, 0, 4]])
MASKS = jnp.array([[1.0, 0.5, 0, 0.5], [0.5, 0.5, 0.5, 0.5]])
COSINES = [[0.5, 0.670820, 0.5], [0.6, 0.424264, 0.64]]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def direct(features, prototypes, masks, side, order):
    """The formula as it is written, with one masked prototype per image and class."""
    features, prototypes = unit(features)[:, None], unit(prototypes)[None]
    masks = masks[:, None]
    if side != "prototype":
        features = features * masks
    if side != "feature":
        prototypes = prototypes * masks
    if order == "before":
        features, prototypes = unit(features), unit(prototypes)
    return (features * prototypes).sum(-1)


def test_cosines_of_the_sheet():
    np.testing.assert_allclose(masked_cosines(FEATURES, PROTOTYPES, MASKS), COSINES, atol=1e-6)
    np.testing.assert_allclose(masked_cosines(FEATURES, PROTOTYPES, 7 * MASKS), COSINES, atol=1e-6)  # the scale of a mask is free
    gallery = jnp.concatenate([PROTOTYPES, jnp.ones((1, 4))])
    found = masked_cosines(FEATURES[:1], gallery, MASKS[:1])
    np.testing.assert_allclose(found, [[0.5, 0.670820, 0.5, 0.816497]], atol=1e-6)  # oracle 13, the test metric


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_place_of_the_mask(side, order):
    """Table IV: two matrix products equal the direct formula."""
    rng = np.random.default_rng(0)
    features, prototypes, masks = rng.normal(size=(5, 32)), rng.normal(size=(7, 32)), rng.random((5, 32))
    found = masked_cosines(*(jnp.asarray(x, jnp.float32) for x in (features, prototypes, masks)), side, order)
    np.testing.assert_allclose(found, direct(features, prototypes, masks, side, order), atol=1e-6)


def test_one_sided_masks_after_the_norm_are_the_same():
    arguments = FEATURES, PROTOTYPES, MASKS
    one, other = (masked_cosines(*arguments, side, "after") for side in ("feature", "prototype"))
    np.testing.assert_array_equal(one, other)


def test_empty_masks_and_zero_features_have_finite_gradients():
    def total(features, masks):
        return masked_cosines(features, PROTOTYPES, masks).sum()

    gradients = jax.grad(total, argnums=(0, 1))(FEATURES.at[1].set(0), jnp.zeros_like(MASKS))
    assert all(np.isfinite(x).all() for x in gradients)


def test_margins_of_the_sheet():
    cosines, labels = jnp.asarray(COSINES), jnp.array([0, 2])
    logits = angular_margin(cosines, labels, 30.0, 0.5)
    np.testing.assert_allclose(logits, [[0.7079, 20.1246, 15.0], [18.0, 12.7279, 5.7982]], atol=1e-4)
    losses = [float(cross_entropy(logits[i : i + 1], labels[i : i + 1])) for i in range(2)]
    np.testing.assert_allclose([*losses, cross_entropy(logits, labels)], [19.4226, 12.2069, 15.8148], atol=1e-4)
    plain = FEATURES @ PROTOTYPES.T
    np.testing.assert_allclose(plain, [[2, 2, 7], [6, 3, 16]])
    np.testing.assert_allclose(cross_entropy(plain, labels), 2.506717, atol=1e-6)
    target = jnp.diagonal(angular_margin(cosines, labels, 30.0, 0.3)[:, np.array([0, 2])])
    np.testing.assert_allclose(target, [6.6522, 11.5304], atol=1e-4)


@pytest.mark.parametrize("margin, expected", [(0.5, [8.1579, -8.8267, -35.6914]), (0.3, [13.7308, -2.9545, -29.9954])])
def test_margin_on_single_cosines(margin, expected):
    cosines = jnp.array([[0.7], [0.2], [-0.95]])
    np.testing.assert_allclose(angular_margin(cosines, jnp.zeros(3, jnp.int32), 30.0, margin)[:, 0], expected, atol=1e-4)


def test_cross_entropy_without_a_class():
    logits, labels = jnp.array([[2.0, 1, 0, 1.5]]), jnp.array([0])
    out = jnp.array([3])
    np.testing.assert_allclose(cross_entropy(logits, labels), 0.746567, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, labels, left_out=out), 0.407606, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), 0.834067, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1, left_out=out), 0.507606, atol=1e-6)
    for convention in ("all", "rest"):
        kept = cross_entropy(logits[:, :3], labels, 0.1, convention)
        np.testing.assert_allclose(cross_entropy(logits, labels, 0.1, convention, out), kept, rtol=1e-6)
        slope = jax.grad(lambda x, c=convention: cross_entropy(x, labels, 0.1, c, out))(logits)
        assert slope[0, 3] == 0 and np.isfinite(slope).all()
        none = cross_entropy(logits, labels, 0.1, convention, jnp.array([-1]))
        np.testing.assert_allclose(none, cross_entropy(logits, labels, 0.1, convention), rtol=1e-6)


def test_triplet_without_some_negatives():
    points = jnp.array([[0.0, 0], [0, 3], [4, 0], [4, 3], [1, 1], [1, 2]])
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    rows = jnp.zeros((6, 6), bool).at[4, jnp.array([0, 1])].set(True)
    for ignored, expected in ((None, 0.964907), (rows, 0.898503), (rows | rows.T, 0.794214)):
        np.testing.assert_allclose(batch_hard_triplet(points, labels, None, ignored=ignored), expected, atol=1e-6)
    np.testing.assert_allclose(batch_hard_triplet(points[:4], labels[:4], None), 0.313262, atol=1e-6)
    assert float(batch_hard_triplet(points[:4], labels[:4], 0.3)) == 0
    everything = labels[:, None] != labels[None]
    slope = jax.grad(lambda x: batch_hard_triplet(x, labels, 0.3, ignored=everything))(points)
    assert not slope.any()  # an anchor without a negative counts as zero


# Regularisers -------------------------------------------------------------------------------------------------------------

ALIKE = np.array([[3.0, 4, 0, 0], [0, 0, 2, 0], [4, 3, 0, 0]])
APART = np.array([[1.0, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1]])


def test_head_enrichment_of_the_sheet():
    alike, both = jnp.asarray(ALIKE)[None], jnp.asarray(np.stack([ALIKE, APART]))
    np.testing.assert_allclose(regularisers.head_correlation(alike)[0, 0, 2], 0.96, atol=1e-4)
    np.testing.assert_allclose(regularisers.head_enrich(alike), 1.8432, atol=1e-4)
    np.testing.assert_allclose(regularisers.head_enrich(alike, "official"), 0.2048, atol=1e-5)
    np.testing.assert_allclose(regularisers.head_enrich(jnp.asarray(APART)[None]), 0, atol=1e-5)
    np.testing.assert_allclose(regularisers.head_enrich(both, "official"), 0.2048, atol=1e-5)
    np.testing.assert_allclose(regularisers.head_enrich(both), 0.9216, atol=1e-4)
    twelve = jnp.broadcast_to(jnp.array([1.0, 2, 3, 4]), (1, 12, 4))
    np.testing.assert_allclose(regularisers.head_enrich(twelve), 132, atol=1e-3)
    np.testing.assert_allclose(regularisers.head_enrich(twelve, "official"), 0.9167, atol=1e-4)
    soft = [regularisers.head_enrich(jax.nn.softmax(jnp.asarray(x)[None], -1), "official") for x in (ALIKE, APART)]
    np.testing.assert_allclose(soft, [0.1091, 0.3444], atol=1e-4)
    with pytest.raises(ValueError, match="unknown reduction"):
        regularisers.head_enrich(both, "sum")


def test_budget_of_the_sheet():
    saliency = jnp.array([[0.9, 0.8, 0.1, 0], [0.6, 0.2, 0.2, 0]])
    np.testing.assert_allclose(regularisers.budget(saliency, 0.3), 0.0025, atol=1e-7)
    np.testing.assert_allclose(regularisers.budget(saliency, 0.3, "image"), 0.0125, atol=1e-7)


def test_overlap_of_predictions():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 6, 5))
    first, second = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (one, other))
    expected = (first * second).sum()
    np.testing.assert_allclose(regularisers.overlap(jnp.asarray(one), jnp.asarray(other)), expected, rtol=1e-6)
