"""The jigsaw patch module of TransReID: the last block twice, once on all tokens and once on groups of scattered patches.

Source: He et al., "TransReID", ICCV 2021, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax.nn.layers import LayerNorm, gelu
from occreid_jax.nn.vit import Size, transformer_block

Array = jax.Array


def jigsaw_order(patches: int, shift: int = 5, groups: int = 2) -> np.ndarray:
    """Order of the patches after shift and shuffle, int32 [patches or patches + 1].

    The patches are rolled by ``shift - 1`` (the paper says ``shift``; the official code, which all published numbers come from,
    counts the cls token), then read column by column from ``groups`` rows. If they do not fill the rows, the last but one is
    repeated. Raises ValueError if that does not fill them either.
    """
    order = np.roll(np.arange(patches, dtype=np.int32), 1 - shift)
    if patches % groups:
        order = np.append(order, order[-2])
    if len(order) % groups:
        raise ValueError(
            f"{patches} patches cannot be shuffled in {groups} groups; choose a divisor of {patches} or of {len(order)}"
        )
    return order.reshape(groups, -1).T.ravel()


class Branch(nn.Module):
    """One block and the final norm. Tokens [B, T, D] -> (cls feature float32 [B, D], the block's cls logits or None)."""

    size: Size
    drop_path: float
    epsilon: float
    dtype: jnp.dtype
    remat: bool
    activation: Callable[[Array], Array]
    attention_kernel: str

    @nn.compact
    def __call__(self, tokens: Array, train: bool, return_cls_logits: bool = False) -> tuple[Array, Array | None]:
        block = transformer_block(
            self.size, self.drop_path, self.epsilon, self.dtype, remat=self.remat, name="block",
            activation=self.activation, attention_kernel=self.attention_kernel,
        )  # fmt: skip
        tokens, cls_logits = block(tokens, train, None, return_cls_logits)
        return LayerNorm(self.epsilon, name="norm")(tokens[:, 0]), cls_logits


class JigsawPatchModule(nn.Module):
    """Tokens [B, 1 + N, D] before the last block -> one global and ``parts`` local cls features, float32 [B, D] each.

    The local branch sees ``N // parts`` patches at a time; patches left over are dropped. Its calls are one call on a batch
    that is ``parts`` times as large.
    """

    size: Size
    parts: int = 4
    shift: int = 5
    groups: int = 2
    rearrange: bool = True  # False: consecutive patches, neither shifted nor shuffled
    drop_path: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    activation: Callable[[Array], Array] = gelu
    attention_kernel: str = "auto"

    @nn.compact
    def __call__(self, tokens: Array, train: bool, return_cls_logits: bool = False) -> tuple[tuple[Array, ...], Array | None]:
        batch, count, width = tokens.shape
        settings = self.size, self.drop_path, self.epsilon, self.dtype, self.remat, self.activation, self.attention_kernel
        whole, cls_logits = Branch(*settings, name="global")(tokens, train, return_cls_logits)
        length = (count - 1) // self.parts
        order = jigsaw_order(count - 1, self.shift, self.groups) if self.rearrange else np.arange(count - 1)
        pieces = tokens[:, 1 + order[: self.parts * length]].reshape(batch, self.parts, length, width)
        cls = jnp.broadcast_to(tokens[:, None, :1], (batch, self.parts, 1, width))
        pieces = jnp.concatenate([cls, pieces], axis=2).reshape(batch * self.parts, 1 + length, width)
        local = Branch(*settings, name="local")(pieces, train)[0].reshape(batch, self.parts, width)
        return (whole, *(local[:, part] for part in range(self.parts))), cls_logits
