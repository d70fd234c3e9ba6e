"""Shapes, parameter counts and formulas of the image transformer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn import layers, vit


def shapes(**changes):
    values = dict(size=vit.SIZES["base"], image_size=(256, 128), patch=16, stride=16) | changes
    model = vit.ViT(**values)
    images, camids = jnp.zeros((2, *values["image_size"], 3)), jnp.zeros(2, jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, camids)
    output = jax.eval_shape(lambda v: model.apply(v, images, camids, return_cls_logits=True), variables)
    return model, sum(x.size for x in jax.tree.leaves(variables)), output


@pytest.mark.parametrize(
    ("stride", "grid", "parameters"),
    [(16, (16, 8), 87_056_104), (12, (21, 10), 87_119_080), (11, (22, 11), 87_143_656)],
)
def test_grids_and_parameters_of_the_published_model(stride, grid, parameters):
    """Baselines sheet, table 2.1; its counts include an unused 1000-way layer, the neck's two vectors and 702 classes."""
    model, count, output = shapes(stride=stride)
    patches = grid[0] * grid[1]
    assert model.grid == grid
    assert count + 769_000 + 2 * 768 + 702 * 768 == parameters
    chex.assert_shape(output.tokens, (2, 1 + patches, 768))
    assert len(output.taps) == 12
    chex.assert_shape(output.cls_logits, (2, 12, 1 + patches))


@pytest.mark.parametrize("name", vit.SIZES)
def test_every_size_builds(name):
    size = vit.SIZES[name]
    _, _, output = shapes(size=size)
    chex.assert_shape(output.tokens, (2, 129, size.width))


def test_extra_tokens_and_camera():
    model, count, output = shapes(size=vit.SIZES["micro"], extra_tokens=9, cameras=6)
    _, plain, _ = shapes(size=vit.SIZES["micro"])
    chex.assert_shape(output.tokens, (2, 138, 32))
    assert count - plain == 9 * 32 + 6 * 32


def test_registers_take_part_in_the_blocks_and_in_nothing_else():
    """They stand behind the patches with no position; what is given back is that of the other tokens."""
    model = vit.ViT(vit.SIZES["micro"], (32, 16), 8, 8, registers=3)
    images = jax.random.normal(jax.random.key(1), (2, 32, 16, 3))
    variables = model.init(jax.random.key(0), images)
    variables["params"]["register_tokens"] = jax.random.normal(jax.random.key(2), (1, 3, 32))
    output = model.apply(variables, images, None, False, True)

    def by_hand(model, images):
        x = model.assemble(model.embed_patches(images))
        plain = model.clone(registers=0, parent=None)
        others = {name: value for name, value in variables["params"].items() if name != "register_tokens"}
        expected = plain.apply({"params": others}, images, method=lambda m, x: m.assemble(m.embed_patches(x)))
        behind = jnp.broadcast_to(variables["params"]["register_tokens"], (2, 3, 32))
        chex.assert_trees_all_equal(x, jnp.concatenate([expected, behind], axis=1))
        x, taps, logits = model.blocks(x, return_cls_logits=True)
        return model.finish(x), taps, logits

    tokens, taps, logits = model.apply(variables, images, method=by_hand)
    chex.assert_shape(tokens, (2, 1 + 8 + 3, 32))
    chex.assert_trees_all_close(output.tokens, tokens[:, :9], atol=1e-6)
    chex.assert_trees_all_close(output.taps, tuple(tap[:, :9] for tap in taps), atol=1e-6)
    chex.assert_trees_all_close(output.cls_logits, logits[..., :9], atol=1e-6)
    flops = [vit.forward_flops(model.size, (32, 16), 8, 8, **tokens) for tokens in ({"registers": 3}, {"extra_tokens": 3})]
    assert flops[0] == flops[1]


def test_camera_vector_is_added_to_every_token():
    model = vit.ViT(vit.SIZES["micro"], (32, 16), 16, 16, cameras=3, camera_scale=3.0)
    images = jax.random.normal(jax.random.key(1), (2, 32, 16, 3))
    variables = model.init(jax.random.key(0), images, jnp.zeros(2, jnp.int32))

    def assembled(camids):
        return model.apply(variables, images, camids, method=lambda m, x, c: m.assemble(m.embed_patches(x), c))

    difference = assembled(jnp.array([2, 2])) - assembled(jnp.array([0, 0]))
    table = variables["params"]["camera_embed"]
    expected = np.broadcast_to(3.0 * (table[2] - table[0]), difference.shape)
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_patch_embedding_as_product_equals_the_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 40, 24, 3))  # 8 rows and columns are left over
    variables = vit.PatchEmbed(8, 16, 16).init(jax.random.key(1), images)
    product = vit.PatchEmbed(8, 16, 16).apply(variables, images)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    convolution = jax.lax.conv_general_dilated(images, kernel, (16, 16), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(product, convolution.reshape(2, -1, 8) + bias, atol=1e-5)


def test_position_resize_matches_the_oracle():
    """Baselines sheet, oracle 6: bilinear, half-pixel centres, no antialiasing."""
    table = jnp.array([[9.0], [0.0], [1.0], [2.0], [3.0]])[None]
    out = vit.resize_positions(table, (2, 2), (3, 2))[0, :, 0]
    np.testing.assert_allclose(out, [9, 0, 1, 1, 2, 2, 3], atol=1e-6)
    squares = jnp.tile(jnp.arange(14.0) ** 2, (14, 1)).reshape(1, 196, 1)
    out = vit.resize_positions(jnp.concatenate([jnp.zeros((1, 1, 1)), squares], 1), (14, 14), (14, 8))[0, 1:9, 0]
    np.testing.assert_allclose(out, [0.375, 4.625, 15.125, 31.875, 54.625, 83.375, 118.375, 159.625], rtol=1e-5)


def test_patch_larger_than_image():
    with pytest.raises(ValueError, match="patch 16 is larger than the image 8x8"):
        vit.grid_size((8, 8), 16, 16)


def test_cls_logits_are_the_attention_before_the_softmax():
    model = layers.Attention(2)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = model.init(jax.random.key(1), x)
    out, logits = model.apply(variables, x, return_cls_logits=True)
    qkv = x @ variables["params"]["qkv"]["kernel"] + variables["params"]["qkv"]["bias"]
    query, key, value = np.split(np.asarray(qkv).reshape(2, 5, 3, 2, 4), 3, axis=2)
    expected = np.einsum("bhd,bthd->bht", query[:, 0, 0], key[:, :, 0]) / 2.0
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    weights = jax.nn.softmax(logits, axis=-1)
    cls = np.einsum("bht,bthd->bhd", weights, value[:, :, 0]).reshape(2, 8)
    cls = cls @ variables["params"]["proj"]["kernel"] + variables["params"]["proj"]["bias"]
    np.testing.assert_allclose(out[:, 0], cls, atol=1e-5)


def test_batch_norm_has_torch_conventions():
    model = layers.BatchNorm()
    x = np.random.default_rng(0).normal(2.0, 3.0, (5, 4)).astype(np.float32)
    variables = model.init(jax.random.key(0), x, False)
    out, updated = model.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    model = layers.DropPath(0.25)
    x = jnp.ones((400, 3, 2))
    out = model.apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    values = np.unique(np.asarray(out))
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert np.ptp(np.asarray(out), axis=(1, 2)).max() == 0
    assert abs(float(out.mean()) - 1.0) < 0.1
    chex.assert_trees_all_equal(model.apply({}, x, False), x)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101).astype(np.float32)
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), jax.nn.gelu(x, approximate=False), atol=1e-6)


def test_forward_flops_agree_with_the_sheet():
    """Table 2.1: 11.34, 18.87 and 21.87 GMAC at strides 16, 12 and 11."""
    for stride, gmac in ((16, 11.34), (12, 18.87), (11, 21.87)):
        flops = vit.forward_flops(vit.SIZES["base"], (256, 128), 16, stride)
        assert flops / 2e9 == pytest.approx(gmac, abs=0.01)


def test_rematerialised_blocks_give_the_same_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 32, 16, 3))
    gradients = []
    for remat in (False, True):
        model = vit.ViT(vit.SIZES["micro"], (32, 16), 16, 16, remat=remat)
        params = model.init(jax.random.key(1), x)["params"]
        gradients.append(jax.jit(jax.grad(lambda p, m=model: m.apply({"params": p}, x, None, True).cls.sum()))(params))
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
