"""Every row of the papers' tables: what was published, and how a row is run here.

One file per paper, PAPER.toml beside this module; it is the one place that holds published numbers. A table has ``columns``
("occluded_duke rank1": dataset and measure, or words where it is about something else) and ``rows``: a label, what runs it, and
one value per column. What runs a row is a config and its argument ("fed:row=npo_oem"), one for all datasets or a table by dataset
with a ``default``; it is empty where nothing here does: other people's methods and what the paper does not tell enough about.
A value is a number (percent, if nothing else is said), "-" where the paper has none, or "lost" where its text has lost it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Mapping

from occreid_jax.errors import UserError

MEASURES = ("rank1", "rank5", "rank10", "mAP")
ABSENT, LOST = "-", "lost"
Value = float | str


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table."""

    label: str
    run: str | Mapping[str, str]  # config and argument that run it, or those of each dataset; empty: nothing does
    values: tuple[Value, ...]  # one per column of the table

    @property
    def kind(self) -> str:
        """"runnable", "published" (only) or "lost": nothing runs it, and what it was is lost with its setting or its values."""
        if self.run:
            return "runnable"
        return LOST if LOST in self.label or LOST in self.values else "published"

    def run_on(self, dataset: str) -> str:
        """The config and its argument for a dataset; empty if nothing runs the row."""
        return self.run if isinstance(self.run, str) else self.run.get(dataset, self.run["default"])


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper."""

    paper: str  # the name of its file
    number: str  # as the paper counts, in digits
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: str = ""

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.number}"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Those that the columns name, in their order."""
        return tuple(dict.fromkeys(dataset for dataset, _ in filter(None, map(place, self.columns))))

    def published(self, row: Row, dataset: str) -> dict[str, Value]:
        """Measure -> value of a row on a dataset, without those that the paper does not give."""
        found = zip(map(place, self.columns), row.values, strict=True)
        return {where[1]: value for where, value in found if where and where[0] == dataset and value != ABSENT}


def place(column: str) -> tuple[str, str] | None:
    """(dataset, measure) of a column, or None if it is about something else."""
    dataset, _, measure = column.rpartition(" ")
    return (dataset, measure) if measure in MEASURES and dataset.isidentifier() else None


def papers() -> tuple[str, ...]:
    """Names of the papers' files."""
    files = importlib.resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@functools.cache
def tables(paper: str) -> dict[str, Table]:
    """The tables of a paper by number, in its order. Raises `UserError` for an unknown paper."""
    if paper not in papers():
        raise UserError(f"there is no paper '{paper}'; known: {', '.join(papers())}")
    content = tomllib.loads((importlib.resources.files(__name__) / f"{paper}.toml").read_text(encoding="utf-8"))
    return {number: read_table(paper, number, entry) for number, entry in content["tables"].items()}


def read_table(paper: str, number: str, entry: Mapping) -> Table:
    rows = tuple(Row(label, run, tuple(values)) for label, run, *values in entry["rows"])
    for row in rows:
        if len(row.values) != len(entry["columns"]):
            raise ValueError(f"{paper}/{number}, row '{row.label}': {len(row.values)} values, {len(entry['columns'])} columns")
    return Table(paper, number, entry["title"], tuple(entry["columns"]), rows, entry.get("notes", ""))


def table(name: str) -> Table:
    """The table that "paper/number" names, such as "fed/3". Raises `UserError` for one that does not exist."""
    paper, _, number = name.partition("/")
    known = tables(paper)
    if number not in known:
        raise UserError(f"{paper} has no table '{number}'; it has {', '.join(known)}")
    return known[number]


def every_run() -> tuple[tuple[str, str], ...]:
    """(config and argument, dataset) of every runnable row on every dataset that it has a number for, each once."""
    found = {}
    for known in (each for paper in papers() for each in tables(paper).values()):
        for row in (row for row in known.rows if row.run):
            for dataset in (dataset for dataset in known.datasets if known.published(row, dataset)):
                found[row.run_on(dataset), dataset] = None
    return tuple(found)
