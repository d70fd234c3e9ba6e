"""Grad-CAM for any method: where in its encoder's last map the evidence lies that two pictures show one person.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017. The score is the method's own distance, with the opposite sign; a method needs
nothing for it, since the encoder's last block is found while `embed` runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.clip_resnet import Bottleneck
from occreid_jax.nn.layers import Block
from occreid_jax.types import Batch, Extra, Features, Method, Params

Array = jax.Array


@contextlib.contextmanager
def watched(change: Callable[[int, Array], Array], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Inside, ``change(number, map)`` replaces what block ``number`` is about: the tokens that a transformer block reads, if they
    are so many, or the map that a ResNet's block gives. Yields the shapes in the order of the calls."""
    seen: list[tuple[int, ...]] = []

    def intercept(call, args, kwargs, context):
        module, inside = context.module, context.method_name == "__call__"
        if inside and isinstance(module, Block) and not isinstance(args[0], tuple) and args[0].shape[1] == tokens:
            seen.append(args[0].shape)
            return call(change(len(seen) - 1, args[0]), *args[1:], **kwargs)
        out = call(*args, **kwargs)
        if inside and isinstance(module, Bottleneck):
            seen.append(out.shape)
            return change(len(seen) - 1, out)
        return out

    with nn.intercept_methods(intercept):
        yield seen


def gradcam(
    method: Method, params: Params, extra: Extra, batch: Batch, others: Features, role: str = "query"
) -> Array | None:
    """float32 [B, h, w], at least 0: the evidence in pictures of a transformed batch [B, ...] for being who ``others`` shows.

    ``others`` are features of one other picture for each, as `Method.embed` gives them. The channels of the encoder's last map
    (the tokens that its last block reads, or a ResNet's last map) are weighted by the mean gradient of the score, summed, and cut
    at 0. None for a method without an encoder that is known here.
    """
    encoders = [(getattr(method, name), grid) for name, grid in method.grids.items() if hasattr(method, name)]
    if not encoders:
        return None
    encoder, grid = encoders[0]
    patches, first = grid[0] * grid[1], 1 + getattr(encoder, "extra_tokens", 0)
    tokens = first + patches + getattr(encoder, "registers", 0)
    with watched(lambda number, x: x, tokens) as seen:
        jax.eval_shape(lambda batch: method.embed(params, extra, batch, role), dict(batch))
    if not seen:
        return None
    last, shape = len(seen) - 1, seen[-1]

    def score(added: Array) -> tuple[Array, Array]:
        kept: dict[int, Any] = {}

        def change(number: int, x: Array) -> Array:
            if number != last:
                return x
            kept[number] = x.astype(jnp.float32)
            return x + added.astype(x.dtype)

        with watched(change, tokens):
            features = method.embed(params, extra, batch, role)
        return -jnp.sum(jnp.diagonal(method.distance(features, others))), kept[last]

    slopes, values = jax.grad(score, has_aux=True)(jnp.zeros(shape, jnp.float32))
    if len(shape) == 3:  # tokens: the cls token and others before or behind the patches do not count
        slopes, values = (x[:, first : first + patches].reshape(-1, *grid, shape[-1]) for x in (slopes, values))
    # A distance may have no gradient where two features agree: a root at 0.
    slopes = jnp.where(jnp.isfinite(slopes), slopes, 0.0)
    weights = jnp.mean(slopes, axis=(1, 2), keepdims=True)
    return jax.nn.relu(jnp.sum(weights * values, axis=-1))
