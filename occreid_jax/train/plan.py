"""The whole run as numbers, before anything is compiled: which step belongs to which stage, epoch and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from occreid_jax.data.sampler import make_sampler
from occreid_jax.data.sampler import notes as sampler_notes
from occreid_jax.errors import UserError
from occreid_jax.types import Stage


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage with its sampler. ``start`` is the global step at which it begins, ``epoch_ends`` counts from there."""

    number: int
    stage: Stage
    start: int
    epoch_ends: np.ndarray  # int64 [epochs]
    rows: Callable[[int], np.ndarray]  # epoch of this stage -> int32 [steps, B]

    @property
    def steps(self) -> int:
        return int(self.epoch_ends[-1])

    @property
    def batch_size(self) -> int:
        return self.stage.sampler.batch_size

    def refreshes(self, epoch: int) -> bool:
        """Whether `Method.prepare` runs before this epoch."""
        every = self.stage.refresh_every
        return epoch == 0 or bool(every and epoch % every == 0)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a global step stands: before batch ``row`` of ``epoch`` of stage ``stage``."""

    stage: int
    epoch: int
    row: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All stages of a run, end to end. ``notes`` say in words what of the data is left out or repeated."""

    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def locate(self, step: int) -> Position | None:
        """The position before global step ``step``; None when training is over."""
        for number, plan in enumerate(self.stages):
            within = step - plan.start
            if within < plan.steps:
                epoch = int(np.searchsorted(plan.epoch_ends, within, side="right"))
                return Position(number, epoch, within - (int(plan.epoch_ends[epoch - 1]) if epoch else 0))
        return None


def make_plan(stages: tuple[Stage, ...], labels: np.ndarray, seed: int, accumulate: int, device_count: int) -> Plan:
    """Counts the steps of every epoch of every stage.

    The originals' P x K sampler makes epochs of random length; here every epoch is drawn from (seed, epoch), so all lengths are
    known now and every schedule can hang on them. Raises `UserError` if a batch does not divide over the devices, has no pairs
    to compare, or if an epoch has fewer batches than one update takes (``accumulate``).
    """
    plans, notes, start, first_epoch = [], [], 0, 0
    for number, stage in enumerate(stages):
        if stage.sampler.batch_size % device_count:
            raise UserError(
                f"stage '{stage.name}': batch_size {stage.sampler.batch_size} does not divide over {device_count} devices; "
                "change config.mesh.devices or the batch size"
            )
        sampler = make_sampler(stage.sampler, labels)
        offset = first_epoch  # no two epochs of a run share their random order

        def rows(epoch: int, sampler=sampler, offset=offset, accumulate=accumulate) -> np.ndarray:
            drawn = sampler(seed, offset + epoch)
            return drawn[: len(drawn) - len(drawn) % accumulate]

        drawn = np.array([len(sampler(seed, offset + epoch)) for epoch in range(stage.epochs)])
        check_epochs(stage, drawn, accumulate)
        told = (*sampler_notes(stage.sampler, labels), *left_out(drawn, accumulate))
        notes += [f"stage '{stage.name}': {note}" for note in told]
        lengths = drawn - drawn % accumulate
        plans.append(StagePlan(number, stage, start, np.cumsum(lengths), rows))
        start += int(lengths.sum())
        first_epoch += stage.epochs
    return Plan(tuple(plans), tuple(notes))


def check_epochs(stage: Stage, drawn: np.ndarray, accumulate: int) -> None:
    """Raises `UserError` if an epoch, whose batches ``drawn`` counts, has none or fewer than ``accumulate``."""
    if not len(drawn) or not drawn.all():
        raise UserError(f"stage '{stage.name}' has no batch to train on; check epochs and the sampler's batch size")
    if drawn.min() < accumulate:
        raise UserError(
            f"stage '{stage.name}': config.loop.accumulate is {accumulate}, but an epoch has only {drawn.min()} batches; lower "
            "loop.accumulate or the sampler's batch size"
        )


def left_out(drawn: np.ndarray, accumulate: int) -> tuple[str, ...]:
    """One note if the batches at the end of epochs do not fill an update."""
    rest = int((drawn % accumulate).sum())
    if not rest:
        return ()
    return (
        f"{rest:,} of {drawn.sum():,} batches are left out, those at the end of an epoch that do not fill an update of "
        f"{accumulate} (config.loop.accumulate)",
    )
