"""Terms that shape attention and saliency instead of features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
REDUCTIONS = ("mean", "official")
OVER = ("batch", "image")


def head_correlation(attention: Array) -> Array:
    """Cosines between the heads' attention of the cls token: float [B, heads, N] -> float32 [B, heads, heads].

    Each row is divided by sqrt(sum of squares + 1e-6), as in DPM's official code.
    """
    attention = attention.astype(jnp.float32)
    rows = attention * jax.lax.rsqrt(jnp.sum(attention * attention, axis=-1, keepdims=True) + 1e-6)
    return jnp.einsum("bhn,bkn->bhk", rows, rows, precision=jax.lax.Precision.HIGHEST)


def head_enrich(attention: Array, reduction: str = "mean") -> Array:
    """How alike the heads look (DPM++ Eq. 18, 19; HEM), float32 scalar, from attention before the softmax [B, heads, N].

    The squared Frobenius norm of `head_correlation` minus the identity: its mean over the batch ("mean"), or its sum over the
    batch divided by the squared number of heads ("official", the code of DPM, which grows with the batch).
    """
    correlation = head_correlation(attention)
    heads = correlation.shape[-1]
    squares = jnp.sum(jnp.square(correlation - jnp.eye(heads)), axis=(1, 2))
    if reduction == "official":
        return jnp.sum(squares) / heads**2
    if reduction == "mean":
        return jnp.mean(squares)
    raise ValueError(f"unknown reduction '{reduction}'; it must be one of {', '.join(REDUCTIONS)}")


def budget(saliency: Array, share: float, over: str = "batch") -> Array:
    """Squared distance of the mean saliency from ``share`` (DPM++ Eq. 22; SPT), float32 scalar, from float [B, N] in (0, 1).

    ``over`` "batch" takes one mean of all patches of all images, as the official code does; "image" one per image, which is
    much stricter, and averages the squares.
    """
    saliency = saliency.astype(jnp.float32)
    if over == "batch":
        return jnp.square(jnp.mean(saliency) - share)
    if over == "image":
        return jnp.mean(jnp.square(jnp.mean(saliency, axis=-1) - share))
    raise ValueError(f"unknown '{over}'; it must be one of {', '.join(OVER)}")


def overlap(logits: Array, other_logits: Array) -> Array:
    """Products of two predictions for the same image, summed over classes and batch: logits [B, C] each -> float32 scalar.

    SPT keeps the prediction from the background alone away from that of the whole picture with it (without its factor 0.1).
    """
    first, second = (jax.nn.softmax(each.astype(jnp.float32), axis=-1) for each in (logits, other_logits))
    return jnp.sum(first * second)
