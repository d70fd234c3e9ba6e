"""Checkpoints through orbax: the latest for going on, the best beside it, parameters readable on their own.

A checkpoint has three items: ``model`` (params and extra: all that evaluation needs), ``training`` (step, key, optimiser
states) and ``meta`` (stage and numbers for people). Writing is atomic: an interrupted one never counts as the latest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError
from occreid_jax.train.state import TrainState

LAYOUT = 1  # version of the parameter tree's layout; raised when stored trees stop fitting


def abstract(tree: Any, devices: Devices) -> Any:
    """Shapes and types of a tree, each replicated over the devices: what a restore must be told.

    Of a `TrainState` the optimiser's part is laid out as `Devices.optimizer` says, however it lay when it was stored.
    """

    def shaped(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    found = jax.tree.map(lambda x: shaped(x, devices.replicated), tree)
    if not isinstance(tree, TrainState):
        return found
    return found.replace(opt_state=jax.tree.map(shaped, tree.opt_state, devices.optimizer(tree.opt_state)))


class Checkpoints:
    """The checkpoints below ``workdir/checkpoints``: ``latest`` (the newest ``keep``) and ``best`` (one, by mAP).

    With ``read_only`` nothing is created or tidied up, so that a training may be at work in the same folder.
    """

    def __init__(self, workdir: Path, keep: int = 2, read_only: bool = False):
        self.folder = (Path(workdir) / "checkpoints").absolute()
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs dozens of lines a save, and every error it raises

        def options(count: int) -> ocp.CheckpointManagerOptions:
            return ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else count,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=not read_only,
                save_interval_steps=0 if read_only else 1,
                read_only=read_only,
            )

        try:
            self.latest = ocp.CheckpointManager(self.folder / "latest", options=options(keep))
            self.best = ocp.CheckpointManager(self.folder / "best", options=options(1))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be used ({error.strerror or error}); choose another --workdir") from error

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
        except Exception as error:  # orbax re-raises whatever its thread met
            raise self.not_written(f"checkpoint of step {step}", error) from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises `UserError` if writing failed."""
        for manager in (self.latest, self.best):
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
            except Exception as error:  # orbax re-raises whatever its thread met
                raise self.not_written("a checkpoint", error) from error

    def not_written(self, what: str, error: Exception) -> UserError:
        """The one line that ends the run. What orbax had begun and never waits for must add none of its own at the end."""
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        words = (os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EROFS))
        cause = next((word for word in words if word in str(error)), first_line(error))
        return UserError(
            f"{self.folder}: {what} could not be written ({cause}); make room, then run the same command again, it goes on from "
            "the checkpoint before"
        )

    def close(self) -> None:
        for manager in (self.latest, self.best):
            with contextlib.suppress(Exception):  # `save` and `wait` have told what went wrong; close raises it once more
                manager.close()

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
        """Restores items of one step. Raises `UserError` with the folder and the remedy if they are damaged or do not fit."""
        try:
            return manager.restore(step, args=arguments)
        except Exception as error:  # a damaged file can fail in any of orbax's and tensorstore's ways
            others = [other for other in manager.all_steps() if other != step]
            remedy = f"remove that folder to go on from step {max(others)}" if others else "start again in a new --workdir"
            if manager is self.best:
                remedy = "remove that folder, the latest checkpoint stays"
            raise UserError(
                f"{manager.directory}/{step}: checkpoint is damaged or does not fit this model ({first_line(error)}); {remedy}"
            ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return text if len(text) <= 160 else text[:157] + "..."
