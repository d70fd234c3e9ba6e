"""A trained model opened again, with its data and its method: from a run folder or from ported weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax import methods
from occreid_jax.data import terms
from occreid_jax.errors import UserError
from occreid_jax.train.checkpoint import Checkpoints, abstract
from occreid_jax.train.folder import read_config, read_meta
from occreid_jax.train.log import Reporter
from occreid_jax.train.performance import table_shapes
from occreid_jax.train.setup import Setup, open_setup
from occreid_jax.train.start import initial_model, load_weights
from occreid_jax.types import Meta, Method
from occreid_jax.weights.port import read_ported
from occreid_jax.weights.trees import flatten, shorten, unflatten


def open_run(
    workdir: Path, reporter: Reporter, best: bool = False, change: Callable[[Any], None] = lambda config: None
) -> tuple[Setup, Any, Any]:
    """``(setup, params, extra)`` of the newest checkpoint, or of the best one.

    ``change(config)`` may alter settings first, for example the dataset, or what of the method holds no parameters; `UserError`
    if it does. A method that trains nothing has no checkpoint and gets the parameters it starts with. Writes nothing, so a
    training may be going on.
    """
    trained, config, meta = read_config(workdir), read_config(workdir), read_meta(workdir)
    change(config)
    if config.method != trained.method:
        shapes = [jax.eval_shape(methods.create(each, meta).init, jax.random.key(0)) for each in (trained, config)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{workdir}: with these settings the method has other parameters than the run's; train with them")
    setup = open_setup(config, reporter, meta)
    if told := terms.shared(trained.data.name, config.data.name):
        reporter.line(f"problem: {told}")
    if not setup.method.stages():
        return setup, *initial_model(setup.method, config)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = (checkpoints.best if best else checkpoints.latest).latest_step()
        if step is None:
            kind = "best checkpoint" if best else "checkpoint"
            raise UserError(f"{workdir}: no {kind}; let the run finish an epoch first, with launch/train.py")
        target = abstract(jax.eval_shape(setup.method.init, jax.random.key(0)), setup.devices)
        return setup, *checkpoints.restore_model(step, *target, best=best)


def open_ported(config, weights: str | Path, reporter: Reporter) -> tuple[Setup, Any, Any]:
    """``(setup, params, extra)`` of a whole model that launch/port_weights.py brought, on the dataset of ``config``. Behind a
    comma may stand parts of it from elsewhere, such as a memory bank.

    The numbers of identities and cameras are the model's own, so everything must fit. Raises `UserError` if it does not, if the
    weights are no whole model, or if the config's features need what only a training makes.
    """
    weights, *parts = (name.strip() for name in str(weights).split(","))
    arrays, metadata = read_ported(weights)
    if metadata["kind"] != "model":
        what = "a part of a model" if metadata["kind"] == "part" else "an encoder"
        raise UserError(f"{weights}: {what} alone cannot be evaluated; train with --config.init.weights={weights}")
    meta = Meta(int(metadata["identities"]), int(metadata["cameras"]), tuple(config.data.image_size), images=0)
    if config.method.get("camera") and not meta.cameras:
        raise UserError(f"{weights} have no camera embedding; give --config camera=false")
    setup = open_setup(config, reporter, meta)
    params, extra = jax.jit(setup.method.init)(jax.random.key(config.seed))
    try:
        params, extra = load_weights(setup.method, params, extra, weights)
        brought = set(arrays)
        for part in parts:
            paths, about = read_ported(part)
            if about["kind"] != "part":
                raise UserError(f"{part}: no part of a model, which is what may stand behind a comma")
            params, extra = load_weights(setup.method, params, extra, part)
            brought |= set(paths)
        check_features(setup.method, params, extra, brought, f"the weights of {weights}")
        return setup, params, extra
    except UserError as error:
        told = ", ".join(f"{name} {value}" for name, value in sorted(metadata.items()) if name not in ("format", "kind"))
        raise UserError(f"{error}. The file tells: {told}; give --config the same backbone, stride and switches") from error


def check_features(method: Method, params: Any, extra: Any, brought: Collection[str], source: str) -> None:
    """Raises `UserError` if features depend on leaves of ``extra`` that are not among the paths ``brought``: a memory, say.

    These are NaN for the length of one picture, and so is a feature that looks at them.
    """
    missing = {path: value for path, value in flatten(extra).items() if f"extra/{path}" not in brought}
    if not missing:
        return
    floats = {path: value for path, value in missing.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    unknown = {path: jnp.full_like(value, jnp.nan) for path, value in floats.items()}
    shapes = table_shapes(method)
    batch = {name: np.zeros((1, *shapes[name].shape[1:]), shapes[name].dtype) for name in method.evaluation_inputs}
    batch |= {"camid": np.zeros(1, np.int32), "index": np.zeros(1, np.int32), "valid": np.ones(1, bool)}
    embed = jax.jit(lambda params, extra: method.embed(params, extra, method.transform(batch), "query"))
    features = embed(params, unflatten(flatten(extra) | unknown))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(features)):
        raise UserError(
            f"{source} lack {shorten(missing)}, which only a training makes and the features of this config depend on; name it "
            "behind a comma if it is ported, choose another feature, or train from them with --config.init.weights"
        )
