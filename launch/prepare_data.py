"""Makes and checks data before training.

    python launch/prepare_data.py synthetic --size=demo --split=occluded --seed=0 --out=DIR    render the embedded benchmark
    python launch/prepare_data.py doctor --dataset=market1501 --root=DIR                       examine a dataset
    python launch/prepare_data.py tables --dataset=market1501 --root=DIR                       decode it now, not at the first run

Training does all of this by itself; the commands are for looking first, or for machines that prepare once for many runs.
"""

from __future__ import annotations

import sys
import time

import command
from absl import flags

ACTIONS = ("synthetic", "doctor", "tables")
SIZE = flags.DEFINE_enum("size", "demo", ["demo", "small", "full", "pretrain"], "size of the synthetic benchmark")
SPLIT = flags.DEFINE_enum("split", "occluded", ["occluded", "holistic"], "split of the synthetic benchmark")
SEED = flags.DEFINE_integer("seed", 0, "seed of the synthetic benchmark", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "folder to write the synthetic benchmark to")
SHEET = flags.DEFINE_string("sheet", None, "also draw a contact sheet of the synthetic benchmark into this PNG file")
DATASET = flags.DEFINE_string(
    "dataset", None, "dataset to examine or decode: market1501, dukemtmc, occluded_duke, occluded_reid, folder or synthetic"
)
ROOT = flags.DEFINE_string("root", None, "where that dataset lies")
CAMERA = flags.DEFINE_enum("camera", "none", ["none", "name"], "folder datasets: no cameras, or _c<number> in the file names")
HEIGHT = flags.DEFINE_integer("height", 256, "picture height in pixels, for tables", lower_bound=8)
WIDTH = flags.DEFINE_integer("width", 128, "picture width in pixels, for tables", lower_bound=8)
CACHE = flags.DEFINE_string("cache", None, "where tables go (default: <root>/.tables)")
ACTION = ""


def main() -> None:
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.train.log import Reporter

    reporter = Reporter()
    if ACTION == "synthetic":
        from occreid_jax import synthetic

        if not OUT.value:
            raise UserError("synthetic needs --out=DIR, the folder to write to")
        if SHEET.value and not (SHEET.value.endswith(".png") and Path(SHEET.value).absolute().parent.is_dir()):
            raise UserError(f"--sheet={SHEET.value}: name a .png file in a folder that exists")
        started, drawn = time.process_time(), []

        def count(done: int, total: int) -> None:
            drawn.append(done)
            task(done, total)

        with reporter.task("rendering", 0) as task:
            try:
                folder = synthetic.generate(Path(OUT.value), SIZE.value, SPLIT.value, SEED.value, count)
            except ValueError as error:
                raise UserError(str(error)) from error
            except OSError as error:
                raise UserError(f"{OUT.value}: cannot be written ({error.strerror or error}); choose another --out") from error
        seconds = time.process_time() - started
        if drawn:
            reporter.line(f"{drawn[-1]:,} images in {seconds:.1f} CPU-seconds, {drawn[-1] / seconds:.0f} a second")
        if SHEET.value:
            try:
                synthetic.contact_sheet(folder, Path(SHEET.value))
            except OSError as error:
                text = error.strerror or error
                raise UserError(f"{SHEET.value}: cannot be written ({text}); choose another --sheet") from error
        reporter.line(f"written: {folder}")
        return
    if not (DATASET.value and ROOT.value):
        raise UserError(f"{ACTION} needs --dataset=NAME and --root=DIR")
    from occreid_jax.data import doctor, readers, table

    options = {"camera": CAMERA.value} if DATASET.value == "folder" else {}
    dataset = readers.open_dataset(DATASET.value, Path(ROOT.value), **options)
    if ACTION == "doctor":
        for line in doctor.examine(dataset):
            reporter.line(line)
        return
    cache = Path(CACHE.value or Path(ROOT.value) / ".tables")
    for role, filters in (("train", ("bicubic", "bilinear")), ("query", ("bilinear",)), ("gallery", ("bilinear",))):
        for resize_filter in filters:
            split = getattr(dataset, role)
            with reporter.task(f"{role}, {resize_filter}", len(split)) as task:
                built = table.build_table(split, (HEIGHT.value, WIDTH.value), resize_filter, cache, task)
            reporter.line(f"{role}, {resize_filter}: {len(built):,} pictures, {built.images.nbytes / 1e9:.2f} GB in {built.path}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        ACTION = sys.argv.pop(1)
    if ACTION not in ACTIONS and not any(argument.startswith(("--help", "-h")) for argument in sys.argv[1:]):
        command.fail(f"the first word must be one of {', '.join(ACTIONS)}; --help tells more", command.USAGE)
    command.run(main)
