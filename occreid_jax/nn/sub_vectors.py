"""Two modules that enrich a part's feature by the global one, as the official code of DPEFormer has them beside the paper's.

`SubVectorBlending` is what that code calls the paper's feature blending (Eq. 7 to 12): everything happens on sub-vectors of 16
numbers, so that a module has 2,448 parameters instead of 6.5 million. `RelationEnrichment` (REM) is the module of another work
that Table VIII compares with.

Source: official code of "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435),
``fbm_qkv`` in ``model/backbones/vit_pytorch.py`` and ``nonLocal_zx`` in ``model/make_model_zx.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.blending import SUB_WIDTH
from occreid_jax.nn.layers import LayerNorm, gelu, torch_dense

Array = jax.Array
EPSILON = 1e-5  # of all LayerNorms


class SubVectorBlending(nn.Module):
    """Part feature [B, D] and global feature [B, D] -> blended feature float32 [B, D]. D is a multiple of `SUB_WIDTH`.

    Both are cut into D / 16 sub-vectors and get the same learned position, which starts at 0. Sub-vectors x of the part ask those
    of the global feature, x + attention(norm(x), norm(global)), then x + MLP(norm(x)) with 16 hidden numbers and exact GELU, on
    every sub-vector alone. The ``heads`` share the 16 numbers; query, key and value have no bias.

    ``scramble`` is a slip of the official code: heads are joined after batch and heads have changed places. The first half of
    image b's sub-vectors is then what head floor(2 b / B) found for image 2 b, the second half what head floor((2 b + 1) / B)
    found for image 2 b + 1 (both modulo B, for two heads). A feature holds other people's, at test time too.
    """

    heads: int = 2
    scramble: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, part: Array, whole: Array) -> Array:
        width = part.shape[-1]
        if width % SUB_WIDTH or SUB_WIDTH % self.heads:
            raise ValueError(f"features of {width} numbers cannot be cut into sub-vectors of {SUB_WIDTH} with {self.heads} heads")
        sub = (-1, width // SUB_WIDTH, SUB_WIDTH)
        positions = self.param("pos_embedding", nn.initializers.zeros, (1, *sub[1:]))
        x, source = (feature.astype(jnp.float32).reshape(sub) + positions for feature in (part, whole))
        asked = LayerNorm(EPSILON, self.dtype, name="norm_query")(x)
        offered = LayerNorm(EPSILON, self.dtype, name="norm_global")(source)
        per_head = (*x.shape[:2], self.heads, SUB_WIDTH // self.heads)
        query = torch_dense(SUB_WIDTH, SUB_WIDTH, "query", self.dtype, False)(asked).reshape(per_head)
        pair = torch_dense(2 * SUB_WIDTH, SUB_WIDTH, "key_value", self.dtype, False)(offered)
        key, value = (half.reshape(per_head) for half in jnp.split(pair, 2, axis=-1))
        mixed = jax.nn.dot_product_attention(query, key, value)
        if self.scramble:
            mixed = mixed.transpose(2, 0, 1, 3)  # [heads, B, pieces, 16 / heads], read on as [B, pieces, 16]
        x = x + torch_dense(SUB_WIDTH, SUB_WIDTH, "out", self.dtype)(mixed.reshape(sub)).astype(jnp.float32)
        hidden = gelu(torch_dense(SUB_WIDTH, SUB_WIDTH, "fc1", self.dtype)(LayerNorm(EPSILON, self.dtype, name="norm_mlp")(x)))
        return (x + torch_dense(SUB_WIDTH, SUB_WIDTH, "fc2", self.dtype)(hidden).astype(jnp.float32)).reshape(-1, width)


class RelationEnrichment(nn.Module):
    """REM: part feature [B, D] and global feature [B, D] -> part + a (e W_v global + global), float32 [B, D].

    e, the sigmoid of two linear layers on (W_q part, W_p global), is one number for each image; a is learned and starts at 0, so
    that the module begins as the identity.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, part: Array, whole: Array) -> Array:
        width = part.shape[-1]
        asked, offered = (
            torch_dense(width, width, name, self.dtype)(feature) for name, feature in (("conv_query", part), ("conv_part", whole))
        )
        both = torch_dense(width, 2 * width, "linear1", self.dtype)(jnp.concatenate([asked, offered], axis=-1))
        relation = jax.nn.sigmoid(torch_dense(1, width, "linear2", self.dtype)(both).astype(jnp.float32))
        value = torch_dense(width, width, "conv_value", self.dtype)(whole).astype(jnp.float32)
        return part + self.param("share", nn.initializers.zeros, (1,)) * (value * relation + whole)


def sub_vector_flops(width: int) -> float:
    """Floating-point operations (2 per multiply-add) of `SubVectorBlending` on one image; norms are left out."""
    pieces = width // SUB_WIDTH
    return 2.0 * pieces * SUB_WIDTH * (6 * SUB_WIDTH + 2 * pieces)


def relation_flops(width: int) -> float:
    """The same of `RelationEnrichment`."""
    return 2.0 * width * (5 * width + 1)
