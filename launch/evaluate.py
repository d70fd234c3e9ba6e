"""Evaluates a run: the last checkpoint (or the best) under its own dataset's protocol, or under another's.

    python launch/evaluate.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/evaluate.py --workdir=runs/market --dataset=folder --root=DIR
    python launch/evaluate.py --workdir=runs/market --best --flip

Writes results.json and evaluation.npz into the run folder; for another dataset, --best or --flip into
<workdir>/evaluations/<name>.
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

    import jax

    from occreid_jax import config as configuration
    from occreid_jax import distributed
    from occreid_jax.errors import UserError
    from occreid_jax.evaluation.evaluate import evaluate
    from occreid_jax.files import read_json
    from occreid_jax.train.checkpoint import Checkpoints, abstract
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.records import write_evaluation
    from occreid_jax.train.setup import open_setup, read_meta

    distributed.initialise()
    workdir, reporter = Path(WORKDIR.value), Reporter()
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir}: no run there (config.json is missing); --workdir must name a folder that train.py filled")
    config = configuration.from_dict(read_json(workdir / "config.json"))
    configuration.validate(config)
    out = workdir
    if DATASET.value:
        config.data.name = DATASET.value
        out = workdir / "evaluations" / DATASET.value
    if ROOT.value:
        config.data.root = ROOT.value
    if FLIP.value is not None:
        config.evaluation.flip = FLIP.value
        out = out if FLIP.value == read_json(workdir / "config.json")["evaluation"]["flip"] else (
            out / "flip" if DATASET.value else workdir / "evaluations" / "flip"
        )
    if BEST.value:
        out = (workdir / "evaluations" / "best") if out == workdir else out / "best"
    setup = open_setup(config, reporter, read_meta(workdir))
    checkpoints = Checkpoints(workdir, read_only=True)
    manager = checkpoints.best if BEST.value else checkpoints.latest
    step = manager.latest_step()
    params, extra = jax.eval_shape(setup.method.init, jax.random.key(0))
    if step is None:
        if setup.method.stages():
            raise UserError(f"{workdir}: no {'best ' if BEST.value else ''}checkpoint; let the run finish an epoch first")
        params, extra = setup.method.init(jax.random.key(config.seed))
    else:
        target = abstract((params, extra), setup.devices)
        params, extra = checkpoints.restore_model(step, *target, best=BEST.value)
    columns = {
        role: setup.columns(role, setup.method.evaluation_inputs, config.data.test_filter) for role in ("query", "gallery")
    }
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, columns, config.evaluation, setup.devices, reporter.task
    )
    checkpoints.close()
    if distributed.is_lead():
        untrained = workdir / "untrained.json"
        same = not DATASET.value and not FLIP.value
        evaluation.results["untrained_mAP"] = read_json(untrained)["mAP"] if same and untrained.exists() else None
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(out, evaluation, setup.dataset)
        reporter.line(f"written: {out / 'results.json'}")
    reporter.line(evaluation.summary)


if __name__ == "__main__":
    command.run(main)
