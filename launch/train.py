"""Trains, evaluates and reports one run; the same command again goes on where the last one stopped.

    python launch/train.py --config=configs/baseline.py
    python launch/train.py --config=configs/baseline.py:dataset=market1501 --config.data.root=DIR --workdir=runs/market
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "run folder (default: runs/<method>-<dataset>)")
flags.mark_flag_as_required("config")


def main() -> int | None:
    from pathlib import Path

    from occreid_jax import distributed
    from occreid_jax.files import check_unheld
    from occreid_jax.train.folder import check_workdir, claim_workdir
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.loop import Stopped, Trainer
    from occreid_jax.train.setup import banner, open_setup

    distributed.initialise()
    config = CONFIG.value
    workdir = Path(WORKDIR.value or command.default_workdir(config))
    reporter = Reporter()
    check_workdir(workdir, config)  # before a dataset is rendered for nothing
    distributed.in_lead(lambda: check_unheld(workdir))
    setup = open_setup(config, reporter)
    for line in banner(setup, workdir):
        reporter.line(line)
    trainer = Trainer(setup, workdir)
    claim_workdir(workdir, config, setup.meta)
    try:
        evaluation = trainer.run()
    except Stopped as stopped:
        command.fail(str(stopped), 128 + stopped.signal)
    if config.report.enabled and distributed.is_lead():
        from occreid_jax.report import write_report

        reporter.line(f"report: {write_report(workdir, setup, trainer.state.params, trainer.state.extra)}")
    reporter.line(evaluation.summary)
    return None


if __name__ == "__main__":
    command.run(main)
