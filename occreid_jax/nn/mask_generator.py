"""The hierarchical mask generator (HMG) of DPM++ and the decision layer of salient patch selection (SPS): both read patch maps of
several depths of an encoder.

Source: DPM++ (arXiv 2605.06637) Eq. 3, 20, 21; Tan et al., "Dynamic Prototype Mask for Occluded Person Re-identification", ACM MM
2022; Tan et al., "Occluded Person Re-identification via Saliency-Guided Patch Transfer", AAAI 2024; their official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import BatchNorm, LayerNorm, torch_uniform

Array = jax.Array

DEPTH = 12  # of the encoder that the papers name their levels for
POOLINGS = ("max", "mean")


def scaled_levels(levels: Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks (from 1) whose outputs are tapped, for an encoder of ``depth`` blocks: the papers' numbers are those of 12 blocks.

    Each level keeps its relative depth, rounded, moves up where two would fall together and is left out where there is no block
    left: (2, 4, 10, 12) is (1, 2, 3, 4) for 4 blocks and (1, 2) for 2. ValueError for a level outside 1 to 12 or none at all.
    """
    if not levels or not all(1 <= level <= DEPTH for level in levels):
        raise ValueError(f"levels {tuple(levels)} must be block numbers from 1 to {DEPTH}")
    found: list[int] = []
    for level in sorted(levels):
        place = max(round(level * depth / DEPTH), 1 + (found[-1] if found else 0))
        if place <= depth:
            found.append(place)
    return tuple(found)


def patch_maps(taps: Sequence[Array], levels: Sequence[int], prefix: int = 1) -> Array:
    """Outputs of the blocks ``levels`` (from 1) without the first ``prefix`` tokens, side by side: [B, N, L D], shallow first."""
    return jnp.concatenate([taps[level - 1][:, prefix:] for level in levels], axis=-1)


def normalised_levels(maps: Array, levels: int) -> Array:
    """Each of ``levels`` equal pieces of the last axis through a LayerNorm of its own, norm_0 ..., of the calling module."""
    pieces = jnp.split(maps, levels, axis=-1)
    return jnp.concatenate([LayerNorm(1e-6, name=f"norm_{i}")(piece) for i, piece in enumerate(pieces)], axis=-1)


class DecisionLayer(nn.Module):
    """Saliency of every patch: a linear map of its tokens at several depths. [B, N, L D] -> logits float32 [B, N] (Eq. 3).

    ``level_norm`` normalises each of ``levels`` maps on its own first: without it the logits are as large as the residual
    stream, and the first steps can saturate the sigmoid for good.
    """

    levels: int = 1
    level_norm: bool = False

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        maps = normalised_levels(maps, self.levels) if self.level_norm else maps
        width = maps.shape[-1]
        kernel = self.param("kernel", torch_uniform(width), (width, 1))
        bias = self.param("bias", torch_uniform(width), (1,))
        return (jnp.matmul(maps.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST) + bias)[..., 0]


class MaskGenerator(nn.Module):
    """One mask per image from its patch maps. [B, h, w, L D] -> float32 [B, ``features``] in (0, 1) (Eq. 20, 21).

    Three convolutions 3x3 to 2 ``width``, ``width`` and ``width`` channels, each with BatchNorm and ReLU; the first two are
    followed by a 2x2 max-pool (a side of 1 is not pooled further), the last by a pool over all positions; a linear map that
    starts at zero, so that every mask begins as 0.5; a sigmoid. The official code pools by the maximum at the end, the paper
    says mean. ``level_norm`` normalises each of ``levels`` maps on its own first.
    """

    width: int
    features: int
    levels: int = 1
    pooling: str = "max"
    level_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Array, train: bool) -> Array:
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling '{self.pooling}'; it must be one of {', '.join(POOLINGS)}")
        x = normalised_levels(maps, self.levels) if self.level_norm else maps
        for number, channels in enumerate((2 * self.width, self.width, self.width)):
            initial = torch_uniform(9 * x.shape[-1])
            conv = nn.Conv(
                channels, (3, 3), padding=1, dtype=self.dtype, kernel_init=initial, bias_init=initial, name=f"conv_{number}"
            )
            x = nn.relu(BatchNorm(name=f"bn_{number}")(conv(x), train))
            if number < 2:
                window = min(2, x.shape[1]), min(2, x.shape[2])
                x = nn.max_pool(x, window, window)
        # Not x.max(): its gradient finds the maximum by equality, and where XLA computes x twice with other roundings nothing is
        # equal and the gradient is lost.
        x = nn.max_pool(x, x.shape[1:3])[:, 0, 0] if self.pooling == "max" else x.mean(axis=(1, 2))
        zeros = nn.initializers.zeros_init()
        return nn.sigmoid(nn.Dense(self.features, kernel_init=zeros, bias_init=zeros, name="fc")(x))


def mask_generator_flops(channels: int, width: int, features: int, grid: tuple[int, int]) -> float:
    """Floating-point operations (2 per multiply-add) of one image's mask; ``channels`` is L D."""
    rows, columns = grid
    total, before = 0.0, channels
    for after in (2 * width, width, width):
        total += 2.0 * rows * columns * 9 * before * after
        rows, columns, before = max(rows // 2, 1), max(columns // 2, 1), after
    return total + 2.0 * width * features
