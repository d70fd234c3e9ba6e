"""CLIP's towers: the sizes of the published networks, their image encoders and the text transformer.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; Li et al.,
"CLIP-ReID", AAAI 2023 (any stride and grid, camera vector on the cls token, prompts given as embeddings).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax.nn.clip_resnet import ModifiedResNet, ResNetSize
from occreid_jax.nn.layers import LayerNorm, quick_gelu, trunc_normal
from occreid_jax.nn.prompt import CONTEXT
from occreid_jax.nn.vit import Size, ViT, block_flops, clip_deviations, transformer_block

Array = jax.Array

EPSILON = 1e-5  # of every LayerNorm
VOCABULARY = 49408


class Clip(NamedTuple):
    """Sizes of one CLIP network."""

    visual: Size | ResNetSize
    embed: int  # width of the space that both towers end in
    text: Size
    patch: int = 16  # ViT only


VISUAL = {
    "micro": Clip(Size(32, 2, 2), 16, Size(16, 2, 2)),  # for tests
    "micro_resnet": Clip(ResNetSize(8, (1, 1, 1, 1), 4), 16, Size(16, 2, 2)),  # for tests
    "tiny": Clip(Size(192, 4, 3), 128, Size(128, 4, 2)),  # for the embedded benchmark
    "tiny_fine": Clip(Size(192, 4, 3), 128, Size(128, 4, 2), 8),  # the same with as many patches as the papers have
    "vit_b32": Clip(Size(768, 12, 12), 512, Size(512, 12, 8), 32),
    "vit_b16": Clip(Size(768, 12, 12), 512, Size(512, 12, 8)),
    "vit_l14": Clip(Size(1024, 24, 16), 768, Size(768, 12, 12), 14),
    "rn50": Clip(ResNetSize(64, (3, 4, 6, 3), 32), 1024, Size(512, 12, 8)),
}


def clip_size(name: str) -> Clip:
    """The entry of `VISUAL`; ValueError for another name."""
    if name not in VISUAL:
        raise ValueError(f"unknown CLIP network '{name}'; known: {', '.join(VISUAL)}")
    return VISUAL[name]


def clip_visual(
    name: str,
    image_size: tuple[int, int],
    stride: int | None = None,
    cameras: int = 0,
    camera_scale: float = 1.0,
    camera_tokens: str = "cls",
    from_scratch: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
    **changes,
) -> ViT:
    """CLIP's image transformer ``name`` for images (height, width); ``stride`` None is the patch's side, 12 overlaps patches.

    ``changes`` are other fields of `ViT`. ValueError for an unknown name and for the convolutional ones, see `clip_resnet`.
    """
    clip = clip_size(name)
    if not isinstance(clip.visual, Size):
        raise ValueError(
            f"'{name}' is no transformer; known: {', '.join(k for k, v in VISUAL.items() if isinstance(v.visual, Size))}"
        )
    values = dict(
        size=clip.visual,
        image_size=tuple(image_size),
        patch=clip.patch,
        stride=clip.patch if stride is None else stride,
        cameras=cameras,
        camera_scale=camera_scale,
        camera_tokens=camera_tokens,
        from_scratch=from_scratch,
        remat=remat,
        dtype=dtype,
        epsilon=EPSILON,
        patch_bias=False,
        pre_norm=True,
        activation=quick_gelu,
        projection_width=clip.embed,
        clip_values=True,
    )
    return ViT(**(values | changes))


def clip_resnet(name: str, image_size: tuple[int, int], last_stride: int = 1, dtype: jnp.dtype = jnp.float32) -> ModifiedResNet:
    """CLIP's convolutional image tower ``name`` for images (height, width). ``last_stride`` is CLIP-ReID's; CLIP itself has 2."""
    clip = clip_size(name)
    if not isinstance(clip.visual, ResNetSize):
        raise ValueError(
            f"'{name}' is no ResNet; known: {', '.join(k for k, v in VISUAL.items() if isinstance(v.visual, ResNetSize))}"
        )
    return ModifiedResNet(clip.visual, tuple(image_size), clip.embed, last_stride, dtype=dtype)


def clip_text(
    name: str, vocabulary: int = 0, length: int = CONTEXT, remat: bool = False, dtype: jnp.dtype = jnp.float32
) -> TextTransformer:
    """The text tower of the network ``name``; ``vocabulary`` 0 leaves the token embedding out, else it is `VOCABULARY`."""
    clip = clip_size(name)
    return TextTransformer(clip.text, clip.embed, length, vocabulary, remat=remat, dtype=dtype)


def text_flops(clip: Clip, tokens: int) -> float:
    """Floating-point operations (2 per multiply-add) of the text tower on one text of ``tokens`` tokens; norms are left out.

    Attention counts in full: its mask spares nothing.
    """
    return clip.text.depth * block_flops(clip.text, tokens) + 2.0 * clip.text.width * clip.embed


class TextTransformer(nn.Module):
    """CLIP's text tower. Token ids int32 [B, L] or embeddings float32 [B, L, W] -> features float32 [B, E], not normalised.

    Attention is causal and the feature is that of the end token, so nothing after it matters: cut the ids to
    `occreid_jax.nn.prompt.prefix_length`, 12 of 77 for CLIP-ReID's prompt. Any L up to ``length`` runs, ValueError beyond.
    """

    size: Size
    embed: int
    length: int = CONTEXT
    vocabulary: int = 0  # 0: no token embedding, the tower runs on embeddings only (`encode`)
    epsilon: float = EPSILON
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        size = self.size
        if self.vocabulary:
            self.token_embedding = self.param("token_embedding", trunc_normal(0.02), (self.vocabulary, size.width))
        self.pos_embed = self.param("pos_embed", trunc_normal(0.01), (self.length, size.width))
        self.block = [
            transformer_block(
                size, 0.0, self.epsilon, self.dtype, remat=self.remat, name=f"block_{number:02d}",
                activation=quick_gelu, deviations=clip_deviations(size),
            )
            for number in range(size.depth)
        ]  # fmt: skip
        self.norm = LayerNorm(self.epsilon)
        self.projection = self.param("projection", trunc_normal(size.width**-0.5), (size.width, self.embed))

    def embed_tokens(self, ids: Array) -> Array:
        """Rows of the token embedding, float32 [..., W], for ids int32 [...]. ValueError where the tower has none."""
        if not self.vocabulary:
            raise ValueError("this text tower has no token embedding; set vocabulary, or give embeddings to `encode`")
        return self.token_embedding[ids]

    def tokens(self, embeddings: Array) -> Array:
        """Embeddings float32 [B, L, W] -> the residual stream after the last block, [B, L, W], before the final norm."""
        count = embeddings.shape[1]
        if count > self.length:
            raise ValueError(f"{count} tokens are more than the {self.length} that this text tower has positions for")
        causal = np.tril(np.ones((1, 1, count, count), bool))
        x = (embeddings + self.pos_embed[:count]).astype(self.dtype)
        for block in self.block:
            x, _ = block(x, False, causal, False)
        return x

    def encode(self, embeddings: Array, eot: Array | int) -> Array:
        """Features float32 [B, E] of embeddings float32 [B, L, W] whose end token is at ``eot``, one index or int32 [B]."""
        batch, count, _ = embeddings.shape
        if isinstance(eot, int) and not 0 <= eot < count:
            raise ValueError(f"the end token at {eot} is not among {count} tokens")
        last = jnp.broadcast_to(jnp.asarray(eot, jnp.int32), (batch,))[:, None, None]
        x = jnp.take_along_axis(self.tokens(embeddings), last, axis=1)[:, 0]
        return jnp.matmul(self.norm(x).astype(self.dtype), self.projection.astype(self.dtype), preferred_element_type=jnp.float32)

    def __call__(self, ids: Array) -> Array:
        """Features float32 [B, E] of token ids int32 [B, L]; the end token is the largest id of a row."""
        return self.encode(self.embed_tokens(ids), jnp.argmax(ids, axis=-1))
