"""Where the first parameters come from: initial values, a pretrained encoder, or another run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from occreid_jax import methods
from occreid_jax.assets import FOLDER, asset
from occreid_jax.errors import UserError
from occreid_jax.train.checkpoint import Checkpoints, first_line
from occreid_jax.train.folder import read_config, read_meta
from occreid_jax.types import Meta, Method
from occreid_jax.weights.port import read_ported
from occreid_jax.weights.trees import flatten, merge, resized, shorten, unflatten

PLACES = ("pos_embed", "mask_tokens")  # parameters with a row for every patch


def initial_model(method: Method, config, tell: Callable[[str], None] = lambda line: None) -> tuple[Any, Any]:
    """``(params, extra)`` before the first step.

    ``config.init.run`` names a run folder to take the last parameters from, see `start_from_run`. ``config.init.weights`` names
    what launch/port_weights.py wrote: an encoder for `Method.load_pretrained`, a whole model, to which ``config.init.skip``
    applies as well, or a part of one; several, separated by commas, are put in place one after the other. ``tell`` gets a line
    about everything that is not simply taken.
    """
    params, extra = jax.jit(method.init)(jax.random.fold_in(jax.random.key(config.seed), 1))
    init = config.init
    for weights in filter(None, (name.strip() for name in init.weights.split(","))):
        params, extra = load_weights(method, params, extra, weights, init.skip)
    if init.run:
        params, extra = start_from_run(method, params, extra, Path(init.run), init.skip, tell)
    return params, extra


def start_from_run(
    method: Method, params: Any, extra: Any, workdir: Path, skip: str, tell: Callable[[str], None]
) -> tuple[Any, Any]:
    """The last ``params`` and ``extra`` of a run in place of initial values.

    What belongs to the run's training set (classifiers, prompts of identities, prototypes, banks, vectors of cameras) is taken if
    this one is the same, and otherwise starts anew. Positions are resized where pictures or stride differ. Parameters that
    ``skip`` matches may be missing in the run or have another shape; ``extra`` is taken where shapes agree.
    """
    stored = read_run(workdir)
    given, state = flatten(stored["params"]), flatten(stored["extra"])
    own = bound_to_other_data(method, read_meta(workdir))
    if anew := [path for path in flatten(params) if f"params/{path}" in own]:
        tell(f"note: {workdir} was trained on other pictures; what belongs to them starts anew: {shorten(anew)}")
    given = {path: value for path, value in given.items() if f"params/{path}" not in own}
    state = {path: value for path, value in state.items() if f"extra/{path}" not in own}
    given |= (moved := resized_positions(method, params, given, workdir))
    if moved:
        tell(f"note: the positions of {workdir} are resized to this run's patches: {shorten(moved)}")
    patterns = filter(None, (skip, *(f"^{re.escape(path)}$" for path in anew)))
    params = merge(params, unflatten(given), "|".join(patterns), f"the parameters of {workdir}")
    return params, where_alike(extra, state)


def bound_to_other_data(method: Method, trained: Meta) -> set[str]:
    """Paths below ``params/`` and ``extra/`` that belong to people, pictures or cameras that a run on ``trained`` did not have.

    They are told by their shapes: one more person, picture or camera changes them. So a method needs to state nothing.
    """
    meta, changes = method.meta, {}
    if not same_training_set(meta, trained):
        changes |= {"identities": meta.identities + 1, "images": meta.images + 1}
    if not same_cameras(meta, trained):
        changes |= {"cameras": meta.cameras + 1}
    if not changes:
        return set()
    other = methods.create(method.config, dataclasses.replace(meta, **changes))
    own, others = (
        flatten(dict(zip(("params", "extra"), jax.eval_shape(each.init, jax.random.key(0)), strict=True)))
        for each in (method, other)
    )
    return {path for path, leaf in own.items() if np.shape(leaf) != np.shape(others.get(path, leaf))}


def same_training_set(meta: Meta, trained: Meta) -> bool:
    """Whether two runs have the same training pictures; older ones recorded counts alone."""
    if trained.training_set and meta.training_set:
        return trained.training_set == meta.training_set
    return (trained.identities, trained.images) == (meta.identities, meta.images)


def same_cameras(meta: Meta, trained: Meta) -> bool:
    """Whether two runs have the same cameras in the same rows; older ones recorded their number alone."""
    network = trained.camera_network in ("", meta.camera_network)
    return network and (trained.cameras, trained.camera_numbers) == (meta.cameras, meta.camera_numbers)


def resized_positions(method: Method, params: Any, given: Mapping[str, Any], workdir: Path) -> dict[str, np.ndarray]:
    """The position embeddings among the ``given`` parameters of a run that stand for another grid, on this method's grids; and
    the learned tokens of every place, which have no row for a class token."""
    target = flatten(params)
    other = [
        path for path in given
        if path.endswith(PLACES) and path in target and np.shape(given[path]) != np.shape(target[path])
    ]  # fmt: skip
    if not other:
        return {}
    trained = methods.create(read_config(workdir), read_meta(workdir)).grids
    found = {}
    for path in other:
        encoder = next((name for name in method.grids if path.startswith(f"{name}/") and name in trained), None)
        if encoder is not None and np.shape(given[path])[-1] == np.shape(target[path])[-1]:
            prefix = 1 if path.endswith("pos_embed") else 0
            found[path] = resized(np.asarray(given[path]), trained[encoder], method.grids[encoder], prefix)
    return found


def where_alike(extra: Any, stored: Mapping[str, Any]) -> Any:
    """``extra`` with every array of ``stored`` (by path) that has its place and shape: statistics, fixed words of prompts."""

    def alike(path: str, value: Any) -> bool:
        return path in stored and np.shape(stored[path]) == np.shape(value)

    return unflatten(
        {path: jnp.asarray(stored[path], value.dtype) if alike(path, value) else value for path, value in flatten(extra).items()}
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
        placed = place_part(params, given.get("params", {}), source)  # a memory bank has no parameters
        return placed, place_part(extra, given.get("extra", {}), source, statistics=True)
    params = merge(params, given["params"], skip, source)
    return params, extra | {name: merge(extra.get(name, {}), tree, skip, source) for name, tree in given.get("extra", {}).items()}


def place_part(tree: Any, given: Mapping[str, Any], source: str, statistics: bool = False) -> Any:
    """``tree`` with the networks (first names) of ``given`` replaced as a whole; below ``batch_stats`` these are second names."""
    placed = dict(tree)
    for name, part in given.items():
        if name not in tree:
            raise UserError(f"{source} hold '{name}', which this method does not have with its settings")
        inner = statistics and name == "batch_stats"
        if inner:
            placed[name] = place_part(tree[name], part, source)
        else:
            placed |= merge({name: tree[name]}, {name: part}, source=source)
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
