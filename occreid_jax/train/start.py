"""Where the first parameters come from: initial values, a pretrained encoder, or another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from occreid_jax.assets import FOLDER, asset
from occreid_jax.errors import UserError
from occreid_jax.train.checkpoint import Checkpoints, first_line
from occreid_jax.types import Method
from occreid_jax.weights.port import read_ported
from occreid_jax.weights.trees import flatten, merge, unflatten


def initial_model(method: Method, config) -> tuple[Any, Any]:
    """``(params, extra)`` before the first step.

    ``config.init.run`` names a run folder to take the last parameters from; those that ``config.init.skip`` matches may be
    missing there or have another shape (the classifier of another dataset). Its ``extra`` is taken where shapes agree.
    ``config.init.weights`` names what launch/port_weights.py wrote: an encoder for `Method.load_pretrained`, a whole model, to
    which ``config.init.skip`` applies as well, or a part of one; several, separated by commas, are put in place one after the
    other.
    """
    params, extra = jax.jit(method.init)(jax.random.fold_in(jax.random.key(config.seed), 1))
    init = config.init
    for weights in filter(None, (name.strip() for name in init.weights.split(","))):
        params, extra = load_weights(method, params, extra, weights, init.skip)
    if init.run:
        stored = read_run(Path(init.run))
        params = merge(params, stored["params"], init.skip, f"the parameters of {init.run}")
        extra = where_alike(extra, stored["extra"])
    return params, extra


def where_alike(extra: Any, stored: Any) -> Any:
    """``extra`` with every array of ``stored`` that has its place and shape: statistics, fixed words of prompts. What belongs to
    the run's own pictures is prepared again before the stage that needs it."""
    given = flatten(stored)
    alike = lambda name, value: name in given and np.shape(given[name]) == np.shape(value)  # noqa: E731
    return unflatten(
        {name: jnp.asarray(given[name], value.dtype) if alike(name, value) else value for name, value in flatten(extra).items()}
    )


def load_weights(method: Method, params: Any, extra: Any, path: str | Path, skip: str = "") -> tuple[Any, Any]:
    """``(params, extra)`` with ported weights in place of initial values; `UserError` if they do not fit the method."""
    arrays, metadata = read_ported(shipped(path))
    return place_weights(method, params, extra, arrays, metadata["kind"], skip, f"the weights of {path} ({metadata['family']})")


def shipped(path: str | Path) -> Path:
    """The folder of weights that ship with the package if ``path`` is the name of such ("tiny_clip"), otherwise ``path``."""
    path = Path(path)
    return asset(path.name) if str(path) == path.name and not path.exists() and (FOLDER / path.name).is_dir() else path


def place_weights(
    method: Method, params: Any, extra: Any, arrays: Mapping[str, np.ndarray], kind: str, skip: str = "", source: str = "weights"
) -> tuple[Any, Any]:
    """``arrays`` of an "encoder" or a "clip" (the method places them), of a whole "model" (paths below params/ and extra/), or of
    a "part" of one: the networks that have no array in it keep their values."""
    if kind in ("encoder", "clip"):
        return method.load_pretrained(params, extra, arrays)
    given = unflatten(arrays)
    if kind == "part":
        return place_part(params, given["params"], source), place_part(extra, given.get("extra", {}), source, statistics=True)
    params = merge(params, given["params"], skip, source)
    return params, extra | {name: merge(extra.get(name, {}), tree, skip, source) for name, tree in given.get("extra", {}).items()}


def place_part(tree: Any, given: Mapping[str, Any], source: str, statistics: bool = False) -> Any:
    """``tree`` with the networks (first names) of ``given`` replaced as a whole; below ``batch_stats`` these are second names."""
    placed = dict(tree)
    for name, part in given.items():
        if name not in tree:
            raise UserError(f"{source} hold '{name}', which this method does not have with its settings")
        inner = statistics and name == "batch_stats"
        placed[name] = place_part(tree[name], part, source) if inner else merge(tree[name], part, source=source)
    return placed


def read_run(workdir: Path, step: int | None = None) -> dict[str, Any]:
    """The newest checkpoint's ``{"params", "extra"}`` as numpy arrays, on any devices, whatever model wrote it."""
    folder = workdir.absolute() / "checkpoints" / "latest"
    if not folder.is_dir():
        raise UserError(f"{workdir}: no checkpoint there; config.init.run must name the run folder of a finished training")
    manager = Checkpoints(workdir, read_only=True).latest
    with manager:
        step = manager.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{workdir}: no complete checkpoint there; let that run finish an epoch first")
        try:
            tree = manager.item_metadata(step)["model"]
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree.tree if hasattr(tree, "tree") else tree)
            return manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target))).model
        except Exception as error:  # orbax and tensorstore fail in many ways on a damaged file
            remedy = "remove that folder to take the checkpoint before it, or give another run"
            raise UserError(f"{folder}/{step}: not readable as a checkpoint ({first_line(error)}); {remedy}") from error
