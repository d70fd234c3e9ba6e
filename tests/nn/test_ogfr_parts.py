"""OGFR's modules by hand: grids, correlation, agent, the layer that updates patches alone, and what a decoder replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn import layers, ogfr, vit


@pytest.mark.parametrize("stride, grid, tokens", [(16, (16, 8), 138), (12, (21, 10), 220), (11, (22, 11), 252)])
def test_grids_of_the_three_strides(stride, grid, tokens):
    """Oracle 1; a decoder has one token less than the encoder, the background's."""
    encoder = vit.ViT(vit.SIZES["micro"], (256, 128), stride=stride, extra_tokens=ogfr.PART_TOKENS)
    images = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)
    found, _ = jax.eval_shape(
        lambda v, x: encoder.apply(v, x, None, None, False, method=ogfr.encode), variables, images
    )
    assert encoder.grid == grid and found.shape == (1, tokens, 32)
    assert ogfr.FEATURES + grid[0] * grid[1] == tokens - 1


def test_what_is_hidden_is_added_to_every_token():
    encoder = vit.ViT(vit.SIZES["micro"], (32, 16), patch=8, stride=8, extra_tokens=2, cameras=3)
    patches, vectors = jnp.ones((2, 8, 32)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 32)), jnp.float32)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 16, 3)), jnp.zeros(1, jnp.int32))

    def assembled(vectors):
        return encoder.apply(variables, patches, jnp.asarray([0, 2]), vectors, method="assemble")

    difference = assembled(vectors) - assembled(None)
    np.testing.assert_allclose(difference, np.broadcast_to(vectors[:, None], (2, 11, 32)), atol=1e-6)


def test_correlation_by_hand():
    patches, parts = jnp.asarray([[[3.0, 4], [1, 0], [0, -2]]]), jnp.asarray([[[1.0, 0], [1, 1]]])
    expected = [[0.6, 0.989949], [1, 0.707107], [0, -0.707107]]
    np.testing.assert_allclose(ogfr.correlation(patches, parts)[0], expected, atol=1e-6)
    assert not ogfr.correlation(0 * patches, parts).any()


def test_the_agent_is_one_linear_layer_that_learns_nothing_of_what_it_observes():
    observed = jnp.asarray([[[0.8, 0.1], [-0.2, 0.6]]])
    agent = ogfr.Agent()
    params = agent.init(jax.random.key(0), observed)["params"]
    assert params["kernel"].shape == (2, 1) and float(jax.nn.sigmoid(params["bias"][0])) == pytest.approx(0.9, abs=1e-3)
    given = {"kernel": jnp.asarray([[0.5], [-1.0]]), "bias": jnp.zeros(1)}
    logits = agent.apply({"params": given}, observed)
    np.testing.assert_allclose(logits, [[0.3, -0.7]], atol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), [[0.574443, 0.331812]], atol=1e-6)
    assert not jax.grad(lambda x: jnp.sum(agent.apply({"params": given}, x)))(observed).any()


TOKENS = jnp.asarray([[[1.0, 0], [0, 1], [1, 1], [2, 0]]])  # picture, one part, two patches


def fixed_attention(tokens, fixed=2):
    module = layers.Attention(1, qkv_bias=False, fixed=fixed)
    params = module.init(jax.random.key(0), tokens)["params"]
    params["qkv"]["kernel"] = jnp.tile(jnp.eye(2), (1, 3))
    params["proj"] = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    return module.apply({"params": params}, tokens)[0]


def test_first_layer_by_hand():
    """Oracle 9: patches gather from all tokens, the others give their own value."""
    found = fixed_attention(TOKENS)[0]
    np.testing.assert_allclose(found, [[1, 0], [0, 1], [1.169762, 0.5], [1.608859, 0.195570]], atol=1e-6)
    plain = fixed_attention(TOKENS, 0)[0]
    np.testing.assert_array_equal(plain[2:], found[2:])
    assert np.abs(plain[:2] - found[:2]).max() > 0.1


@pytest.mark.parametrize("fixed", [True, False])
def test_no_patch_reaches_picture_and_parts_in_the_first_layer(fixed):
    size = vit.SIZES["micro"]
    block = vit.transformer_block(size, 0.0, 1e-6, jnp.float32, fixed=ogfr.FEATURES if fixed else 0)
    tokens = jax.random.normal(jax.random.key(0), (2, ogfr.FEATURES + 6, size.width))
    other = tokens.at[:, ogfr.FEATURES :].set(jax.random.normal(jax.random.key(1), (2, 6, size.width)))
    variables = block.init(jax.random.key(2), tokens, False)
    run = jax.jit(lambda x: block.apply(variables, x, False)[0])
    one, two = (np.asarray(run(x))[:, : ogfr.FEATURES] for x in (tokens, other))
    assert np.array_equal(one, two) == fixed
    plain = vit.transformer_block(size, 0.0, 1e-6, jnp.float32).init(jax.random.key(2), tokens, False)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, variables)


def test_a_layer_as_printed_adds_nothing():
    """Eq. 12 without residuals: FFN(LN(MHSA(x))), and no norm before the attention."""
    size, x = vit.SIZES["micro"], jax.random.normal(jax.random.key(0), (1, 5, 32))
    block = vit.transformer_block(size, 0.3, 1e-6, jnp.float32, residual=False)
    params = block.init(jax.random.key(1), x, False)["params"]
    assert set(params) == {"attn", "norm2", "mlp"}
    y, _ = layers.Attention(size.heads).apply({"params": params["attn"]}, x)
    y = layers.LayerNorm(1e-6).apply({"params": params["norm2"]}, y)
    expected = layers.Mlp(4 * size.width).apply({"params": params["mlp"]}, y)
    np.testing.assert_allclose(block.apply({"params": params}, x, True)[0], expected, atol=1e-6)


def test_a_decoder_replaces_patches_that_are_not_kept():
    """By the token of their place; what stood there before no longer matters."""
    decoder = ogfr.Decoder(vit.SIZES["micro"], patches=4, fixed=True)
    tokens = jax.random.normal(jax.random.key(0), (2, ogfr.FEATURES + 4, 32))
    params = decoder.init(jax.random.key(1), tokens)["params"]
    kept = jnp.asarray([[True, False, True, True], [False] * 4])
    learned = jnp.broadcast_to(params["mask_tokens"], (2, 4, 32))
    replaced = jnp.where(kept[..., None], tokens[:, ogfr.FEATURES :], learned)
    replaced = jnp.concatenate([tokens[:, : ogfr.FEATURES], replaced], axis=1)

    def run(x, kept=None):
        return decoder.apply({"params": params}, x, kept)

    np.testing.assert_array_equal(run(tokens, kept), run(replaced))
    np.testing.assert_array_equal(run(tokens, jnp.ones((2, 4), bool)), run(tokens))
    changed = tokens.at[0, ogfr.FEATURES + 1].set(7.0).at[1, ogfr.FEATURES :].set(-3.0)
    np.testing.assert_array_equal(run(changed, kept), run(tokens, kept))
    assert np.abs(run(changed) - run(tokens)).max() > 0.1
