"""The jigsaw patch module: its order of patches, what each branch sees, and what it costs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn.jpm import JigsawPatchModule, jigsaw_order
from occreid_jax.nn.vit import SIZES


@pytest.mark.parametrize(
    ("patches", "order"),
    [(8, [4, 0, 5, 1, 6, 2, 7, 3]), (9, [4, 0, 5, 1, 6, 2, 7, 3, 8, 2]), (10, [4, 9, 5, 0, 6, 1, 7, 2, 8, 3])],
)
def test_order_of_few_patches(patches, order):
    """Baselines sheet, oracle 2."""
    np.testing.assert_array_equal(jigsaw_order(patches), order)


@pytest.mark.parametrize(
    ("patches", "starts", "dropped"),
    [(128, [4, 20, 36, 52], []), (210, [4, 30, 56, 82], [108, 3]), (242, [4, 34, 64, 94], [124, 3])],
)
def test_groups_of_the_published_grids(patches, starts, dropped):
    order, length = jigsaw_order(patches), patches // 4
    assert order[: 4 * length : length].tolist() == starts
    assert order[4 * length :].tolist() == dropped
    assert sorted(order.tolist()) == list(range(patches))


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="129 patches cannot be shuffled in 4 groups"):
        jigsaw_order(129, groups=4)
    assert len(jigsaw_order(128, groups=4)) == 128


def module(**changes):
    return JigsawPatchModule(SIZES["micro"], **changes)


@functools.cache
def initial():
    """Initial parameters: the same for every number of tokens, order and share of dropped paths."""
    return jax.jit(lambda key: module().init(key, jnp.zeros((1, 1 + 8, 32)), False))(jax.random.key(0))


@functools.cache
def compiled(model):
    """The features of a module's branches as a compiled function of parameters and tokens."""
    return jax.jit(lambda params, tokens: model.apply(params, tokens, False)[0])


def features(model, tokens):
    return compiled(model)(initial(), tokens)


def test_a_local_feature_depends_on_its_own_patches_alone():
    model = module()
    tokens = jax.random.normal(jax.random.key(1), (2, 1 + 18, 32))
    before = features(model, tokens)
    assert len(before) == 5
    chex.assert_shape(before, (2, 32))
    order, noise = jigsaw_order(18), jax.random.normal(jax.random.key(2), (32,))
    for part in range(4):
        after = features(model, tokens.at[:, 1 + order[part * 4]].add(noise))
        moved = [float(np.abs(a - b).max()) > 1e-4 for a, b in zip(after, before, strict=True)]
        assert moved == [True, *(other == part for other in range(4))]
    left_over = features(model, tokens.at[:, 1 + order[-1]].add(noise))
    for after, old in zip(left_over[1:], before[1:], strict=True):
        np.testing.assert_allclose(after, old, atol=1e-6)


def test_equals_four_calls_on_rearranged_tokens():
    tokens = jax.random.normal(jax.random.key(1), (3, 1 + 13, 32))
    shuffled, local = features(module(), tokens), initial()["params"]["local"]
    alone = compiled(module(parts=1, rearrange=False))
    order = jigsaw_order(13)[:12].reshape(4, 3)
    for part in range(4):
        own = np.concatenate([tokens[:, :1], tokens[:, 1 + order[part]]], axis=1)
        expected = alone({"params": {"global": local, "local": local}}, own)[0]
        np.testing.assert_allclose(shuffled[1 + part], expected, atol=1e-5)


def test_without_rearranging_the_groups_are_consecutive():
    model = module(rearrange=False)
    tokens = jax.random.normal(jax.random.key(1), (1, 1 + 16, 32))
    before = features(model, tokens)
    after = features(model, tokens.at[:, 1 + 4 : 1 + 8].add(jax.random.normal(jax.random.key(2), (32,))))
    assert [float(np.abs(a - b).max()) > 1e-4 for a, b in zip(after[1:], before[1:], strict=True)] == [False, True, False, False]


def test_drop_path_drops_each_part_by_itself():
    """With every residual dropped a branch returns the norm of its cls token, the same for all parts."""
    model = module(drop_path=0.5)
    tokens = jax.random.normal(jax.random.key(1), (64, 1 + 16, 32))
    train = jax.jit(lambda params, tokens, key: model.apply(params, tokens, True, rngs={"dropout": key})[0])
    out = train(initial(), tokens, jax.random.key(2))
    untouched = np.stack([np.isclose(part, normed(np.asarray(tokens[:, 0])), atol=1e-5).all(axis=1) for part in out[1:]])
    assert 0.15 < untouched.mean() < 0.35  # both residuals dropped: one in four
    assert (untouched.any(axis=0) & ~untouched.all(axis=0)).any()


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
