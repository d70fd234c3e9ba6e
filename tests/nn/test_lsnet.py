"""LSNet against its published counts, formulas written out with loops, and itself without batch norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn import lsnet
from occreid_jax.nn.layers import run
from occreid_jax.nn.small_kernels import aggregate

MICRO = lsnet.SIZES["micro"]
FULL = {  # without the classifier: a batch norm of the mean and 1000 classes
    "lsnet_t": 11_409_832 - 385_768,
    "lsnet_s": 16_146_304 - (2 * 448 + 448 * 1000 + 1000),
    "lsnet_b": 23_313_608 - (2 * 512 + 512 * 1000 + 1000),
}


def shapes(name, image=(256, 128)):
    network = lsnet.LSNet(lsnet.size_of(name))
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), jnp.zeros((1, *image, 3))))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def micro():
    """(params, statistics) with every number away from its initial value, and images."""
    network = lsnet.LSNet(MICRO)
    images = jax.random.normal(jax.random.key(3), (2, 64, 32, 3))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), variables["params"])
    statistics = jax.tree.map(lambda x: x + 0.5 * rng.random(x.shape).astype(np.float32), variables["batch_stats"])
    return params, statistics, images


@pytest.mark.parametrize("name", FULL)
def test_as_many_parameters_as_published(name):
    assert count(shapes(name)[1]["params"]) == FULL[name]


def test_parameters_of_the_parts():
    params = shapes("lsnet_t")[1]["params"]
    expected = {"stage_2_2": 76_448, "stage_2_3": 92_016, "stage_3_2": 300_352, "stage_3_3": 358_112,
                "stage_4_2": 671_712, "stage_4_3": 938_752}  # fmt: skip
    assert {name: count(params[name]) for name in expected} == expected
    assert sum(count(params[f"stem_{number}"]) for number in (0, 2, 4)) == 23_696


@pytest.mark.parametrize("image, grid", [((224, 224), (4, 4)), ((256, 128), (4, 2)), ((128, 64), (2, 1)), ((100, 36), (2, 1))])
def test_the_map_of_the_last_stage(image, grid):
    out, _ = shapes("lsnet_t", image)
    assert out.stages[3].shape == (1, *grid, 384) and lsnet.last_grid(image) == grid and out.pooled.shape == (1, 384)


def test_operations_are_those_of_the_sheet():
    """0.315 and 0.187 G multiplications at 224x224 and 256x128, of which LSNet's authors print 0.3 G for the first."""
    assert lsnet.forward_flops(lsnet.SIZES["lsnet_t"], (224, 224)) / 2e9 == pytest.approx(0.315, abs=5e-4)
    assert lsnet.forward_flops(lsnet.SIZES["lsnet_t"], (256, 128)) / 2e9 == pytest.approx(0.187, abs=5e-4)


def test_aggregation_of_one_row():
    """Two kernels for sixteen channels: channels 0 and 2 share one, channel 1 has the other."""
    x = np.zeros((1, 1, 3, 16), np.float32)
    x[0, 0, :, :3] = np.array([[1, 10, 100], [2, 20, 200], [3, 30, 300]])
    kernels = np.zeros((1, 1, 3, 9, 2), np.float32)
    kernels[0, 0, :, 4, 0] = 1
    kernels[0, 0, 1, 5, 0] = 0.5
    kernels[0, 0, :, 3, 1] = 1
    out = aggregate(jnp.asarray(x), jnp.asarray(kernels))[0, 0]
    np.testing.assert_allclose(out[:, 0], [1, 3.5, 3])
    np.testing.assert_allclose(out[:, 1], [0, 10, 20])  # neighbouring channels with one kernel would give 10, 35, 30
    np.testing.assert_allclose(out[:, 2], [100, 350, 300])


def test_aggregation_is_its_definition():
    rng = np.random.default_rng(1)
    x, kernels = rng.standard_normal((2, 4, 3, 16)), rng.standard_normal((2, 4, 3, 9, 2))
    expected = np.zeros_like(x)
    for place in np.ndindex(2, 4, 3, 16, 3, 3):
        image, row, column, channel, down, across = place
        from_row, from_column = row + down - 1, column + across - 1
        if 0 <= from_row < 4 and 0 <= from_column < 3:
            weight = kernels[image, row, column, 3 * down + across, channel % 2]
            expected[image, row, column, channel] += x[image, from_row, from_column, channel] * weight
    np.testing.assert_allclose(aggregate(jnp.float32(x), jnp.float32(kernels)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="5 kernels do not divide 16 channels"):
        aggregate(jnp.float32(x), jnp.zeros((2, 4, 3, 9, 5)))


def test_aggregation_makes_no_array_nine_times_as_large():
    x, kernels = jnp.zeros((2, 16, 8, 128)), jnp.zeros((2, 16, 8, 9, 16))
    equations = jax.make_jaxpr(jax.value_and_grad(lambda x, k: jnp.sum(aggregate(x, k)), argnums=(0, 1)))(x, kernels).jaxpr.eqns
    largest = max(variable.aval.size for equation in equations for variable in equation.outvars)
    assert largest < 2 * x.size


def test_a_stride_of_two_is_padded_on_both_sides():
    layer = lsnet.ConvNorm(1, 3, 2, folded=True)
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    out = layer.apply({"params": params}, jnp.ones((1, 4, 4, 1)), False)
    np.testing.assert_array_equal(out[0, ..., 0], [[4, 6], [6, 9]])


def test_offsets_of_attention():
    numbers = lsnet.offset_numbers((4, 2), 4)
    np.testing.assert_array_equal(numbers[0], [0, 1, 4, 5, 8, 9, 12, 13])
    np.testing.assert_array_equal(numbers[1], [1, 0, 5, 4, 9, 8, 13, 12])
    np.testing.assert_array_equal(numbers[3], [5, 4, 1, 0, 5, 4, 9, 8])
    np.testing.assert_array_equal(lsnet.offset_numbers((4, 4), 4)[0], np.arange(16))


def test_biases_on_other_grids():
    table = jnp.asarray(np.random.default_rng(2).standard_normal((2, 16)).astype(np.float32))
    np.testing.assert_allclose(
        lsnet.offset_biases(table, (4, 4), "bicubic"), lsnet.offset_biases(table, (4, 4)), atol=1e-6
    )
    np.testing.assert_allclose(lsnet.bicubic_weights(16, 8).sum(axis=1), 1, atol=1e-6)
    assert lsnet.offset_biases(table, (6, 2), "bicubic").shape == (2, 12, 12)
    with pytest.raises(ValueError, match="a table for 4x4 positions has no offsets for 6x2; take rule bicubic"):
        lsnet.offset_biases(table, (6, 2))
    with pytest.raises(ValueError, match="unknown rule 'linear'"):
        lsnet.offset_biases(table, (4, 2), "linear")
    with pytest.raises(ValueError, match="unknown LSNet 'lsnet_x'; known: lsnet_t"):
        lsnet.size_of("lsnet_x")


def test_initial_values_drawn_at_once():
    """The values of `LSNet.init`, in distribution: kernels uniform within 1 / sqrt(inputs), all else to the number."""
    expected = jax.eval_shape(lsnet.LSNet(MICRO).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    params, statistics = jax.jit(lambda key: lsnet.initial_values(MICRO, key))(jax.random.key(0))
    own = jax.jit(lsnet.LSNet(MICRO).init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))
    assert jax.tree.map(jnp.shape, {"params": params, "batch_stats": statistics}) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(np.testing.assert_array_equal, statistics, own["batch_stats"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        other = functools.reduce(lambda tree, key: tree[key.key], path, own["params"])
        if path[-1].key == "kernel" or (path[-2].key, path[-1].key) == ("cv4", "bias"):
            bound = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else (leaf.size * 8 / 9 / 2) ** -0.5
            assert 0.8 * bound < float(jnp.abs(leaf).max()) <= bound and 0.7 * bound < float(jnp.abs(other).max()) <= bound, path
        else:
            np.testing.assert_array_equal(leaf, other)


def test_batch_norms_fold(micro):
    params, statistics, images = micro

    @jax.jit
    def both(params, statistics, images):
        whole, _ = run(lsnet.LSNet(MICRO), params, statistics, images)
        return whole, lsnet.LSNet(MICRO, folded=True).apply({"params": lsnet.fold(params, statistics)}, images)

    whole, folded = both(params, statistics, images)
    np.testing.assert_allclose(folded.pooled, whole.pooled, rtol=2e-4, atol=2e-4)
    wanted = jax.eval_shape(lsnet.LSNet(MICRO, folded=True).init, jax.random.key(0), images)["params"]
    found = lsnet.fold(params, statistics)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_statistics_move_in_training_alone(micro, dtype):
    params, statistics, images = micro
    network = lsnet.LSNet(MICRO, dtype=dtype)
    out, after = jax.jit(lambda *given: run(network, *given, train=True))(params, statistics, images)
    assert out.pooled.dtype == jnp.float32 and bool(jnp.isfinite(out.pooled).all()) and out.stages[3].dtype == dtype
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), statistics, after)
    assert all(jax.tree.leaves(moved))
