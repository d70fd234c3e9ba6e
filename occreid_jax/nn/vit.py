"""The image transformer of TransReID and CLIP: any stride and grid, camera embedding, extra tokens, a tap after every block.

Source: He et al., "TransReID: Transformer-based Object Re-Identification", ICCV 2021; Dosovitskiy et al., ICLR 2021; Radford et
al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (what `occreid_jax.nn.clip` switches on).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax.cameras import ZERO
from occreid_jax.nn.attention import goes_apart
from occreid_jax.nn.layers import Block, Deviations, LayerNorm, gelu, trunc_normal

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, depth and heads of an encoder, as the papers' tables give them."""

    width: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    qkv_bias: bool = True
    attention_scale: float | None = None  # None: 1 / sqrt(width / heads)


SIZES = {
    "micro": Size(32, 2, 2),  # for tests
    "demo": Size(192, 4, 3),  # for the embedded benchmark: a laptop trains it in minutes
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),  # DeiT-S
    "wide_small": Size(768, 8, 8, 3, False, 768**-0.5),  # the ViT-S of TransReID's tables
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}


def size_of(name: str) -> Size:
    """The `Size` called ``name``, or WIDTHxDEPTHxHEADS such as "64x2x4". Raises ValueError for anything else."""
    if name in SIZES:
        return SIZES[name]
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", name)
    if not numbers:
        raise ValueError(f"unknown '{name}'; known: {', '.join(SIZES)}, or WIDTHxDEPTHxHEADS such as 384x6x6")
    size = Size(*map(int, numbers.groups()))
    if size.width % size.heads:
        raise ValueError(f"'{name}': the width must be a multiple of the number of heads")
    return size


def grid_size(image_size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches: floor((side - patch) / stride) + 1 (DPM++ Eq. 1)."""
    height, width = image_size
    if min(height, width) < patch:
        raise ValueError(f"patch {patch} is larger than the image {height}x{width}; use a smaller config.method.patch")
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def resize_positions(positions: Array, grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 1) -> Array:
    """Position embedding [1, prefix + h * w, D] resized to another grid, the ``prefix`` rows kept as they are.

    Bilinear with half-pixel centres and without antialiasing, as torch's ``interpolate``; `jax.image.resize` antialiases by
    default, which is wrong here (`tests/nn/test_vit.py` has the numbers).
    """
    if grid == new_grid:
        return positions
    head, body = positions[:, :prefix], positions[:, prefix:]
    width = body.shape[-1]
    body = body.reshape(1, *grid, width)
    body = jax.image.resize(body, (1, *new_grid, width), "bilinear", antialias=False)
    return jnp.concatenate([head, body.reshape(1, -1, width)], axis=1)


def on_grid(maps: Array, grid: tuple[int, int]) -> Array:
    """Maps [B, h, w] on another grid of any size, each cell taking the value at floor(i h / H), floor(j w / W) as torch's
    "nearest" does; `jax.image.resize` has half-pixel centres."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(grid, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]


def camera_vectors(table: Array, camids: Array) -> Array:
    """What a camera embedding [C, D] gives pictures that are told ``camids`` int32 [B] (`occreid_jax.cameras`): [B, D].

    0 .. C - 1 are rows of the table, `MEAN` (-1) is their mean and `ZERO` (-2) no vector. Any other number gives NaN, which
    training and evaluation refuse, where plain indexing would lend the vector of a neighbour.
    """
    rows = jnp.concatenate([jnp.zeros_like(table[:1]), table.mean(axis=0, keepdims=True), table])
    return rows.at[camids - ZERO].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class PatchEmbed(nn.Module):
    """Convolution with kernel ``patch`` and any stride, VALID. [B, H, W, 3] -> [B, h * w, D], row-major.

    The initial kernel has the deviation of the originals, sqrt(2 / (patch^2 D)), or ``kernel_stddev`` if that is given.
    """

    width: int
    patch: int
    stride: int
    use_bias: bool = True
    kernel_stddev: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        channels = images.shape[-1]
        shape = (self.patch, self.patch, channels, self.width)
        stddev = self.kernel_stddev or (2.0 / (self.patch**2 * self.width)) ** 0.5
        kernel = self.param("kernel", nn.initializers.normal(stddev), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,)) if self.use_bias else None
        images, kernel = images.astype(self.dtype), kernel.astype(self.dtype)
        batch, height, width, _ = images.shape
        rows, columns = grid_size((height, width), self.patch, self.stride)
        if self.stride == self.patch:
            # Patches do not overlap: the convolution is one matrix product, which every backend runs faster.
            x = images[:, : rows * self.patch, : columns * self.patch]
            x = x.reshape(batch, rows, self.patch, columns, self.patch, channels).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(batch, rows * columns, -1) @ kernel.reshape(-1, self.width)
        else:
            x = jax.lax.conv_general_dilated(
                images, kernel, (self.stride, self.stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ).reshape(batch, rows * columns, self.width)
        return x if bias is None else x + bias.astype(self.dtype)


class ViTOutput(NamedTuple):
    """What the encoder gives back. ``tokens`` are after the final LayerNorm, ``taps`` before it."""

    tokens: Array  # float32 [B, 1 + extra + N, D]: cls, extra tokens, patches
    taps: tuple[Array, ...]  # raw residual stream after every block, [B, 1 + extra + N, D] each
    cls_logits: Array | None  # float32 [B, heads, T] of the last block, before the softmax; None unless asked for
    projected: Array | None = None  # float32 [B, T, E], ``tokens`` times the projection; None without one

    @property
    def cls(self) -> Array:
        return self.tokens[:, 0]


class ViT(nn.Module):
    """ViT with cls token, learned positions and an optional camera vector (SIE), on every token or on the cls token only.

    Initial values are those of the ImageNet encoders, or with ``clip_values`` those of CLIP (`clip_deviations`; embeddings,
    positions and projection have the deviation D^-1/2). ``from_scratch`` chooses patches of unit variance and positions nearly
    as large, with which a small encoder learns from nothing in minutes, where the originals start tiny and rely on pretraining.

    Methods that change tokens on the way call `embed_patches`, `assemble`, `blocks`, `finish` and `project` one by one; `trunk`
    is the first three in a row, `from_patches` all but the first and ``__call__`` all; registers stand behind the patches until
    `from_patches` takes them away. Blocks that are never called have no parameters. To run a network with cameras as if it had
    none, ``clone(cameras=0)`` takes the same parameters.
    """

    size: Size
    image_size: tuple[int, int]
    patch: int = 16
    stride: int = 16
    cameras: int = 0  # 0: no camera embedding
    camera_scale: float = 3.0
    camera_tokens: str = "all"  # or "cls": that token only, and before the positions
    extra_tokens: int = 0
    registers: int = 0  # learned tokens behind the patches that only the blocks see (Darcet et al., ICLR 2024)
    drop_path: float = 0.0
    dropout: float = 0.0  # after the positions, the attention's projection and both layers of the MLP
    attention_dropout: float = 0.0
    positions: bool = True
    epsilon: float = 1e-6
    from_scratch: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    patch_bias: bool = True
    pre_norm: bool = False  # a LayerNorm after the positions
    activation: Callable[[Array], Array] = gelu
    projection_width: int = 0  # E of the output projection; 0: none
    clip_values: bool = False
    attention_kernel: str = "auto"  # a choice of `occreid_jax.nn.attention.attend`
    apart_rows: int = 0  # pictures of a batch, on all devices together, from which "apart" is so

    @property
    def grid(self) -> tuple[int, int]:
        return grid_size(self.image_size, self.patch, self.stride)

    def setup(self):
        size, patches = self.size, self.grid[0] * self.grid[1]
        if self.camera_tokens not in ("all", "cls"):
            raise ValueError(f"unknown camera_tokens '{self.camera_tokens}'; it must be 'all' or 'cls'")
        stddev = size.width**-0.5 if self.clip_values else 0.02
        # CLIP's convolution has PyTorch's deviation, 1 / sqrt(3 inputs).
        kernel_stddev = (9 * self.patch**2) ** -0.5 if self.clip_values else None
        if self.from_scratch:
            kernel_stddev = (3 * self.patch**2) ** -0.5
        self.patch_embed = PatchEmbed(size.width, self.patch, self.stride, self.patch_bias, kernel_stddev, self.dtype)
        self.cls_token = self.param("cls_token", trunc_normal(stddev), (1, 1, size.width))
        if self.positions:
            positions = trunc_normal(0.5 if self.from_scratch else stddev)
            self.pos_embed = self.param("pos_embed", positions, (1, 1 + patches, size.width))
        if self.pre_norm:
            self.norm_pre = LayerNorm(self.epsilon, self.dtype)
        if self.projection_width:
            shape = size.width, self.projection_width
            self.projection = self.param("projection", trunc_normal(size.width**-0.5), shape)
        if self.extra_tokens:
            self.part_tokens = self.param("part_tokens", trunc_normal(), (1, self.extra_tokens, size.width))
        if self.registers:
            self.register_tokens = self.param("register_tokens", trunc_normal(stddev), (1, self.registers, size.width))
        if self.cameras:
            self.camera_embed = self.param("camera_embed", trunc_normal(), (self.cameras, size.width))
        self.block = [self.make_block(self.drop_path * i / max(size.depth - 1, 1), f"block_{i:02d}") for i in range(size.depth)]
        self.norm = LayerNorm(self.epsilon)
        self.drop = nn.Dropout(self.dropout)

    def make_block(self, drop_path: float, name: str) -> Block:
        return transformer_block(
            self.size, drop_path, self.epsilon, self.dtype, self.dropout, self.attention_dropout, self.remat, name,
            self.activation, clip_deviations(self.size) if self.clip_values else None, self.attention_kernel,
        )  # fmt: skip

    def embed_patches(self, images: Array) -> Array:
        """Images [B, H, W, 3] -> patch tokens [B, N, D], before cls, positions and camera."""
        return self.patch_embed(images)

    def assemble(self, patches: Array, camids: Array | None = None, vectors: Array | None = None) -> Array:
        """Patch tokens -> [cls; extra; patches; registers] + positions (+ camera), normalised if ``pre_norm``, [B, T, D].

        Extra tokens and registers get no position: a learned token plus a learned constant would be the same thing twice.
        ``camids`` int32 [B] as `camera_vectors` takes them; a ValueError without them where the encoder has cameras. ``vectors``
        float [B, D] of a method's own are added to every token of their picture, as those of cameras are.
        """
        batch = patches.shape[0]
        width = self.size.width

        def expand(token: Array) -> Array:
            return jnp.broadcast_to(token, (batch, token.shape[1], width)).astype(self.dtype)

        pieces = [expand(self.cls_token), patches.astype(self.dtype)]
        if self.cameras:
            if camids is None:
                raise ValueError("this encoder has a camera embedding: pass camids")
            camera = (self.camera_scale * camera_vectors(self.camera_embed, camids))[:, None].astype(self.dtype)
            if self.camera_tokens == "cls":
                pieces[0] = pieces[0] + camera
        if self.positions:
            positions = self.pos_embed.astype(self.dtype)
            pieces = [pieces[0] + positions[:, :1], pieces[1] + positions[:, 1:]]
        if self.extra_tokens:
            pieces.insert(1, expand(self.part_tokens))
        if self.registers:
            pieces.append(expand(self.register_tokens))
        x = jnp.concatenate(pieces, axis=1)
        if self.cameras and self.camera_tokens == "all":
            x = x + camera
        if vectors is not None:
            x = x + vectors[:, None].astype(self.dtype)
        return self.norm_pre(x) if self.pre_norm else x

    def blocks(
        self, x: Array, train: bool = False, start: int = 0, stop: int | None = None, return_cls_logits: bool = False
    ) -> tuple[Array, tuple[Array, ...], Array | None]:
        """Runs blocks start..stop-1. Returns (x, the output of every block run, cls logits of the last one or None)."""
        taps, cls_logits = [], None
        if start == 0:
            x = self.drop(x, deterministic=not train)
        chosen = self.block[start:stop]
        apart = self.goes_apart(x)
        stream = (x[:, 0], x[:, 1:]) if apart else x
        for number, block in enumerate(chosen):
            stream, cls_logits = block(stream, train, None, return_cls_logits and number == len(chosen) - 1)
            taps.append(jnp.concatenate([stream[0][:, None], stream[1]], axis=1) if apart else stream)
        return taps[-1] if taps else x, tuple(taps), cls_logits

    def goes_apart(self, x: Array) -> bool:
        """Whether the blocks see the class token of ``x`` [B, T, D] apart from the patches (`occreid_jax.nn.attention`)."""
        plain = not (self.extra_tokens or self.registers or self.dropout or self.attention_dropout)
        return plain and goes_apart(self.attention_kernel, x.shape[1] - 1, len(x), self.apart_rows)

    def finish(self, x: Array) -> Array:
        """Final LayerNorm, float32."""
        return self.norm(x)

    def project(self, tokens: Array) -> Array:
        """Normalised tokens [..., D] -> float32 [..., E], for encoders with a projection."""
        return jnp.matmul(tokens.astype(self.dtype), self.projection.astype(self.dtype), preferred_element_type=jnp.float32)

    def trunk(
        self,
        images: Array,
        camids: Array | None = None,
        train: bool = False,
        stop: int | None = None,
        return_cls_logits: bool = False,
    ) -> tuple[Array, tuple[Array, ...], Array | None]:
        """Images -> what `blocks` returns after block stop - 1, before the final norm."""
        return self.blocks(self.assemble(self.embed_patches(images), camids), train, 0, stop, return_cls_logits)

    def __call__(
        self, images: Array, camids: Array | None = None, train: bool = False, return_cls_logits: bool = False
    ) -> ViTOutput:
        return self.from_patches(self.embed_patches(images), camids, train, return_cls_logits)

    def from_patches(
        self, patches: Array, camids: Array | None = None, train: bool = False, return_cls_logits: bool = False,
        vectors: Array | None = None,
    ) -> ViTOutput:  # fmt: skip
        """What ``__call__`` does after `embed_patches`, for methods that change the patch tokens [B, N, D] first.

        Registers have done their work after the last block: nothing that is given back has them.
        """
        x, taps, cls_logits = self.blocks(self.assemble(patches, camids, vectors), train, 0, None, return_cls_logits)
        if self.registers:
            x, cls_logits = x[:, : -self.registers], None if cls_logits is None else cls_logits[..., : -self.registers]
            taps = tuple(tap[:, : -self.registers] for tap in taps)
        tokens = self.finish(x)
        return ViTOutput(tokens, taps, cls_logits, self.project(tokens) if self.projection_width else None)


def clip_deviations(size: Size) -> Deviations:
    """Initial deviations of CLIP's blocks: those that its ``initialize_parameters`` sets for the text tower.

    The official image tower keeps PyTorch's own initial values, which nobody trains from; here both towers follow one rule.
    """
    width = size.width
    output = width**-0.5 * (2 * size.depth) ** -0.5
    return Deviations(width**-0.5, output, (2 * width) ** -0.5, output)


def transformer_block(
    size: Size,
    drop_path: float,
    epsilon: float,
    dtype: jnp.dtype,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    remat: bool = False,
    name: str | None = None,
    activation: Callable[[Array], Array] = gelu,
    deviations: Deviations | None = None,
    attention_kernel: str = "auto",
    fixed: int = 0,
    residual: bool = True,
) -> Block:
    """One block of an encoder of this size; ``remat`` computes it again in the backward pass instead of keeping its insides."""
    block = nn.remat(Block, static_argnums=(2, 4)) if remat else Block
    return block(
        size.heads, size.mlp_ratio, drop_path, epsilon, dtype, activation,
        qkv_bias=size.qkv_bias, attention_scale=size.attention_scale,
        dropout=dropout, attention_dropout=attention_dropout, deviations=deviations or Deviations(),
        attention_kernel=attention_kernel, fixed=fixed, residual=residual, name=name,
    )  # fmt: skip


def block_flops(size: Size, tokens: int) -> float:
    """Floating-point operations (2 per multiply-add) of one block on one image of ``tokens`` tokens; norms are left out."""
    return 2.0 * (tokens * (4 + 2 * size.mlp_ratio) * size.width**2 + 2 * tokens**2 * size.width)


def embedding_flops(size: Size, image_size: tuple[int, int], patch: int, stride: int) -> float:
    """Floating-point operations (2 per multiply-add) of the convolution that makes patch tokens of one image."""
    rows, columns = grid_size(image_size, patch, stride)
    return 2.0 * rows * columns * patch**2 * 3 * size.width


def forward_flops(
    size: Size, image_size: tuple[int, int], patch: int, stride: int, extra_tokens: int = 0, projection_width: int = 0,
    registers: int = 0,
) -> float:  # fmt: skip
    """Floating-point operations (2 per multiply-add) of one image's forward pass, attention included, norms left out."""
    rows, columns = grid_size(image_size, patch, stride)
    tokens = 1 + extra_tokens + rows * columns
    ends = embedding_flops(size, image_size, patch, stride) + 2.0 * tokens * size.width * projection_width
    return ends + size.depth * block_flops(size, tokens + registers)


def nearest_size(operations: float, image_size: tuple[int, int], patch: int = 16) -> Size:
    """The size of 6 to 12 blocks and heads of 32 channels whose forward pass has most nearly so many ``operations`` (FLOPs);
    of equals the deeper."""
    sizes = [Size(heads * 32, depth, heads) for heads in range(1, 25) for depth in range(6, 13)]
    return min(sizes, key=lambda size: (abs(forward_flops(size, image_size, patch, patch) - operations), -size.depth))
