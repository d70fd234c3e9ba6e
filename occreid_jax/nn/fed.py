"""The parts of FED: features of horizontal stripes, what of them is seen (OEM), and features of other people mixed in (FDM).

Source: Wang et al., "Feature Erasing and Diffusion Network for Occluded Person Re-Identification", CVPR 2022, sections 3.2 and
3.3, Eq. 1 and 4 to 7; its official ``model/make_model.py`` and ``model/perceiver.py``. P is the number of stripes, D the width of
the encoder; vectors [P D] hold the stripes one after the other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import BatchNorm, LayerNorm, gelu, torch_dense
from occreid_jax.vectors import unit_vectors

Array = jax.Array
FFNS = ("geglu", "postln_residual")
EPSILON = 1e-5  # of the LayerNorms, torch's default
REDUCTION = 4  # of the width inside OEM
EXPANSION = 4  # of the width inside the FFNs


def similarities(features: Array, bank: Array) -> Array:
    """Cosines float32 [B, C] of features [B, D] with the rows of a memory bank [C, D]. No gradient flows."""
    features, bank = jax.lax.stop_gradient((features, bank))
    return jnp.matmul(unit_vectors(features), unit_vectors(bank).T, precision=jax.lax.Precision.HIGHEST)


def search(features: Array, bank: Array, count: int, labels: Array | None = None) -> Array:
    """Rows int32 [B, count] of the bank that are most alike, the best first; a row's own identity (``labels`` int32 [B]) is none
    of them. ``count`` is less than the number of rows. The official code takes one more and drops the own one: the same rows.
    """
    cosines = similarities(features, bank)
    if labels is not None:
        cosines = jnp.where(jnp.arange(len(bank)) == labels[:, None], -jnp.inf, cosines)
    return jax.lax.top_k(cosines, count)[1]


class PartScore(nn.Module):
    """How much of a stripe is the person: [B, D] -> float32 [B] in (0, 1). Two linear layers with a LayerNorm between (Eq. 1)."""

    @nn.compact
    def __call__(self, feature: Array) -> Array:
        width = feature.shape[-1]
        hidden = width // REDUCTION
        x = torch_dense(hidden, width, "compress")(feature)
        return nn.sigmoid(torch_dense(1, hidden, "score")(LayerNorm(EPSILON, name="norm")(x)))[:, 0]


class OcclusionErasing(nn.Module):
    """OEM: a `PartScore` of its own for every stripe, oem_0 ...: [B, P, D] -> float32 [B, P]."""

    @nn.compact
    def __call__(self, parts: Array) -> Array:
        scores = [PartScore(name=f"oem_{part}")(parts[:, part]) for part in range(parts.shape[1])]
        return jnp.stack(scores, axis=1)


class PartNecks(nn.Module):
    """A `BatchNorm` of its own for every stripe, neck_0 ...: [B, P, D] -> float32 [B, P, D]."""

    @nn.compact
    def __call__(self, parts: Array, train: bool) -> Array:
        normalised = [BatchNorm(name=f"neck_{part}")(parts[:, part], train) for part in range(parts.shape[1])]
        return jnp.stack(normalised, axis=1)


class FeedForward(nn.Module):
    """[..., D] -> float32 [..., D].

    "geglu" (the official code): LayerNorm, then W_b (v gelu(g)) with v, g the halves of W_a x in this order; nothing is added.
    "postln_residual" (the text of section 3.2): LayerNorm(x + W_b gelu(W_a x)).
    """

    kind: str = "geglu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind not in FFNS:
            raise ValueError(f"unknown ffn '{self.kind}'; it must be one of {', '.join(FFNS)}")
        width = x.shape[-1]
        hidden, norm = EXPANSION * width, LayerNorm(EPSILON, name="norm")
        last = torch_dense(width, hidden, "fc2", dtype=self.dtype)
        if self.kind == "geglu":
            value, gate = jnp.split(torch_dense(2 * hidden, width, "fc1", dtype=self.dtype)(norm(x)), 2, axis=-1)
            return last(value * gelu(gate)).astype(jnp.float32)
        return norm(x + last(gelu(torch_dense(hidden, width, "fc1", dtype=self.dtype)(x))).astype(jnp.float32))


class FeatureDiffusion(nn.Module):
    """FDM: features [B, P D] look at ``memory`` [B, K, P D], K neighbours each, and take of them (Eq. 4 to 7) -> float32
    [B, P, D].

    ``heads`` heads of width P D / heads; ``scale`` multiplies the products of query and key. ``scramble`` joins the heads as the
    official code does, whose axes of batch and head are exchanged: row r of the result holds pieces of the rows of other images.
    ``ffn`` is a kind of `FeedForward`; both are shared by all stripes.
    """

    heads: int
    scale: float
    scramble: bool = False
    ffn: str = "geglu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Array, scores: Array, memory: Array) -> Array:
        parts = scores.shape[1]
        split = (len(features), parts, -1)
        taken = Diffusion(self.heads, self.scale, self.scramble, self.dtype, name="attend")(features, memory)
        taken = FeedForward(self.ffn, self.dtype, name="ffn1")(taken.reshape(split))
        return FeedForward(self.ffn, self.dtype, name="ffn2")(scores[..., None] * taken + features.reshape(split))


class Diffusion(nn.Module):
    """The cross-attention of `FeatureDiffusion`: [B, E] looks at [B, K, E] -> float32 [B, E]."""

    heads: int
    scale: float
    scramble: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Array, memory: Array) -> Array:
        batch, width = features.shape
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {width}")
        size = width // self.heads
        query = torch_dense(width, width, "query", self.dtype, False)(features).reshape(batch, self.heads, size)
        pair = torch_dense(2 * width, width, "key_value", self.dtype, False)(memory).reshape(batch, -1, 2, self.heads, size)
        key, value = pair[:, :, 0], pair[:, :, 1]
        logits = self.scale * jnp.einsum("bhd,bkhd->bhk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        taken = jnp.einsum("bhk,bkhd->bhd", weights, value)
        joined = taken.transpose(1, 0, 2) if self.scramble else taken
        return torch_dense(width, width, "out", dtype=self.dtype)(joined.reshape(batch, width)).astype(jnp.float32)


def feature_diffusion_flops(width: int, parts: int, neighbours: int, ffn: str = "geglu") -> float:
    """Floating-point operations (2 per multiply-add) of `FeatureDiffusion` on one image, ``width`` being that of a stripe."""
    whole = parts * width
    attention = 2 * whole**2 + neighbours * (2 * whole**2 + 2 * whole)
    hidden = EXPANSION * width
    return 2.0 * (attention + 2 * parts * width * hidden * (3 if ffn == "geglu" else 2))
