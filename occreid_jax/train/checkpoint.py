"""Checkpoints through orbax: the latest for going on, the best beside it, parameters readable on their own.

A checkpoint has three items: ``model`` (params and extra: all that evaluation needs), ``training`` (step, key, optimiser
states) and ``meta`` (stage and numbers for people). Writing is atomic: an interrupted one never counts as the latest.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError
from occreid_jax.train.state import TrainState

LAYOUT = 1  # version of the parameter tree's layout; raised when stored trees stop fitting


def abstract(tree: Any, devices: Devices) -> Any:
    """Shapes and types of a tree, each replicated over the devices: what a restore must be told."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated), tree)


class Checkpoints:
    """The checkpoints below ``workdir/checkpoints``: ``latest`` (the newest ``keep``) and ``best`` (one, by mAP)."""

    def __init__(self, workdir: Path, keep: int = 2):
        self.folder = (Path(workdir) / "checkpoints").absolute()
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs dozens of lines a save
        options = lambda count: ocp.CheckpointManagerOptions(  # noqa: E731
            max_to_keep=count, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        try:
            self.latest = ocp.CheckpointManager(self.folder / "latest", options=options(keep))
            self.best = ocp.CheckpointManager(self.folder / "best", options=options(1))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror or error}); choose another --workdir") from error

    def save(self, state: TrainState, meta: dict, best: bool = False) -> None:
        """Writes ``state`` in the background. ``meta`` must hold ``stage``. A step that is stored already is left as it is."""
        manager, step = (self.best if best else self.latest), int(state.step)
        if step in manager.all_steps():
            return
        training = {"step": state.step, "rng": state.rng, "opt_state": state.opt_state}
        try:
            manager.check_for_errors()  # a failed background write must not pass unnoticed
            manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave({"params": state.params, "extra": state.extra}),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave({**meta, "layout": LAYOUT}),
                ),
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: checkpoint of step {step} could not be written ({first_line(error)}); "
                            "free disk space, then run the same command again") from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises `UserError` if writing failed."""
        for manager in (self.latest, self.best):
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
            except Exception as error:  # orbax re-raises whatever its thread met
                raise UserError(f"{self.folder}: a checkpoint could not be written ({first_line(error)}); free disk space, then "
                                "run the same command again") from error

    def close(self) -> None:
        self.latest.close()
        self.best.close()

    def last_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self.latest.latest_step()

    def meta(self, step: int, best: bool = False) -> dict:
        """The ``meta`` item of a checkpoint."""
        manager = self.best if best else self.latest
        meta = self.read(manager, step, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta.get("layout") != LAYOUT:
            found = meta.get("layout")
            raise UserError(f"{self.folder}: checkpoint of step {step} has layout {found}, this version reads {LAYOUT}")
        return meta

    def restore(self, step: int, state: TrainState) -> TrainState:
        """The full state of a checkpoint; ``state`` is a tree of shapes with shardings (see `abstract`)."""
        training = {"step": state.step, "rng": state.rng, "opt_state": state.opt_state}
        items = self.read(
            self.latest,
            step,
            ocp.args.Composite(
                model=ocp.args.StandardRestore({"params": state.params, "extra": state.extra}),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return TrainState(params=items.model["params"], extra=items.model["extra"], **items.training)

    def restore_model(self, step: int, params: Any, extra: Any, best: bool = False) -> tuple[Any, Any]:
        """Parameters and extra only; the arguments are trees of shapes with shardings."""
        manager = self.best if best else self.latest
        target = ocp.args.Composite(model=ocp.args.StandardRestore({"params": params, "extra": extra}))
        model = self.read(manager, step, target).model
        return model["params"], model["extra"]

    def read(self, manager: ocp.CheckpointManager, step: int, arguments: Any) -> Any:
        try:
            return manager.restore(step, args=arguments)
        except Exception as error:  # a damaged file can fail in any of orbax's and tensorstore's ways
            others = [other for other in manager.all_steps() if other != step]
            remedy = f"remove that folder to go on from step {max(others)}" if others else "start again in a new --workdir"
            raise UserError(
                f"{manager.directory}/{step}: checkpoint is damaged or does not fit this model ({first_line(error)}); {remedy}"
            ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return text if len(text) <= 160 else text[:157] + "..."
