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
from occreid_jax.vocabulary import tiny_vocabulary

IMAGE, TEXT, STATISTICS = "params/visual/", "params/text/", "extra/batch_stats/visual/"  # of a whole CLIP
REGISTERS = "register_tokens"  # of an encoder that has some
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

    def skipped(name: str) -> bool:
        return bool(skip) and re.search(skip, name) is not None

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


def encoder_paths(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> array of an encoder's weights, or of the image tower of a whole CLIP's; ``grid`` stays where it is given."""
    given = flatten(weights)
    tower = {name.removeprefix(IMAGE): value for name, value in given.items() if name.startswith(IMAGE)}
    return tower | {name: given[name] for name in ("grid",) if name in given} if tower else given


def merge_encoder(params: Mapping[str, Any], weights: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """Encoder weights under this project's paths -> ``params``; the position embedding is resized to ``grid``.

    ``weights`` are an encoder's own paths, or those of a whole CLIP, of which the image tower is taken. They may carry ``grid``
    int [2], the rows and columns their positions stand for; without it the grid is taken as square. Camera embeddings are this
    dataset's own and keep their initial values, and so do extra tokens, and registers that the weights have none of; CLIP's
    projection is left out where the encoder has none.
    """
    given = encoder_paths(weights)
    source_grid = given.pop("grid", None)
    for name in [name for name in given if name.rpartition("/")[2] == "pos_embed"]:
        given[name] = resized(np.asarray(given[name]), source_grid, grid)
    target, kernel = flatten(params), "patch_embed/kernel"
    if kernel in given and kernel in target and len(given[kernel]) != len(target[kernel]):
        raise UserError(
            f"the pretrained weights are for patches of {len(given[kernel])} pixels and this encoder cuts {len(target[kernel])}; "
            "of those that ship, tiny_clip is for 16 (grid=coarse) and tiny_clip_fine for 8 (grid=fine)"
        )
    trained, asked = (each[REGISTERS].shape[1] if REGISTERS in each else 0 for each in (given, target))
    if trained and trained != asked:
        raise UserError(f"the pretrained weights have {trained} registers; set config.method.registers={trained}, it is {asked}")
    projected = "projection" in target
    if not projected:
        given.pop("projection", None)
    return merge(params, given, skip=rf"^(camera_embed|part_tokens|{REGISTERS})$", source="pretrained weights")


def resized(positions: np.ndarray, source_grid: Any, grid: tuple[int, int], prefix: int = 1) -> np.ndarray:
    """Positions [1, prefix + N, D] on ``grid``; ``source_grid`` None stands for a square."""
    if positions.ndim != 3:
        raise UserError(f"pretrained weights have positions of shape {positions.shape} instead of [1, tokens, width]")
    patches = positions.shape[1] - prefix
    if source_grid is None:
        side = int(round(patches**0.5))
        if side * side != patches:
            raise UserError(f"pretrained weights have {patches} positions, which is no square grid; store 'grid' beside them")
        source_grid = (side, side)
    source_grid = tuple(int(x) for x in source_grid)
    return np.asarray(jax.device_get(resize_positions(jnp.asarray(positions), source_grid, grid, prefix)))


def merge_clip(
    params: Mapping[str, Any], extra: Mapping[str, Any], weights: Mapping[str, Any], grid: tuple[int, int], prompt: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both towers of a whole CLIP -> ``(params, extra)`` of a method with ``visual`` and, maybe, ``text``.

    ``prompt`` (`occreid_jax.nn.prompt.Prompt`) has its fixed words embedded into ``extra["prompt"]``, prefix and suffix around
    the learned ones.
    """
    given = flatten(weights)
    if not any(name.startswith(IMAGE) for name in given):
        raise UserError("these weights are an image encoder alone; this method needs a whole CLIP, see launch/port_weights.py")
    params = dict(params) | {"visual": merge_encoder(params["visual"], given, grid)}
    extra = dict(extra)
    if "visual" in extra.get("batch_stats", {}):
        stats = {name.removeprefix(STATISTICS): value for name, value in given.items() if name.startswith(STATISTICS)}
        merged = merge(extra["batch_stats"]["visual"], stats, source="the statistics of the pretrained weights")
        extra["batch_stats"] = extra["batch_stats"] | {"visual": merged}
    if "text" not in params:
        return params, extra
    text = {name.removeprefix(TEXT): value for name, value in given.items() if name.startswith(TEXT)}
    table = text.pop("token_embedding", None)
    if table is None:
        raise UserError("these weights have no token embedding to look up the prompt's words in; port a whole CLIP")
    params["text"] = merge(params["text"], text, source="the pretrained text tower")
    embedded = np.asarray(table)[rows_of(prompt.ids, len(table))][None]
    (slots,) = prompt.slots
    extra["prompt"] = merge(
        extra["prompt"],
        {"prefix": embedded[:, : slots[0]], "suffix": embedded[:, slots[-1] + 1 :]},
        source="the prompt's words",
    )
    return params, extra


def rows_of(ids: np.ndarray, count: int) -> np.ndarray:
    """Rows of a token embedding with ``count`` rows for CLIP's token ids: CLIP's own table, or that of the tiny CLIP."""
    vocabulary = tiny_vocabulary()
    if count == len(vocabulary):
        return vocabulary.rows(ids)
    if ids.max() >= count:
        raise UserError(f"the token embedding has {count} rows, the prompt needs id {ids.max()}: not CLIP's vocabulary")
    return ids
