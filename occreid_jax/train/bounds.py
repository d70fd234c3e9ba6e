"""Metrics that must stay inside of bounds (`Stage.bounds`): what is said of one that does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from occreid_jax.types import Stage


def beyond(stage: Stage, values: Mapping[str, Any], step: int) -> dict[str, str]:
    """A sentence for every metric of ``values`` (by the stage's own name of it) that is outside of its bounds at ``step``."""
    found = {}
    for bound in stage.bounds:
        value = values.get(bound.metric)
        if value is not None and not bound.least <= value <= bound.most:
            place = f"stage {stage.name}: {bound.metric} is {value:.3f} at step {step}"
            found[bound.metric] = f"{place}, outside of {bound.least:g} to {bound.most:g}: {bound.told}"
    return found


def beyond_at_the_end(stages: Iterable[Stage], lines: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The sentences for the last line of each stage among those of metrics.jsonl."""
    last = {line["stage"]: line for line in lines if "stage" in line}
    found: list[str] = []
    for stage in stages:
        line = last.get(stage.name, {"step": 0})
        values = {bound.metric: line.get(f"{stage.name}/{bound.metric}") for bound in stage.bounds}
        found += beyond(stage, values, line["step"]).values()
    return tuple(found)
