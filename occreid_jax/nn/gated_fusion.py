"""Weighted gated feature fusion: what a second network sees of an image, let into the features of CLIP's image tower.

Source: DPL-ReID (arXiv 2605.19527), section 3.3, Eq. 7 to 10. The paper has no layer that brings one network's features to the
width of the other's; these, and how everything starts, are ours (docs/methods/dpl_reid.md).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import LayerNorm

Array = jax.Array

EPSILON = 1e-5
SMALL = 1e-3  # deviation of a gate's initial kernel


class WeightedFusion(nn.Module):
    """For a ViT: beta f + (1 - beta) P(g), with one learned beta for both features. float32.

    ``late`` [B, D] and ``projected`` [B, E] are CLIP's, ``pooled`` [B, C] the other network's; P is a LayerNorm and a linear
    layer for each. beta is the sigmoid of the parameter ``beta``, which starts where it gives ``start``.
    """

    start: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, late: Array, projected: Array, pooled: Array) -> tuple[Array, Array]:
        raw = self.param("beta", nn.initializers.constant(math.log(self.start / (1 - self.start))), (), jnp.float32)
        beta = jax.nn.sigmoid(raw)

        def mixed(feature: Array, norm: str, dense: str) -> Array:
            other = LayerNorm(EPSILON, self.dtype, name=norm)(pooled)
            other = nn.Dense(feature.shape[-1], dtype=self.dtype, name=dense)(other).astype(jnp.float32)
            return beta * feature + (1.0 - beta) * other

        return mixed(late, "norm1", "p1"), mixed(projected, "norm2", "p2")


class GatedFusion(nn.Module):
    """For a ResNet: f sigmoid(W g), of the last map and of the projected feature. float32.

    ``last`` [B, h, w, D] and ``projected`` [B, E] are CLIP's; ``other`` [B, h', w', C] is the second network's last map, whose
    gate is resized to CLIP's grid (bilinear, half-pixel centres), and ``pooled`` [B, C] its mean. Gates begin nearly at
    sigmoid(``bias``), so that training starts near CLIP's own features.
    """

    bias: float = 3.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, last: Array, projected: Array, other: Array, pooled: Array) -> tuple[Array, Array]:
        def gate(features: int, x: Array, name: str) -> Array:
            initial = dict(kernel_init=nn.initializers.normal(SMALL), bias_init=nn.initializers.constant(self.bias))
            return nn.Dense(features, dtype=self.dtype, name=name, **initial)(x).astype(jnp.float32)

        logits = gate(last.shape[-1], other, "gate_map")  # a 1x1 convolution
        logits = jax.image.resize(logits, last.shape, "bilinear", antialias=False)
        return last * jax.nn.sigmoid(logits), projected * jax.nn.sigmoid(gate(projected.shape[-1], pooled, "gate_proj"))
