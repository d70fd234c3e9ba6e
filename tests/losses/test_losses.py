"""Cross entropy, triplets and the centre loss against the sheets' oracles and a few lines of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, adaptive_smoothing, cross_entropy
from occreid_jax.losses.metric import (
    batch_distances,
    batch_hard_triplet,
    centre_loss,
    hardest_pairs,
    squared_distances,
    weighted_triplet,
)
from occreid_jax.losses.totals import clip_reid_total, global_and_parts, transreid_total
from occreid_jax.vectors import unit_vectors

FEATURES = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
LABELS = jnp.array([0, 0, 1, 1])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(24, 8)).astype(np.float32)), jnp.asarray(rng.integers(0, 5, 24))


def numpy_pairs(features, labels):
    """Distances to the hardest positive and negative, in double precision."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    distance = np.sqrt(np.maximum(((features[:, None] - features[None]) ** 2).sum(-1), 1e-12))
    same = labels[:, None] == labels[None]
    return np.where(same, distance, -np.inf).max(1), np.where(same, np.inf, distance).min(1)


@pytest.mark.parametrize(("margin", "expected"), [(None, 4.403495), (0.3, 4.599113)])
def test_triplet_oracle(margin, expected):
    """Baselines sheet, oracle 5."""
    assert float(batch_hard_triplet(FEATURES, LABELS, margin)) == pytest.approx(expected, abs=1e-5)
    pairs = hardest_pairs(batch_distances(FEATURES), LABELS)
    np.testing.assert_allclose(pairs.positive, [5, 5, 9.219544, 9.219544], rtol=1e-6)
    np.testing.assert_allclose(pairs.negative, [1, 4.242641, 5, 1], rtol=1e-6)
    assert pairs.has_negative.all()


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.440190), (0.1, 0.590190)])
def test_cross_entropy_oracle(smoothing, expected):
    """Baselines sheet, oracle 7."""
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    assert float(cross_entropy(logits, jnp.array([0]), smoothing)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.407606), (0.1, 0.507606)])
def test_image_to_text_oracle(smoothing, expected):
    """Baselines sheet, oracle 10."""
    logits = jnp.array([[1.0, 2.0]]) @ jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).T
    assert float(cross_entropy(logits, jnp.array([2]), smoothing)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("convention", ["all", "rest"])
def test_smoothing_is_cross_entropy_to_the_smoothed_target(convention):
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    hot = np.eye(5)[labels]
    target = 0.7 * hot + (0.3 / 5 if convention == "all" else 0.3 / 4 * (1 - hot))
    np.testing.assert_allclose(target.sum(1), 1.0)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(target * log_probabilities).sum(1).mean()
    found = float(cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), 0.3, convention))
    assert found == pytest.approx(expected, rel=1e-5)


def test_conventions_agree_up_to_the_share():
    """eps over all K classes is the same target as eps (K - 1) / K over the others."""
    logits, labels = jax.random.normal(jax.random.key(0), (7, 5)), jnp.arange(7) % 5
    rest = cross_entropy(logits, labels, 0.1 * 4 / 5, "rest")
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), rest, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.0, "rest"), cross_entropy(logits, labels), rtol=1e-6)


def test_smoothing_per_row():
    logits, labels = jax.random.normal(jax.random.key(1), (4, 5)), jnp.arange(4)
    shares = jnp.array([0.0, 0.1, 0.2, 0.5])
    rows = [cross_entropy(logits[i : i + 1], labels[i : i + 1], float(shares[i]), "rest") for i in range(4)]
    np.testing.assert_allclose(cross_entropy(logits, labels, shares, "rest"), np.mean(rows), rtol=1e-6)


def test_adaptive_smoothing_follows_the_confidence_and_has_no_gradient():
    logits, labels = jnp.array([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), jnp.array([0, 1])
    np.testing.assert_allclose(adaptive_smoothing(logits, labels), [0.2 * np.exp(9) / (np.exp(9) + 2), 0.2 / 3], rtol=1e-6)
    assert not jax.grad(lambda x: adaptive_smoothing(x, labels).sum())(logits).any()


def test_cross_entropy_takes_half_precision_and_returns_float32():
    logits = jax.random.normal(jax.random.key(2), (4, 5)).astype(jnp.bfloat16)
    assert cross_entropy(logits, jnp.arange(4), 0.1, "rest").dtype == jnp.float32


def test_unknown_words_are_refused():
    with pytest.raises(UserError, match="conventions"):
        cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), 0.1, "some")
    with pytest.raises(UserError, match="two classes"):
        cross_entropy(jnp.zeros((1, 1)), jnp.array([0]), 0.1, "rest")
    with pytest.raises(UserError, match="distances"):
        batch_hard_triplet(FEATURES, LABELS, None, distance="city block")


def test_triplet_against_numpy(batch):
    positive, negative = numpy_pairs(*batch)
    assert float(batch_hard_triplet(*batch, None)) == pytest.approx(np.log1p(np.exp(positive - negative)).mean(), rel=1e-4)


def test_triplet_options_against_numpy(batch):
    features, labels = batch
    unit = np.asarray(features) / np.linalg.norm(features, axis=1, keepdims=True)
    positive, negative = numpy_pairs(unit, labels)
    expected = np.maximum(positive - negative + 0.3, 0).mean()
    assert float(batch_hard_triplet(features, labels, 0.3, normalise=True)) == pytest.approx(expected, rel=1e-4)
    expected = np.maximum(positive**2 - negative**2 + 0.3, 0).mean()
    assert float(batch_hard_triplet(features, labels, 0.3, distance="cosine")) == pytest.approx(expected, rel=1e-4)
    positive, negative = numpy_pairs(features, labels)
    expected = np.maximum(1.1 * positive - 0.9 * negative + 0.3, 0).mean()
    assert float(batch_hard_triplet(features, labels, 0.3, hard_factor=0.1)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"hard_factor": 0.1}, {"distance": "cosine"}])
def test_triplet_without_negatives_is_zero_with_a_finite_gradient(options):
    labels = jnp.zeros(4, jnp.int32)
    value, gradient = jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, 0.3, **options))(FEATURES)
    assert float(value) == 0.0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet])
@pytest.mark.parametrize("normalise", [False, True])
def test_triplet_gradient_is_finite_for_equal_features(loss, normalise):
    for features in (jnp.ones((4, 3)), jnp.zeros((4, 3)), jnp.full((4, 3), 1e-30)):
        gradient = jax.grad(lambda x: loss(x, LABELS, None, normalise))(features)
        assert np.isfinite(gradient).all()


def test_weighted_triplet_against_numpy(batch):
    features, labels = np.asarray(batch[0], np.float64), np.asarray(batch[1])
    distance = np.sqrt(((features[:, None] - features[None]) ** 2).sum(-1))
    expected = []
    for row, same in zip(distance, labels[:, None] == labels[None], strict=True):
        pull, push = np.exp(row[same] - row[same].max()), np.exp(-row[~same])
        positive, negative = (pull * row[same]).sum() / (pull.sum() + 1e-6), (push * row[~same]).sum() / (push.sum() + 1e-6)
        expected.append(max(positive - negative + 0.3, 0.0))
    assert float(weighted_triplet(*batch, 0.3)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_centre_loss_against_numpy(batch):
    features, labels = batch
    centres = jax.random.normal(jax.random.key(4), (5, 8))
    expected = ((np.asarray(features, np.float64) - np.asarray(centres)[labels]) ** 2).sum(1).mean()
    assert float(centre_loss(features, labels, centres)) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(lambda c: centre_loss(features, jnp.zeros_like(labels), c))(centres)
    assert gradient[0].any() and not gradient[1:].any()


def test_totals():
    """TransReID weighs the global branch like all parts together, CLIP-ReID sums."""
    assert float(global_and_parts([jnp.float32(2.0), jnp.float32(1.0), jnp.float32(5.0)])) == 2.5
    assert float(global_and_parts([jnp.float32(2.0)])) == 2.0
    logits = [jax.random.normal(jax.random.key(i), (4, 3)) for i in range(3)]
    entropies = [float(cross_entropy(each, LABELS)) for each in logits]
    triplet = float(batch_hard_triplet(FEATURES, LABELS, None))
    expected = 2.0 * (0.5 * entropies[0] + 0.25 * (entropies[1] + entropies[2])) + 3.0 * triplet
    found = transreid_total(logits, [FEATURES] * 3, LABELS, identity_weight=2.0, triplet_weight=3.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    found = clip_reid_total(logits[:2], [FEATURES] * 3, None, LABELS, None, 0.0)
    assert float(found) == pytest.approx(0.25 * sum(entropies[:2]) + 3 * triplet, rel=1e-6)
    with_text = clip_reid_total(logits[:2], [FEATURES] * 3, logits[2], LABELS, None, 0.0, image_text_weight=0.5)
    assert float(with_text - found) == pytest.approx(0.5 * entropies[2], rel=1e-5)


def test_distances_and_normalisation():
    a, b = np.random.default_rng(1).normal(size=(2, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(squared_distances(a, b), ((a[:, None] - b[None]) ** 2).sum(-1), rtol=1e-4, atol=1e-5)
    assert float(squared_distances(a, a).min()) >= 0.0
    np.testing.assert_allclose(unit_vectors(a), a / np.linalg.norm(a.astype(np.float64), axis=-1, keepdims=True), rtol=1e-6)
    zero = jnp.zeros((2, 3))
    assert not unit_vectors(zero).any() and not jax.grad(lambda x: jnp.sum(unit_vectors(x)))(zero).any()


def test_accuracy():
    assert float(accuracy(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]))) == 0.5
