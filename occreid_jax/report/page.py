"""Putting the report together: everything is read and drawn first, then one file is written whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2

from occreid_jax.files import read_json, write_text
from occreid_jax.report import illustrations, inspection, samples, summary
from occreid_jax.train.setup import Setup


def write_report(workdir: Path, setup: Setup, params: Any, extra: Any, beside: Sequence[illustrations.Beside] = ()) -> Path:
    """Writes ``<workdir>/report/index.html``, one file that needs nothing else, and returns its path.

    Reads config.json, results.json, evaluation.npz and metrics.jsonl of the run folder; ``params`` and ``extra`` are those of
    its last checkpoint. ``beside`` names other runs, each with a function that opens it, whose training batch is shown beside.
    Also writes illustrations.json, see `illustrations.illustrate`. Call it in one process only. An old report stays until the
    new one is complete.

    Raises `UserError` if the evaluation is missing, damaged or not that of these parameters, if a run beside cannot be shown, or
    if the file cannot be written.
    """
    workdir = Path(workdir)
    params, extra = local(params), local(extra)
    results, evaluation = summary.read_results(workdir, setup, params, extra)
    config = setup.config
    inside = illustrations.illustrate(workdir, setup, params, extra, beside)
    stored = read_json(workdir / "config.json")  # what trained: ``config`` may have been opened for another machine
    columns = {role: setup.columns(role, ("image",), config.data.test_filter)["image"] for role in ("query", "gallery")}
    groups = [
        (heading, [samples.ranked_list(setup, evaluation, columns, int(row)) for row in rows])
        for heading, rows in samples.choose_queries(evaluation["queries"], config.report.queries, config.seed)
    ]
    cmc, histogram = summary.result_charts(evaluation)
    stage_names, stage_rows = summary.stage_settings(stored)
    scores, scores_before = summary.scores(workdir, results)
    augmented_stage, augmented = samples.augmented(setup, extra, config.report.samples)
    page = template().render(
        facts=summary.facts(workdir, setup, results),
        results=results,
        headline=summary.headline(results),
        scores=scores,
        scores_before=scores_before,
        ladder=summary.ladder(results),
        again=summary.run_again(stored),
        training=summary.training_charts(workdir),
        learning=summary.learning_chart(workdir),
        covered=summary.covered_chart(results),
        cmc=cmc,
        histogram=histogram,
        groups=groups,
        inspection=inspection.inspect(setup, params, extra),
        inside=inside,
        augmented_stage=augmented_stage,
        augmented=augmented,
        settings=summary.settings(stored),
        stage_names=stage_names,
        stage_rows=stage_rows,
    )
    path = workdir / "report" / "index.html"
    write_text(path, page)
    return path


def local(tree: Any) -> Any:
    """This process's copy of replicated arrays, on one device: the report is drawn by one process without the others."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "-" if value != value else f"{value:.0f} %"  # NaN is not equal to itself
    return environment.get_template("page.html.jinja")
