"""Finding picture files in a folder, and saying what was passed over."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from pathlib import Path

from occreid_jax.data.formats import has_suffix, overlooked
from occreid_jax.errors import DataError
from occreid_jax.files import remedy

LEFT_OUT = "PICTURES LEFT OUT: "  # begins what must not be overlooked among the notes
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def require_folders(root: Path, folders: tuple[str, ...], tree: str) -> None:
    """Raises `DataError` unless every folder exists under ``root``; ``tree`` tells the user what tree is wanted."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: it should hold {tree}")
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(f"{root} has no folder {', '.join(missing)}: it should hold {tree}")


def list_pictures(folder: Path, skipped: collections.Counter) -> list[str]:
    """File names of the pictures that lie directly in ``folder``, sorted.

    Everything else is counted in ``skipped`` under a word for its kind, so that nothing is passed over silently. The names are
    sorted because a directory's own order differs between file systems, and label numbers must not. Raises `DataError` if the
    folder cannot be read.
    """
    names = []
    for entry, kind in _entries(folder):
        if kind == "file" and has_suffix(entry.name):
            names.append(entry.name)
        elif kind == "file":
            why = overlooked(entry.path)
            skipped[f"{LEFT_OUT}{why}" if why else "files that are no pictures"] += 1
        elif kind == "folder" and (inside := _pictures_below(entry.path)):
            skipped[f"{LEFT_OUT}pictures in folders inside: move them up"] += inside
        else:
            skipped["subfolders" if kind == "folder" else kind] += 1
    return sorted(names)


def list_folders(folder: Path, skipped: collections.Counter) -> list[str]:
    """Names of the folders directly in ``folder``, sorted; what else lies there is counted in ``skipped``."""
    names = []
    for entry, kind in _entries(folder):
        if kind == "folder":
            names.append(entry.name)
        elif kind == "file" and (has_suffix(entry.name) or overlooked(entry.path)):
            skipped[f"{LEFT_OUT}pictures outside an identity folder: move them into one"] += 1
        else:
            skipped["files that are no pictures" if kind == "file" else kind] += 1
    return sorted(names)


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry, str]]:
    """What lies in a folder, with its kind: "file", "folder", or a word for what is passed over whatever it is."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); {remedy(error)}") from error
    for entry in found:
        try:
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                kind = "hidden or system entries"
            else:
                kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "broken links"
        except OSError:  # a link that leads back to itself, or into a folder that may not be entered
            kind = "broken links"
        yield entry, kind


def _pictures_below(folder: str) -> int:
    """How many pictures lie below a folder, at any depth."""
    return sum(has_suffix(name) for _, _, names in os.walk(folder) for name in names)


def skipped_notes(where: str, skipped: collections.Counter) -> tuple[str, ...]:
    """At most two notes a folder: ``query: ignored 2 hidden or system entries, 1 subfolders``, and, so that nobody overlooks it,
    ``query: PICTURES LEFT OUT: 36 .heic files cannot be decoded: save them as .png or .jpg``."""
    counts = {kind: f"{count:,} {kind.removeprefix(LEFT_OUT)}" for kind, count in sorted(skipped.items())}
    loud = [words for kind, words in counts.items() if kind.startswith(LEFT_OUT)]
    quiet = [words for kind, words in counts.items() if not kind.startswith(LEFT_OUT)]
    notes = (f"{where}: ignored {', '.join(quiet)}" if quiet else "", f"{where}: {LEFT_OUT}{', '.join(loud)}" if loud else "")
    return tuple(filter(None, notes))
