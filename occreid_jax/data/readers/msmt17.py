"""MSMT17 (Wei et al., CVPR 2018), the first version and the second, whose faces are masked.

::

    root/MSMT17_V1/{train,test}/0000/0000_000_01_0303morning_0015_0.jpg      V2: mask_train_v2/, mask_test_v2/
    root/MSMT17_V1/list_{train,val,query,gallery}.txt                        lines "0000/0000_000_01_0303morning_0015_0.jpg 0"

The lists say which picture is where; the camera (1 to 15) is the third field of a name. Identities count from 0 in both halves
and are other people in each: here those of the test half begin with 1, since 0 is a distractor in other sets, and those of the
training half with 10,001.

Two training sets go by one name. The protocol says which, and which version: ``msmt17/v1-trainval@1`` trains on both lists
(32,621 pictures; TransReID, CLIP-ReID), ``msmt17/v1-train@1`` on the first alone (30,248; torchreid, fast-reid).
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np

from occreid_jax.data.readers import halves
from occreid_jax.data.readers.checks import check_dataset, count_notes, without_train
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.halves import TRAINING_OFFSET
from occreid_jax.errors import DataError, listed
from occreid_jax.files import remedy
from occreid_jax.types import Dataset, Split

CAMERAS = "msmt17"
VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
PLACES = {
    version: ("", name, "MSMT17", "msmt17", f"msmt17/{name}") for version, name in (("v1", "MSMT17_V1"), ("v2", "MSMT17_V2"))
}
PROTOCOLS = {
    "": "trainval, of the version that is there",
    **{f"{version}-trainval": f"{version}, trained on list_train.txt and list_val.txt" for version in VERSIONS},
    **{f"{version}-train": f"{version}, trained on list_train.txt" for version in VERSIONS},
}
_TREE = "train/, test/ and list_train.txt, list_val.txt, list_query.txt, list_gallery.txt (V2: mask_train_v2/, mask_test_v2/)"
_PUBLISHED = {"trainval": (32_621, 1_041), "train": (30_248, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)}


def read(root: Path, need_train: bool = True, protocol: str = "") -> Dataset:
    """Opens MSMT17. ``root`` holds the two folders and the lists, or ``MSMT17_V1/`` or ``MSMT17_V2/`` that does.

    Raises:
      DataError: a folder or list is missing, a list cannot be read or names what is not there, or both versions are there and
        none is chosen.
    """
    halves.check_protocol("msmt17", protocol, PROTOCOLS)
    found = {version: find_version(root, version) for version in VERSIONS}
    there = [version for version, place in found.items() if place is not None]
    if not protocol and len(there) == 2:
        raise DataError(f"{root} holds both versions of MSMT17; choose one with config.data.protocol, v1-trainval or v2-trainval")
    version, lists = protocol.split("-") if protocol else ((there or ["v1"])[0], "trainval")
    place = found[version] or root
    train_folder, test_folder = VERSIONS[version]
    missing = not need_train and not (place / train_folder).is_dir()
    folders = (test_folder,) if missing else (train_folder, test_folder)
    require_folders(place, folders, f"{_TREE}, or a folder MSMT17_V1/ with these")
    splits = {role: read_list(place, test_folder, (f"list_{role}.txt",), 1) for role in ("query", "gallery")}
    notes: tuple[str, ...] = ()
    if missing:
        splits["train"], note = without_train(place, train_folder)
        notes = (note,)
    else:
        files = ("list_train.txt", "list_val.txt")[: 2 if lists == "trainval" else 1]
        splits["train"] = read_list(place, train_folder, files, 1 + TRAINING_OFFSET)
    name = f"msmt17/{version}-{lists}@1"
    dataset = check_dataset(Dataset("msmt17", name, **splits, notes=notes), need_train)
    published = {"train": _PUBLISHED[lists], **{role: _PUBLISHED[role] for role in ("query", "gallery")}}
    return dataclasses.replace(dataset, notes=(*notes, *count_notes(dataset, published)))


def find_version(root: Path, version: str) -> Path | None:
    """Where a version lies below ``root``: the place with its test folder; None if there is none."""
    return next((root / place for place in PLACES[version] if (root / place / VERSIONS[version][1]).is_dir()), None)


def read_list(place: Path, folder: str, files: tuple[str, ...], first: int) -> Split:
    """The pictures that lists name below ``folder``; identity 0 of a list becomes ``first``. Raises `DataError`."""
    rows: list[tuple[str, int, int]] = []
    for file in files:
        try:
            lines = (place / file).read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise DataError(
                f"{place / file} is missing: it comes with the set, and many copies lack it; the picture folders do not tell "
                "the splits"
            ) from None
        except (OSError, UnicodeError) as error:
            told = remedy(error) if isinstance(error, OSError) else "it should be plain text"
            raise DataError(f"{place / file} cannot be read ({error}); {told}") from None
        parsed = [(line, parse_line(line)) for line in lines if line.strip()]
        if strangers := [line for line, row in parsed if row is None]:
            raise DataError(
                f"{place / file}: {len(strangers):,} lines are not <identity>/<identity>_<number>_<camera 01 to 15>_... "
                f"<identity>: {listed(strangers)}; take the list that came with the set"
            )
        rows += [row for _, row in parsed]
    names = [f"{folder}/{name}" for name, _, _ in rows]
    if doubles := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise DataError(f"{place}: {len(doubles):,} pictures stand twice in {' and '.join(files)}: {listed(doubles)}")
    order = sorted(range(len(rows)), key=names.__getitem__)
    pids, camids = (np.array([rows[row][column] for row in order], np.int32) for column in (1, 2))
    return Split(place, tuple(names[row] for row in order), pids + np.int32(first), camids, CAMERAS)


def parse_line(line: str) -> tuple[str, int, int] | None:
    """(picture, identity, 0-based camera) of a list's line; None if it gives none, or two identities."""
    name, _, number = line.strip().rpartition(" ")
    fields = name.rpartition("/")[2].split("_")
    folder = name.rpartition("/")[0].rpartition("/")[2]
    if name.count("/") != 1 or len(fields) < 4 or not all(each.isdecimal() for each in (number, folder, fields[0], fields[2])):
        return None
    identities = {int(number), int(folder), int(fields[0])}
    camera = int(fields[2])
    return (name.strip(), int(number), camera - 1) if len(identities) == 1 and 1 <= camera <= 15 else None
