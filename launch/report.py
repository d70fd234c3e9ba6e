"""Writes the report of a run again, from its folder alone: <workdir>/report/index.html, one file that opens offline.

    python launch/report.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/report.py --workdir=runs/market --root=DIR --queries=99

launch/train.py writes it at the end of a run. It needs config.json, meta.json, results.json, evaluation.npz and the last
checkpoint of the folder, and the dataset's pictures; curves come from metrics.jsonl.
"""

from __future__ import annotations

import command
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled")
ROOT = flags.DEFINE_string("root", None, "where the run's dataset lies now (default: the run's data.root)")
QUERIES = flags.DEFINE_integer("queries", None, "ranked lists to show in all (default: the run's report.queries)", lower_bound=0)
SAMPLES = flags.DEFINE_integer("samples", None, "training pictures to show (default: the run's report.samples)", lower_bound=0)
flags.mark_flag_as_required("workdir")


def main() -> None:
    import contextlib
    from pathlib import Path

    import jax

    from occreid_jax import config as configuration
    from occreid_jax import distributed
    from occreid_jax.errors import UserError
    from occreid_jax.files import read_json
    from occreid_jax.report import write_report
    from occreid_jax.train.checkpoint import Checkpoints, abstract
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.setup import open_setup, read_meta
    from occreid_jax.train.start import initial_model

    workdir, reporter = Path(WORKDIR.value), Reporter()
    for name in ("config.json", "meta.json"):
        if not (workdir / name).is_file():
            raise UserError(f"{workdir}: no run there ({name} is missing); --workdir must name a folder that train.py filled")
    for name in ("results.json", "evaluation.npz"):
        if not (workdir / name).is_file():
            raise UserError(f"{workdir}: {name} is missing; run launch/evaluate.py --workdir={workdir} first")
    config = configuration.from_dict(read_json(workdir / "config.json"))
    if ROOT.value:
        config.data.root = ROOT.value
    config.mesh.devices = 1  # a few pictures: one device is enough
    setup = open_setup(config, reporter, read_meta(workdir))
    for name, flag in (("queries", QUERIES), ("samples", SAMPLES)):
        if flag.value is not None:
            setup.config.report[name] = flag.value
    with contextlib.closing(Checkpoints(workdir, config.checkpoint.keep)) as checkpoints:
        step = checkpoints.last_step()
        if step is not None:
            target = abstract(jax.eval_shape(setup.method.init, jax.random.key(0)), setup.devices)
            params, extra = checkpoints.restore_model(step, *target)
        elif setup.method.stages():
            raise UserError(f"{workdir}: no checkpoint; let the run finish an epoch first, with launch/train.py")
        else:
            params, extra = initial_model(setup.method, config)  # nothing is trained: what launch/train.py evaluated
    if distributed.is_lead():
        reporter.line(f"written: {write_report(workdir, setup, params, extra)}")


if __name__ == "__main__":
    command.run(main)
