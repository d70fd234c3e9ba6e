"""Finding picture files in a folder, and saying what was passed over."""

from __future__ import annotations

import collections
import os
from pathlib import Path

from occreid_jax.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})
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
    sorted because a directory's own order differs between file systems, and label numbers must not.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                skipped["hidden or system entries"] += 1
            elif entry.is_dir():
                skipped["subfolders"] += 1
            elif os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                skipped["files that are no pictures"] += 1
            elif not entry.is_file():
                skipped["broken links"] += 1
            else:
                names.append(entry.name)
    return sorted(names)


def list_folders(folder: Path, skipped: collections.Counter) -> list[str]:
    """Names of the folders directly in ``folder``, sorted; what else lies there is counted in ``skipped``."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                skipped["hidden or system entries"] += 1
            elif entry.is_dir():
                names.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                skipped["pictures outside an identity folder"] += 1
            else:
                skipped["files that are no pictures"] += 1
    return sorted(names)


def skipped_notes(where: str, skipped: collections.Counter) -> tuple[str, ...]:
    """One note a folder: ``query: ignored 2 hidden or system entries, 1 subfolders``."""
    if not skipped:
        return ()
    return (f"{where}: ignored " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items())),)
