"""People's own pictures as a table: who is on each, which camera took it, what it is for.

``people.csv`` lies beside the pictures and has the columns ``path`` (below its folder), ``identity`` and, if they are known,
``camera`` and ``split`` (train, query or gallery; empty: not used). It is written by hand, by another program, or here: from the
names of files by a pattern, or from one folder per identity. Where it has no splits they are made by one rule (`RULE`).
"""

from __future__ import annotations

import collections
import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from occreid_jax.data.formats import has_suffix, overlooked
from occreid_jax.errors import DataError, legible, listed
from occreid_jax.files import remedy, write_text

FILE = "people.csv"
ROLES = ("train", "query", "gallery")
COLUMNS = {
    "path": ("path", "file", "filename", "picture", "image"),
    "identity": ("identity", "id", "person", "pid", "name"),
    "camera": ("camera", "cam", "camid"),
    "split": ("split", "role", "subset"),
}  # what a column may be called, in small or capital letters
RULE = (
    "half of the people, drawn by the seed, are trained on and the others tested; of each tested person one picture of every "
    "camera is a query as long as the gallery keeps another camera's (without cameras one picture, if there are two), the "
    "rest is the gallery"
)


class Row(NamedTuple):
    """One picture. ``camera`` and ``split`` are "" where they are not known."""

    path: str  # below the folder, with /
    identity: str
    camera: str = ""
    split: str = ""


# Where rows come from -------------------------------------------------------------------------------------------------


def pictures_below(root: Path) -> tuple[list[str], list[str]]:
    """Paths of the pictures below a folder, sorted, and what was passed over although it looks like a picture, with the
    reason."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: it should hold pictures of people")
    found, left_out = [], []
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__MACOSX")))
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if has_suffix(name):
                found.append(path.relative_to(root).as_posix())
            elif why := overlooked(path):
                left_out.append(f"{path.relative_to(root).as_posix()} ({why})")
    return sorted(found), sorted(left_out)


def rows_by_pattern(paths: Iterable[str], pattern: str) -> tuple[list[Row], list[str]]:
    """Rows of the paths that follow a pattern such as ``{camera}_{identity}_*``, and the paths that do not."""
    expression, rows, strangers = compiled(pattern), [], []
    for path in paths:
        text = path if "/" in pattern else path.rpartition("/")[2]
        match = expression.fullmatch(text)
        if match is None:
            strangers.append(path)
        else:
            rows.append(Row(path, match["identity"], match.groupdict().get("camera") or ""))
    return rows, strangers


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression: ``{identity}`` and ``{camera}`` stand for what they say, ``*`` for anything but a
    folder.

    A pattern without a folder is about the file's name alone; where it names no ending, any ending will do. Raises `DataError`
    for a pattern without ``{identity}`` or with another word in braces.
    """
    pieces = re.split(r"(\{\w*\}|\*)", pattern)
    words = {"{identity}": "(?P<identity>[^/]+?)", "{camera}": "(?P<camera>[^/]+?)", "*": "[^/]*"}
    braces = [piece for piece in pieces if piece.startswith("{")]
    if "{identity}" not in braces or len(set(braces)) < len(braces) or any(piece not in words for piece in braces):
        raise DataError(
            f"the pattern {pattern!r} should hold {{identity}} once, {{camera}} at most once and otherwise plain text and *, "
            "such as {camera}_{identity}_*"
        )
    ending = "" if re.search(r"\.\w+$", pattern) else r"(?:\.\w+)?"
    return re.compile("".join(words.get(piece, re.escape(piece)) for piece in pieces) + ending)


def rows_by_folder(paths: Iterable[str]) -> tuple[list[Row], list[str]]:
    """Rows of pictures that lie in a folder per identity, and the paths of those that lie in none."""
    rows, strangers = [], []
    for path in paths:
        folder, _, rest = path.partition("/")
        if rest:
            rows.append(Row(path, folder))
        else:
            strangers.append(path)
    return rows, strangers


def read_table(path: Path) -> list[Row]:
    """The rows of a table with commas, semicolons or tabs. Raises `DataError`, naming the lines that cannot be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        told = remedy(error) if isinstance(error, OSError) else "save it as UTF-8"
        raise DataError(f"{path} cannot be read ({error}); {told}") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    names = [name.strip().lower() for name in lines[0]] if lines else []
    places = {column: next((names.index(name) for name in known if name in names), None) for column, known in COLUMNS.items()}
    if missing := [column for column in ("path", "identity") if places[column] is None]:
        told = " and no column ".join(missing)
        raise DataError(f"{path} has no column {told}; its first line should be path,identity,camera,split")
    rows, wrong = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line):
            continue
        there = {column: place for column, place in places.items() if place is not None and place < len(line)}
        cells = dict.fromkeys(COLUMNS, "") | {column: line[place].strip() for column, place in there.items()}
        row = Row(cells["path"].replace("\\", "/"), cells["identity"], cells["camera"], cells["split"].lower())
        if not row.path or not row.identity or row.split not in ("", *ROLES) or row.path.startswith(("/", "..")):
            wrong.append(f"line {number}")
        else:
            rows.append(row)
    if wrong:
        raise DataError(
            f"{path}: {len(wrong):,} lines lack a path below its folder or an identity, or have another split than train, "
            f"query or gallery: {listed(wrong)}"
        )
    return checked(rows, path)


def checked(rows: list[Row], source: Path | str) -> list[Row]:
    """``rows`` if every picture stands there once and all or none of a column is filled; `DataError` otherwise."""
    counts = collections.Counter(row.path for row in rows)
    if doubles := [path for path, count in counts.items() if count > 1]:
        raise DataError(f"{source}: {len(doubles):,} pictures stand there twice: {listed(doubles)}")
    if not rows:
        raise DataError(f"{source}: no picture is named there")
    if (without := [row.path for row in rows if not row.camera]) and len(without) < len(rows):
        told = f"{len(without):,} of {len(rows):,} pictures have no camera"
        raise DataError(f"{source}: {told}: {listed(without)}; name all or none")
    return rows


# Splitting ------------------------------------------------------------------------------------------------------------


def split(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """``rows`` with the split that `RULE` gives each, in their order; as they are if one of them has a split already."""
    if any(row.split for row in rows):
        return list(rows)
    rng = np.random.default_rng((0x0B5, seed))
    people = sorted({row.identity for row in rows})
    trained = {people[place] for place in rng.permutation(len(people))[: (len(people) + 1) // 2]}
    own: dict[str, list[int]] = collections.defaultdict(list)
    for place in sorted(range(len(rows)), key=lambda place: rows[place].path):
        own[rows[place].identity].append(place)
    queries = {place for person in people if person not in trained for place in queries_of(rows, own[person], rng)}
    roles = ["train" if row.identity in trained else "query" if place in queries else "gallery" for place, row in enumerate(rows)]
    return [row._replace(split=role) for row, role in zip(rows, roles, strict=True)]


def queries_of(rows: Sequence[Row], places: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Which of one person's pictures are queries."""
    drawn = [places[each] for each in rng.permutation(len(places))]
    if not rows[drawn[0]].camera:
        return drawn[:1] if len(drawn) > 1 else []
    queries: list[int] = []
    for place in drawn:
        chosen = [*queries, place]
        gallery = [rows[other].camera for other in drawn if other not in chosen]
        if rows[place].camera not in {rows[query].camera for query in queries} and all(
            any(camera != rows[query].camera for camera in gallery) for query in chosen
        ):
            queries = chosen
    return queries


# Telling and keeping --------------------------------------------------------------------------------------------------


def preview(rows: Sequence[Row], strangers: Sequence[str], left_out: Sequence[str], shown: int = 8) -> list[str]:
    """What was understood, in words: the first rows, counts, and what was not read."""
    people = collections.Counter(row.identity for row in rows)
    cameras = sorted({row.camera for row in rows} - {""})
    each = sorted(people.values())
    lines = [f"{'picture':40}  {'identity':16}  {'camera':8}  split"] if rows else []
    for row in rows[:shown]:
        lines.append(f"{legible(row.path):40}  {legible(row.identity):16}  {row.camera or '-':8}  {row.split or '-'}")
    lines += [f"... and {len(rows) - shown:,} more"] if len(rows) > shown else []
    if rows:
        told = f"{len(cameras)} cameras: {listed(cameras)}" if cameras else "no cameras"
        spread = f"{each[0]} to {each[-1]} each, {each[len(each) // 2]} in the middle"
        lines.append(f"{len(rows):,} pictures of {len(people):,} people, {spread}; {told}")
    for role in ROLES:
        own = [row for row in rows if row.split == role]
        if own:
            lines.append(f"{role}: {len(own):,} pictures of {len({row.identity for row in own}):,} people")
    unused = sum(not row.split for row in rows)
    lines += [f"not used, since their split is empty: {unused:,} pictures"] if 0 < unused < len(rows) else []
    lines += [f"NOT READ: {len(strangers):,} pictures that name nobody: {listed(strangers, 10)}"] if strangers else []
    lines += [f"NOT READ: {len(left_out):,} files: {listed(left_out, 10)}"] if left_out else []
    return lines


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as ``people.csv``. Raises `DataError` if there is one, or if it cannot be written."""
    if path.exists():
        raise DataError(f"{path} is there already; remove it to make another")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
