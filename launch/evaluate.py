"""Evaluates a run or ported weights: under its own dataset's protocol, or under another's.

    python launch/evaluate.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/evaluate.py --workdir=runs/market --dataset=folder --root=DIR
    python launch/evaluate.py --workdir=runs/market --best --flip --rerank=20,6,0.3
    python launch/evaluate.py --workdir=runs/dpeformer --method=selection.proxy=cls,descriptor=parts_all
    python launch/evaluate.py --weights=weights/transreid --config=configs/transreid.py:dataset=market1501,stride=12 \
        --config.data.root=DIR --workdir=runs/official

A run is evaluated with its last checkpoint (--best: the best on the test set). Writes results.json and evaluation.npz into the
run folder; what is not the run's own evaluation (another dataset, --best, --flip, --rerank, --expansion, --method) goes to
<workdir>/evaluations/<variant>. --method changes settings that hold no parameters, for the rows of tables that need no training
of their own. With --weights, a whole model that launch/port_weights.py brought is evaluated on the dataset of
--config, and --workdir (default: runs/<method>-<dataset>-ported) is where the results go.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled; with --weights, a folder for the results")
WEIGHTS = flags.DEFINE_string("weights", None, "whole model that launch/port_weights.py wrote; needs --config")
BEST = flags.DEFINE_bool("best", False, "the checkpoint with the best mAP on the test set instead of the last one")
FLIP = flags.DEFINE_bool("flip", None, "average the features of each picture and its mirror image")
RERANK = flags.DEFINE_string("rerank", None, "k-reciprocal re-ranking with k1,k2,lambda, for example 20,6,0.3")
EXPANSION = flags.DEFINE_string("expansion", None, "average query expansion with k,alpha, for example 5,3")
CAMERA = flags.DEFINE_string("camera", None, "vectors of test pictures' cameras: auto, own, mean, zero, number, dpm or pvpm")
METHOD = flags.DEFINE_string("method", None, "settings of config.method for this evaluation, as name=value,name=value")
DATASET = flags.DEFINE_string("dataset", None, "evaluate on this dataset instead of the run's own")
ROOT = flags.DEFINE_string("root", None, "where that dataset lies (default: the run's data.root)")


def main() -> None:
    from pathlib import Path

    from occreid_jax import distributed
    from occreid_jax.errors import UserError
    from occreid_jax.evaluation.evaluate import evaluate
    from occreid_jax.files import read_json
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.records import write_evaluation
    from occreid_jax.train.reopen import open_ported, open_run

    distributed.initialise()
    reporter = Reporter()
    if bool(WEIGHTS.value) != bool(CONFIG.value):
        command.fail("--weights and --config go together; a run folder is evaluated with --workdir alone", command.USAGE)
    if not WEIGHTS.value and not WORKDIR.value:
        command.fail("--workdir is missing; it names a run folder (or give --weights and --config)", command.USAGE)
    variants = []  # what sets this evaluation apart from the run's own

    def change(config) -> None:
        own = config.evaluation
        if DATASET.value and DATASET.value != config.data.name:
            config.data.name = DATASET.value
            variants.append(DATASET.value)
        if ROOT.value:
            config.data.root = ROOT.value
        if FLIP.value is not None and FLIP.value != own.flip:
            config.evaluation.flip = FLIP.value
            variants.append("flip" if FLIP.value else "noflip")
        for name, flag in (("rerank", RERANK), ("expansion", EXPANSION), ("camera", CAMERA)):
            if flag.value is not None and flag.value != own.get(name):
                config.evaluation[name] = flag.value
                variants.append("-".join([name, *flag.value.split(",")]))
        if METHOD.value:
            variants.extend(change_method(config.method, METHOD.value))
        if BEST.value:
            variants.append("best")

    if WEIGHTS.value:
        if BEST.value:
            command.fail("--best is about the checkpoints of a run; ported weights have one state", command.USAGE)
        config = CONFIG.value
        workdir = Path(WORKDIR.value or f"{command.default_workdir(config)}-ported")
        if (workdir / "config.json").exists():
            raise UserError(f"--workdir={workdir} holds a run; choose another folder for the results of ported weights")
        change(config)
        setup, params, extra = open_ported(config, WEIGHTS.value, reporter)
    else:
        workdir = Path(WORKDIR.value)
        setup, params, extra = open_run(workdir, reporter, BEST.value, change)
    columns = setup.evaluation_columns(selection=True)
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, reporter.task, selection=True
    )
    if distributed.is_lead():
        out = workdir / "evaluations" / "-".join(variants) if variants else workdir
        untrained = workdir / "untrained.json"
        evaluation.results["untrained_mAP"] = read_json(untrained)["mAP"] if not variants and untrained.exists() else None
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(out, evaluation, setup.dataset)
        reporter.line(f"written: {out / 'results.json'}")
    reporter.line(evaluation.summary)


def change_method(block, text: str) -> list[str]:
    """Changes settings of ``config.method`` in place, "name=value,name=value" with dotted names; returns those that differ.

    Raises `UserError` for a name that is none or a value of another type. Only single values can be changed so.
    """
    from configs import common
    from occreid_jax import config as configuration
    from occreid_jax.errors import UserError

    settings = configuration.flatten(block.to_dict())
    single = {name: old for name, old in settings.items() if name != "name" and isinstance(old, bool | int | float | str)}
    try:
        found = common.read_arg(text, single)
    except ValueError as error:
        raise UserError(f"--method={text}: {error}") from error
    changed = {name: value for name, value in found.items() if value != single[name]}
    block.update_from_flattened_dict(changed)
    return [f"{name}={value}" for name, value in changed.items()]


if __name__ == "__main__":
    command.run(main)
