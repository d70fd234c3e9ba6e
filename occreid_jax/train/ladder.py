"""The oracle ladder of a run: the same network with its location learned, by chance, constant and true, see `methods.locations`.

How far learned scores lead from the best fixed map towards the truth is their worth: `locations.share_of_gap`. At test time the
run's own network is asked with each source; in training siblings of the run differ in nothing but the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from occreid_jax import distributed, methods
from occreid_jax.errors import UserError
from occreid_jax.evaluation.evaluate import evaluate, parameters_hash
from occreid_jax.files import read_json, write_json
from occreid_jax.methods.locations import SOURCES, Localised, share_of_gap
from occreid_jax.train.folder import check_workdir
from occreid_jax.train.log import Reporter
from occreid_jax.train.loop import train
from occreid_jax.train.reopen import open_run
from occreid_jax.train.setup import Setup
from occreid_jax.types import Method

MEASURES = ("mAP", "rank1")
FOLDER = "ladder"  # below a run folder: its siblings, named by their source
Rungs = dict[str, dict[str, float]]  # source -> mAP and rank1, in percent


def localised(method: Method, workdir: Path) -> Localised:
    """What the method of a run localises. Raises `UserError` if nothing."""
    if method.localises is None:
        name = method.config.method.name
        raise UserError(f"{workdir}: method '{name}' localises nothing with the settings of this run, so it has no ladder")
    return method.localises


def with_sources(config: ConfigDict, **sources: str) -> ConfigDict:
    """A copy of a config with other sources: ``train=`` and ``test=``. Runs older than the setting get it."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.method.location = ConfigDict(dict(changed.method.get("location", {})) | sources)
    return changed


def rungs_at_test_time(setup: Setup, params: Any, extra: Any) -> Rungs:
    """The opened network with each source at test time; an embedding each."""
    rungs = {}
    for source in SOURCES:
        config = with_sources(setup.config, test=source)
        other = dataclasses.replace(setup, config=config, method=methods.create(config, setup.meta))  # tables stay open
        rungs[source] = measured(other, params, extra)
    return rungs


def measured(setup: Setup, params: Any, extra: Any) -> dict[str, float]:
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, setup.evaluation_columns(), setup.config.evaluation, setup.devices,
        setup.reporter.task,
    )  # fmt: skip
    return {name: evaluation.results[name] for name in MEASURES}


def rungs_of_training(workdir: Path, setup: Setup, when: tuple[str, ...], reporter: Reporter) -> dict[str, Rungs]:
    """"train": the opened run and its siblings, each evaluated as the run is; "both", where the location acts at test time too:
    each with its own source there as well.

    Siblings are trained below ``workdir``/ladder unless they are there; cut ones go on. Raises `Stopped` after a signal.
    """
    own = setup.config
    mine = own.method.get("location", {}).get("train", "learned")
    found: dict[str, Rungs] = {"train": {}} | ({"both": {}} if "test" in when else {})
    for source in (mine, *(source for source in ("truth", "constant", "random", "learned") if source != mine)):
        folder = workdir if source == mine else workdir / FOLDER / source
        if source != mine:
            config = with_sources(own, train=source)
            config.report.enabled = False
            reporter.line(f"trained with the source '{source}': {folder}")
            check_workdir(folder, config)
            if not (folder / "results.json").is_file():
                train(config, folder, reporter)
        results = read_json(folder / "results.json")
        found["train"][source] = {name: results[name] for name in MEASURES}
        if "both" in found:
            def change(config, source=source) -> None:
                config.method = with_sources(config, test=source).method
                config.data.root = own.data.root

            found["both"][source] = measured(*open_run(folder, reporter, change=change))
    return {end: {source: rungs[source] for source in SOURCES} for end, rungs in found.items()}


def shares(rungs: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """`share_of_gap` of every measure."""
    return {name: share_of_gap(*(rungs[source][name] for source in ("learned", "constant", "truth"))) for name in MEASURES}


def write_ladder(workdir: Path, localises: str, ends: Mapping[str, Rungs], params: Any, extra: Any) -> dict[str, Any]:
    """Puts the rungs of some ``ends`` ("test", "train", "both") into the ``ladder`` of a run's results.json, beside others that
    stand there, each with its ``share_of_gap``; returns all of it. Raises `UserError` if the results are not of these parameters.
    """
    path = workdir / "results.json"
    results = read_json(path) if path.is_file() else {}
    if results.get("parameters_sha256") != parameters_hash(params, extra):
        raise UserError(f"{workdir}: no results of the last checkpoint; run launch/evaluate.py --workdir={workdir} first")
    ladder = results.get("ladder", {}) | {"localises": localises}
    ladder |= {end: dict(rungs) | {"share_of_gap": shares(rungs)} for end, rungs in ends.items()}
    if distributed.is_lead():
        write_json(path, results | {"ladder": ladder})
    return ladder
