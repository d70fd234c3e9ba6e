"""Writes the report of a run again, from its folder alone: <workdir>/report/index.html, one file that opens offline.

    python launch/report.py --workdir=runs/baseline-synthetic-demo-occluded
    python launch/report.py --workdir=runs/market --root=DIR --queries=99
    python launch/report.py --workdir=runs/with-loss --beside=runs/without-loss

launch/train.py writes it at the end of a run. It needs config.json, meta.json, results.json, evaluation.npz and the last
checkpoint of the folder, and the dataset's pictures; curves come from metrics.jsonl. What a method shows of a training batch is
also written, as numbers, to <workdir>/illustrations.json; --beside draws that of other runs on the same batch next to it.
"""

from __future__ import annotations

import command
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "run folder that launch/train.py filled")
ROOT = flags.DEFINE_string("root", None, "where the run's dataset lies now (default: the run's data.root)")
QUERIES = flags.DEFINE_integer("queries", None, "ranked lists to show in all (default: the run's report.queries)", lower_bound=0)
SAMPLES = flags.DEFINE_integer("samples", None, "training pictures to show (default: the run's report.samples)", lower_bound=0)
GRADCAM = flags.DEFINE_bool("gradcam", None, "maps of the evidence for a query's person (default: the run's report.gradcam)")
BESIDE = flags.DEFINE_multi_string("beside", [], "other run folders on the same dataset to show beside; with commas or repeated")
flags.mark_flag_as_required("workdir")


def main() -> None:
    import functools
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.report import write_report
    from occreid_jax.train.folder import read_config
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.reopen import open_run

    workdir, reporter = Path(WORKDIR.value), Reporter()
    others = [Path(name.strip()) for names in BESIDE.value for name in names.split(",") if name.strip()]
    read_config(workdir)
    for name in ("results.json", "evaluation.npz"):
        if not (workdir / name).is_file():
            raise UserError(f"{workdir}: {name} is missing; run launch/evaluate.py --workdir={workdir} first")

    for folder in others:
        if not (folder / "config.json").is_file():
            raise UserError(f"--beside={folder}: no run there (config.json is missing); name a folder that train.py filled")

    def change_place(config) -> None:
        if ROOT.value:
            config.data.root = ROOT.value
        config.mesh.devices = 1  # a few pictures: one device is enough

    def change(config) -> None:
        change_place(config)
        for name, flag in (("queries", QUERIES), ("samples", SAMPLES), ("gradcam", GRADCAM)):
            if flag.value is not None:
                config.report[name] = flag.value

    def open_other(folder: Path):
        try:
            return open_run(folder, reporter, change=change_place)
        except UserError as error:
            raise UserError(f"--beside={folder}: {error}") from error

    setup, params, extra = open_run(workdir, reporter, change=change)
    beside = [(folder, functools.partial(open_other, folder)) for folder in others]
    reporter.line(f"written: {write_report(workdir, setup, params, extra, beside)}")


if __name__ == "__main__":
    command.run(main)
