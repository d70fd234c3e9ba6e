"""Evaluates a run or ported weights: under its own dataset's protocol, or under another's.

    python launch/evaluate.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/evaluate.py --workdir=runs/market --dataset=folder --root=DIR
    python launch/evaluate.py --workdir=runs/market --best --flip --rerank=20,6,0.3
    python launch/evaluate.py --workdir=runs/dpeformer --method=selection.proxy=cls,descriptor=parts_all
    python launch/evaluate.py --weights=weights/transreid --config=configs/transreid.py:dataset=market1501,stride=12 \
        --config.data.root=DIR --workdir=runs/official

A run is evaluated with its last checkpoint (--best: the best on the test set). Writes results.json and evaluation.npz into the
run folder; what is not the run's own evaluation goes to a folder of its own below <workdir>/evaluations, named by what differs:
dataset and pictures (other ones than those of the run's results, wherever they lie), --best, --flip, --rerank, --expansion,
--camera, --parsing, --method. --method changes settings that hold no parameters, for the rows of tables that need no training
of their own. With --weights, a whole model that launch/port_weights.py brought is evaluated on the dataset of
--config, and --workdir (default: runs/<method>-<dataset>-ported) is where the results go.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled; with --weights, a folder for the results")
WEIGHTS = flags.DEFINE_string("weights", None, "model that launch/port_weights.py wrote, parts of it after commas; with --config")
BEST = flags.DEFINE_bool("best", False, "the checkpoint with the best mAP on the test set instead of the last one")
FLIP = flags.DEFINE_bool("flip", None, "average the features of each picture and its mirror image")
RERANK = flags.DEFINE_string("rerank", None, "k-reciprocal re-ranking with k1,k2,lambda, for example 20,6,0.3")
EXPANSION = flags.DEFINE_string("expansion", None, "average query expansion with k,alpha, for example 5,3")
CAMERA = flags.DEFINE_string("camera", None, "vectors of test pictures' cameras: auto, own, mean, zero, number, dpm or pvpm")
METHOD = flags.DEFINE_string("method", None, "settings of config.method for this evaluation, as name=value,name=value")
DATASET = flags.DEFINE_string("dataset", None, "evaluate on this dataset instead of the run's own")
PROTOCOL = flags.DEFINE_string("protocol", None, "which of its protocols (default: the first); of synthetic size-split")
PARSING = flags.DEFINE_string("parsing", None, "folder of body-part labels of the tested pictures; none: without labels")
ROOT = flags.DEFINE_string("root", None, "where that dataset lies (default: the run's data.root)")


def main() -> None:
    from occreid_jax import distributed
    from occreid_jax.evaluation.evaluate import evaluate
    from occreid_jax.files import read_json
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.records import write_evaluation, write_unparsed

    distributed.initialise()
    reporter = Reporter()
    workdir, variants, elsewhere, (setup, params, extra) = open_model(reporter)
    columns = setup.evaluation_columns(selection=True)
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, reporter.task, selection=True
    )
    if distributed.is_lead():
        if WEIGHTS.value:
            variants += other_weights(workdir, evaluation.results["parameters_sha256"])
        out = destination(workdir, setup.dataset, variants, elsewhere, reporter)
        untrained = workdir / "untrained.json"
        evaluation.results["untrained_mAP"] = read_json(untrained)["mAP"] if out == workdir and untrained.exists() else None
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(out, evaluation, setup.dataset)
        write_unparsed(out, setup.unparsed())
        reporter.line(f"written: {out / 'results.json'}")
    for line in (*evaluation.compared, *evaluation.doubts, evaluation.summary):
        reporter.line(line)


def open_model(reporter):
    """``(workdir, variants, elsewhere, (setup, params, extra))`` of what the flags name.

    ``variants`` are words for the settings that are not the run's own, ``elsewhere`` tells whether another dataset or another
    place than the run's is named. Ends with a message about flags that do not go together.
    """
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.train.reopen import open_ported, open_run
    from occreid_jax.train.setup import data_root

    if bool(WEIGHTS.value) != bool(CONFIG.value):
        command.fail("--weights and --config go together; a run folder is evaluated with --workdir alone", command.USAGE)
    if not WEIGHTS.value and not WORKDIR.value:
        command.fail("--workdir is missing; it names a run folder (or give --weights and --config)", command.USAGE)
    variants, places = [], []

    def change(config) -> None:
        places.append((config.data.name, data_root(config).resolve()))
        variants.extend(change_settings(config))
        places.append((config.data.name, data_root(config).resolve()))

    if WEIGHTS.value:
        if BEST.value:
            command.fail("--best is about the checkpoints of a run; ported weights have one state", command.USAGE)
        config = CONFIG.value
        workdir = Path(WORKDIR.value or f"{command.default_workdir(config)}-ported")
        if (workdir / "config.json").exists():
            raise UserError(f"--workdir={workdir} holds a run; choose another folder for the results of ported weights")
        change(config)
        opened = open_ported(config, WEIGHTS.value, reporter)
    else:
        workdir = Path(WORKDIR.value)
        opened = open_run(workdir, reporter, BEST.value, change)
    return workdir, variants, len(set(places)) > 1, opened


def change_settings(config) -> list[str]:
    """Changes a config in place as the flags say; returns a word for each setting that differs from the run's own."""
    own, words = config.evaluation, []
    with config.unlocked():  # older runs have not all of these settings
        name_set(config.data)
    if ROOT.value:
        config.data.root = ROOT.value
    if FLIP.value is not None and FLIP.value != own.flip:
        config.evaluation.flip = FLIP.value
        words.append("flip" if FLIP.value else "noflip")
    for name, flag in (("rerank", RERANK), ("expansion", EXPANSION), ("camera", CAMERA)):
        if flag.value is not None and flag.value != own.get(name, "auto"):
            config.evaluation[name] = flag.value
            words.append("-".join([name, *flag.value.split(",")]))
    if PARSING.value is not None and PARSING.value != config.data.get("parsing", ""):
        with config.unlocked():
            config.data.parsing = PARSING.value
        words.append(f"parsing-{PARSING.value.rstrip('/').rpartition('/')[2]}")
    if METHOD.value:
        words.extend(change_method(config.method, METHOD.value))
    return [*words, "best"] if BEST.value else words


def name_set(data) -> None:
    """Puts the dataset and protocol of the flags into ``config.data``; what was set for the run's own says nothing of another.

    The protocol of the embedded benchmark is its size and split, such as small-holistic."""
    from occreid_jax.errors import UserError

    if DATASET.value:
        data.update(name=DATASET.value, protocol="", trial=0, parsing="", parsing_format="auto")
    if DATASET.value == "synthetic" and (PROTOCOL.value or not data.size):
        size, _, split = (PROTOCOL.value or "demo-occluded").partition("-")
        if not split:
            raise UserError(f"--protocol={PROTOCOL.value}: of synthetic it is a size and a split, such as small-holistic")
        data.update(size=size, split=split)
    elif PROTOCOL.value is not None:
        data.protocol = PROTOCOL.value


def other_weights(workdir, parameters: str) -> list[str]:
    """A word for weights of this hash if ``workdir`` holds results of others: ported weights have no run folder of their own."""
    from occreid_jax.files import read_json

    path = workdir / "results.json"
    stored = read_json(path).get("parameters_sha256", parameters) if path.is_file() else parameters
    return [f"weights-{parameters[:8]}"] if stored != parameters else []


def destination(workdir, dataset, variants: list[str], elsewhere: bool, reporter):
    """Where the results go: ``workdir`` for the run's own evaluation, otherwise a folder below that no other test set, place or
    setting shares. The test set is told by its pictures, so that a set that was moved is still the run's own."""
    from occreid_jax.train.records import pictures_hash, same_test_set

    own = same_test_set(workdir, dataset)
    if own is None:
        own = not elsewhere
    elif not own and not elsewhere:
        reporter.line(f"note: {workdir / 'results.json'} is about other pictures than {dataset.query.root} holds now; it is kept")
    if not own:
        variants = [f"{dataset.name}-{pictures_hash(dataset)[:8]}", *variants]
    return workdir / "evaluations" / "-".join(variants) if variants else workdir


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
