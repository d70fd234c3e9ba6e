"""FED's parts against worked numbers: pooling, scores of stripes, search, gated FFN, how heads are joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from occreid_jax.nn.fed import Diffusion, FeatureDiffusion, FeedForward, OcclusionErasing, PartScore, search


def test_scores():
    """Oracle 4, in a network of width 8: its hidden width is 2."""
    params = {
        "compress": {"kernel": jnp.eye(8, 2), "bias": jnp.zeros(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "score": {"kernel": jnp.array([[1.0], [-1.0]]), "bias": jnp.array([0.5])},
    }
    features = jnp.zeros((2, 8)).at[:, :2].set(jnp.array([[3.0, 1], [1, 3]]))
    np.testing.assert_allclose(PartScore().apply({"params": params}, features), [0.924141, 0.182427], atol=1e-6)
    both = {"params": {"oem_0": params, "oem_1": params | {"score": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}}}
    found = OcclusionErasing().apply(both, jnp.stack([features, features], axis=1))
    np.testing.assert_allclose(found, [[0.924141, 0.5], [0.182427, 0.5]], atol=1e-6)


def test_search():
    bank = jnp.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.7, 0.7], [-1, 0]])
    feature = jnp.array([[1.0, 0.05], [1, 0.05]])
    np.testing.assert_array_equal(search(feature, bank, 2, jnp.array([1, 4])), [[0, 3], [0, 1]])
    np.testing.assert_array_equal(search(feature[:1], bank, 2), [[0, 1]])
    np.testing.assert_array_equal(search(7 * feature, 3 * bank, 4, jnp.array([1, 1])), [[0, 3, 2, 4]] * 2)


@pytest.mark.parametrize("seed", range(3))
def test_search_is_the_official_one(seed):
    """Which takes one more and drops the own identity, or the last one if that is not among them."""
    rng = np.random.default_rng(seed)
    bank, features, labels = rng.normal(size=(20, 6)), rng.normal(size=(30, 6)), rng.integers(0, 20, 30)
    found = search(jnp.asarray(features, jnp.float32), jnp.asarray(bank, jnp.float32), 8, jnp.asarray(labels))
    cosines = np.array([[row @ x / np.linalg.norm(row) / np.linalg.norm(x) for row in bank] for x in features])
    for own, label, row in zip(found, labels, np.argsort(-cosines, axis=1)[:, :9], strict=True):
        np.testing.assert_array_equal(own, row[row != label][:8])


def test_gated_ffn():
    """Oracle 8: values read the first number, gates the second."""
    value, gate = jnp.zeros((2, 8)).at[0].set(1), jnp.zeros((2, 8)).at[1].set(1)

    def run(kernel):
        params = {
            "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
            "fc1": {"kernel": kernel, "bias": jnp.zeros(16)},
            "fc2": {"kernel": jnp.full((8, 2), 0.25), "bias": jnp.zeros(2)},
        }
        return FeedForward().apply({"params": params}, jnp.array([[1.0, 3.0]]))

    np.testing.assert_allclose(run(jnp.concatenate([value, gate], axis=1)), [[-1.68267, -1.68267]], atol=1e-4)
    np.testing.assert_allclose(run(jnp.concatenate([gate, value], axis=1)), [[-0.31731, -0.31731]], atol=1e-4)
    np.testing.assert_allclose(run(jnp.concatenate([value, value], axis=1)), [[0.31731, 0.31731]], atol=1e-4)


def test_ffn_of_the_paper():
    ffn = FeedForward("postln_residual")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    variables = jax.jit(ffn.init)(jax.random.key(0), x)
    first, second = (jax.tree.map(np.asarray, variables["params"][name]) for name in ("fc1", "fc2"))
    assert first["kernel"].shape == (4, 16)
    hidden = x @ first["kernel"] + first["bias"]
    added = x + (0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))) @ second["kernel"] + second["bias"]
    expected = (added - added.mean(-1, keepdims=True)) / np.sqrt(added.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ffn.apply(variables, x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="unknown ffn 'swiglu'"):
        FeedForward("swiglu").init(jax.random.key(0), x)


def sines(start: int, *shape) -> jnp.ndarray:
    return jnp.asarray(np.sin(np.arange(start, start + np.prod(shape))).reshape(shape), jnp.float32)


CORRECT = (1.543911, -0.406952, -1.425488, 0.82177, 1.31804, -1.256989, -0.952256, 1.534095)
SCRAMBLED = (
    (1.543911, -0.406952, -1.425488, 0.82177, 1.6562, 0.842735, -1.901436, -0.289417),
    (1.31804, -1.256989, -0.952256, 1.534095, 1.980746, -0.290643, -1.896169, 0.842429),
)


def test_joined_heads():
    """Oracle 9."""
    params = {
        "query": {"kernel": 0.5 * sines(1, 8, 8).T},
        "key_value": {"kernel": 0.5 * sines(2, 16, 8).T},
        "out": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)},
    }
    plain, scrambled = (
        Diffusion(2, 2**-0.5, scramble).apply({"params": params}, sines(1, 2, 8), sines(3, 2, 3, 8)) for scramble in (False, True)
    )
    np.testing.assert_allclose(plain[0], CORRECT, atol=2e-5)
    np.testing.assert_allclose(scrambled, SCRAMBLED, atol=2e-5)


@pytest.mark.parametrize("scramble", [False, True])
def test_whose_memory_reaches_whom(scramble):
    """In a batch of 64: rows r with r mod 8 = b // 8 where the heads are scrambled, otherwise row b alone."""
    module = FeatureDiffusion(8, 0.5, scramble)
    rng = np.random.default_rng(0)
    features, memory = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((64, 32), (64, 3, 32)))
    scores = jnp.ones((64, 4))
    variables, run = jax.jit(module.init)(jax.random.key(0), features, scores, memory), jax.jit(module.apply)
    plain = run(variables, features, scores, memory)
    for image in (0, 13, 63):
        moved = run(variables, features, scores, memory.at[image].add(0.5))
        rows = np.flatnonzero(np.abs(np.asarray(moved - plain)).max(axis=(1, 2)) > 1e-6)
        np.testing.assert_array_equal(rows, [r for r in range(64) if r % 8 == image // 8] if scramble else [image])


def test_scores_weigh_what_is_taken():
    """With scores of 0 nothing of the memory arrives: the second FFN sees the feature alone (Eq. 7)."""
    module = FeatureDiffusion(2, 0.5)
    features, memory = sines(1, 3, 16), sines(2, 3, 2, 16)
    variables, run = jax.jit(module.init)(jax.random.key(0), features, jnp.ones((3, 4)), memory), jax.jit(module.apply)
    nothing = run(variables, features, jnp.zeros((3, 4)), memory)
    expected = FeedForward().apply({"params": variables["params"]["ffn2"]}, features.reshape(3, 4, 4))
    np.testing.assert_allclose(nothing, expected, atol=1e-6)
    one = run(variables, features, jnp.zeros((3, 4)).at[:, 1].set(1), memory)
    changed = np.abs(np.asarray(one - nothing)).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(changed, [False, True, False, False])
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        FeatureDiffusion(3, 0.5).init(jax.random.key(0), features, jnp.ones((3, 4)), memory)
