"""Makes and checks data before training.

    python launch/prepare_data.py synthetic --size=demo --split=occluded --seed=0 --out=DIR    render the embedded benchmark
    python launch/prepare_data.py doctor --dataset=market1501 --root=DIR                       examine a dataset
    python launch/prepare_data.py tables --dataset=market1501 --root=DIR                       decode it now, not at the first run
    python launch/prepare_data.py occluders --from=SOURCE --out=DIR ...                        make a library of occluders
    python launch/prepare_data.py people --root=DIR --pattern=PATTERN                          look at own pictures, split them
    python launch/prepare_data.py parsing --pictures=DIR --out=DIR                             label body parts in own pictures
    python launch/prepare_data.py derive --dataset=occluded_duke --root=DIR --lists=DIR        make a set from lists of names

Training does the first three by itself; the commands are for looking first, or for machines that prepare once for many runs.

Some methods paste occluders on training pictures: a rendered library that they make themselves, or --config.data.occluders=DIR.
Sources of a library, each with --out=DIR and, if wanted, --side and --count:

    --from=rendered                                                  objects as in the embedded benchmark, by --seed; --people=N;
                                                                     --kind=overlay: standing in whole frames, people among them
    --from=folder --pictures=DIR --source=TEXT --licence=TEXT        pictures with transparency; --kind=overlay for whole frames
    --from=annotations --annotations=FILE.json --pictures=DIR        objects annotated in COCO's format, by polygon or run lengths
    --from=list --list=FILE.txt --source=TEXT --licence=TEXT         opaque rectangles: lines "path" or "path x y width height"
    --from=sam --pictures=DIR --model=DIR --source=TEXT --licence=TEXT
                                                                     what Segment Anything finds, with a model on this machine

Own pictures are read as a folder per identity, or by a pattern of their names: --pattern='{camera}_{identity}_*' takes
gate2_anna_17.jpg for a picture of anna by camera gate2. The command shows what it understood and what it could not read; --write
leaves it as people.csv beside the pictures, which --config=configs/baseline.py:dataset=folder,size=small then reads.

--source and --licence say where the pictures come from and on what terms; both are stored with every occluder.
"""

from __future__ import annotations

import sys
import time

import command
from absl import flags

SIZE = flags.DEFINE_enum("size", "demo", ["demo", "small", "full", "pretrain"], "size of the synthetic benchmark")
SPLIT = flags.DEFINE_enum("split", "occluded", ["occluded", "holistic"], "split of the synthetic benchmark")
SEED = flags.DEFINE_integer("seed", 0, "seed of the benchmark, the occluders or the split of people", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "folder to write the synthetic benchmark or the library of occluders to")
SHEET = flags.DEFINE_string("sheet", None, "also draw a contact sheet of the synthetic benchmark into this PNG file")
DATASET = flags.DEFINE_string("dataset", None, "dataset to examine or decode, by its name in docs/datasets.md")
ROOT = flags.DEFINE_string("root", None, "where that dataset lies")
PROTOCOL = flags.DEFINE_string("protocol", "", "which of that dataset's protocols; empty: its first")
TRIAL = flags.DEFINE_integer("trial", 0, "protocol half100 of occluded_reid: which half of the identities", lower_bound=0)
LISTS = flags.DEFINE_string("lists", None, "derive: folder of the authors' lists of names")
AGAINST = flags.DEFINE_list("against", [], "doctor: other sets as NAME=DIR, for pictures that are in both")
CAMERA = flags.DEFINE_enum("camera", "none", ["none", "name"], "folder datasets: no cameras, or _c<number> in the file names")
HEIGHT = flags.DEFINE_integer("height", 256, "picture height in pixels, for tables", lower_bound=8)
WIDTH = flags.DEFINE_integer("width", 128, "picture width in pixels, for tables", lower_bound=8)
CACHE = flags.DEFINE_string("cache", None, "where tables go (default: <root>/.tables)")
PATTERN = flags.DEFINE_string("pattern", None, "people: how names tell who it is, such as {camera}_{identity}_*")
WRITE = flags.DEFINE_bool("write", False, "people: write people.csv beside the pictures")
SOURCES = ("rendered", "folder", "annotations", "list", "sam")
FROM = flags.DEFINE_enum("from", "rendered", SOURCES, "what occluders are made from")
PICTURES = flags.DEFINE_string("pictures", None, "occluders, parsing: folder of the pictures; all folders below it count")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "occluders from annotations: JSON file in COCO's format")
LIST = flags.DEFINE_string("list", None, "occluders from a list: text file, paths count from its folder")
MODEL = flags.DEFINE_string(
    "model", None, "occluders from sam: folder of a SAM model in transformers' format; parsing: folder or hub name of a model "
    "for semantic segmentation of people (default: mattmdjaga/segformer_b2_clothes)"
)
KIND = flags.DEFINE_enum("kind", "cutout", ["cutout", "overlay"], "rendered occluders or a folder's: cut out, or whole frames")
SIDE = flags.DEFINE_integer("side", 96, "occluders: side in pixels to which each is stretched", lower_bound=8, upper_bound=1024)
COUNT = flags.DEFINE_integer("count", 0, "occluders: how many at most (0: 540 rendered ones, 10,000 of others)", lower_bound=0)
PEOPLE = flags.DEFINE_integer("people", 0, "occluders: so many rendered people beside the objects", lower_bound=0)
SMALLEST = flags.DEFINE_integer(
    "smallest", 0, "occluders: least side of a box in pixels (0: 32 for annotations, 1 for sam)", lower_bound=0
)
SOURCE = flags.DEFINE_string("source", "", "occluders: where the pictures come from")
LICENCE = flags.DEFINE_string("licence", "", "occluders: on what terms; annotations in COCO's format may have their own")
NEEDED = {
    "rendered": (OUT,),
    "folder": (OUT, PICTURES, SOURCE, LICENCE),
    "annotations": (OUT, PICTURES, ANNOTATIONS),
    "list": (OUT, LIST, SOURCE, LICENCE),
    "sam": (OUT, PICTURES, MODEL, SOURCE, LICENCE),
}
ACTION = ""


def make_library(reporter) -> None:
    """The sub-command ``occluders``."""
    import collections
    from pathlib import Path

    from occreid_jax.data import occluders
    from occreid_jax.errors import UserError

    origin = FROM.value
    if missing := [f"--{flag.name}" for flag in NEEDED[origin] if not flag.value]:
        raise UserError(f"occluders --from={origin} needs {', '.join(missing)}; --help tells what they mean")
    left_out, limit = collections.Counter(), COUNT.value or 10_000
    terms = SOURCE.value, LICENCE.value
    with reporter.task(f"occluders from {origin}", 0) as task:
        counted = dict(limit=limit, left_out=left_out, progress=task)
        if origin == "rendered":
            from occreid_jax.train.rendered import RENDERED, rendered_frames, rendered_occluders

            count = COUNT.value or RENDERED
            if KIND.value == "overlay":
                found = rendered_frames(SEED.value, task, count)
            else:
                found = rendered_occluders(SEED.value, task, count, PEOPLE.value)
        elif origin == "folder":
            found = occluders.from_folder(Path(PICTURES.value), *terms, KIND.value, **counted)
        elif origin == "annotations":
            smallest = SMALLEST.value or 32
            files = Path(ANNOTATIONS.value), Path(PICTURES.value)
            found = occluders.from_annotations(*files, *terms, smallest=smallest, seed=SEED.value, **counted)
        elif origin == "list":
            found = occluders.from_list(Path(LIST.value), *terms, limit=limit, progress=task)
        else:
            generate = occluders.sam(Path(MODEL.value))
            found = occluders.from_masks(Path(PICTURES.value), generate, *terms, smallest=SMALLEST.value or 1, **counted)
        library = occluders.write_library(Path(OUT.value), found, SIDE.value, left_out)
    for reason, count in sorted(left_out.items()):
        reporter.line(f"left out: {count:,} {reason}")
    tall = int((library.sides[:, 0] > 2 * library.sides[:, 1]).sum())
    reporter.line(f"{len(library.entries):,} occluders, {tall:,} of them more than twice as high as wide")
    reporter.line(f"written: {OUT.value}")


def render(reporter) -> None:
    """The sub-command ``synthetic``."""
    from pathlib import Path

    from occreid_jax import synthetic
    from occreid_jax.errors import UserError

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
            raise UserError(f"{SHEET.value}: cannot be written ({error.strerror or error}); choose another --sheet") from error
    reporter.line(f"written: {folder}")


def label(reporter) -> None:
    """The sub-command ``parsing``."""
    from pathlib import Path

    from occreid_jax.data import parsing_model
    from occreid_jax.errors import UserError, listed

    if not (PICTURES.value and OUT.value):
        raise UserError("parsing needs --pictures=DIR, the folder of the pictures, and --out=DIR, a folder for their labels")
    name = MODEL.value or parsing_model.DEFAULT
    model = parsing_model.parsing_model(name)
    with reporter.task("labelling body parts", 0) as task:
        pictures = Path(PICTURES.value), Path(OUT.value)
        written, left_out = parsing_model.label_pictures(*pictures, model, name, task)
    if left_out:
        reporter.line(f"left out: {len(left_out):,} pictures that cannot be read: {listed(left_out)}")
    reporter.line(f"{written:,} label maps written to {OUT.value}; use them with --config.data.parsing={OUT.value}")


def tell_people(reporter) -> None:
    """The sub-command ``people``."""
    from pathlib import Path

    from occreid_jax.data import people
    from occreid_jax.errors import DataError, UserError

    if not ROOT.value:
        raise UserError("people needs --root=DIR, the folder of the pictures")
    root = Path(ROOT.value)
    paths, left_out = people.pictures_below(root)
    table, strangers = root / people.FILE, []
    if table.is_file() and not WRITE.value:
        rows = people.read_table(table)
        named = {row.path for row in rows}
        strangers = [path for path in paths if path not in named]
    else:
        rows, strangers = people.rows_by_pattern(paths, PATTERN.value) if PATTERN.value else people.rows_by_folder(paths)
    divided = people.split(rows, SEED.value) if rows else []
    for line in people.preview(divided, strangers, left_out):
        reporter.line(line)
    if not rows:
        raise DataError(f"{root}: no picture was understood; give --pattern, such as --pattern='{{camera}}_{{identity}}_*'")
    people.checked(list(rows), root)
    if not any(row.split for row in rows):
        reporter.line(f"split by seed {SEED.value}: {people.RULE}")
    if WRITE.value:
        people.write_table(table, divided)
        reporter.line(f"written: {table}")
    elif not table.is_file():
        reporter.line(f"nothing is written; --write leaves this as {table}")


def derive(reporter) -> None:
    """The sub-command ``derive``."""
    from pathlib import Path

    from occreid_jax.data import derive as making
    from occreid_jax.data import readers
    from occreid_jax.errors import UserError

    if DATASET.value not in making.DERIVED or not (ROOT.value and LISTS.value):
        raise UserError(
            f"derive needs --dataset, one of {', '.join(making.DERIVED)}, --root=DIR, where the sets lie that it is made of, and "
            "--lists=DIR, the folder of the authors' lists"
        )
    out = Path(OUT.value or ROOT.value)
    with reporter.task(f"copying {DATASET.value}", 0) as task:
        folder = making.derive(DATASET.value, Path(ROOT.value), Path(LISTS.value), out, task)
    reporter.line(f"written: {folder}")
    for note in readers.open_dataset(DATASET.value, folder).notes:
        reporter.line(f"note: {note}")


def open_set(name: str, root: str):
    """Another dataset by its name, which may be one that has no training set."""
    from pathlib import Path

    from occreid_jax.data import readers

    return readers.open_dataset(name, Path(root), need_train=False)


def open_named():
    """The dataset that --dataset and --root name."""
    from pathlib import Path

    from occreid_jax.data import readers
    from occreid_jax.errors import UserError

    if not (DATASET.value and ROOT.value):
        raise UserError(f"{ACTION} needs --dataset=NAME and --root=DIR")
    options = {"camera": CAMERA.value} if DATASET.value == "folder" else {}
    options |= {name: flag.value for name, flag in (("protocol", PROTOCOL), ("trial", TRIAL)) if flag.value}
    return readers.open_dataset(DATASET.value, Path(ROOT.value), **options)


def examine(reporter) -> None:
    """The sub-command ``doctor``."""
    from occreid_jax.data import doctor, terms
    from occreid_jax.errors import DataError

    try:
        dataset = open_named()
    except DataError as error:
        told = terms.told(DATASET.value or "")
        raise DataError(f"{error}; {told}" if told and "is obtained" not in str(error) else str(error)) from error
    for line in (*doctor.examine(dataset), *filter(None, [terms.told(dataset.name)])):
        reporter.line(line)
    for other in AGAINST.value:
        name, _, root = other.partition("=")
        for line in doctor.overlaps(dataset, open_set(name, root or ROOT.value)):
            reporter.line(line)


def decode(reporter) -> None:
    """The sub-command ``tables``."""
    from pathlib import Path

    from occreid_jax.data import table

    dataset = open_named()
    cache = Path(CACHE.value or Path(ROOT.value) / ".tables")
    bits = table.bits(dataset, cache)
    for role, filters in (("train", ("bicubic", "bilinear")), ("query", ("bilinear",)), ("gallery", ("bilinear",))):
        for resize_filter in filters:
            split = getattr(dataset, role)
            with reporter.task(f"{role}, {resize_filter}", len(split)) as task:
                built = table.build_table(split, (HEIGHT.value, WIDTH.value), resize_filter, cache, task, bits)
            reporter.line(f"{role}, {resize_filter}: {len(built):,} pictures, {built.images.nbytes / 1e9:.2f} GB in {built.path}")
            for note in built.notes:
                reporter.line(f"{role}: {note}")


def main() -> None:
    from occreid_jax.train.log import Reporter

    ACTIONS[ACTION](Reporter())


ACTIONS = {"synthetic": render, "doctor": examine, "tables": decode, "occluders": make_library, "parsing": label,
           "people": tell_people, "derive": derive}  # fmt: skip

if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        ACTION = sys.argv.pop(1)
    if ACTION not in ACTIONS and not any(argument.startswith(("--help", "-h")) for argument in sys.argv[1:]):
        command.fail(f"the first word must be one of {', '.join(ACTIONS)}; --help tells more", command.USAGE)
    command.run(main)
