"""Memory banks against the sheets' worked numbers and against a loop over the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import banks
from occreid_jax.errors import UserError


def test_worked_numbers():
    samples, labels = jnp.array([[0.0, 1], [1, 1], [2, 0]]), jnp.zeros(3, jnp.int32)
    bank = jnp.array([[1.0, 0]])
    np.testing.assert_allclose(banks.update_bank(bank, samples, labels, 0.2), [[1.768, 0.192]], atol=1e-6)
    np.testing.assert_allclose(banks.update_bank(bank, samples, labels, 0.2, "mean"), [[1.0, 0.533333]], atol=1e-6)
    np.testing.assert_allclose(banks.update_bank(bank, samples[:2], labels[:2], 0.2), [[0.84, 0.96]], atol=1e-6)
    once = banks.update_bank(bank, jnp.array([[3.0, 3]]), labels[:1], 0.2)  # a bank that two branches share
    np.testing.assert_allclose(banks.update_bank(once, jnp.array([[0.0, 1]]), labels[:1], 0.2), [[0.52, 1.28]], atol=1e-6)


@pytest.mark.parametrize("rule", banks.RULES)
def test_updates_equal_a_loop(rule):
    rng = np.random.default_rng(0)
    bank, features, labels = rng.normal(size=(7, 5)), rng.normal(size=(20, 5)), rng.integers(0, 6, 20)
    expected = bank.copy()
    if rule == "sequential":
        for feature, label in zip(features, labels, strict=True):
            expected[label] = 0.2 * expected[label] + 0.8 * feature
    else:
        for label in np.unique(labels):
            expected[label] = 0.2 * expected[label] + 0.8 * features[labels == label].mean(axis=0)
    arguments = jnp.asarray(bank, jnp.float32), jnp.asarray(features), jnp.asarray(labels, jnp.int32)
    np.testing.assert_allclose(banks.update_bank(*arguments, 0.2, rule), expected, atol=1e-6)
    padded = jnp.concatenate([arguments[1], jnp.full((3, 5), jnp.nan)]), jnp.concatenate([arguments[2], jnp.zeros(3, jnp.int32)])
    found = banks.update_bank(arguments[0], *padded, 0.2, rule, valid=jnp.arange(23) < 20)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_several_devices_give_the_same_bank():
    devices = jax.devices()[:4]
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    rng = np.random.default_rng(1)
    bank = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    features, labels = rng.normal(size=(16, 3)).astype(np.float32), np.repeat(np.arange(4), 4).astype(np.int32)
    update = jax.jit(lambda b, f, y: banks.update_bank(b, f, y, 0.2))
    split = update(bank, jax.device_put(features, sharded), jax.device_put(labels, sharded))
    np.testing.assert_allclose(split, update(bank, features, labels), atol=1e-6)


def test_contrastive_loss():
    cosines = np.array([[0.9, 0.8, 0.5], [0.1, 0.9, 0.5], [0.6, 0.7, 0.2]])
    for row, plain, floored in zip(cosines, (0.1272234, 16.000336, 2.1269680), (0.1272223, 13.708903, None), strict=True):
        bank = jnp.asarray(2 * np.stack([row, np.sqrt(1 - row**2)], axis=1), jnp.float32)
        feature, label = jnp.array([[3.0, 0.0]]), jnp.zeros(1, jnp.int32)
        np.testing.assert_allclose(banks.info_nce(feature, bank, label, 0.05, 0.0), [plain], rtol=2e-5)
        if floored is not None:
            np.testing.assert_allclose(banks.info_nce(feature, bank, label), [floored], rtol=2e-5)


def test_no_gradient_reaches_the_bank():
    bank, features, labels = jnp.eye(3), jnp.ones((2, 3)) + jnp.eye(2, 3), jnp.array([0, 1])
    slopes = jax.grad(lambda b, f: banks.info_nce(f, b, labels).sum() + banks.update_bank(b, f, labels, 0.2).sum(), (0, 1))
    to_bank, to_features = slopes(bank, features)
    assert not to_bank.any() and to_features.any()
    updated = jax.grad(lambda f: banks.update_bank(bank, f, labels, 0.2).sum())(features)
    assert not updated.any()


def test_first_rows_are_means():
    features, labels = np.array([[1.0, 0], [3, 0], [0, 5]], np.float32), np.array([0, 0, 1])
    np.testing.assert_array_equal(banks.identity_means(features, labels, 2), [[2, 0], [0, 5]])
    with pytest.raises(UserError, match=r"none of labels \[2\]"):
        banks.identity_means(features, labels, 3)
    with pytest.raises(ValueError, match="unknown rule"):
        banks.update_bank(jnp.eye(2), jnp.eye(2), jnp.arange(2), 0.2, "median")
