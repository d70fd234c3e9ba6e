"""Which kernel computes dot-product attention: cuDNN's fused one on GPUs where it applies, XLA's products everywhere else; and on
TPUs the class token apart from the patches, where the patches alone fill whole lines of a TPU's memory."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
CHOICES = ("auto", "xla", "apart")
"""What ``config.attention`` may be: "auto" as `attend` chooses and on TPUs apart, "xla" never a fused kernel, "apart" XLA's with
the class token apart from the patches wherever `goes_apart` says so, in methods for `APART_ROWS` pictures a device or more."""
LINE = 128  # numbers of a TPU's line; an axis that is one longer takes two
APART_ROWS = 32  # pictures of a chip from which "apart" pays: by the compiler's estimates it costs more below 12 to 24
WIDEST_HEAD = 128  # of cuDNN's kernel on every GPU that has one


def attend(
    query: Array, key: Array, value: Array, *, mask: Array | None = None, scale: float | None = None, choice: str = "auto"
) -> Array:
    """softmax(scale query key^T) value, [B, T, heads, width] each -> the same; the softmax is float32 in every kernel.

    ``mask`` bool, broadcast to [B, heads, T, T], is True where a token may look; ``scale`` None is 1 / sqrt(width). With
    ``choice`` "auto" a program that is lowered for CUDA takes cuDNN's fused kernel, which never stores the [B, heads, T, T]
    weights, if there is no mask and `fused_applies`. Its backward pass adds in no fixed order, so two runs differ in their last
    bits unless XLA_FLAGS has --xla_gpu_deterministic_ops=true. Raises ValueError for a ``choice`` that is not in `CHOICES`.
    """
    if choice not in CHOICES:
        raise ValueError(f"unknown attention '{choice}'; it must be one of {', '.join(CHOICES)}")
    plain = functools.partial(jax.nn.dot_product_attention, mask=mask, scale=scale)
    if choice != "auto" or mask is not None or not fused_applies(query):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=functools.partial(fused, scale=scale), default=plain)


def for_platform(choice: str, platform: str) -> str:
    """The choice that "auto" means on a platform: "apart" on a "tpu", else "auto" itself. Others are left as they are."""
    return "apart" if choice == "auto" and platform == "tpu" else choice


def goes_apart(choice: str, patches: int, rows: int = 0, least_rows: int = 0) -> bool:
    """Whether an encoder of so many patches keeps its class token apart for a batch of ``rows`` pictures: asked for, the patches
    alone fill whole lines, and the batch has ``least_rows`` or more."""
    return choice == "apart" and patches > 0 and patches % LINE == 0 and rows >= least_rows


def attend_apart(
    query: tuple[Array, Array], key: tuple[Array, Array], value: tuple[Array, Array], heads: int, scale: float
) -> tuple[tuple[Array, Array], Array]:
    """Attention among a class token and patches that stand apart: what `attend` computes of both together, in another order.

    ``query``, ``key`` and ``value`` are pairs (class token [B, D], patches [B, N, D]), heads side by side in D. Returns a pair
    like them and the class token's products with every token, float32 [B, heads, 1 + N], before the softmax.

    The products with the class token are matrix products as well: its query, key or value is written into a matrix [heads, D]
    that is zero outside of each head's own columns.
    """
    (q, queries), (k, keys), (v, values) = query, key, value
    dtype, width = q.dtype, q.shape[-1] // heads
    own = np.kron(np.eye(heads), np.ones((1, width))).astype(dtype)  # [heads, D]
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def by_head(tokens: Array) -> Array:
        return tokens.reshape(*tokens.shape[:2], heads, width)

    among = scale * product("bqhd,bkhd->bhqk", by_head(queries), by_head(keys))
    to_class = scale * product("bqd,bhd->bhq", queries, k[:, None] * own)
    from_class = scale * product("bkd,bhd->bhk", keys, q[:, None] * own)
    of_class = scale * product("bd,hd->bh", q * k, own)

    weights, class_weight = softmax_apart(among, to_class)
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(dtype), by_head(values)).reshape(values.shape)
    attended = attended + jnp.einsum("bhq,bhd->bqd", class_weight.astype(dtype), v[:, None] * own)
    weights, class_weight = softmax_apart(from_class, of_class)
    gathered = (jnp.einsum("bhk,bkd->bhd", weights.astype(dtype), values) * own).sum(axis=1)
    gathered = gathered + jnp.einsum("bh,hd->bd", class_weight.astype(dtype), own) * v
    return (gathered, attended), jnp.concatenate([of_class[..., None], from_class], axis=-1)


def softmax_apart(logits: Array, other: Array) -> tuple[Array, Array]:
    """Softmax over the last axis of ``logits`` [..., N] and one number more, ``other`` [...]: both parts of it."""
    largest = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1), other))
    powers, power = jnp.exp(logits - largest[..., None]), jnp.exp(other - largest)
    total = powers.sum(axis=-1) + power
    return powers / total[..., None], power / total


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
