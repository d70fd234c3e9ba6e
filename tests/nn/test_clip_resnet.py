"""CLIP's convolutional tower: shapes, counts, attention pool, batch statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy.special import softmax

from occreid_jax.nn import clip, clip_resnet

IMAGES = jax.random.normal(jax.random.key(5), (3, 64, 32, 3))


@pytest.fixture(scope="module")
def tower():
    model = clip.clip_resnet("micro_resnet", (64, 32))
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    # Blocks start as their shortcuts; other scales let everything take part.
    rng = np.random.default_rng(0)
    grown = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), variables["params"])
    return model, {"params": grown, "batch_stats": variables["batch_stats"]}


@pytest.mark.parametrize(("last_stride", "grid"), [(1, (16, 8)), (2, (8, 4))])
def test_shapes_of_the_published_network(last_stride, grid):
    """Baselines sheet, section 2.2: 256x128, last stage with stride 1."""
    model = clip.clip_resnet("rn50", (256, 128), last_stride)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 256, 128, 3))))
    out = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 256, 128, 3))), variables)
    assert model.grid == grid
    chex.assert_shape(out.layer3, (2, 16, 8, 1024))
    chex.assert_shape(out.layer4, (2, *grid, 2048))
    chex.assert_shape(out.tokens, (2, 1 + grid[0] * grid[1], 1024))
    if last_stride == 1:
        assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 38_478_688
        statistics = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
        assert len(statistics) == 2 * (3 + 3 * 16 + 4)


def test_paths_of_the_parameters(tower):
    _, variables = tower
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    stem = {f"{name}{k}/{leaf}" for k in (1, 2, 3) for name, leaf in (("conv", "kernel"), ("bn", "scale"), ("bn", "bias"))}
    block = stem | {"downsample_conv/kernel", "downsample_bn/scale", "downsample_bn/bias"}
    pool = {f"attnpool/{name}/{leaf}" for name in ("query", "key", "value", "out") for leaf in ("kernel", "bias")}
    expected = stem | {f"layer{k}_0/{path}" for k in range(1, 5) for path in block} | pool | {"attnpool/pos_embed"}
    assert set(params) == expected
    assert params["attnpool/pos_embed"].shape == (1, 9, 256)
    statistics = set(traverse_util.flatten_dict(variables["batch_stats"], sep="/"))
    assert statistics == {f"{path.rpartition('/')[0]}/{leaf}" for path in expected if "bn" in path for leaf in ("mean", "var")}


def test_one_query_gives_the_first_token(tower):
    """Baselines sheet, oracle 13."""
    model, variables = tower
    every, one = jax.jit(lambda v: [model.apply(v, IMAGES, all_tokens=tokens) for tokens in (True, False)])(variables)
    chex.assert_shape(every.tokens, (3, 9, 16))
    chex.assert_shape(one.tokens, (3, 1, 16))
    np.testing.assert_allclose(one.pooled, every.pooled, atol=1e-5)
    assert float(jnp.abs(every.tokens[:, 1:] - every.tokens[:, :1]).max()) > 1e-3


def test_attention_pool_by_definition():
    pool = clip_resnet.AttentionPool(2, 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 3, 8)).astype(np.float32)
    params = jax.jit(pool.init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda v: v + rng.normal(size=v.shape).astype(np.float32), params)
    tokens = x.reshape(2, 6, 8)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + params["pos_embed"]
    query, key, value = (
        (tokens @ params[name]["kernel"] + params[name]["bias"]).reshape(2, 7, 2, 4) for name in ("query", "key", "value")
    )
    weights = softmax(np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0, axis=-1)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, 7, 8) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(jax.jit(pool.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_convolutions_pad_as_in_pytorch():
    """DPL-ReID sheet, oracle 9; SAME padding would give [[9, 6], [6, 4]]."""
    layer = clip_resnet.convolution(1, 3, 2, jnp.float32, None)
    out = layer.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_allclose(out[0, :, :, 0], [[4, 6], [6, 9]])


def test_average_pooling_drops_what_is_left_over():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_allclose(clip_resnet.average(x, 2)[0, :, :, 0], [[3, 5]])
    assert clip_resnet.average(x, 1) is x


def test_training_uses_and_updates_the_statistics_of_the_batch(tower):
    model, variables = tower
    train = jax.jit(lambda variables, images: model.apply(variables, images, True, mutable=["batch_stats"]))
    out, updated = train(variables, 3.0 * IMAGES)
    still = jax.jit(model.apply)(variables, 3.0 * IMAGES)
    assert float(jnp.abs(out.pooled - still.pooled).max()) > 1e-3
    before = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    after = traverse_util.flatten_dict(updated["batch_stats"], sep="/")
    assert set(before) == set(after)
    assert all((before[path] != after[path]).any() for path in before)
    # The first normalisation sees the images' convolution only.
    kernel = variables["params"]["conv1"]["kernel"]
    numbers = ("NHWC", "HWIO", "NHWC")
    first = jax.lax.conv_general_dilated(3.0 * IMAGES, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=numbers)
    np.testing.assert_allclose(after["bn1/mean"], 0.1 * first.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["bn1/var"], 0.9 + 0.1 * first.reshape(-1, 4).var(0, ddof=1), rtol=1e-4)


def test_blocks_start_as_their_shortcuts():
    block = clip_resnet.Bottleneck(4, 1)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 16)).clip(0).astype(np.float32)
    variables = jax.jit(lambda key: block.init(key, x, False))(jax.random.key(1))
    assert "downsample_conv" not in variables["params"]
    np.testing.assert_allclose(jax.jit(lambda v: block.apply(v, x, False))(variables), x, atol=1e-6)


def test_bfloat16_is_close_and_finite(tower):
    model, variables = tower
    low = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, IMAGES)
    exact = jax.jit(model.apply)(variables, IMAGES)
    assert low.layer4.dtype == jnp.bfloat16 and low.tokens.dtype == jnp.float32
    largest = float(jnp.abs(exact.tokens).max())
    np.testing.assert_allclose(low.tokens, exact.tokens, atol=0.05 * max(largest, 1.0))


def test_operations_agree_with_the_sheet():
    """Section 2.2: convolutions 4.66 GMAC, attention pool 1.96 for all queries and 1.09 for one."""
    size = clip.VISUAL["rn50"].visual
    every = clip_resnet.resnet_flops(size, (256, 128), 1024) / 2e9
    one = clip_resnet.resnet_flops(size, (256, 128), 1024, all_tokens=False) / 2e9
    assert every == pytest.approx(4.66 + 1.96, abs=0.02)
    assert one == pytest.approx(4.66 + 1.09, abs=0.02)


def test_images_of_another_size(tower):
    model, variables = tower
    with pytest.raises(ValueError, match="images of 96x32 in a network for"):
        model.apply(variables, jnp.zeros((1, 96, 32, 3)))
    with pytest.raises(ValueError, match="8x8 are too small"):
        _ = clip.clip_resnet("micro_resnet", (8, 8)).grid
