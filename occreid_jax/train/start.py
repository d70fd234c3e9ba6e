"""Where the first parameters come from: initial values, a pretrained encoder, or another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from occreid_jax.errors import UserError
from occreid_jax.train.checkpoint import Checkpoints, first_line
from occreid_jax.types import Method
from occreid_jax.weights.read import read_weights
from occreid_jax.weights.trees import merge


def initial_model(method: Method, config) -> tuple[Any, Any]:
    """``(params, extra)`` before the first step.

    ``config.init.run`` names a run folder to take the last parameters from; those that ``config.init.skip`` matches may be
    missing there or have another shape (the classifier of another dataset). ``config.init.weights`` names a file for
    `Method.load_pretrained`.
    """
    params, extra = jax.jit(method.init)(jax.random.fold_in(jax.random.key(config.seed), 1))
    init = config.init
    if init.weights:
        params, extra = method.load_pretrained(params, extra, read_weights(init.weights))
    if init.run:
        stored = read_run(Path(init.run))
        params = merge(params, stored["params"], init.skip, f"the parameters of {init.run}")
    return params, extra


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
