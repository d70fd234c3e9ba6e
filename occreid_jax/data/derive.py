"""Occluded sets that are given out as lists of names, made from the sets whose pictures they are.

* Occluded-Duke: ``train.list``, ``query.list``, ``gallery.list`` and DukeMTMC-reID. A picture is taken from the folder of the
  same split if it is there, otherwise from Duke's gallery, as the authors' script does; so most queries are in the new gallery
  too.
* Occluded-Market: ``train_market.list``, ``train_mars.list``, ``query_market.list``, ``query_mars.list``, ``test.list``,
  Market-1501 and MARS. A line ``new*old`` gives a frame of MARS another name.

Pictures are copied, and keep the names that the lists give them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from occreid_jax.data.readers import dukemtmc, market1501, occluded_market
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.market1501 import FOLDERS, find_root
from occreid_jax.errors import DataError, UserError, listed
from occreid_jax.files import remedy

MARS_PLACES = ("", "MARS", "mars", "MARS/MARS")
_MARS_FOLDERS = ("bbox_train", "bbox_test")
_FRAME = re.compile(r"([-\d]+)_c(\d+)s(\d+)_(\d+\.\w+)")  # of a list: 0001_c1s0004_011.jpg
Copy = tuple[Path, str]  # a picture, and its path in the new set


def occluded_duke(root: Path, lists: Path) -> list[Copy]:
    """What Occluded-Duke is made of; ``root`` is where DukeMTMC-reID lies. Raises `DataError` for what is missing."""
    source = find_root(root, dukemtmc.PLACES)
    require_folders(source, tuple(FOLDERS.values()), "DukeMTMC-reID: bounding_box_train/, query/ and bounding_box_test/")
    found = []
    for role, folder in FOLDERS.items():
        for name in names_of(lists, f"{role}.list"):
            own = source / folder / name
            found.append((own if own.is_file() else source / FOLDERS["gallery"] / name, f"{folder}/{name}"))
    return found


def occluded_market_set(root: Path, lists: Path) -> list[Copy]:
    """What Occluded-Market is made of; below ``root`` lie Market-1501 and MARS. Raises `DataError` for what is missing."""
    market, mars = find_root(root), find_root(root, MARS_PLACES, _MARS_FOLDERS)
    require_folders(market, tuple(FOLDERS.values()), market1501.TREE)
    require_folders(mars, _MARS_FOLDERS, "MARS: bbox_train/ and bbox_test/ with a folder per person")
    found = []
    for role, name in (("train", "train_market.list"), ("query", "query_market.list"), ("gallery", "test.list")):
        for picture in names_of(lists, name):
            found.append((market / FOLDERS[role] / picture, f"{occluded_market.FOLDERS[role]}/{picture}"))
    for role, name in (("train", "train_mars.list"), ("query", "query_mars.list")):
        strangers = []
        for line in names_of(lists, name):
            new, _, old = line.partition("*")
            match = _FRAME.fullmatch(old or new)
            if match is None:
                strangers.append(line)
                continue
            person, camera, tracklet, frame = match.groups()
            places = [mars / folder / person / f"{person}C{camera}T{tracklet}F{frame}" for folder in _MARS_FOLDERS]
            found.append((next((each for each in places if each.is_file()), places[0]), f"{occluded_market.FOLDERS[role]}/{new}"))
        if strangers:
            raise DataError(f"{lists / name}: {len(strangers):,} lines are no frames of MARS: {listed(strangers)}")
    return found


DERIVED: dict[str, tuple[str, Callable[[Path, Path], list[Copy]]]] = {
    "occluded_duke": ("Occluded_Duke", occluded_duke),
    "occluded_market": ("Occluded_Market", occluded_market_set),
}
"""Set -> the folder that it becomes, and what says which pictures it is made of."""


def names_of(lists: Path, name: str) -> Iterator[str]:
    """The lines of a list. Raises `DataError` if it is not there, or if a line is more than a file's name."""
    path = lists / name
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing: name the folder of the authors' lists with --lists") from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); take the authors' list") from None
    lines = [line for line in lines if line]
    if wrong := [line for line in lines if any(PurePosixPath(part).name != part for part in line.split("*"))]:
        raise DataError(f"{path}: {len(wrong):,} lines are no names of files: {listed(wrong)}")
    return iter(lines)


def derive(name: str, root: Path, lists: Path, out: Path, progress: Callable[[int, int], None]) -> Path:
    """Makes the folder of a derived set below ``out`` and returns it; it appears when it is complete.

    Raises:
      DataError: pictures are missing (told at once, nothing is written), or two would get one name.
      UserError: the folder is there already or cannot be written.
    """
    folder, find = DERIVED[name]
    target = out / folder
    if target.exists():
        raise UserError(f"{target} is there already; remove it or choose another --out")
    copies = find(root, lists)
    if missing := [f"{path.parent.name}/{path.name}" for path, _ in copies if not path.is_file()]:
        raise DataError(f"{len(missing):,} of {len(copies):,} pictures of the lists are not below {root}: {listed(missing)}")
    if len({new for _, new in copies}) < len(copies):
        names = [new for _, new in copies]
        doubles = sorted({new for new in names if names.count(new) > 1})
        raise DataError(f"{lists}: {len(doubles):,} pictures are named twice: {listed(doubles)}")
    temporary = out / f".{folder}.{os.getpid()}.tmp"
    try:
        for done, (path, new) in enumerate(copies, start=1):
            (temporary / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / new)
            progress(done, len(copies))
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); {remedy(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
