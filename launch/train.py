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
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.loop import Stopped, train

    distributed.initialise()
    config = CONFIG.value
    workdir = Path(WORKDIR.value or command.default_workdir(config))
    reporter = Reporter()
    try:
        trainer, evaluation = train(config, workdir, reporter)
    except Stopped as stopped:
        command.fail(str(stopped), 128 + stopped.signal)
    if config.report.enabled and distributed.is_lead():
        from occreid_jax.report import write_report

        reporter.line(f"report: {write_report(workdir, trainer.setup, trainer.state.params, trainer.state.extra)}")
    reporter.line(evaluation.summary)
    return None


if __name__ == "__main__":
    command.run(main)
