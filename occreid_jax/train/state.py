"""Everything that changes during training, as one pytree, and which of it an update moves."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from occreid_jax.errors import UserError
from occreid_jax.types import Extra, Params, Update
from occreid_jax.weights.trees import flatten, unflatten

Array = jax.Array


@struct.dataclass
class TrainState:
    """``step`` counts batches over all stages. ``opt_state`` has one entry per update of the current stage."""

    step: Array  # int32 []
    params: Params
    opt_state: tuple[Any, ...]
    extra: Extra
    rng: Array  # key of the run; a step folds its number into it


def trainable_paths(params: Params, update: Update) -> tuple[str, ...]:
    """Paths of the parameters that ``update`` moves, sorted. Raises `UserError` if there are none."""
    paths = tuple(
        path
        for path in sorted(flatten(params))
        if re.search(update.trainable, path) and not (update.frozen and re.search(update.frozen, path))
    )
    if not paths:
        raise UserError(f"no parameter matches trainable='{update.trainable}' frozen='{update.frozen}'")
    return paths


def select(params: Params, paths: tuple[str, ...]) -> dict[str, Array]:
    """The named parameters as a flat dictionary."""
    flat = flatten(params)
    return {path: flat[path] for path in paths}


def replace(params: Params, chosen: dict[str, Array]) -> Params:
    """``params`` with the named ones exchanged."""
    return unflatten(flatten(params) | chosen)


def create(params: Params, extra: Extra, seed: int) -> TrainState:
    """The state before the first step; optimiser states come with the first stage."""
    return TrainState(jnp.zeros((), jnp.int32), params, (), extra, jax.random.key(seed))


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every floating-point array of ``tree`` holds finite numbers only, bool []."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats])) if floats else jnp.array(True)
