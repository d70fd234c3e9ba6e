"""The parts every encoder is made of: LayerNorm, BatchNorm, attention, MLP, drop path and the pre-norm block.

Parameters are float32; ``dtype`` is the type of the matrix products (bfloat16 on accelerators). Statistics, softmax and
residual sums of normalisation layers are float32 whatever ``dtype`` says.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax.nn.attention import attend, attend_apart
from occreid_jax.nn.precision import at_least_float32

Array = jax.Array
Tokens = Array | tuple[Array, Array]
"""Tokens [B, T, D], or the class token [B, D] and the patches [B, N, D] apart (`occreid_jax.nn.attention.goes_apart`)."""


def gelu(x: Array) -> Array:
    """Exact GELU as torch computes it, x (1 + erf(x / sqrt 2)) / 2.

    `jax.nn.gelu` approximates by default, and its exact form goes through erfc, which CPUs compute much more slowly.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of GELU, x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(np.asarray(1.702, x.dtype) * x)


def trunc_normal(stddev: float = 0.02):
    """Normal initialiser cut at +-2 absolute, which for a small stddev never cuts (the originals' ``trunc_normal_``)."""

    def init(key, shape, dtype=jnp.float32):
        return stddev * jax.random.truncated_normal(key, -2.0 / stddev, 2.0 / stddev, shape, dtype)

    return init


def torch_uniform(fan_in: int):
    """Initial values within +-1 / sqrt(fan_in): what PyTorch gives kernels and biases of its layers."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_dense(features: int, fan_in: int, name: str, dtype: jnp.dtype = jnp.float32, use_bias: bool = True) -> nn.Dense:
    """A linear layer with the initial values of PyTorch's."""
    initial = torch_uniform(fan_in)
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=initial, bias_init=initial, name=name)


class Deviations(NamedTuple):
    """Standard deviations of a block's initial kernels; biases start at 0. The default is that of ViT, DeiT and TransReID."""

    qkv: float = 0.02
    proj: float = 0.02
    fc1: float = 0.02
    fc2: float = 0.02


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with float32 statistics (two-pass variance, as torch computes it)."""

    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation of [..., features] with torch's conventions.

    The running variance is the unbiased one and ``momentum`` is the weight of the old value (torch writes 1 - momentum).
    Under jit the statistics are those of the global batch, whatever the number of devices.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        features = x.shape[-1]
        x = at_least_float32(x)
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // features
            mean = jnp.mean(x, axis=axes)
            variance = jnp.mean(jnp.square(x - mean), axis=axes)
            if not self.is_initializing():
                unbiased = variance * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_variance.value = self.momentum * running_variance.value + (1 - self.momentum) * unbiased
        else:
            mean, variance = running_mean.value, running_variance.value
        return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def run(module: nn.Module, params: Any, statistics: Any, *inputs: Any, train: bool = False, **options: Any) -> tuple[Any, Any]:
    """``(output, statistics)`` of a module that has BatchNorms; in training with the statistics that the batch has changed.

    ``module`` takes ``inputs``, the keyword ``train`` and ``options``; ``statistics`` are its variables "batch_stats".
    """
    variables = {"params": params, "batch_stats": statistics}
    if not train:
        return module.apply(variables, *inputs, train=False, **options), statistics
    output, updated = module.apply(variables, *inputs, train=True, mutable=["batch_stats"], **options)
    return output, updated["batch_stats"]


class DropPath(nn.Module):
    """Drops a residual branch for whole images (stochastic depth) and divides kept branches by the keep probability."""

    rate: float

    @nn.compact
    def __call__(self, x: Tokens, train: bool) -> Tokens:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (len(jax.tree.leaves(x)[0]),))

        def drop(x: Array) -> Array:
            return jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x / keep, 0).astype(x.dtype)

        return jax.tree.map(drop, x)


class Projections(nn.Module):
    """Queries, keys and values of an attention: one kernel [D, 3 D], one product, cut into three. [..., D] -> three [..., D].

    ``cut_kernel``: three products instead, with the same numbers, for where a result is laid out anew to be cut.
    """

    dtype: jnp.dtype
    use_bias: bool
    kernel_init: Any

    @nn.compact
    def __call__(self, x: Tokens, cut_kernel: bool = False) -> list[Tokens]:
        width = jax.tree.leaves(x)[0].shape[-1]
        kernel = self.param("kernel", self.kernel_init, (width, 3 * width)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * width,)) if self.use_bias else None
        bias = None if bias is None else bias.astype(self.dtype)

        def product(x: Array, kernel: Array, bias: Array | None) -> Array:
            out = x.astype(self.dtype) @ kernel
            return out if bias is None else out + bias

        if not cut_kernel:
            return jnp.split(product(x, kernel, bias), 3, axis=-1)
        # Cut once for both pieces, so that the gradients of both are added before devices sum them.
        kernels = jnp.split(kernel, 3, axis=-1)
        biases = [None] * 3 if bias is None else jnp.split(bias, 3)

        def of_one(kernel: Array, bias: Array | None) -> Tokens:
            return jax.tree.map(lambda x: product(x, kernel, bias), x)

        return [of_one(kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)]


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv product. [B, T, D] -> [B, T, D], or class token and patches apart.

    With ``return_cls_logits`` the second result holds the scaled query-key products of token 0 with every token,
    float32 [B, heads, T], before the softmax; otherwise it is None. Apart there is neither a mask nor dropout.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    qkv_bias: bool = True
    scale: float | None = None  # of the query-key products; None: 1 / sqrt(width / heads)
    dropout: float = 0.0  # of the attention weights, in training
    deviations: Deviations = Deviations()
    kernel: str = "auto"  # as `occreid_jax.nn.attention.attend` chooses it
    fixed: int = 0  # so many of the first tokens gather nothing: what they give is their own value

    @nn.compact
    def __call__(
        self, x: Tokens, train: bool = False, mask: Array | None = None, return_cls_logits: bool = False
    ) -> tuple[Tokens, Array | None]:
        width, is_apart = jax.tree.leaves(x)[0].shape[-1], isinstance(x, tuple)
        scale = (width // self.heads) ** -0.5 if self.scale is None else self.scale
        # Cut before heads get an axis: a TPU cuts whole lanes, where [B, T, 3, heads, width] has to be laid out anew.
        projections = Projections(self.dtype, self.qkv_bias, trunc_normal(self.deviations.qkv), name="qkv")
        query, key, value = projections(x, cut_kernel=is_apart)
        if is_apart:
            out, cls_logits = attend_apart(query, key, value, self.heads, scale)
        else:
            out, cls_logits = self.attend(query, key, value, scale, train, mask, return_cls_logits)
            if self.fixed:
                out = jnp.concatenate([value[:, : self.fixed], out[:, self.fixed :]], axis=1)
        proj = nn.Dense(width, dtype=self.dtype, kernel_init=trunc_normal(self.deviations.proj), name="proj")
        return jax.tree.map(proj, out), cls_logits if return_cls_logits else None

    def attend(
        self, query: Array, key: Array, value: Array, scale: float, train: bool, mask: Array | None, return_cls_logits: bool
    ) -> tuple[Array, Array | None]:
        """What the tokens [B, T, D] gather, and the class token's products with them where they are asked for."""
        shape = query.shape
        query, key, value = (each.reshape(*shape[:2], self.heads, -1) for each in (query, key, value))
        if train and self.dropout:  # no kernel has dropout
            logits = scale * jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, -jnp.inf), axis=-1)
            weights = nn.Dropout(self.dropout, deterministic=False)(weights.astype(self.dtype))
            out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        else:
            out = attend(query, key, value, mask=mask, scale=scale, choice=self.kernel)
        cls_logits = None
        if return_cls_logits:
            cls_logits = scale * jnp.einsum("bhd,bthd->bht", query[:, 0], key, preferred_element_type=jnp.float32)
        return out.reshape(shape), cls_logits


class Mlp(nn.Module):
    """Two dense layers with an activation between them, dropout after each. [..., D] -> [..., D]."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    activation: callable = gelu
    dropout: float = 0.0
    deviations: Deviations = Deviations()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=trunc_normal(self.deviations.fc1), name="fc1")(x)
        x = self.activation(x)
        x = nn.Dense(width, dtype=self.dtype, kernel_init=trunc_normal(self.deviations.fc2), name="fc2")(drop(x))
        return drop(x)


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x)), each with drop path, of `Tokens` in either form.

    Without ``residual`` mlp(norm(attention(x))) and nothing else. Randomness (drop path and dropout) comes from the stream
    "dropout".
    """

    heads: int
    mlp_ratio: int
    drop_path: float
    epsilon: float
    dtype: jnp.dtype = jnp.float32
    activation: callable = gelu
    qkv_bias: bool = True
    attention_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    deviations: Deviations = Deviations()
    attention_kernel: str = "auto"
    fixed: int = 0  # as in `Attention`
    residual: bool = True

    @nn.compact
    def __call__(
        self, x: Tokens, train: bool, mask: Array | None = None, return_cls_logits: bool = False
    ) -> tuple[Tokens, Array | None]:
        width = jax.tree.leaves(x)[0].shape[-1]
        attention = Attention(
            self.heads, self.dtype, self.qkv_bias, self.attention_scale, self.attention_dropout, self.deviations,
            self.attention_kernel, self.fixed, name="attn",
        )  # fmt: skip
        mlp = Mlp(width * self.mlp_ratio, self.dtype, self.activation, self.dropout, self.deviations, name="mlp")
        if not self.residual:
            y, cls_logits = attention(x, train, mask, return_cls_logits)
            return mlp(LayerNorm(self.epsilon, self.dtype, name="norm2")(y), train), cls_logits
        y = jax.tree.map(LayerNorm(self.epsilon, self.dtype, name="norm1"), x)
        y, cls_logits = attention(y, train, mask, return_cls_logits)
        y = jax.tree.map(nn.Dropout(self.dropout, deterministic=not train), y)
        x = jax.tree.map(jnp.add, x, DropPath(self.drop_path)(y, train))
        y = jax.tree.map(LayerNorm(self.epsilon, self.dtype, name="norm2"), x)
        y = jax.tree.map(lambda y: mlp(y, train), y)
        return jax.tree.map(jnp.add, x, DropPath(self.drop_path)(y, train)), cls_logits
