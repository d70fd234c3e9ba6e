"""The mask generator and the decision layer: sizes of the sheet, initial values, levels of other depths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn.mask_generator import DecisionLayer, MaskGenerator, patch_maps, scaled_levels


def test_published_numbers_of_parameters():
    generator = MaskGenerator(768, 768, 4)
    variables = jax.eval_shape(lambda: generator.init(jax.random.key(0), jnp.zeros((1, 21, 10, 3072)), False))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    assert sizes.pop("fc") == 590_592
    assert sum(sizes.values()) == 58_401_792
    decision = jax.eval_shape(lambda: DecisionLayer().init(jax.random.key(0), jnp.zeros((1, 210, 3072))))
    assert sum(x.size for x in jax.tree.leaves(decision)) == 3073


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("grid", [(21, 10), (4, 2), (3, 1)])
def test_a_fresh_mask_is_one_half_everywhere(grid, pooling):
    generator = MaskGenerator(8, 6, 2, pooling)
    maps = jax.random.normal(jax.random.key(1), (3, *grid, 16))
    variables = generator.init(jax.random.key(0), maps, False)
    for train in (False, True):
        masks = generator.apply(variables, maps, train, mutable=["batch_stats"])[0]
        np.testing.assert_array_equal(masks, np.full((3, 6), 0.5, np.float32))


def test_spatial_chain_and_pooling():
    """21 x 10 becomes 10 x 5, then 5 x 2; the last pool takes the largest or the mean of all positions."""
    maps = jax.random.normal(jax.random.key(1), (2, 21, 10, 8))
    shapes, masks = {}, {}
    for pooling in ("max", "mean"):
        generator = MaskGenerator(4, 4, 1, pooling)
        variables = generator.init(jax.random.key(0), maps, False)
        variables["params"]["fc"]["kernel"] = jnp.eye(4)
        masks[pooling], kept = generator.apply(variables, maps, False, capture_intermediates=True)
        found = kept["intermediates"]
        shapes = [found[f"bn_{number}"]["__call__"][0].shape[1:] for number in range(3)]
        last = jax.nn.relu(found["bn_2"]["__call__"][0])
        expected = last.max((1, 2)) if pooling == "max" else last.mean((1, 2))
        np.testing.assert_allclose(masks[pooling], jax.nn.sigmoid(expected), atol=1e-6)
    assert shapes == [(21, 10, 8), (10, 5, 4), (5, 2, 4)]
    with pytest.raises(ValueError, match="unknown pooling"):
        MaskGenerator(4, 4, 1, "sum").init(jax.random.key(0), maps, False)


def test_initial_values_have_torch_s_bounds():
    variables = MaskGenerator(32, 32).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)), False)
    for name, fan_in in (("conv_0", 9 * 64), ("conv_1", 9 * 64), ("conv_2", 9 * 32)):
        for leaf in ("kernel", "bias"):
            largest = float(jnp.abs(variables["params"][name][leaf]).max())
            assert 0.9 * fan_in**-0.5 < largest <= fan_in**-0.5
    decision = DecisionLayer().init(jax.random.key(0), jnp.zeros((1, 2, 3072)))["params"]["kernel"]
    assert 0.0178 < float(jnp.abs(decision).max()) <= 0.01805


def test_level_norm_makes_the_size_of_a_level_free():
    maps = jax.random.normal(jax.random.key(1), (2, 4, 2, 12))
    scaled = maps * jnp.concatenate([jnp.ones(6), jnp.full(6, 50.0)])
    for module, shape in ((MaskGenerator(4, 4, 2, level_norm=True), maps.shape), (DecisionLayer(2, True), (2, 8, 12))):
        arguments = (False,) if isinstance(module, MaskGenerator) else ()
        variables = module.init(jax.random.key(0), maps.reshape(shape), *arguments)
        if arguments:
            variables["params"]["fc"]["kernel"] = jnp.eye(4)
        one, other = (module.apply(variables, x.reshape(shape), *arguments) for x in (maps, scaled))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_levels_of_other_depths():
    levels = (2, 4, 10, 12)
    assert scaled_levels(levels, 12) == levels
    assert scaled_levels(levels, 4) == (1, 2, 3, 4)
    assert scaled_levels(levels, 6) == (1, 2, 5, 6)
    assert scaled_levels(levels, 2) == (1, 2)
    assert scaled_levels((12,), 4) == (4,)
    assert scaled_levels(levels, 24) == (4, 8, 20, 24)
    for wrong in ((), (0, 3), (13,)):
        with pytest.raises(ValueError, match="must be block numbers from 1 to 12"):
            scaled_levels(wrong, 12)


def test_patch_maps_are_shallow_first_and_without_cls():
    taps = [jnp.full((1, 3, 2), number) for number in (1.0, 2.0, 3.0)]
    np.testing.assert_array_equal(patch_maps(taps, (1, 3)), [[[1, 1, 3, 3], [1, 1, 3, 3]]])


def test_the_last_pool_hands_on_all_of_the_gradient():
    """Exactly one position of a channel gets it, and gets all: a maximum found again by equality can lose it to rounding."""
    generator = MaskGenerator(16, 8)
    maps = jax.random.normal(jax.random.key(1), (4, 6, 4, 12))
    variables = generator.init(jax.random.key(0), maps, False)
    params = variables["params"] | {"fc": {"kernel": jax.random.normal(jax.random.key(2), (16, 8)), "bias": jnp.zeros(8)}}

    def total(params):
        return generator.apply({"params": params, "batch_stats": variables["batch_stats"]}, maps, False).sum()

    masks, kept = generator.apply({**variables, "params": params}, maps, False, capture_intermediates=True)
    largest = kept["intermediates"]["bn_2"]["__call__"][0].max(axis=(1, 2))
    expected = ((masks * (1 - masks)) @ params["fc"]["kernel"].T * (largest > 0)).sum(axis=0)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(params)["bn_2"]["bias"], expected, atol=1e-5)
