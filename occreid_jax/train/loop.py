"""The one training loop. It knows no method by name: stages, steps, preparation and evaluation come through the protocol.

Resuming is exact because the order of the data depends on (seed, epoch) alone, the random key is folded with the step, and a
checkpoint at an epoch's end is written before the events of the next epoch (a new optimiser at a stage's start, `prepare`),
which are pure functions of the state and simply happen again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from occreid_jax import distributed
from occreid_jax.data import resident, stream
from occreid_jax.errors import UserError
from occreid_jax.evaluation.evaluate import Evaluation, evaluate
from occreid_jax.files import check_unheld, hold, read_json, write_json
from occreid_jax.passes import run_pass
from occreid_jax.train import performance, state
from occreid_jax.train.bounds import beyond
from occreid_jax.train.checkpoint import Checkpoints, abstract
from occreid_jax.train.folder import check_workdir, claim_workdir
from occreid_jax.train.log import MetricsFile, Reporter
from occreid_jax.train.plan import Plan, Position, StagePlan, make_plan
from occreid_jax.train.records import write_evaluation, write_unparsed
from occreid_jax.train.setup import Setup, banner, open_setup
from occreid_jax.train.start import initial_model
from occreid_jax.train.state import TrainState
from occreid_jax.train.step import StageStep
from occreid_jax.types import PrepareContext


class Stopped(Exception):
    """The run was asked to stop and everything is saved. ``signal`` is the signal's number."""

    def __init__(self, signal: int, step: int):
        super().__init__(f"stopped after step {step}; the same command goes on from there")
        self.signal, self.step = signal, step


def train(config: Any, workdir: Path, reporter: Reporter) -> tuple[Trainer, Evaluation]:
    """A run from its config to its end. Raises `Stopped` after a signal, and what `open_trainer` raises."""
    trainer = open_trainer(config, workdir, reporter)
    return trainer, trainer.run()


def open_trainer(config: Any, workdir: Path, reporter: Reporter) -> Trainer:
    """A run from its config, at its beginning in ``workdir`` or where it stopped there. Raises `UserError` if the folder holds
    another run or the data or settings cannot be used."""
    check_workdir(workdir, config)  # before a dataset is rendered for nothing
    distributed.in_lead(lambda: check_unheld(workdir))
    setup = open_setup(config, reporter)
    for line in banner(setup, workdir):
        reporter.line(line)
    trainer = Trainer(setup, workdir)
    claim_workdir(workdir, config, setup.meta)
    if distributed.is_lead():
        write_unparsed(workdir, setup.unparsed())
    return trainer


class Trainer:
    """One run: opened by `run`, which is the loop itself."""

    def __init__(self, setup: Setup, workdir: Path):
        self.setup, self.workdir = setup, Path(workdir)
        self.config, self.method, self.devices, self.reporter = setup.config, setup.method, setup.devices, setup.reporter
        self.labels = setup.labels
        loop = self.config.loop
        self.plan: Plan = make_plan(self.method.stages(), self.labels, self.config.seed, loop.accumulate, self.devices.count)
        for note in self.plan.notes:
            self.reporter.line(f"note: {note}")
        # First of all that touches the folder: opening checkpoints tidies up what a run at work there is writing.
        self.held = distributed.in_lead(lambda: hold(self.workdir))
        if self.held is not None and self.held.note:
            self.reporter.line(f"note: {self.held.note}")
        self.checkpoints = Checkpoints(self.workdir, self.config.checkpoint.keep)
        self.tables: dict[str, jax.Array] = {}
        self.streams = False
        self.best = -1.0
        self.told: set[tuple[str, str]] = set()  # (stage, metric) outside of their bounds

    # The run from start to end -------------------------------------------------------------------------------------------

    def run(self) -> Evaluation:
        """Trains what is left to train, evaluates, writes results.json. Raises `Stopped` after a signal."""
        with distributed.StopRequest() as self.stop, contextlib.closing(self.checkpoints):
            current = self.restore() or self.begin()
            self.metrics = MetricsFile(self.workdir, int(current.step), over=int(current.step) == self.plan.steps)
            with contextlib.closing(self.metrics):
                while (position := self.plan.locate(int(current.step))) is not None:
                    current = self.run_stage(current, position)
                evaluation = self.evaluate(current, selection=True)
            self.checkpoints.wait()
            self.write_results(evaluation)
        self.state = current
        return evaluation

    def run_stage(self, current: TrainState, position: Position) -> TrainState:
        """The rest of one stage, from ``position`` on."""
        plan = self.plan.stages[position.stage]
        step = StageStep(self.method, plan, current.params, self.config.loop.accumulate)
        if int(current.step) == plan.start:
            opt_state = step.init(current.params)
            current = current.replace(opt_state=distributed.place(opt_state, self.devices.optimizer(opt_state)))
        self.load_tables(plan)
        compiled: dict[int, Any] = {}  # chunk length -> executable
        meter = performance.Meter(performance.step_flops(plan.stage), plan.batch_size, self.devices.count)
        with self.reporter.task(f"stage {plan.stage.name}", plan.steps) as task:
            for epoch in range(position.epoch, plan.stage.epochs):
                row = position.row if epoch == position.epoch else 0
                if row == 0 and plan.refreshes(epoch):
                    current = self.prepare(current, plan, epoch)
                current = self.run_epoch(current, plan, step, epoch, row, compiled, meter, task)
                current = self.end_epoch(current, plan, epoch)
        return current

    def run_epoch(
        self,
        current: TrainState,
        plan: StagePlan,
        step: StageStep,
        epoch: int,
        row: int,
        compiled: dict[int, Any],
        meter: performance.Meter,
        task: Callable,
    ) -> TrainState:
        """The batches of one epoch from ``row`` on, in chunks of ``loop.steps_per_call``. Metrics are read one interval late."""
        rows = plan.rows(epoch)
        done = plan.start + (int(plan.epoch_ends[epoch - 1]) if epoch else 0) + row
        waiting: list[tuple[int, np.ndarray, dict]] = []  # (first step, rows, metrics still on the device)
        earlier: list[tuple[int, np.ndarray, dict]] = []
        calls = 0
        for chunk_rows, chunk in self.chunks(plan, rows, row):
            if len(chunk_rows) not in compiled:
                compiled[len(chunk_rows)] = self.compile(step, current, chunk, plan)
                meter.restart()
            current, metrics = compiled[len(chunk_rows)](current, self.tables, chunk)
            waiting.append((done, chunk_rows, metrics))
            done += len(chunk_rows)
            calls += 1
            if calls % self.config.loop.log_every == 0:
                self.report(plan, epoch, earlier, meter, task)
                earlier, waiting = waiting, []
            if (signal := self.stop.requested(done)) and done < self.plan.steps:
                self.report(plan, epoch, earlier + waiting, meter, task)
                self.save(current)
                self.checkpoints.wait()
                raise Stopped(signal, done)
        self.report(plan, epoch, earlier + waiting, meter, task)
        return current

    def end_epoch(self, current: TrainState, plan: StagePlan, epoch: int) -> TrainState:
        """Evaluation and checkpoint, when they are due. The checkpoint comes last: a kill before it repeats both."""
        done = int(current.step)
        over = done == self.plan.steps
        checkpoint, evaluation = self.config.checkpoint, self.config.evaluation
        if not over and evaluation.every_epochs and (epoch + 1) % evaluation.every_epochs == 0:
            self.evaluate(current)
        if epoch + 1 == plan.stage.epochs or (checkpoint.every_epochs and (epoch + 1) % checkpoint.every_epochs == 0):
            self.save(current)
        if (signal := self.stop.requested(done)) and not over:
            self.save(current)
            self.checkpoints.wait()
            raise Stopped(signal, done)
        return current

    # Beginning and going on ----------------------------------------------------------------------------------------------

    def begin(self) -> TrainState:
        """The state before the first step, evaluated once if the config asks for it."""
        started = time.monotonic()
        params, extra = initial_model(self.method, self.config, self.reporter.line)
        current = self.on_devices(state.create(params, extra, self.config.seed))
        count = sum(x.size for x in jax.tree.leaves(params))
        self.reporter.line(f"initialised {count / 1e6:.2f} M parameters in {time.monotonic() - started:.1f} s")
        if self.config.evaluation.untrained and self.plan.steps:
            result = self.evaluate(current, record=False, selection=True)
            if distributed.is_lead():
                write_json(self.workdir / "untrained.json", result.results)
            self.reporter.line(f"untrained: {result.summary}")
        return current

    def restore(self) -> TrainState | None:
        """The newest checkpoint's state, or None if there is none."""
        step = self.checkpoints.last_step()
        if step is None:
            return None
        meta = self.checkpoints.meta(step)
        self.best = meta["best"]
        params, extra = jax.eval_shape(self.method.init, jax.random.key(0))
        target = state.create(params, extra, self.config.seed)
        if self.plan.stages:
            plan = self.plan.stages[meta["stage"]]
            stage_step = StageStep(self.method, plan, params, self.config.loop.accumulate)
            target = target.replace(opt_state=jax.eval_shape(stage_step.init, params))
        restored = self.checkpoints.restore(step, abstract(target, self.devices))
        self.reporter.line(f"going on from step {step} of {self.plan.steps}")
        return restored

    def save(self, current: TrainState, best: bool = False) -> None:
        """A checkpoint of a state whose losses were all finite. ``stage`` is the one whose optimiser states it holds."""
        done = int(current.step)
        stage = max((plan.number for plan in self.plan.stages if plan.start < done), default=0)
        if done and not bool(state.all_finite((current.params, current.extra))):
            # The last update of an epoch can spoil the parameters after a loss that was still finite.
            self.checkpoints.wait()
            raise UserError(
                f"the parameters after step {done} are not finite; {self.last_good()}; try a lower learning rate or dtype float32"
            )
        if done:
            self.checkpoints.save(current, {"stage": stage, "best": self.best}, best)

    def on_devices(self, tree: Any) -> Any:
        return distributed.place(tree, self.devices.replicated)

    # Data ----------------------------------------------------------------------------------------------------------------

    def load_tables(self, plan: StagePlan) -> None:
        """Puts the stage's tables on the devices, or decides to stream those of pictures. Shared ones are always resident."""
        columns = self.setup.columns("train", plan.stage.inputs, self.config.data.train_filter) | {"label": self.labels}
        wanted = self.setup.shared(plan.stage.shared)
        size, choice = sum(table.nbytes for table in (*columns.values(), *wanted.values())), self.config.data.resident
        self.streams = choice == "never" or (choice == "auto" and not resident.fits(size, jax.local_devices()[0]))
        if self.streams:
            self.host_columns, self.tables = columns, {name: self.tables[name] for name in wanted if name in self.tables}
            self.reporter.line(f"streaming the training table ({size / 1e9:.2f} GB) through Grain")
        else:
            wanted = columns | wanted
        missing = {name: table for name, table in wanted.items() if name not in self.tables}
        self.tables |= resident.device_tables(missing, self.devices.replicated)

    def chunks(self, plan: StagePlan, rows: np.ndarray, row: int):
        """(rows int32 [k, B], what the step takes for them), from ``row`` on; what does not fill a chunk comes singly."""
        length = self.config.loop.steps_per_call
        whole = row + (len(rows) - row) // length * length
        for start, stop, size in ((row, whole, length), (whole, len(rows), 1)):
            if self.streams:
                for number, batch in enumerate(stream.stream_batches(self.host_columns, rows[:stop], start, size)):
                    first = start + number * size
                    yield rows[first : first + size], distributed.place(batch, self.devices.steps)
            else:
                for first in range(start, stop, size):
                    piece = rows[first : first + size]
                    yield piece, distributed.place(piece, self.devices.steps)

    def compile(self, step: StageStep, current: TrainState, chunk: Any, plan: StagePlan) -> Any:
        """Compiles ahead of time, so that memory is known and no later call compiles anything."""
        started = time.monotonic()
        self.reporter.line(f"compiling stage {plan.stage.name} ...")
        executable = step.jitted(self.devices, self.streams).lower(current, self.tables, chunk).compile()
        memory = performance.memory_line(executable)
        self.reporter.line(f"compiled stage {plan.stage.name} in {time.monotonic() - started:.1f} s{memory}")
        return executable

    def prepare(self, current: TrainState, plan: StagePlan, epoch: int) -> TrainState:
        """Calls `Method.prepare` and, at a stage's start, `Method.start`: what they return must have the structure that ``extra``
        and ``params`` always have."""

        def pass_(function: Callable, inputs: tuple[str, ...] = ("image",), shared: tuple[str, ...] = ()) -> Any:
            columns = self.setup.columns("train", inputs, self.config.data.test_filter)
            tables = distributed.place(self.setup.shared(shared), self.devices.replicated)
            jitted = jax.jit(
                lambda params, extra, batch, tables: function(params, extra, self.method.transform(batch) | tables),
                out_shardings=self.devices.replicated,  # so that every process can read all of it
            )
            with self.reporter.task(f"preparing stage {plan.stage.name}", len(self.labels)) as task:
                return run_pass(
                    lambda batch: jitted(current.params, current.extra, batch, tables),
                    columns, self.config.evaluation.batch_size, self.devices, task,
                )  # fmt: skip

        context = PrepareContext(
            params=current.params,
            extra=current.extra,
            rng=jax.random.fold_in(current.rng, int(current.step)),
            labels=self.labels,
            camids=self.setup.camids("train"),
            pass_=pass_,
        )
        extra = self.method.prepare(plan.stage, epoch, context)
        params = self.method.start(plan.stage, current.params, extra) if epoch == 0 else current.params
        for name, own, new in (("prepare", current.extra, extra), ("start", current.params, params)):
            before, after = (jax.tree.map(lambda x: (np.shape(x), np.dtype(x.dtype)), tree) for tree in (own, new))
            if after != before:
                raise TypeError(f"{name} of stage {plan.stage.name} changed a structure; init must allocate it")
        # The step gives every buffer away, so what `prepare` put in two places must be two arrays.
        if extra is not current.extra:
            current = current.replace(extra=self.on_devices(jax.tree.map(lambda x: x.copy(), extra)))
        if params is not current.params:
            current = current.replace(params=self.on_devices(jax.tree.map(lambda x: x.copy(), params)))
        return current

    # Telling -------------------------------------------------------------------------------------------------------------

    def report(self, plan: StagePlan, epoch: int, intervals: list, meter: performance.Meter, task: Callable) -> None:
        """Reads the metrics of finished steps, stops if a loss is not finite, writes the mean and moves the progress bar."""
        if not intervals:
            return
        fetched = jax.device_get([metrics for _, _, metrics in intervals])
        for (first, rows, _), metrics in zip(intervals, fetched, strict=True):
            wrong = np.flatnonzero(~np.isfinite(metrics["loss"]))
            if len(wrong):
                self.not_finite(first + int(wrong[0]), rows[wrong[0]], {k: float(v[wrong[0]]) for k, v in metrics.items()})
        first, rows, _ = intervals[-1]
        done = first + len(rows)
        mean = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        rate, utilisation = meter.rate(done)
        values = {f"{plan.stage.name}/{name}": value for name, value in mean.items()}
        self.metrics.write(done, {"stage": plan.stage.name, "epoch": epoch + 1, **values})
        for name, sentence in beyond(plan.stage, mean, done).items():
            if (plan.stage.name, name) not in self.told:
                self.told.add((plan.stage.name, name))
                self.reporter.line(f"note: {sentence}")
        share = f"  {100 * utilisation:.0f} % of peak" if utilisation else ""
        note = f"epoch {epoch + 1}/{plan.stage.epochs}  loss {mean['loss']:.3f}  {rate:.0f} images/s{share}"
        task(done - plan.start, plan.steps, note)

    def not_finite(self, step: int, rows: np.ndarray, metrics: dict[str, float]) -> None:
        """Stops the run: which step, which pictures, where the last good state is."""
        self.checkpoints.wait()
        names = [self.setup.dataset.train.names[row] for row in rows]
        values = {name: str(value) for name, value in metrics.items()}  # JSON has no word for infinity
        write_json(self.workdir / "not_finite.json", {"step": step, "metrics": values, "images": names})
        raise UserError(
            f"the loss of step {step} is not finite ({metrics['loss']}); {self.last_good()}; the {len(names)} images of the "
            f"batch stand in {self.workdir / 'not_finite.json'} (first: {names[0]}); try a lower learning rate or dtype float32"
        )

    def last_good(self) -> str:
        """Where a run that went wrong can be taken up again, in words."""
        good = self.checkpoints.last_step()
        return f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"

    def evaluate(self, current: TrainState, record: bool = True, selection: bool = False) -> Evaluation:
        """Query and gallery under the dataset's protocol; keeps the best state beside the latest.

        ``selection`` scores what the method attends to against ground truth as well, where there is any.
        """
        columns = self.setup.evaluation_columns(selection)
        result = evaluate(
            self.method, current.params, current.extra, self.setup.dataset, columns, self.config.evaluation, self.devices,
            self.reporter.task, selection,
        )  # fmt: skip
        if record:
            names = ("mAP", "rank1", "rank5", "rank10", "mINP")
            self.metrics.write(int(current.step), {f"evaluation/{name}": result.results[name] for name in names})
            if result.results["mAP"] > self.best:
                self.best = result.results["mAP"]
                self.save(current, best=True)
            if int(current.step) < self.plan.steps:
                self.reporter.line(f"step {int(current.step)}: {result.summary}")
            for line in (*result.compared, *result.doubts):
                self.reporter.line(line)
        return result

    def write_results(self, evaluation: Evaluation) -> None:
        """results.json and the per-query records of the last epoch's state."""
        if not distributed.is_lead():
            return
        untrained = self.workdir / "untrained.json"
        evaluation.results["untrained_mAP"] = read_json(untrained)["mAP"] if untrained.exists() else None
        write_evaluation(self.workdir, evaluation, self.setup.dataset)
