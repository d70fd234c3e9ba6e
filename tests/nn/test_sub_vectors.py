"""The official code's blending module, with and without its mixed batch, and REM: written out in numpy, one piece at a time where
it matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from occreid_jax.nn.sub_vectors import RelationEnrichment, SubVectorBlending, relation_flops, sub_vector_flops
from tests.nn.test_blending import compiled, inputs, randomised

WIDTH, PIECES, HEADS = 64, 4, 2


def normed(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def doubled(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])


def found_by_heads(p, part, whole, heads):
    """What each head finds for each image, [heads][B] of [pieces, 16 / heads], and the residual [B, pieces, 16]; float64."""
    x, source = (np.asarray(f, np.float64).reshape(len(f), -1, 16) + p["pos_embedding"] for f in (part, whole))
    asked, offered, size = normed(x, p["norm_query"]), normed(source, p["norm_global"]), 16 // heads
    found = []
    for head in range(heads):
        own = slice(head * size, head * size + size)
        query = asked @ p["query"]["kernel"][:, own]
        key = offered @ p["key_value"]["kernel"][:, own]
        value = offered @ p["key_value"]["kernel"][:, 16 + head * size : 16 + head * size + size]
        logits = np.exp(np.einsum("bqd,bkd->bqk", query, key) / np.sqrt(size))
        found.append(logits / logits.sum(-1, keepdims=True) @ value)
    return found, x


def written_out(p, part, whole, heads, scramble):
    """The blended features [B, D]. With ``scramble`` sub-vector s of image b takes its halves from the list of
    what head 0 found for image 0, its pieces in their order, for image 1 ..., then what head 1 found."""
    found, x = found_by_heads(p, part, whole, heads)
    count, pieces = x.shape[:2]
    mixed = np.zeros_like(x)
    for image in range(count):
        for piece in range(pieces):
            if scramble:
                steps = [(image * pieces + piece) * heads + number for number in range(heads)]
                places = [(step // (count * pieces), step // pieces % count, step % pieces) for step in steps]
            else:
                places = [(head, image, piece) for head in range(heads)]
            mixed[image, piece] = np.concatenate([found[head][other][row] for head, other, row in places])
    x = x + mixed @ p["out"]["kernel"] + p["out"]["bias"]
    hidden = normed(x, p["norm_mlp"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    x = x + 0.5 * hidden * (1 + erf(hidden / np.sqrt(2))) @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    return x.reshape(count, -1)


@pytest.mark.parametrize("scramble", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("heads", [1, HEADS])
def test_equals_what_is_written_out(heads, count, scramble):
    module, (part, whole) = SubVectorBlending(heads, scramble), inputs(WIDTH, count)
    params = randomised(module, WIDTH)
    found = compiled(module)(params, part, whole)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, written_out(doubled(params), part, whole, heads, scramble), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scramble", [False, True])
def test_whose_features_an_image_gets(scramble):
    """An image alone, or with the mixed batch itself and images 2 b and 2 b + 1, in its first and second half."""
    count = 5
    module, (part, whole) = SubVectorBlending(HEADS, scramble), inputs(WIDTH, count)
    params, blend = randomised(module, WIDTH), compiled(SubVectorBlending(HEADS, scramble))
    plain = np.asarray(blend(params, part, whole)).reshape(count, 2, -1)
    for other in range(count):
        moved = whole.copy()
        moved[other] += 1 + np.arange(WIDTH) % 3
        changed = np.abs(np.asarray(blend(params, part, moved)).reshape(count, 2, -1) - plain).max(-1) > 1e-5
        expected = [
            [(2 * image + half) % count == other if scramble else image == other for half in range(2)] for image in range(count)
        ]
        np.testing.assert_array_equal(changed, expected)


def test_even_one_image_is_scrambled():
    part, whole = inputs(WIDTH, 1)
    params = randomised(SubVectorBlending(HEADS), WIDTH)
    joined, mixed = (compiled(SubVectorBlending(HEADS, scramble))(params, part, whole) for scramble in (False, True))
    assert float(jnp.abs(joined - mixed).max()) > 1e-2


def test_positions_and_sizes():
    def size(module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 768)), jnp.zeros((1, 768)))
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert size(SubVectorBlending(HEADS)) == size(SubVectorBlending(1)) == 2_448  # FeatureBlending has 6.5 million
    assert size(RelationEnrichment()) == 3 * (768**2 + 768) + (2 * 768**2 + 768) + 769 + 1
    assert sub_vector_flops(768) == 2 * 48 * 16 * (16 + 32 + 16 + 16 + 16) + 2 * 2 * 48 * 48 * 16
    assert relation_flops(768) == 2 * (3 * 768**2 + 2 * 768**2 + 768)
    params = SubVectorBlending(HEADS).init(jax.random.key(0), *inputs(WIDTH))["params"]
    assert params["pos_embedding"].shape == (1, PIECES, 16) and not params["pos_embedding"].any()
    for width, heads in ((24, 2), (32, 3)):
        with pytest.raises(ValueError, match=f"{width} numbers cannot be cut into sub-vectors of 16 with {heads} heads"):
            SubVectorBlending(heads).init(jax.random.key(0), *inputs(width))


def test_relation_enrichment():
    module, (part, whole) = RelationEnrichment(), inputs(WIDTH)
    params = jax.jit(module.init)(jax.random.key(0), part, whole)
    np.testing.assert_array_equal(compiled(module)(params, part, whole), part)  # its weight starts at 0
    params = randomised(module, WIDTH)
    p = doubled(params)

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    both = np.concatenate([dense(part, "conv_query"), dense(whole, "conv_part")], axis=1)
    relation = 1 / (1 + np.exp(-dense(dense(both, "linear1"), "linear2")))
    assert relation.shape == (3, 1)
    expected = part + p["share"] * (dense(whole, "conv_value") * relation + whole)
    np.testing.assert_allclose(compiled(module)(params, part, whole), expected, rtol=1e-4, atol=1e-4)
