"""The oracle ladder of a finished run: what its location is worth, between the best fixed map and the truth.

    python launch/ladder.py --workdir=runs/fed-synthetic-demo-occluded
    python launch/ladder.py --workdir=runs/fed-synthetic-demo-occluded --train

The run's network is evaluated with each source of its location at test time: learned, chance, the mean of the truth over the
training set, and the renderer's truth. With --train siblings of the run that differ in the source alone are trained too, below
<workdir>/ladder; the command may be stopped and given again. Prints mAP and rank 1, and the share of the gap that the learned
location closes, (learned - constant) / (truth - constant); all of it stands in results.json, field ladder, and in the report
when that is written again. Needs ground truth: the embedded benchmark.
"""

from __future__ import annotations

import command
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled")
ROOT = flags.DEFINE_string("root", None, "where the run's dataset lies now (default: the run's data.root)")
TRAIN = flags.DEFINE_bool("train", False, "also train the run's siblings, one for every other source in training")
flags.mark_flag_as_required("workdir")


def main() -> None:
    from pathlib import Path

    from occreid_jax import distributed
    from occreid_jax.errors import UserError
    from occreid_jax.report.summary import LADDER
    from occreid_jax.train import ladder
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.loop import Stopped
    from occreid_jax.train.reopen import open_run

    distributed.initialise()
    workdir, reporter = Path(WORKDIR.value), Reporter()

    def change(config) -> None:
        if ROOT.value:
            config.data.root = ROOT.value

    setup, params, extra = open_run(workdir, reporter, change=change)
    located = ladder.localised(setup.method, workdir)
    if setup.dataset.truth is None:
        told = "has no ground truth, so there is no ladder; take a run on the embedded benchmark"
        raise UserError(f"{workdir}: {setup.dataset.name} {told}")
    if "test" not in located.when and not TRAIN.value:
        raise UserError(f"{workdir}: {located.what} acts in training alone; give --train to train the run's siblings")
    ends = {"test": ladder.rungs_at_test_time(setup, params, extra)} if "test" in located.when else {}
    found = ladder.write_ladder(workdir, located.what, ends, params, extra)
    if TRAIN.value:
        try:
            ends = ladder.rungs_of_training(workdir, setup, located.when, reporter)
        except Stopped as stopped:
            command.fail(str(stopped), 128 + stopped.signal)
        found = ladder.write_ladder(workdir, located.what, ends, params, extra)
    reporter.line(f"{located.what}, {setup.dataset.protocol}")
    for end in (end for end in LADDER if end in found):
        show(LADDER[end], found[end], reporter)
    reporter.line(f"written: {workdir / 'results.json'}")


def show(heading: str, rungs: dict, reporter) -> None:
    """Prints one table, and the share of the gap below it."""
    reporter.line(f"{heading}:")
    shares = rungs["share_of_gap"]
    for source, measured in rungs.items():
        if source != "share_of_gap":
            reporter.line(f"  {source:10s}mAP {measured['mAP']:5.1f}  R-1 {measured['rank1']:5.1f}")
    told = ["-" if share is None else f"{share:.2f}" for share in (shares["mAP"], shares["rank1"])]
    reporter.line(f"  share of the gap closed: mAP {told[0]}, R-1 {told[1]}")


if __name__ == "__main__":
    command.run(main)
