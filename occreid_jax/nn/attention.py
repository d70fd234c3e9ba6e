"""Which kernel computes dot-product attention: cuDNN's fused one on GPUs where it applies, XLA's products everywhere else."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp

Array = jax.Array
CHOICES = ("auto", "xla")
"""What ``config.attention`` may be: "auto" as `attend` chooses, "xla" never a fused kernel."""
WIDEST_HEAD = 128  # of cuDNN's kernel on every GPU that has one


def attend(
    query: Array, key: Array, value: Array, *, mask: Array | None = None, scale: float | None = None, choice: str = "auto"
) -> Array:
    """softmax(scale query key^T) value, [B, T, heads, width] each -> the same; the softmax is float32 in every kernel.

    ``mask`` bool, broadcast to [B, heads, T, T], is True where a token may look; ``scale`` None is 1 / sqrt(width). With
    ``choice`` "auto" a program that is lowered for CUDA takes cuDNN's fused kernel, which never stores the [B, heads, T, T]
    weights, if there is no mask and `fused_applies`. Its backward pass adds in no fixed order, so two runs differ in their last
    bits unless XLA_FLAGS has --xla_gpu_deterministic_ops=true. Raises ValueError for another ``choice``.
    """
    if choice not in CHOICES:
        raise ValueError(f"unknown attention '{choice}'; it must be one of {', '.join(CHOICES)}")
    plain = functools.partial(jax.nn.dot_product_attention, mask=mask, scale=scale)
    if choice == "xla" or mask is not None or not fused_applies(query):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=functools.partial(fused, scale=scale), default=plain)


def fused(query: Array, key: Array, value: Array, scale: float | None = None) -> Array:
    """cuDNN's attention without a mask, for bfloat16 [B, T, heads, width].

    JAX takes no gradient through it for an odd T, which cls token and patches together nearly always are: then one token is
    added that nobody looks at.
    """
    kernel = functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
    batch, tokens = query.shape[:2]
    if tokens % 2 == 0:
        return kernel(query, key, value)
    lengths = jnp.full(batch, tokens, jnp.int32)
    longer = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    return kernel(*longer, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]


def fused_applies(query: Array) -> bool:
    """Whether cuDNN's kernel takes queries like this one: bfloat16, a head's width a multiple of 8 up to `WIDEST_HEAD`, and a
    GPU here that runs it. On machines without one nothing changes at all."""
    _, tokens, heads, width = query.shape
    return query.dtype == jnp.bfloat16 and width % 8 == 0 and width <= WIDEST_HEAD and fused_compiles(tokens, heads, width)


@functools.cache
def fused_compiles(tokens: int, heads: int, width: int) -> bool:
    """Whether cuDNN's kernel and its gradient compile here for one picture of this size. Tried, since what cuDNN takes depends
    on its version and on the GPU; says so once where a GPU does not take it."""
    if jax.default_backend() != "gpu":
        return False
    like = jax.ShapeDtypeStruct((1, tokens, heads, width), jnp.bfloat16)
    gradient = jax.grad(lambda *qkv: jnp.sum(fused(*qkv).astype(jnp.float32)), argnums=(0, 1, 2))
    try:
        jax.jit(gradient).lower(like, like, like).compile()
    except Exception as error:  # whatever cuDNN, its loader or the compiler has to say
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"no fused attention for {tokens} tokens and heads of {width}, XLA's instead: {reason}", stacklevel=2)
        return False
    return True
