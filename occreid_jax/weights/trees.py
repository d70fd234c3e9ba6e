"""Parameter trees as flat dictionaries of named arrays, and merging one into another with nothing lost in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from occreid_jax.errors import UserError
from occreid_jax.nn.vit import resize_positions

SHOWN = 5  # names an error message lists before it counts the rest


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries -> {"backbone/block_00/attn/qkv/kernel": array}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def shorten(names) -> str:
    """The first names of a list and how many there are more."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def merge(params: Mapping[str, Any], weights: Mapping[str, Any], skip: str = "", source: str = "weights") -> dict[str, Any]:
    """``params`` with every array replaced by the one of the same path in ``weights``.

    Parameters that ``skip`` (a regular expression searched in the path) matches keep their value when ``weights`` lacks them or
    has another shape. Everything else must match exactly: a missing, unused or wrongly shaped array is a `UserError`.
    """
    target, given = flatten(params), flatten(weights)
    skipped = lambda name: bool(skip) and re.search(skip, name)  # noqa: E731
    missing = [name for name in target if name not in given and not skipped(name)]
    unused = [name for name in given if name not in target and not skipped(name)]
    wrong = [
        f"{name} {tuple(np.shape(given[name]))} instead of {tuple(np.shape(value))}"
        for name, value in target.items()
        if name in given and np.shape(given[name]) != np.shape(value) and not skipped(name)
    ]
    problems = [
        f"{len(names)} {word}: {shorten(names)}"
        for names, word in ((missing, "missing"), (unused, "unused"), (wrong, "of another shape"))
        if names
    ]
    if problems:
        raise UserError(f"{source} do not fit this model: {'; '.join(problems)}")
    merged = {}
    for name, value in target.items():
        taken = name in given and np.shape(given[name]) == np.shape(value)
        merged[name] = jnp.asarray(given[name], value.dtype) if taken else value
    return unflatten(merged)


def merge_encoder(params: Mapping[str, Any], weights: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """Encoder weights under this project's paths -> ``params``; the position embedding is resized to ``grid``.

    ``weights`` may carry ``grid`` int [2], the rows and columns its positions stand for; without it the grid is taken as square.
    Camera embeddings are this dataset's own and keep their initial values.
    """
    given = flatten(weights)
    source_grid = given.pop("grid", None)
    if "pos_embed" in given:
        patches = given["pos_embed"].shape[1] - 1
        if source_grid is None:
            side = int(round(patches**0.5))
            if side * side != patches:
                raise UserError(f"pretrained weights have {patches} positions, which is no square grid; store 'grid' beside them")
            source_grid = (side, side)
        resized = resize_positions(jnp.asarray(given["pos_embed"]), tuple(int(x) for x in source_grid), grid)
        given["pos_embed"] = np.asarray(jax.device_get(resized))
    return merge(params, given, skip=r"^camera_embed$", source="pretrained weights")
