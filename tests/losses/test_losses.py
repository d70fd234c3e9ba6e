"""Losses against the sheets' oracles and a few lines of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet, l2_normalise, squared_distances

FEATURES = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
LABELS = jnp.array([0, 0, 1, 1])


@pytest.mark.parametrize(("margin", "expected"), [(None, 4.403495), (0.3, 4.599113)])
def test_triplet_oracle(margin, expected):
    """Baselines sheet, oracle 5."""
    assert float(batch_hard_triplet(FEATURES, LABELS, margin)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.440190), (0.1, 0.590190)])
def test_cross_entropy_oracle(smoothing, expected):
    """Baselines sheet, oracle 7."""
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    assert float(cross_entropy(logits, jnp.array([0]), smoothing)) == pytest.approx(expected, abs=1e-5)


def test_triplet_against_numpy():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(24, 8)).astype(np.float32), rng.integers(0, 5, 24)
    distance = np.sqrt(np.maximum(((features[:, None] - features[None]) ** 2).sum(-1), 1e-12))
    same = labels[:, None] == labels[None]
    positive = np.where(same, distance, -np.inf).max(1)
    negative = np.where(same, np.inf, distance).min(1)
    expected = np.log1p(np.exp(positive - negative)).mean()
    assert float(batch_hard_triplet(jnp.asarray(features), jnp.asarray(labels), None)) == pytest.approx(expected, rel=1e-4)


def test_triplet_without_negatives_is_zero_with_a_finite_gradient():
    labels = jnp.zeros(4, jnp.int32)
    value, gradient = jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, 0.3))(FEATURES)
    assert float(value) == 0.0
    assert np.isfinite(gradient).all()


def test_triplet_gradient_is_finite_for_equal_features():
    gradient = jax.grad(lambda x: batch_hard_triplet(x, LABELS, None))(jnp.zeros((4, 3)))
    assert np.isfinite(gradient).all()


def test_distances_and_normalisation():
    a, b = np.random.default_rng(1).normal(size=(2, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(squared_distances(a, b), ((a[:, None] - b[None]) ** 2).sum(-1), rtol=1e-4, atol=1e-5)
    assert float(squared_distances(a, a).min()) >= 0.0
    np.testing.assert_allclose(jnp.linalg.norm(l2_normalise(a), axis=-1), 1.0, rtol=1e-6)
    assert not np.asarray(l2_normalise(jnp.zeros((2, 3)))).any()


def test_accuracy():
    assert float(accuracy(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]))) == 0.5
