"""People's own pictures, one folder per identity.

::

    root/train/<identity>/<picture>
    root/query/<identity>/<picture>
    root/gallery/<identity>/<picture>

or anywhere below the root, told by a table beside them (`occreid_jax.data.people`)::

    root/people.csv                    path,identity,camera,split

Identity folders may have any name. The same name means the same person in all three splits; the names are sorted and numbered
from 1, so the numbers do not depend on the file system.
"""

from __future__ import annotations

import collections
import re
from pathlib import Path

import numpy as np

from occreid_jax.data import people
from occreid_jax.data.readers.checks import check_dataset, without_train
from occreid_jax.data.readers.files import list_folders, list_pictures, require_folders, skipped_notes
from occreid_jax.errors import DataError, listed
from occreid_jax.types import Dataset, Split

TREE = (
    "train/, query/ and gallery/, each with one folder per identity that holds its pictures, or people.csv "
    "(launch/prepare_data.py people makes one for any pictures)"
)
ROLES = ("train", "query", "gallery")
_CAMERA = re.compile(r"_c(\d{1,9})(?!\d)")


def read(root: Path, need_train: bool = True, camera: str = "none") -> Dataset:
    """Opens a tree with one folder per identity.

    Args:
      root: holds train/, query/ and gallery/, or people.csv.
      need_train: whether train/ must be there.
      camera: ``"none"``: there are no camera labels. Train and query pictures get camera 0 and gallery pictures camera 1, so
        that evaluation leaves no gallery picture out; these numbers never reach a network. ``"name"``: the number after ``_c`` in
        the file name, less 1, so that a camera has the same number in every tree that names it so.

    Raises:
      DataError: a folder is missing, a split is empty, a name has no camera, or no query could be matched.
    """
    if camera not in ("none", "name"):
        raise DataError(f'camera={camera!r} of the folder reader: it should be "none" or "name" (number after _c in the name)')
    if (root / people.FILE).is_file():
        return read_table(root, need_train)
    roles = ROLES if need_train or (root / "train").is_dir() else ROLES[1:]
    require_folders(root, roles, TREE)
    names: dict[str, list[str]] = {}
    notes: list[str] = []
    for role in roles:
        skipped = collections.Counter()
        names[role] = []
        for identity in list_folders(root / role, skipped):
            pictures = list_pictures(root / role / identity, skipped)
            if not pictures:
                skipped["identity folders without a picture"] += 1
            names[role] += [f"{role}/{identity}/{picture}" for picture in pictures]
        names[role].sort()
        notes += skipped_notes(role, skipped)

    identities = sorted({_identity(name) for role in roles for name in names[role]})
    numbers = {identity: number for number, identity in enumerate(identities, start=1)}
    cameras = "folder" if camera == "name" else ""
    camids = _cameras_by_name(root, names) if cameras else {
        role: np.full(len(names[role]), int(role == "gallery"), np.int32) for role in roles
    }
    if camera == "none":
        notes.append("cameras are not known: every gallery picture counts, also one taken by the query's own camera")
    pids = {role: np.array([numbers[_identity(name)] for name in names[role]], np.int32) for role in roles}
    splits = {role: Split(root, tuple(names[role]), pids[role], camids[role], cameras) for role in roles}
    if "train" not in splits:
        splits["train"], note = without_train(root, "train")
        notes.append(note)
    protocol = "folder/cameras-by-name@1" if camera == "name" else "folder/no-cameras@1"
    return check_dataset(Dataset("folder", protocol, **splits, notes=tuple(notes)), need_train)


def read_table(root: Path, need_train: bool) -> Dataset:
    """Opens pictures that people.csv names. Cameras count where it has some: numbers as they are, less 1, and names in order.

    Raises:
      DataError: as `read`; a line that cannot be used, or a picture that is not there.
    """
    rows = people.split(people.read_table(root / people.FILE))
    there = set(people.pictures_below(root)[0])
    if missing := [row.path for row in rows if row.split and row.path not in there]:
        raise DataError(f"{root / people.FILE}: {len(missing):,} pictures are not there or cannot be decoded: {listed(missing)}")
    numbers = {identity: number for number, identity in enumerate(sorted({row.identity for row in rows}), start=1)}
    words = sorted({row.camera for row in rows} - {""})
    counted = all(word.isdecimal() and 0 < int(word) < 10**9 for word in words)
    cameras = {word: int(word) - 1 if counted else place for place, word in enumerate(words)}
    splits = {}
    for role in ROLES:
        own = sorted((row for row in rows if row.split == role), key=lambda row: row.path)
        pids = np.array([numbers[row.identity] for row in own], np.int32)
        camids = np.array([cameras.get(row.camera, int(role == "gallery")) for row in own], np.int32)
        splits[role] = Split(root, tuple(row.path for row in own), pids, camids, "folder" if words else "")
    notes = [] if words else ["cameras are not known: every gallery picture counts, also one taken by the query's own camera"]
    if unused := len(there) - sum(len(each) for each in splits.values()):
        notes.append(f"{unused:,} pictures below {root} are not used: {people.FILE} does not name them, or gives them no split")
    protocol = "folder/cameras-by-table@1" if words else "folder/no-cameras@1"
    return check_dataset(Dataset("folder", protocol, **splits, notes=tuple(notes)), need_train)


def _identity(name: str) -> str:
    return name.split("/")[1]


def _cameras_by_name(root: Path, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Cameras int32 [N] per split: the number in the name less 1, as names count from 1; -1 where they count from 0."""
    found: dict[str, list[int]] = {}
    strangers = []
    for role, files in names.items():
        found[role] = []
        for name in files:
            match = _CAMERA.search(name.rsplit("/", 1)[1])
            if match is None:
                strangers.append(name)
            else:
                found[role].append(int(match[1]))
    if strangers:
        raise DataError(
            f"{root}: {len(strangers):,} pictures have no camera such as _c3 in their name: {listed(strangers)}; "
            'rename them or use camera="none"'
        )
    return {role: np.array(numbers, np.int32) - 1 for role, numbers in found.items()}
