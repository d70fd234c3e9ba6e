"""The supervised contrastive loss: the sheet's oracle, duplicates, padding, anchors without a positive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.losses.contrastive import image_text_contrastive, supervised_contrastive

IMAGES = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
TEXTS = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
LABELS = jnp.array([0, 0, 1])


@pytest.fixture
def batch():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (6, 4)), jnp.array([0, 1, 0, 2, 2, 1])


def test_oracle():
    """Baselines sheet, oracle 9."""
    to_text = supervised_contrastive(IMAGES, TEXTS, LABELS, LABELS)
    to_image = supervised_contrastive(TEXTS, IMAGES, LABELS, LABELS)
    assert float(to_text) == pytest.approx(1.298639, abs=1e-5)
    assert float(to_image) == pytest.approx(1.256048, abs=1e-5)
    assert float(image_text_contrastive(IMAGES, TEXTS, LABELS)) == pytest.approx(2.554687, abs=1e-5)
    for row, expected in enumerate([0.861995, 2.239545, 0.794377]):
        found = supervised_contrastive(IMAGES[row : row + 1], TEXTS, LABELS[row : row + 1], LABELS)
        assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_against_numpy(batch, temperature):
    images, texts, labels = (np.asarray(each) for each in batch)
    logits = images.astype(np.float64) @ texts.T / temperature
    log_probabilities = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_probabilities -= logits.max(1, keepdims=True)
    same = labels[:, None] == labels[None]
    expected = -np.mean([row[mask].mean() for row, mask in zip(log_probabilities, same, strict=True)])
    found = supervised_contrastive(*batch[:2], batch[2], batch[2], temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_equal_text_counts_again():
    """Twice every text: the positives' mean stays, the softmax is shared by twice as many, so the loss grows by log 2."""
    once = supervised_contrastive(IMAGES, TEXTS, LABELS, LABELS)
    twice = supervised_contrastive(IMAGES, jnp.concatenate([TEXTS, TEXTS]), LABELS, jnp.concatenate([LABELS, LABELS]))
    assert float(twice - once) == pytest.approx(np.log(2.0), abs=1e-5)


@pytest.mark.parametrize("filling", [0.0, 1e4, np.nan, np.inf])
def test_padding_touches_nothing(batch, filling):
    images, texts, labels = batch
    expected, slopes = jax.value_and_grad(image_text_contrastive, (0, 1))(images, texts, labels)
    padding = jnp.full((3, 4), filling)
    padded = jnp.concatenate([images, padding]), jnp.concatenate([texts, padding])
    valid = jnp.arange(9) < 6
    labels = jnp.concatenate([labels, jnp.zeros(3, labels.dtype)])  # padding bears the label of a real row
    value, gradients = jax.value_and_grad(lambda i, t: image_text_contrastive(i, t, labels, 1.0, valid), (0, 1))(*padded)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient[:6], slope, atol=1e-7)
        assert not gradient[6:].any()


def test_anchors_without_a_positive_do_not_count(batch):
    images, texts, labels = batch
    expected = supervised_contrastive(images[:4], texts, labels[:4], labels)
    strangers = jnp.concatenate([labels[:4], jnp.array([7, 8])])
    found = supervised_contrastive(images, texts, strangers, labels)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("case", ["nothing valid", "no positive", "one identity", "one row"])
def test_edge_cases_are_finite(batch, case):
    images, texts, labels = batch
    valid, others = jnp.ones(6, bool), labels
    if case == "nothing valid":
        valid = jnp.zeros(6, bool)
    if case == "no positive":
        others = labels + 10
    if case == "one identity":
        labels = others = jnp.zeros(6, jnp.int32)
    if case == "one row":
        valid = jnp.arange(6) == 2

    def loss(images, texts):
        return supervised_contrastive(images, texts, labels, others, 1.0, valid, valid)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(images, texts)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
    if case != "one identity":
        assert float(value) == pytest.approx(0.0, abs=1e-6)
    else:
        assert float(value) >= np.log(6.0) - 1e-6


def test_large_logits_stay_finite():
    assert np.isfinite(image_text_contrastive(100.0 * IMAGES, 100.0 * TEXTS, LABELS))
