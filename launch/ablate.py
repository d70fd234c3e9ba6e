"""Runs the rows of a paper's table, several seeds each, and prints what was measured beside what was published.

    python launch/ablate.py --list                                                    all tables, with counts of their rows
    python launch/ablate.py --table=fed/3 --dataset=synthetic --with=grid=fine        on the embedded benchmark
    python launch/ablate.py --table=fed/3 --set=data.root=DIR --set=init.weights=DIR  as published
    python launch/ablate.py --table=fed/3 --row=npo_oem,all --seeds=0                 two of its rows
    python launch/ablate.py --table=fed/3 --show                                      runs nothing, prints what there is
    python launch/ablate.py --table=fed/3 --cost                                      runs nothing, counts what it would cost

Every row is a run of launch/seeds.py below <workdir>/<dataset>/<config and argument>, so that rows which several tables share
are trained once. The command may be stopped and given again: finished rows and seeds are not repeated, a cut one goes on. A row
that nothing here runs is printed as published, one that was not run as "not run". The printed page is <workdir>/<table>.md too.
Published numbers come from occreid_jax/published, and from nowhere else. docs/reproduce.md says what each paper needs.
"""

from __future__ import annotations

import sys

import command
from absl import flags

TABLE = flags.DEFINE_string("table", None, "a table of a paper: fed/3, dpm_pp/3-vit, ogfr/figure-4 ...; --list names all")
LIST = flags.DEFINE_bool("list", False, "name all tables and count their rows by kind")
ROWS = flags.DEFINE_list("row", [], "rows to run, by their label or by the row of their config (default: all that can be run)")
DATASETS = flags.DEFINE_list("dataset", [], "datasets (default: those of the table); synthetic is the embedded benchmark")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds to run")
WITH = flags.DEFINE_string("with", "", "more arguments for every config, for example size=small,grid=fine")
SET = flags.DEFINE_multi_string("set", [], "a setting of every run, KEY=VALUE, for example init.weights=DIR; may be repeated")
WORKDIR = flags.DEFINE_string("workdir", "runs/tables", "folder of all runs")
SHOW = flags.DEFINE_bool("show", False, "run nothing, print what was measured")
COST = flags.DEFINE_bool("cost", False, "run nothing, print the arithmetic of every row's training and an estimate of its hours")
CHIP = flags.DEFINE_string("chip", "NVIDIA H100", "for --cost: the device, as occreid_jax/chips.py names it")
SHARE = flags.DEFINE_float("share", 0.4, "for --cost: share of the device's bfloat16 peak that is assumed to be reached", 0.01, 1)


def main() -> None:
    from pathlib import Path

    from occreid_jax import published
    from occreid_jax.errors import UserError
    from occreid_jax.files import at_home, write_text

    if LIST.value:
        return list_tables(published)
    if TABLE.value is None:
        raise UserError("--table is missing: name a table such as fed/3, or give --list")
    table, folder = published.table(TABLE.value), Path(at_home(WORKDIR.value))
    rows, datasets = chosen_rows(table), chosen_datasets(table)
    if COST.value:
        return print_costs(rows, datasets)
    todo = [] if SHOW.value else [(row, dataset) for dataset in datasets for row in rows if row.run]
    for number, (row, dataset) in enumerate(todo, 1):
        print(f"row {number} of {len(todo)}: {row.label}, {dataset}", flush=True)
        run_row(folder, row, dataset)
    page = "\n".join(page_of(table, dataset, folder) for dataset in datasets)
    write_text(folder / f"{table.name.replace('/', '-')}.md", page)
    print(page)


def list_tables(published) -> None:
    kinds = ("runnable", "published", "lost")
    print(f"{'table':32s} " + " ".join(f"{kind:>10s}" for kind in kinds) + "  title")
    for paper in published.papers():
        for table in published.tables(paper).values():
            counts = [sum(row.kind == kind for row in table.rows) for kind in kinds]
            print(f"{table.name:32s} " + " ".join(f"{count:10d}" for count in counts) + f"  {table.title}")


def chosen_rows(table) -> list:
    """The rows that ``--row`` names, in the table's order; `UserError` for one that is not there or that nothing runs."""
    from occreid_jax.errors import UserError

    if not ROWS.value:
        return list(table.rows)
    found = []
    for name in ROWS.value:
        matching = [row for row in table.rows if name in (row.label, *names_of(row))]
        if not matching:
            known = ", ".join(names_of(row)[0] if names_of(row) else row.label for row in table.rows if row.run)
            raise UserError(f"{table.name} has no row '{name}'; it has {known or 'none that can be run'}")
        if not matching[0].run:
            raise UserError(f"{table.name}: nothing here runs the row '{name}'; it is as published only")
        found += matching
    return [row for row in table.rows if row in found]


def names_of(row) -> list[str]:
    """What a row may be called beside its label: the ``row`` of its config, or the config and its argument."""
    if not row.run:
        return []
    run = row.run if isinstance(row.run, str) else row.run["default"]
    _, _, argument = run.partition(":")
    return [item.removeprefix("row=") for item in argument.split(",") if item.startswith("row=")] + [run]


def chosen_datasets(table) -> list[str]:
    from occreid_jax.errors import UserError

    datasets = DATASETS.value or list(table.datasets)
    if not datasets:
        raise UserError(f"{table.name} is about no dataset, but about {', '.join(table.columns)}")
    return datasets


def config_of(row, dataset: str) -> tuple[str, str]:
    """The config of a row and its argument, the dataset left out: ("fed", "row=npo")."""
    name, _, argument = row.run_on(dataset).partition(":")
    if dataset == "synthetic":  # its small pictures have a stride of their own
        argument = ",".join(item for item in argument.split(",") if not item.startswith("stride="))
    return name, ",".join(filter(None, (argument, WITH.value)))


def folder_of(folder, row, dataset: str):
    """A row's folder: by what runs it, so that two tables find the same one."""
    from occreid_jax.errors import UserError

    name = ",".join(filter(None, config_of(row, dataset)))
    if "/" in name or "\\" in name:
        raise UserError(f"--with={WITH.value}: no slashes; use --set=KEY=VALUE for paths")
    return folder / dataset / name


def run_row(folder, row, dataset: str) -> None:
    """Trains a row's seeds by launch/seeds.py; leaves with its exit status if it ends with one."""
    name, argument = config_of(row, dataset)
    config = f"{command.ROOT / 'configs' / name}.py:" + ",".join(filter(None, (f"dataset={dataset}", argument)))
    arguments = [f"--config={config}", *(f"--config.{setting}" for setting in SET.value)]
    arguments += [f"--seeds={','.join(SEEDS.value)}", f"--workdir={folder_of(folder, row, dataset)}"]
    code = command.call([sys.executable, str(command.ROOT / "launch" / "seeds.py"), *arguments])
    if code:
        print(f"row '{row.label}' ended with status {code}; the same command goes on there", flush=True)
        sys.exit(code if code > 0 else 128 - code)


def print_costs(rows, datasets: list[str]) -> None:
    """A line per row: pictures that its training looks at, its arithmetic, and hours of one device at the assumed share."""
    from occreid_jax.chips import chip_of
    from occreid_jax.errors import UserError

    chip = chip_of(CHIP.value)
    if chip is None:
        raise UserError(f"--chip={CHIP.value}: no such device in occreid_jax/chips.py")
    print("counted by the methods' formulas; pictures of a training set as published, one seed, evaluation left out")
    print(f"hours: estimated for one {CHIP.value} at {SHARE.value:.0%} of its bfloat16 peak, which is assumed, not measured")
    print(f"{'row':44s} {'dataset':16s} {'pictures':>12s} {'PFLOP':>10s} {'hours':>8s}")
    for dataset in datasets:
        for row in (row for row in rows if row.run):
            pictures, operations = cost_of(row, dataset)
            hours = operations / (chip.flops * SHARE.value * 3600)
            print(f"{row.label:44s} {dataset:16s} {pictures:12,d} {operations / 1e15:10,.1f} {hours:8.2f}")


def cost_of(row, dataset: str) -> tuple[int, float]:
    """Pictures and floating-point operations of a row's training, all stages together."""
    import importlib

    from configs import common
    from occreid_jax import methods
    from occreid_jax.errors import UserError
    from occreid_jax.train.performance import step_flops
    from occreid_jax.types import Meta

    name, argument = config_of(row, dataset)
    try:
        config = importlib.import_module(f"configs.{name}").get_config(",".join(filter(None, (f"dataset={dataset}", argument))))
    except ValueError as error:
        raise UserError(str(error)) from error
    preset = common.DATASETS[dataset]
    meta = Meta(preset["identities"], preset["cameras"], tuple(config.data.image_size), preset["images"])
    pictures, operations = 0, 0.0
    for stage in methods.create(config, meta).stages():
        seen = stage.epochs * (preset["images"] // stage.sampler.batch_size) * stage.sampler.batch_size
        pictures, operations = pictures + seen, operations + seen * step_flops(stage)
    return pictures, operations


def page_of(table, dataset: str, folder) -> str:
    """A table as Markdown: published and measured values of every row on a dataset."""
    from occreid_jax import published
    from occreid_jax.files import read_json

    known = dataset in table.datasets
    reference = dataset if known else next(iter(table.datasets), "")
    given = {measure for row in table.rows for measure in table.published(row, reference)}
    measures = [measure for measure in published.MEASURES if measure in given]
    head = f"{table.name}: {table.title}. {dataset}" + ("" if known or not reference else f"; published: {reference}")
    names = [f"published {measure}" for measure in measures] + [f"measured {measure}" for measure in measures] + ["seeds"]
    lines, protocols = [f"| row | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)], set()
    for row in table.rows:
        values = table.published(row, reference)
        cells = [str(values.get(measure, published.ABSENT)) for measure in measures]
        path = folder_of(folder, row, dataset) / "seeds.json" if row.run else None
        if path is None:
            cells += [published.ABSENT] * len(measures) + [row.kind if row.kind == published.LOST else "published only"]
        elif not path.exists():
            cells += [published.ABSENT] * len(measures) + ["not run"]
        else:
            found = read_json(path)
            protocols.add(found["protocol"])
            cells += [f"{found[measure]['mean']:.1f} +- {found[measure]['std']:.1f}" for measure in measures]
            cells += [", ".join(map(str, found["seeds"]))]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    notes = [table.notes] if table.notes else []
    notes += [f"Protocol of what was measured: {', '.join(sorted(protocols))}."] if protocols else []
    return "\n".join([f"## {head}", "", *lines, "", *notes, ""])


if __name__ == "__main__":
    command.run(main)
