"""CLIP's convolutional image tower: a ResNet with three stem convolutions, average pooling in place of strides, and an attention
pool.

Source: Radford et al., ICML 2021, ``ModifiedResNet`` and ``AttentionPool2d``; Li et al., "CLIP-ReID", AAAI 2023 (last stage with
stride 1, positions resized to its grid, all tokens returned) and its code, ``model/clip/model.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import BatchNorm, trunc_normal

Array = jax.Array

EXPANSION = 4  # a bottleneck's output over its inner width


class ResNetSize(NamedTuple):
    """Width after the stem, bottlenecks of the four stages, heads of the attention pool."""

    width: int
    depths: tuple[int, int, int, int]
    heads: int


class ResNetOutput(NamedTuple):
    """Maps of the last two stages in the tower's ``dtype``, and the attention pool's tokens."""

    layer3: Array  # [B, h, w, 16 width]
    layer4: Array  # [B, h, w, 32 width], what the pool reads; half the grid with last_stride 2
    tokens: Array  # float32 [B, 1 + h w, embed]: the image's, then the pixels'; [B, 1, embed] with all_tokens False

    @property
    def pooled(self) -> Array:
        return self.tokens[:, 0]


def convolution(features: int, kernel: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """Convolution without bias, padded as in PyTorch ("SAME" is another padding where the stride is 2)."""
    padding = (kernel - 1) // 2
    return nn.Conv(
        features, (kernel, kernel), stride, [(padding, padding)] * 2, use_bias=False, dtype=dtype, name=name,
        # PyTorch's: uniform within 1 / sqrt(inputs).
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    )  # fmt: skip


def average(x: Array, side: int) -> Array:
    """Mean over squares of ``side`` pixels; rows and columns left over are dropped."""
    return nn.avg_pool(x, (side, side), (side, side)) if side > 1 else x


class Bottleneck(nn.Module):
    """Residual block [B, h, w, C] -> [B, h / stride, w / stride, 4 width]; its convolutions all have stride 1.

    The last scale starts at 0 as in CLIP, so that a block starts as its shortcut.
    """

    width: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        wide = EXPANSION * self.width
        y = nn.relu(BatchNorm(name="bn1")(convolution(self.width, 1, 1, self.dtype, "conv1")(x), train))
        y = nn.relu(BatchNorm(name="bn2")(convolution(self.width, 3, 1, self.dtype, "conv2")(y), train))
        y = convolution(wide, 1, 1, self.dtype, "conv3")(average(y, self.stride))
        y = BatchNorm(initial_scale=0.0, name="bn3")(y, train)
        if self.stride > 1 or x.shape[-1] != wide:
            x = convolution(wide, 1, 1, self.dtype, "downsample_conv")(average(x, self.stride))
            x = BatchNorm(name="downsample_bn")(x, train)
        return nn.relu(x + y).astype(self.dtype)


class AttentionPool(nn.Module):
    """Multi-head attention of [mean; pixels] + positions. Map [B, h, w, D] -> tokens float32 [B, 1 + h w, embed].

    Without ``all_tokens`` only the mean asks, [B, 1, embed]: the same numbers for the first token, at half the cost.
    """

    heads: int
    embed: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, all_tokens: bool = True) -> Array:
        batch, height, width, features = x.shape
        x = x.reshape(batch, height * width, features).astype(jnp.float32)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        initial = trunc_normal(features**-0.5)
        x = (x + self.param("pos_embed", initial, (1, *x.shape[1:]))).astype(self.dtype)

        def split(name, tokens):
            out = nn.Dense(features, dtype=self.dtype, kernel_init=initial, name=name)(tokens)
            return out.reshape(batch, tokens.shape[1], self.heads, features // self.heads)

        query = split("query", x if all_tokens else x[:, :1])
        out = jax.nn.dot_product_attention(query, split("key", x), split("value", x))
        out = out.reshape(batch, out.shape[1], features)
        return nn.Dense(self.embed, dtype=self.dtype, kernel_init=initial, name="out")(out).astype(jnp.float32)


class ModifiedResNet(nn.Module):
    """Images float32 [B, H, W, 3] -> `ResNetOutput`. ``train`` normalises with the batch's statistics and updates "batch_stats".

    The attention pool's positions are for ``image_size``; weights for another grid go through
    `occreid_jax.nn.vit.resize_positions`.
    """

    size: ResNetSize
    image_size: tuple[int, int]
    embed: int
    last_stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage."""
        # The first convolution rounds up, every pooling after it down.
        rows, columns = ((side + 1) // 2 // 8 // self.last_stride for side in self.image_size)
        if min(rows, columns) < 1:
            height, width = self.image_size
            raise ValueError(f"images of {height}x{width} are too small: this network divides them by {16 * self.last_stride}")
        return rows, columns

    @nn.compact
    def __call__(self, images: Array, train: bool = False, all_tokens: bool = True) -> ResNetOutput:
        grid, width = self.grid, self.size.width
        x = images.astype(self.dtype)
        for number, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), start=1):
            x = convolution(features, 3, stride, self.dtype, f"conv{number}")(x)
            x = nn.relu(BatchNorm(name=f"bn{number}")(x, train)).astype(self.dtype)
        x = average(x, 2)
        maps = []
        for stage, (depth, stride) in enumerate(zip(self.size.depths, (1, 2, 2, self.last_stride), strict=True)):
            for block in range(depth):
                name = f"layer{stage + 1}_{block}"
                x = Bottleneck(width * 2**stage, stride if block == 0 else 1, self.dtype, name=name)(x, train)
            maps.append(x)
        if x.shape[1:3] != grid:
            raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} in a network for {self.image_size}")
        tokens = AttentionPool(self.size.heads, self.embed, self.dtype, name="attnpool")(x, all_tokens)
        return ResNetOutput(maps[2], maps[3], tokens)


def resnet_flops(
    size: ResNetSize, image_size: tuple[int, int], embed: int, last_stride: int = 1, all_tokens: bool = True
) -> float:
    """Floating-point operations (2 per multiply-add) of one image's convolutions and attention pool; norms are left out."""
    half = size.width // 2
    rows, columns = ((side + 1) // 2 for side in image_size)
    products = rows * columns * 9 * (3 * half + half * half + half * size.width)
    rows, columns, features = rows // 2, columns // 2, size.width
    for stage, (depth, stride) in enumerate(zip(size.depths, (1, 2, 2, last_stride), strict=True)):
        inner = size.width * 2**stage
        wide = EXPANSION * inner
        for block in range(depth):
            products += rows * columns * (features * inner + 9 * inner**2)
            if block == 0:
                rows, columns = rows // stride, columns // stride
                products += rows * columns * features * wide
            products += rows * columns * inner * wide
            features = wide
    tokens = 1 + rows * columns
    queries = tokens if all_tokens else 1
    products += 2 * tokens * features**2 + queries * (features**2 + 2 * tokens * features + features * embed)
    return 2.0 * products
