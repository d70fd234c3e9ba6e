"""The parts of OGFR: an encoder that is told what is hidden, the agent that erases patches, and the two decoders.

Source: "Occlusion-Guided Feature Purification via Reinforced Knowledge Distillation" (arXiv 2507.08520), sections 3.1 to 3.3. N
patches, K = 8 parts and the background; the encoder's tokens are [class; background; parts; patches], a decoder's [class; parts;
patches].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn import vit
from occreid_jax.nn.layers import LayerNorm, trunc_normal
from occreid_jax.parts import PARTS
from occreid_jax.vectors import unit_vectors

Array = jax.Array
PART_TOKENS = len(PARTS)  # the background first
FEATURES = PART_TOKENS  # of a decoder that stand for pictures and parts: class token and parts without the background
DECODERS = ("fixed", "plain")
LAYERS = 2  # of either decoder


def encode(
    encoder: vit.ViT, images: Array, camids: Array, vectors: Array | None, train: bool, return_cls_logits: bool = False
) -> tuple[Array, Array | None]:
    """Tokens float32 [B, 1 + 9 + N, D] after the final norm, and the last block's products of the class token, or None.

    ``vectors`` float32 [B, D] say what is hidden (Eq. 5). To be called through ``encoder.apply(..., method=encode)``.
    """
    out = encoder.from_patches(encoder.embed_patches(images), camids, train, return_cls_logits, vectors)
    return out.tokens, out.cls_logits


def correlation(patches: Array, parts: Array) -> Array:
    """Cosines float32 [B, N, P] of patches [B, N, D] with part tokens [B, P, D] (Eq. 6)."""
    return jnp.einsum("bnd,bpd->bnp", unit_vectors(patches), unit_vectors(parts), precision=jax.lax.Precision.HIGHEST)


class Agent(nn.Module):
    """Logit of the probability that a patch is kept, float32 [B, N], from its `correlation` [B, N, P] (Eq. 7, with a bias).

    ``start`` is the bias at the beginning: 2.197 keeps nine patches in ten, the 0 of the text every other one. The correlation is
    what the agent observes: no gradient goes back into it.
    """

    start: float = 2.197

    @nn.compact
    def __call__(self, correlation: Array) -> Array:
        observed = jax.lax.stop_gradient(correlation).astype(jnp.float32)
        kernel = self.param("kernel", nn.initializers.normal(0.01), (observed.shape[-1], 1))
        bias = self.param("bias", nn.initializers.constant(self.start), (1,))
        return jnp.matmul(observed, kernel, precision=jax.lax.Precision.HIGHEST)[..., 0] + bias


class Decoder(nn.Module):
    """Two transformer layers and a norm over [class; parts; patches]: [B, 9 + N, D] -> float32 [B, 9 + N, D].

    With ``patches`` N it can purify: patches that are not kept become learned tokens, one for every place. Its first layer is
    then, with ``fixed``, one in which class and part tokens gather nothing (Eq. 13 to 16). Without ``residual`` both layers are
    Eq. 12 as printed.
    """

    size: vit.Size
    patches: int = 0  # N of one that purifies
    fixed: bool = False
    residual: bool = True
    drop_path: float = 0.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    attention_kernel: str = "auto"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, tokens: Array, kept: Array | None = None, train: bool = False) -> Array:
        """``kept`` bool [B, N] says which patches stay; None: all."""
        x = tokens.astype(self.dtype)
        if self.patches:
            learned = self.param("mask_tokens", trunc_normal(), (1, self.patches, x.shape[-1]))
            if kept is not None:
                replaced = jnp.where(kept[..., None], x[:, FEATURES:], learned.astype(self.dtype))
                x = jnp.concatenate([x[:, :FEATURES], replaced], axis=1)
        for number in range(LAYERS):
            block = vit.transformer_block(
                self.size, self.drop_path, self.epsilon, self.dtype, remat=self.remat, name=f"block_{number}",
                attention_kernel=self.attention_kernel, residual=self.residual,
                fixed=FEATURES if self.fixed and number == 0 else 0,
            )  # fmt: skip
            x, _ = block(x, train, None, False)
        return LayerNorm(self.epsilon, name="norm")(x)


def decoder_flops(size: vit.Size, patches: int) -> float:
    """Floating-point operations (2 per multiply-add) of a `Decoder` on one picture."""
    return LAYERS * vit.block_flops(size, FEATURES + patches)


def correlation_flops(size: vit.Size, patches: int) -> float:
    """Floating-point operations (2 per multiply-add) of `correlation` on one picture."""
    return 2.0 * PART_TOKENS * patches * size.width
