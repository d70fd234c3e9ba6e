"""LSNet: a light convolutional network that looks at a large neighbourhood to decide how to sum up a small one.

Source: Wang et al., "LSNet: See Large, Focus Small", CVPR 2025, and jameslahm/lsnet ``model/lsnet.py``. Modules have the numbers
of the official code, in which the two convolutions that halve a map are the first two of their stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax.nn.layers import BatchNorm
from occreid_jax.nn.precision import at_least_float32
from occreid_jax.nn.small_kernels import SHARED, TAPS, aggregate

Array = jax.Array

EPSILON = 1e-5  # of the group norm and, as everywhere, of batch norms
RULES = ("subgrid", "bicubic")


class LSNetSize(NamedTuple):
    """Widths and blocks of the four stages; the last one has attention of so many heads and a table of ``table`` squared."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: int = 4
    key_width: int = 16
    table: int = 4  # side of the grid that attention's offsets are stored for: that of pictures of 224 pixels


SIZES = {
    "lsnet_t": LSNetSize((64, 128, 256, 384), (0, 2, 8, 10)),
    "lsnet_s": LSNetSize((96, 192, 320, 448), (1, 2, 8, 10)),
    "lsnet_b": LSNetSize((128, 256, 384, 512), (4, 6, 8, 10)),
    "tiny": LSNetSize((32, 64, 96, 128), (0, 2, 1, 2)),  # for the embedded benchmark
    "micro": LSNetSize((16, 16, 32, 32), (0, 1, 2, 2), heads=2, key_width=4),  # for tests
}


class LSNetOutput(NamedTuple):
    """The map after the stem and after every stage, in the network's ``dtype``, and the mean of the last one."""

    stem: Array  # [B, H / 8, W / 8, C1]
    stages: tuple[Array, Array, Array, Array]  # the last one [B, H / 64, W / 64, C4]
    pooled: Array  # float32 [B, C4]


def size_of(name: str) -> LSNetSize:
    """The entry of `SIZES`; ValueError for another name."""
    if name not in SIZES:
        raise ValueError(f"unknown LSNet '{name}'; known: {', '.join(SIZES)}")
    return SIZES[name]


def last_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns after the last stage: six convolutions of stride 2, each of which rounds up."""
    rows, columns = image_size
    for _ in range(6):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return rows, columns


def uniform():
    """PyTorch's initial kernels: uniform within 1 / sqrt(inputs)."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ConvNorm(nn.Module):
    """Convolution and batch norm, [B, h, w, C] -> float32 [B, h / stride, w / stride, features].

    ``folded``: the norm is part of the convolution, which then has a bias, see `fold`. Padding is PyTorch's on both sides: "SAME"
    pads another side where the stride is 2.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    initial_scale: float = 1.0
    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        padding = (self.kernel - 1) // 2
        x = nn.Conv(
            self.features, (self.kernel, self.kernel), self.stride, [(padding, padding)] * 2, use_bias=self.folded,
            feature_group_count=self.features if self.depthwise else 1, dtype=self.dtype, kernel_init=uniform(), name="conv",
        )(x)  # fmt: skip
        return at_least_float32(x) if self.folded else BatchNorm(initial_scale=self.initial_scale, name="bn")(x, train)


class Affine(nn.Module):
    """What remains of a batch norm that is folded and has no convolution before it: a scale and a shift per channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        return x * scale + self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))


class LargeKernelPerception(nn.Module):
    """The kernels of every position from a 7x7 neighbourhood: [B, H, W, C] -> float32 [B, H, W, 9, C / 8].

    The last convolution and its norm store channel 9 g + tap, as the official ones; here taps come first, by reordering the few
    weights in place of the map. A group of the norm is the nine taps of one kernel.
    """

    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        half, kinds = channels // 2, channels // SHARED
        given = dict(folded=self.folded, dtype=self.dtype)
        y = nn.relu(ConvNorm(half, name="cv1", **given)(x, train))
        y = ConvNorm(half, 7, depthwise=True, name="cv2", **given)(y, train)
        y = nn.relu(ConvNorm(half, name="cv3", **given)(y, train))
        return TapFirst(kinds, self.dtype, name="cv4")(y)


class TapFirst(nn.Module):
    """1x1 convolution with bias to nine taps of ``kinds`` kernels, and their group norm; see `LargeKernelPerception`."""

    kinds: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs, outputs = x.shape[-1], TAPS * self.kinds
        kernel = self.param("kernel", uniform(), (1, 1, inputs, outputs))
        bound = inputs**-0.5
        bias = self.param("bias", lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound), (outputs,))
        scale = self.param("norm_scale", nn.initializers.ones_init(), (outputs,))
        shift = self.param("norm_bias", nn.initializers.zeros_init(), (outputs,))

        def taps_first(weights: Array) -> Array:
            return jnp.swapaxes(weights.reshape(*weights.shape[:-1], self.kinds, TAPS), -1, -2)

        kernel = taps_first(kernel[0, 0]).reshape(inputs, outputs)
        y = at_least_float32(jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype)))
        y = y.reshape(*y.shape[:-1], TAPS, self.kinds) + taps_first(bias)
        mean = jnp.mean(y, axis=(1, 2, 3), keepdims=True)
        variance = jnp.mean(jnp.square(y - mean), axis=(1, 2, 3), keepdims=True)
        return (y - mean) * jax.lax.rsqrt(variance + EPSILON) * taps_first(scale) + taps_first(shift)


class LSConv(nn.Module):
    """Large-kernel perception, small-kernel aggregation, batch norm and a shortcut: [B, H, W, C] -> float32 [B, H, W, C]."""

    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        kernels = LargeKernelPerception(self.folded, self.dtype, name="lkp")(x, train).astype(self.dtype)
        y = aggregate(x.astype(self.dtype), kernels)
        return x + (Affine(name="bn")(y) if self.folded else BatchNorm(name="bn")(y, train))


class RepVGG(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions beside a shortcut: float32 [B, H, W, C] -> the same; one convolution if ``folded``."""

    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1]
        wide = ConvNorm(width, 3, depthwise=True, folded=self.folded, dtype=self.dtype, name="dw3")(x, train)
        if self.folded:
            return wide
        return wide + ConvNorm(width, depthwise=True, dtype=self.dtype, name="dw1")(x, train) + x


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole map holds: float32 [B, H, W, C] -> the same."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        narrow = max(8, (width // 4 + 4) // 8 * 8)  # timm's rounding to multiples of 8
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = nn.relu(nn.Conv(narrow, (1, 1), dtype=self.dtype, kernel_init=uniform(), name="fc1")(y))
        return x * jax.nn.sigmoid(nn.Conv(width, (1, 1), dtype=self.dtype, kernel_init=uniform(), name="fc2")(y).astype(x.dtype))


class FeedForward(nn.Module):
    """Two 1x1 convolutions with a shortcut; the last norm's scale starts at 0. float32 [B, H, W, C] -> the same."""

    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width, given = x.shape[-1], dict(folded=self.folded, dtype=self.dtype)
        y = nn.relu(ConvNorm(2 * width, name="pw1", **given)(x, train))
        return x + ConvNorm(width, initial_scale=0.0, name="pw2", **given)(y, train)


class GridAttention(nn.Module):
    """Attention with a learned bias per head and offset, and a shortcut: float32 [B, H, W, C] -> the same.

    The table ``offset_table`` [heads, table squared] holds the offsets (|dy|, |dx|) of a square grid. On another grid "subgrid"
    looks its offsets up, which needs one no larger; "bicubic" resizes the square's matrix [N, N] as the official code for
    detection does.
    """

    size: LSNetSize
    rule: str = "subgrid"
    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        batch, rows, columns, width = x.shape
        heads, keys = self.size.heads, self.size.key_width
        given = dict(folded=self.folded, dtype=self.dtype)
        both = heads * keys
        joint = ConvNorm(2 * both + width, name="qkv", **given)(x, train)
        query = ConvNorm(both, 3, depthwise=True, name="dw", **given)(joint[..., :both], train)

        def split(values: Array) -> Array:
            return values.reshape(batch, rows * columns, heads, -1).astype(self.dtype)

        query, key, value = split(query), split(joint[..., both : 2 * both]), split(joint[..., 2 * both :])
        table = self.param("offset_table", nn.initializers.zeros_init(), (heads, self.size.table**2))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide) * keys**-0.5
        weights = jax.nn.softmax(logits + offset_biases(table, (rows, columns), self.rule), axis=-1)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(self.dtype), value, preferred_element_type=wide)
        out = nn.relu(out.reshape(batch, rows, columns, width))
        return x + ConvNorm(width, initial_scale=0.0, name="proj", **given)(out, train)


def offset_numbers(grid: tuple[int, int], side: int) -> np.ndarray:
    """int32 [N, N]: which entry of a table for ``side`` x ``side`` positions holds the offset of every pair on ``grid``."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    down, across = (np.abs(places[:, None] - places[None, :]) for places in (rows, columns))
    return (down * side + across).astype(np.int32)


def offset_biases(table: Array, grid: tuple[int, int], rule: str = "subgrid") -> Array:
    """Attention's biases float32 [heads, N, N] on ``grid`` from a ``table`` [heads, side squared].

    ValueError for an unknown rule, and for "subgrid" on a grid that is longer than the table's.
    """
    side = round(table.shape[1] ** 0.5)
    if rule not in RULES:
        raise ValueError(f"unknown rule '{rule}'; known: {', '.join(RULES)}")
    if rule == "bicubic":
        square = table[:, offset_numbers((side, side), side)]
        weights = bicubic_weights(side * side, grid[0] * grid[1])
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("qi,hij,kj->hqk", weights, square, weights, precision=exact)
    if max(grid) > side:
        raise ValueError(f"a table for {side}x{side} positions has no offsets for {grid[0]}x{grid[1]}; take rule bicubic")
    return table[:, offset_numbers(grid, side)]


def bicubic_weights(length: int, new: int) -> np.ndarray:
    """float32 [new, length]: torch's bicubic ``interpolate`` of one axis, half-pixel centres, a = -0.75, ends repeated."""

    def weight(distance: float) -> float:
        a, x = -0.75, abs(distance)
        if x <= 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((new, length))
    for row in range(new):
        place = (row + 0.5) * length / new - 0.5
        first = int(np.floor(place))
        for neighbour in range(first - 1, first + 3):
            weights[row, min(max(neighbour, 0), length - 1)] += weight(place - neighbour)
    return weights.astype(np.float32)


class LSNetBlock(nn.Module):
    """Block ``number`` of a stage (from 0): even ones mix by `RepVGG` with squeeze and excitation, odd ones by `LSConv`, or by
    attention in the last stage; then a feed-forward part. float32 [B, H, W, C] -> the same."""

    size: LSNetSize
    number: int
    attends: bool
    rule: str = "subgrid"
    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        given = dict(folded=self.folded, dtype=self.dtype)
        if self.number % 2 == 0:
            x = SqueezeExcite(self.dtype, name="se")(RepVGG(name="rep", **given)(x, train))
        elif self.attends:
            x = GridAttention(self.size, self.rule, name="attn", **given)(x, train)
        else:
            x = LSConv(name="ls", **given)(x, train)
        return FeedForward(name="ffn", **given)(x, train)


class LSNet(nn.Module):
    """Images float32 [B, H, W, 3], normalised with ImageNet's statistics -> `LSNetOutput`.

    ``train`` normalises with the batch's statistics and updates "batch_stats". ``folded`` is the network without batch norms, for
    the parameters that `fold` makes. ``rule``: see `GridAttention`.
    """

    size: LSNetSize
    rule: str = "subgrid"
    folded: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> LSNetOutput:
        widths, given = self.size.widths, dict(folded=self.folded, dtype=self.dtype)
        x = images
        for number, features in enumerate((widths[0] // 4, widths[0] // 2, widths[0])):
            x = nn.relu(x) if number else x
            x = ConvNorm(features, 3, 2, name=f"stem_{2 * number}", **given)(x, train)
        stem, stages = x.astype(self.dtype), []
        for stage, (width, depth) in enumerate(zip(widths, self.size.depths, strict=True), start=1):
            first = 0
            if stage > 1:
                x = ConvNorm(x.shape[-1], 3, 2, depthwise=True, name=f"stage_{stage}_0", **given)(x, train)
                x = ConvNorm(width, name=f"stage_{stage}_1", **given)(x, train)
                first = 2
            for number in range(depth):
                name = f"stage_{stage}_{first + number}"
                x = LSNetBlock(self.size, number, stage == 4, self.rule, name=name, **given)(x, train)
            stages.append(x.astype(self.dtype))
        return LSNetOutput(stem, tuple(stages), jnp.mean(x, axis=(1, 2)))


def initial_values(size: LSNetSize, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(params, batch_stats)`` with the values of `LSNet.init`, all random numbers drawn at once.

    With one draw for each of two hundred small kernels, a compiler spends a minute on nothing but random number generators.
    """
    shapes = jax.eval_shape(LSNet(size).init, key, jnp.zeros((1, 64, 64, 3)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes["params"])
    drawn = jax.random.uniform(key, (sum(leaf.size for _, leaf in leaves),), minval=-1.0, maxval=1.0)
    values, first = [], 0
    for path, leaf in leaves:
        module, name = path[-2].key, path[-1].key
        numbers, first = drawn[first : first + leaf.size].reshape(leaf.shape), first + leaf.size
        if name == "kernel":
            values.append(numbers * float(np.prod(leaf.shape[:-1])) ** -0.5)
        elif (module, name) == ("cv4", "bias"):
            values.append(numbers * float(leaf.size // TAPS * SHARED // 2) ** -0.5)  # its inputs: half of the channels
        else:
            last = name == "scale" and path[-3].key in ("pw2", "proj")  # the norm of a branch's last convolution
            values.append(jnp.full(leaf.shape, float(name in ("scale", "norm_scale") and not last), jnp.float32))
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var"), jnp.float32), shapes["batch_stats"]
    )
    return jax.tree_util.tree_unflatten(structure, values), statistics


# Without batch norms ----------------------------------------------------------------------------------------------------------


def fold(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the same network with ``folded=True``: every batch norm goes into the convolution before it, with the running
    ``statistics`` ("batch_stats"), and `RepVGG`'s three branches into one convolution."""
    folded = {}
    for name, module in params.items():
        known = statistics.get(name)
        if known is None:
            folded[name] = module
        elif name == "rep":
            folded[name] = {"dw3": {"conv": fold_branches(module, known)}}
        elif "conv" in module:
            folded[name] = {"conv": fold_norm(module["conv"]["kernel"], module["bn"], known["bn"])}
        elif name == "bn":
            scale, shift = scale_and_shift(module, known)
            folded[name] = {"scale": scale, "bias": shift}
        else:
            folded[name] = fold(module, known)
    return folded


def scale_and_shift(norm: Mapping[str, Array], known: Mapping[str, Array]) -> tuple[Array, Array]:
    """A batch norm at test time as one multiplication and one addition per channel."""
    scale = norm["scale"] * jax.lax.rsqrt(known["var"] + EPSILON)
    return scale, norm["bias"] - known["mean"] * scale


def fold_norm(kernel: Array, norm: Mapping[str, Array], known: Mapping[str, Array]) -> dict[str, Array]:
    """Kernel [h, w, in, out] and bias of a convolution without bias and the norm behind it."""
    scale, shift = scale_and_shift(norm, known)
    return {"kernel": kernel * scale, "bias": shift}


def fold_branches(module: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Array]:
    """One depthwise 3x3 convolution with bias in place of 3x3, 1x1 and shortcut."""
    wide, narrow = (fold_norm(module[name]["conv"]["kernel"], module[name]["bn"], known[name]["bn"]) for name in ("dw3", "dw1"))
    kernel = wide["kernel"].at[1, 1].add(narrow["kernel"][0, 0] + 1.0)
    return {"kernel": kernel, "bias": wide["bias"] + narrow["bias"]}


# Arithmetic -------------------------------------------------------------------------------------------------------------------


def forward_flops(size: LSNetSize, image_size: tuple[int, int]) -> float:
    """Floating-point operations (2 per multiply-add) of one image's pass; norms, activations and pooling are left out."""
    rows, columns = image_size
    products, inputs = 0, 3
    for features in (size.widths[0] // 4, size.widths[0] // 2, size.widths[0]):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
        products += rows * columns * 9 * inputs * features
        inputs = features
    for stage, (width, depth) in enumerate(zip(size.widths, size.depths, strict=True), start=1):
        if stage > 1:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
            products += rows * columns * (9 * inputs + inputs * width)
        products += sum(block_products(size, width, rows * columns, number, stage == 4) for number in range(depth))
        inputs = width
    return 2.0 * products


def block_products(size: LSNetSize, width: int, places: int, number: int, attends: bool) -> int:
    """Multiplications of one block on a map of so many ``places``."""
    products = places * 4 * width**2
    if number % 2 == 0:
        return products + places * 10 * width + 2 * width * max(8, (width // 4 + 4) // 8 * 8)
    if attends:
        both = size.heads * size.key_width
        return products + places * (width * (2 * both + width) + 9 * both + width**2) + places**2 * (both + width)
    half, kinds = width // 2, width // SHARED
    return products + places * (width * half + 49 * half + half**2 + half * TAPS * kinds + TAPS * width)
