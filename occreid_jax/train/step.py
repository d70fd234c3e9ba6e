"""The training step: gather by index, augment, loss, gradient of the trainable part, update. One builder for all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from occreid_jax.data import resident
from occreid_jax.distributed import Devices
from occreid_jax.train.casting import cast, cast_alone
from occreid_jax.train.optim import make_optimizer
from occreid_jax.train.plan import StagePlan
from occreid_jax.train.state import TrainState, replace, select, trainable_paths
from occreid_jax.types import Method, Params

Array = jax.Array
COLUMNS = ("camid", "label")  # what every training batch has beside the stage's inputs


class StageStep:
    """The optimisers of one stage and the pure function that makes one step with them."""

    def __init__(self, method: Method, plan: StagePlan, params: Params, accumulate: int = 1):
        self.method, self.plan, self.stage = method, plan, plan.stage
        self.paths = tuple(trainable_paths(params, update) for update in self.stage.updates)
        self.optimizers = tuple(
            make_optimizer(update.optimizer, paths, plan.epoch_ends, accumulate)
            for update, paths in zip(self.stage.updates, self.paths, strict=True)
        )
        self.shapes = jax.eval_shape(self.init, params)  # of the optimisers' states

    def init(self, params: Params) -> tuple:
        """Fresh optimiser states, one per update."""
        return tuple(
            optimizer.init(select(params, paths)) for optimizer, paths in zip(self.optimizers, self.paths, strict=True)
        )

    def one(self, state: TrainState, raw: dict) -> tuple[TrainState, dict[str, Array]]:
        """One step on a raw batch: ``image`` uint8, ``camid``, ``label``, ``index``, ``valid`` and the stage's other inputs."""
        rng_augment, rng_loss = jax.random.split(jax.random.fold_in(state.rng, state.step))
        with jax.named_scope("augment"):
            batch = self.stage.augment(rng_augment, raw)
        progress = (state.step - self.plan.start).astype(jnp.float32) / self.plan.steps
        params, extra, opt_states, metrics = state.params, state.extra, [], {}
        for number, (optimizer, paths) in enumerate(zip(self.optimizers, self.paths, strict=True)):

            def objective(chosen, params=params, extra=extra, number=number):
                rng = jax.random.fold_in(rng_loss, number)
                return self.method.loss(replace(params, chosen), extra, batch, rng, self.stage, progress)

            chosen = select(params, paths)
            (loss, aux), gradients = jax.value_and_grad(self.cast_once(objective, chosen), has_aux=True)(chosen)
            with jax.named_scope("update"):
                updates, opt_state = optimizer.update(gradients, state.opt_state[number], chosen)
                params = replace(params, optax.apply_updates(chosen, updates))
            extra = aux.extra
            opt_states.append(opt_state)
            metrics |= {"loss": loss, **aux.metrics}
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state.replace(step=state.step + 1, params=params, opt_state=tuple(opt_states), extra=extra), metrics

    def cast_once(self, objective: Callable, chosen: dict[str, Array]) -> Callable:
        """``objective`` with those parameters cast once that it casts to the type of the products at every use."""
        dtype = self.method.dtype
        if dtype == jnp.float32:
            return objective
        names = cast_alone(objective, chosen, dtype)
        return lambda chosen: objective(cast(chosen, names, dtype))

    def load(self, state: TrainState, tables: Mapping[str, Array], rows: Array) -> dict:
        """Rows int32 [B] of the resident tables and of those that `Method.prepare` put under ``extra["tables"]``."""
        columns = {**tables, **state.extra.get("tables", {})}
        batch = resident.gather({name: columns[name] for name in (*self.stage.inputs, *COLUMNS)}, rows)
        return batch | {name: tables[name] for name in self.stage.shared}

    def complete(self, state: TrainState, tables: Mapping[str, Array], batch: dict) -> dict:
        """A streamed batch with what does not come from the stream: shared tables and columns under ``extra["tables"]``."""
        prepared = state.extra.get("tables", {})
        columns = {name: prepared[name][batch["index"]] for name in self.stage.inputs if name in prepared}
        return batch | columns | {name: tables[name] for name in self.stage.shared}

    def from_tables(self, state: TrainState, tables: Mapping[str, Array], rows: Array) -> tuple[TrainState, dict[str, Array]]:
        """Steps on rows int32 [k, B] of resident tables, one after the other. Metrics come back as [k] arrays."""
        return self.chunk(state, rows, lambda state, piece: self.load(state, tables, piece))

    def from_stream(self, state: TrainState, tables: Mapping[str, Array], batches: dict) -> tuple[TrainState, dict[str, Array]]:
        """The same on batches [k, B, ...] that the host streams; ``tables`` holds the shared ones only."""
        return self.chunk(state, batches, lambda state, piece: self.complete(state, tables, piece))

    def chunk(self, state: TrainState, chunk, load: Callable) -> tuple[TrainState, dict[str, Array]]:
        """Steps over the first axis [k, ...] of ``chunk``; ``load(state, piece)`` makes the raw batch of each."""
        if len(jax.tree.leaves(chunk)[0]) == 1:
            # No loop for a single step: the CPU backend runs a loop's body on fewer threads.
            state, metrics = self.one(state, load(state, jax.tree.map(lambda x: x[0], chunk)))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda state, piece: self.one(state, load(state, piece)), state, chunk)

    def jitted(self, devices: Devices, streamed: bool = False):
        """The jitted function (state, tables, rows or batches) -> (state, metrics). The state's buffers are given away."""
        kept = devices.replicated
        opt_state = devices.optimizer(self.shapes)
        state = TrainState(step=kept, params=kept, opt_state=opt_state, extra=kept, rng=kept)
        return jax.jit(
            self.from_stream if streamed else self.from_tables,
            in_shardings=(state, kept, devices.steps),
            out_shardings=(state, kept),
            donate_argnums=0,
            compiler_options=devices.compiler_options or None,
        )
