"""Heads on top of an encoder: the BNNeck and the bias-free classifier."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen as nn

from occreid_jax.nn.layers import BatchNorm

Array = jax.Array

FROZEN_BIAS = r"(^|/)neck[^/]*/bias$"
"""Parameter paths that no optimiser moves: the BNNeck's shift stays where it is (Luo et al., BoT, 2019)."""


def classifier(classes: int, name: str | None = None) -> nn.Dense:
    """A classifier without bias, whose rows start near zero."""
    return nn.Dense(classes, use_bias=False, kernel_init=nn.initializers.normal(0.001), name=name)


class BNNeck(nn.Module):
    """Batch normalisation and a bias-free classifier. Features [B, D] -> (normalised [B, D], logits float32 [B, C])."""

    classes: int

    @nn.compact
    def __call__(self, features: Array, train: bool) -> tuple[Array, Array]:
        normalised = BatchNorm(name="neck")(features, train)
        return normalised, classifier(self.classes, "classifier")(normalised)


class BNNecks(nn.Module):
    """One `BNNeck`, named head_0, head_1 ..., for each of several features (their widths may differ)."""

    classes: int

    @nn.compact
    def __call__(self, features: Sequence[Array], train: bool) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Features [B, D] each -> (normalised features, logits float32 [B, C]), in the same order."""
        pairs = [BNNeck(self.classes, name=f"head_{number}")(feature, train) for number, feature in enumerate(features)]
        return tuple(normalised for normalised, _ in pairs), tuple(logits for _, logits in pairs)
