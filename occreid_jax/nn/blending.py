"""The feature blending module (FBM): a part's feature asks the global feature, both cut into short sub-vectors.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435), section III-B,
Eq. 7 to 12. The paper gives neither the number of heads (here a setting) nor the hidden width and activation of the
feed-forward layer (here 4 D and GELU, as in the encoder).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import LayerNorm, gelu

Array = jax.Array
SUB_WIDTH = 16  # numbers in a sub-vector, and in a head
HIDDEN = 4  # width of the feed-forward layer's inside, in units of D
EPSILON = 1e-6  # of all LayerNorms


class FeatureBlending(nn.Module):
    """Part feature [B, D] and global feature [B, D] -> blended feature float32 [B, D]. D is a multiple of `SUB_WIDTH`.

    Queries come from the part, keys and values from the global feature: each passes a dense layer (the paper's 1x1
    convolution), is cut into D / 16 sub-vectors, gets a learned position and a LayerNorm. Attention runs among the sub-vectors,
    with ``heads`` heads of 16 numbers projected from 16 each. With x the part plus what it took from the global feature and
    y = LN(x), the result is y + FFN(y), the same y twice (Eq. 11). ``shared`` has one position embedding and one LayerNorm for
    the three streams instead of one each.
    """

    heads: int = 8
    shared: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, part: Array, whole: Array) -> Array:
        width = part.shape[-1]
        if width % SUB_WIDTH:
            raise ValueError(f"features of {width} numbers cannot be cut into sub-vectors of {SUB_WIDTH}")
        pieces, initial = width // SUB_WIDTH, nn.initializers.xavier_uniform()

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=initial, name=name)

        streams = 1 if self.shared else 3
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), (streams, pieces, SUB_WIDTH))
        common = LayerNorm(EPSILON, self.dtype, name="norm_sub") if self.shared else None
        projected = []
        for number, (stream, source, name) in enumerate(
            (("part", part, "query"), ("key", whole, "key"), ("value", whole, "value"))
        ):
            x = dense(width, f"conv_{stream}")(source).reshape(-1, pieces, SUB_WIDTH)
            x = x + positions[number % streams]
            x = (common or LayerNorm(EPSILON, self.dtype, name=f"norm_{name}"))(x)
            heads = nn.DenseGeneral((self.heads, SUB_WIDTH), dtype=self.dtype, kernel_init=initial, name=name)
            projected.append(heads(x))
        mixed = jax.nn.dot_product_attention(*projected, scale=SUB_WIDTH**-0.5)
        mixed = nn.DenseGeneral(SUB_WIDTH, axis=(-2, -1), dtype=self.dtype, kernel_init=initial, name="out")(mixed)
        y = LayerNorm(EPSILON, name="norm")(part.astype(jnp.float32) + mixed.reshape(-1, width).astype(jnp.float32))
        return y + dense(width, "fc2")(gelu(dense(HIDDEN * width, "fc1")(y))).astype(jnp.float32)


def feature_blending_flops(width: int, heads: int) -> float:
    """Floating-point operations (2 per multiply-add) of one module on one image; norms are left out."""
    pieces = width // SUB_WIDTH
    projections = 4 * pieces * SUB_WIDTH * heads * SUB_WIDTH
    return 2.0 * ((3 + 2 * HIDDEN) * width**2 + projections + 2 * pieces**2 * heads * SUB_WIDTH)
