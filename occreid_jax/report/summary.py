"""The words and numbers of the report: what was run, what came out, how to run it again, every setting."""

from __future__ import annotations

import importlib
import importlib.metadata
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from occreid_jax import cameras
from occreid_jax import config as configuration
from occreid_jax.errors import UserError, legible
from occreid_jax.evaluation.evaluate import parameters_hash
from occreid_jax.files import read_json
from occreid_jax.report.curves import Series, histogram, line_chart
from occreid_jax.train.bounds import beyond_at_the_end
from occreid_jax.train.log import read_metrics
from occreid_jax.train.records import read_evaluation
from occreid_jax.train.setup import Setup

PACKAGES = ("occreid_jax", "jax", "flax", "optax", "numpy")
HEADINGS = {"mAP": "mAP", "rank1": "R-1", "rank5": "R-5", "rank10": "R-10", "mINP": "mINP", "untrained_mAP": "untrained mAP"}
MEASURES = {
    "auroc": "AUROC of person cells (chance: 0.5)",
    "place_auroc": "AUROC of person cells, place by place (a constant map: 0.5)",
    "constant_auroc": "AUROC of the map's mean over all pictures",
    "training_auroc": "AUROC of the person map of the training set",
    "covered_auroc": "AUROC of covered cells, low scores, place by place (chance: 0.5)",
    "covered_correlation": "correlation with the covered share, place by place",
    "precision": "precision, %",
    "recall": "recall, %",
    "selected": "cells selected, %",
    "constant_precision": "precision of as many cells, those chosen most often, %",
    "constant_recall": "recall of as many cells, those chosen most often, %",
    "training_precision": "precision of as many cells, by the person map of the training set, %",
    "training_recall": "recall of as many cells, by the person map of the training set, %",
    "random_precision": "precision of as many cells at random, %",
    "random_recall": "recall of as many cells at random, %",
    "person_cells": "cells that are person, %",
    **{f"{reference}{kind}": f"{kind}{words}, %"
       for kind in ("background", "occluder", "person")
       for reference, words in (("", " among the erased cells"), ("random_", " among as many cells at random"),
                                ("constant_", " among as many, those erased most often"),
                                ("training_", " among as many, those least often person in the training set"),
                                ("recall_", " cells that are erased"))},
    "accuracy": "right, %",
    "constant_accuracy": "right by the mean map, or by one answer to all, %",
    "training_accuracy": "right by the training set alone, %",
    "correlation": "correlation with the share that is visible",
    "cells": "cells that are this part, %",
    "seen": "pictures that show at least half, %",
    "mean": "mean",
    "deviation": "standard deviation",
}  # what the scores against ground truth are called
LADDER = {
    "test": "another source at test time, the same network",
    "train": "another source in training, evaluated as this run is",
    "both": "another source in training, and the same at test time",
}  # what the ends of the oracle ladder are called
UNSHOWN = ("report.", "loop.log_every")  # settings that the command to run again need not repeat


def read_results(workdir: Path, setup: Setup, params: Any, extra: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """results.json and evaluation.npz of a run folder.

    Raises `UserError` if one is missing or damaged, or belongs to other pictures or other parameters than the run's.
    """
    remedy = f"run launch/evaluate.py --workdir={workdir} first"
    for name in ("results.json", "evaluation.npz"):
        if not (workdir / name).is_file():
            raise UserError(f"{workdir}: {name} is missing; {remedy}")
    results, evaluation = read_json(workdir / "results.json"), read_evaluation(workdir)
    fields = {"queries", "cmc", "ranked_indices", "ranked_flags", "query_names", "gallery_names"}
    if absent := [*sorted(fields - evaluation.keys()), *sorted({*HEADINGS, "protocol", "parameters_sha256"} - results.keys())]:
        raise UserError(f"{workdir}: {', '.join(absent)} not in evaluation.npz or results.json; {remedy}")
    dataset = setup.dataset
    for role, split in (("query", dataset.query), ("gallery", dataset.gallery)):
        if list(evaluation[f"{role}_names"]) != [legible(name) for name in split.names]:
            raise UserError(
                f"{workdir}/evaluation.npz was made with other {role} pictures than {split.root} holds; name the old place with "
                "--root, or remove results.json and run launch/evaluate.py to take what lies there now for the run's own"
            )
    if results["parameters_sha256"] != parameters_hash(params, extra):
        raise UserError(f"{workdir}/results.json belongs to other parameters than the last checkpoint; {remedy}")
    return {"comparisons": {}, "measures": {}, "per_covered": {}} | results, evaluation


def facts(workdir: Path, setup: Setup, results: Mapping[str, Any]) -> dict[str, Any]:
    """Title, sizes of the splits, versions and dates."""
    config, dataset = setup.config, setup.dataset
    splits = []
    for role in ("train", "query", "gallery"):
        split = getattr(dataset, role)
        sizes = len(split), len(np.unique(split.pids)), cameras.count(split)
        splits.append((role, *(f"{size:,}" for size in sizes)))
    evaluated = datetime.fromtimestamp((workdir / "results.json").stat().st_mtime, UTC)
    return {
        "method": config.method.name,
        "protocol": dataset.protocol,
        "seed": config.seed,
        "synthetic": config.data.name == "synthetic" or dataset.truth is not None,
        "splits": splits,
        "notes": dataset.notes,
        "beyond": beyond_at_the_end(setup.method.stages(), read_metrics(workdir / "metrics.jsonl")),
        "evaluated": f"{evaluated:%Y-%m-%d %H:%M} UTC",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "sha256": results["parameters_sha256"],
        "size": " x ".join(str(side) for side in setup.meta.image_size),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of the checkout"


def headline(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, percent) of the main numbers; those that were not taken show a dash."""
    return [(heading, "-" if results[name] is None else f"{results[name]:.1f}") for name, heading in HEADINGS.items()]


def scores(workdir: Path, results: Mapping[str, Any]) -> tuple[list[tuple[str, str, str, str]], bool]:
    """Scores against ground truth: rows (map, measure, value, value of untrained.json), and whether any of the last exists."""
    path = workdir / "untrained.json"
    untrained = (read_json(path).get("selection") or {}) if path.is_file() else {}
    rows = [
        (name, MEASURES.get(measure, measure), score(value), score(untrained.get(name, {}).get(measure)))
        for name, measures in (results.get("selection") or {}).items()
        for measure, value in measures.items()
    ]
    return rows, any(row[3] != "-" for row in rows)


def ladder(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(heading, rows (source, mAP, R-1)) of every end of the oracle ladder that `train.ladder` left; the last row of each is the
    share of the gap between the constant and the true location that the learned one closes."""
    stored, tables = results.get("ladder", {}), []
    for end, heading in LADDER.items():
        rungs = dict(stored.get(end, {}))
        if rungs:
            gap = rungs.pop("share_of_gap")
            rows = [(source, *(f"{measured[name]:.1f}" for name in ("mAP", "rank1"))) for source, measured in rungs.items()]
            tables.append((heading, [*rows, ("share of the gap closed", *(score(gap[name]) for name in ("mAP", "rank1")))]))
    return tables


def score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


# Curves -------------------------------------------------------------------------------------------------------------------


def training_charts(workdir: Path) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(stage, [(metric, chart)]) in the order of training. The loss comes first; every metric has its own scale."""
    lines = read_metrics(workdir / "metrics.jsonl")
    stages = dict.fromkeys(line["stage"] for line in lines if "stage" in line)
    result = []
    for stage in stages:
        mine = [line for line in lines if line.get("stage") == stage]
        prefix = f"{stage}/"
        names = {name.removeprefix(prefix) for line in mine for name in line if name.startswith(prefix)}
        charts = []
        for name in sorted(names, key=lambda name: (name != "loss", "accuracy" not in name, name)):
            points = [(line["step"], line[prefix + name]) for line in mine if prefix + name in line]
            x, y = zip(*points, strict=True)
            charts.append((name, line_chart([Series(name, x, y)], f"{name} over the steps of stage {stage}", "step")))
        result.append((stage, [(name, chart) for name, chart in charts if chart]))
    return result


def learning_chart(workdir: Path) -> Any:
    """mAP and R-1 over the evaluations during training; empty if there was only one."""
    rows = {line["step"]: line for line in read_metrics(workdir / "metrics.jsonl") if "evaluation/mAP" in line}
    if len(rows) < 2:
        return ""
    if (workdir / "untrained.json").is_file():
        untrained = read_json(workdir / "untrained.json")
        rows[0] = {f"evaluation/{name}": untrained[name] for name in ("mAP", "rank1")}
    steps = sorted(rows)
    series = [
        Series(heading, steps, [rows[step][f"evaluation/{name}"] for step in steps])
        for name, heading in (("mAP", "mAP"), ("rank1", "R-1"))
    ]
    return line_chart(series, "mAP and rank-1 in percent over training steps", "step", dots=True)


def result_charts(evaluation: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """The CMC curve, and the histogram of average precision."""
    cmc = 100 * evaluation["cmc"]
    curve = line_chart(
        [Series("CMC", np.arange(1, len(cmc) + 1), cmc)],
        f"CMC curve from {cmc[0]:.1f} percent at rank 1 to {cmc[-1]:.1f} at rank {len(cmc)}", "rank", y_range=(0.0, 100.0),
    )  # fmt: skip
    records = evaluation["queries"]
    precision = 100 * records["average_precision"][records["valid"]]
    counts, edges = np.histogram(precision, bins=20, range=(0.0, 100.0))
    mean = float(precision.mean())
    alt = f"histogram of the average precision of {len(precision)} queries, mean {mean:.1f} percent"
    return curve, histogram(counts, edges, alt, "average precision of a query, percent", mark=mean)


def covered_chart(results: Mapping[str, Any]) -> Any:
    """mAP and R-1 over the covered share of the queries' people, of `evaluate.per_group`; empty with fewer than two tenths."""
    rows = results["per_covered"]
    if len(rows) < 2:
        return ""
    middles = [int(name.partition(" ")[0]) + 5 for name in rows]
    values = {heading: [row[name] for row in rows.values()] for name, heading in (("mAP", "mAP"), ("rank1", "R-1"))}
    series = [Series(heading, middles, own) for heading, own in values.items()]
    alt = "mAP and rank-1 in percent over the share of the person that is covered"
    return line_chart(series, alt, "covered, percent", dots=True)


# The config ---------------------------------------------------------------------------------------------------------------


def run_again(config: Mapping[str, Any]) -> str:
    """The command that trains with this config, a flag per line; "" if there is none. Found by comparing the config with what
    its config file gives.

    Config files carry their method's name and stand in the checkout, beside the package.
    """
    name, data = config["method"]["name"], config["data"]
    argument = ",".join(f"{key}={value}" for key, value in
                        (("dataset", data["name"]), ("size", data["size"]), ("split", data["split"])) if value)  # fmt: skip
    try:
        given = configuration.to_dict(importlib.import_module(f"configs.{name}").get_config(argument))
    except (ImportError, AttributeError, ValueError):
        return ""
    old, new = configuration.flatten(given), configuration.flatten(config)
    changes = {key: value for key, value in new.items() if old.get(key, ...) != value and not key.startswith(UNSHOWN)}
    if not changes.keys() <= old.keys() or not old.keys() <= new.keys() or None in changes.values():
        return ""  # flags change values; they neither add nor remove keys
    command = ["python", "launch/train.py", f"--config=configs/{name}.py:{argument}"]
    command += [f"--config.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in sorted(changes.items())]
    flags = [shlex.quote(part) for part in (*command[2:], "--workdir=NEW_FOLDER")]
    return " \\\n    ".join([" ".join(command[:2]), *flags])


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting as (dotted key, value), without the stages."""
    flat = configuration.flatten(config)
    return [(key, shown(value)) for key, value in flat.items() if not key.startswith("stages.")]


def stage_settings(config: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Stage names, and rows (key, a value for every stage, whether they differ)."""
    flat = {name: configuration.flatten(block) for name, block in config["stages"].items()}
    keys = dict.fromkeys(key for block in flat.values() for key in block)
    rows = []
    for key in keys:
        values = [shown(block[key]) if key in block else "-" for block in flat.values()]
        rows.append((key, values, len(set(values)) > 1))
    return list(flat), rows


def shown(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(shown(entry) for entry in value)})"
    return '""' if value == "" else str(value)
