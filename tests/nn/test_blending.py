"""The feature blending module against its equations written out in numpy, and the sheet's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from occreid_jax.nn.blending import FeatureBlending, feature_blending_flops


def randomised(module, width=32, seed=0):
    """Parameters with no zeros and ones left."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, width)), jnp.zeros((1, width)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


@functools.cache
def compiled(module):
    """The module as a compiled function of parameters, part and global feature."""
    return jax.jit(module.apply)


def inputs(width=32, count=3):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(count, width)).astype(np.float32) for _ in range(2))


def normed(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def written_out(p, part, whole, heads, shared):
    """Eq. 7 to 12 for one image, heads one after the other, float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p["params"])
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    streams = {}
    for number, (name, conv, source) in enumerate(
        (("query", "conv_part", part), ("key", "conv_key", whole), ("value", "conv_value", whole))
    ):
        pieces = np.stack([dense(source, conv)[16 * i : 16 * i + 16] for i in range(len(part) // 16)])
        pieces = pieces + p["pos_embedding"][0 if shared else number]
        streams[name] = normed(pieces, p["norm_sub" if shared else f"norm_{name}"])
    mixed = np.zeros_like(streams["query"]) + p["out"]["bias"]
    for head in range(heads):
        q, k, v = (streams[n] @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value"))
        logits = np.exp(q @ k.T / 4)
        mixed += (logits / logits.sum(-1, keepdims=True)) @ v @ p["out"]["kernel"][head]
    y = normed(part + mixed.reshape(-1), p["norm"])
    hidden = dense(y, "fc1")
    return y + dense(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), "fc2")


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_equations(heads, shared):
    module, (part, whole) = FeatureBlending(heads, shared), inputs(48)
    params = randomised(module, 48)
    found = compiled(module)(params, part, whole)
    assert found.dtype == jnp.float32
    expected = [written_out(params, one, other, heads, shared) for one, other in zip(part, whole, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_attention_of_two_sub_vectors():
    """A query and a key of 4 in the same channel have the logit 4: weights .982 and .018, and of the values 2 and -1 1.946."""
    module = FeatureBlending(heads=1)
    params = jax.tree.map(np.zeros_like, randomised(module))
    own = params["params"]
    high = (15 / 16) / np.sqrt(15 / 256 + 1e-6)  # of a normalised one-hot vector of 16 numbers; the others are low
    low = -high / 15
    own["pos_embedding"][:, 0, 0] = own["pos_embedding"][:, 1, 1] = 1
    for name, on, off in (("query", 4, 0), ("key", 4, 0), ("value", 2, -1)):
        own[f"norm_{name}"]["scale"] += 1
        slope = (on - off) / (high - low)
        own[name]["kernel"][0, 0, 0] = slope
        own[name]["bias"][0, 0] = off - slope * low
    own["out"]["kernel"][0, 0, 0] = 1
    _, state = jax.jit(lambda *values: module.apply(*values, capture_intermediates=True))(params, *inputs())
    mixed = state["intermediates"]["out"]["__call__"][0]
    assert mixed.shape == (3, 2, 16)
    np.testing.assert_allclose(mixed[:, 0, 0], 1.946041, atol=1e-5)
    np.testing.assert_allclose(mixed[:, 1, 0], 0.5, atol=1e-5)  # its query is zero
    np.testing.assert_allclose(mixed[..., 1:], 0, atol=1e-6)


def test_nothing_of_the_global_feature_without_the_output_layer():
    module, (part, whole) = FeatureBlending(), inputs()
    params, blend = randomised(module), compiled(module)
    with_it = blend(params, part, whole)
    assert float(np.abs(with_it - blend(params, part, whole + 1)).max()) > 1e-3
    params["params"]["out"] = jax.tree.map(np.zeros_like, params["params"]["out"])
    alone = blend(params, part, whole)
    np.testing.assert_array_equal(alone, blend(params, part, 3 * whole + 1))
    p = params["params"]
    y = normed(part, p["norm"])
    hidden = y @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    ffn = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))) @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    np.testing.assert_allclose(alone, y + ffn, rtol=1e-4, atol=1e-4)


def test_queries_are_the_part_s_and_keys_and_values_the_global_feature_s():
    module, (part, whole) = FeatureBlending(), inputs()
    slope = jax.jit(jax.grad(lambda params, whole: jnp.sum(module.apply(params, part, whole) ** 2)))
    slopes, silent = (slope(randomised(module), each)["params"] for each in (whole, 0 * whole))
    for name in ("conv_part", "conv_key", "conv_value"):
        assert slopes[name]["kernel"].any()
        assert silent[name]["kernel"].any() == (name == "conv_part")


def test_one_image_does_not_know_the_others():
    module, (part, whole) = FeatureBlending(), inputs()
    params, others = randomised(module), np.array([[0], [1], [1]])
    together = compiled(module)(params, part, whole)
    changed = compiled(module)(params, np.where(others, np.float32(9), part), np.where(others, np.float32(-9), whole))
    np.testing.assert_allclose(together[0], changed[0], atol=1e-6)


def test_sizes():
    def size(module, width):
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, width)), jnp.zeros((1, width)))
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert size(FeatureBlending(), 768) == 6_506_736
    per_head = 4 * 16 * 16 + 3 * 16
    assert size(FeatureBlending(), 768) - size(FeatureBlending(1), 768) == 7 * per_head
    assert size(FeatureBlending(), 768) - size(FeatureBlending(shared=True), 768) == 2 * (48 * 16 + 32)
    dense = 2 * (3 * 768**2 + 2 * 768 * 3072)
    sub_vectors = 2 * 48 * 4 * 16 * 128 + 2 * 2 * 48 * 48 * 128
    assert feature_blending_flops(768, 8) == dense + sub_vectors
    with pytest.raises(ValueError, match="features of 24 numbers cannot be cut into sub-vectors of 16"):
        size(FeatureBlending(), 24)


def test_bfloat16_stays_close():
    part, whole = inputs(64)
    module = FeatureBlending()
    params = jax.jit(module.init)(jax.random.key(0), part, whole)
    half = compiled(FeatureBlending(dtype=jnp.bfloat16))(params, part, whole)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, compiled(module)(params, part, whole), atol=0.1)
