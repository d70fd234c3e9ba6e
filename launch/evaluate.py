"""Evaluates a run: the last checkpoint (or the best) under its own dataset's protocol, or under another's.

    python launch/evaluate.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/evaluate.py --workdir=runs/market --dataset=folder --root=DIR
    python launch/evaluate.py --workdir=runs/market --best --flip

Writes results.json and evaluation.npz into the run folder; what is not the run's own evaluation (another dataset, --best,
--flip) goes to <workdir>/evaluations/<variant>.
"""

from __future__ import annotations

import command
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled")
BEST = flags.DEFINE_bool("best", False, "the checkpoint with the best mAP on the test set instead of the last one")
FLIP = flags.DEFINE_bool("flip", None, "average the features of each picture and its mirror image")
DATASET = flags.DEFINE_string("dataset", None, "evaluate on this dataset instead of the run's own")
ROOT = flags.DEFINE_string("root", None, "where that dataset lies (default: the run's data.root)")
flags.mark_flag_as_required("workdir")


def main() -> None:
    from pathlib import Path

    from occreid_jax import distributed
    from occreid_jax.evaluation.evaluate import evaluate
    from occreid_jax.files import read_json
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.records import write_evaluation
    from occreid_jax.train.reopen import open_run, read_config

    distributed.initialise()
    workdir, reporter = Path(WORKDIR.value), Reporter()
    own = read_config(workdir)
    variants = []  # what sets this evaluation apart from the run's own

    def change(config) -> None:
        if DATASET.value and DATASET.value != own.data.name:
            config.data.name = DATASET.value
            variants.append(DATASET.value)
        if ROOT.value:
            config.data.root = ROOT.value
        if FLIP.value is not None and FLIP.value != own.evaluation.flip:
            config.evaluation.flip = FLIP.value
            variants.append("flip" if FLIP.value else "noflip")
        if BEST.value:
            variants.append("best")

    setup, params, extra = open_run(workdir, reporter, BEST.value, change)
    settings = setup.config
    columns = {
        role: setup.columns(role, setup.method.evaluation_inputs, settings.data.test_filter) for role in ("query", "gallery")
    }
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, columns, settings.evaluation, setup.devices, reporter.task
    )
    if distributed.is_lead():
        out = workdir / "evaluations" / "-".join(variants) if variants else workdir
        untrained = workdir / "untrained.json"
        evaluation.results["untrained_mAP"] = read_json(untrained)["mAP"] if not variants and untrained.exists() else None
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(out, evaluation, setup.dataset)
        reporter.line(f"written: {out / 'results.json'}")
    reporter.line(evaluation.summary)


if __name__ == "__main__":
    command.run(main)
