"""Market-1501 (Zheng et al., ICCV 2015), and every set that keeps its file names and folders.

A name such as ``0001_c1s1_000151_01.jpg`` gives the identity (0001) and the camera (1; cameras count from 1 in names, from 0
here). In the folders, as in the evaluation code that came with the set,

* ``-1`` marks junk, which has "zero influence" on the score: left out,
* ``0000`` marks distractors: kept in the gallery as one more identity, never a query and never trained on.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from occreid_jax.data.readers.checks import check_dataset, count_notes, without_train
from occreid_jax.data.readers.files import list_pictures, require_folders, skipped_notes
from occreid_jax.errors import DataError, listed
from occreid_jax.types import Dataset, Split

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TREE = "bounding_box_train/, query/ and bounding_box_test/ with names like 0001_c1s1_000151_01.jpg"
PLACES = ("", "market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15")
CAMERAS = "market1501"  # whose cameras the numbers in the names are
PUBLISHED = {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, 751)}

# The camera may have several digits, and only the base name is searched: a root such as exp_10_c2/ would match as well.
_NAME = re.compile(r"([-\d]+)_c(\d+)")
_LARGEST = np.iinfo(np.int32).max


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens Market-1501. ``root`` holds the three folders, or ``market1501/`` or ``Market-1501-v15.09.15/`` that does; the one of
    the training set may be missing unless ``need_train``.

    Raises:
      DataError: see `read_market_layout`.
    """
    dataset = read_market_layout(find_root(root), need_train, "market1501", "market1501/std@1", CAMERAS)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *count_notes(dataset, PUBLISHED)))


def find_root(root: Path, places: Sequence[str] = PLACES, folders: Sequence[str] = tuple(FOLDERS.values())) -> Path:
    """The place under ``root`` that holds most of the folders, the first of equals; the first place if none holds any."""
    return max((root / place for place in places), key=lambda place: sum((place / folder).is_dir() for folder in folders))


def parse_name(base: str) -> tuple[int, int] | None:
    """(identity, 0-based camera) of a file name without its folder; None if the name gives none."""
    match = _NAME.search(os.path.basename(base))
    if match is None:
        return None
    try:
        pid, camera = int(match[1]), int(match[2])
    except ValueError:  # a date, for example: 2024-05-01_c1.jpg
        return None
    if not (-1 <= pid <= _LARGEST and 1 <= camera <= _LARGEST):
        return None
    return pid, camera - 1


class Naming(NamedTuple):
    """How the pictures of a set in these folders are named."""

    parse: Callable[[str], tuple[int, int] | None]  # file name without its folder -> (identity, 0-based camera); None: no name
    pattern: str  # the same in words, for messages
    tree: str  # what the root should hold, for messages


MARKET = Naming(parse_name, "<identity>_c<camera from 1>...", TREE)


def read_market_layout(
    root: Path,
    need_train: bool,
    name: str,
    protocol: str,
    cameras: str,
    truth: Path | None = None,
    naming: Naming = MARKET,
) -> Dataset:
    """Reads a tree of Market-1501's shape.

    Args:
      root: the folder that holds bounding_box_train/, query/ and bounding_box_test/.
      need_train: whether the first of them must be there.
      name: the data set's name.
      protocol: what stands beside every result.
      cameras: whose cameras the numbers in the names are, see `Split.cameras`.
      truth: folder of ground truth, if any.
      naming: how the pictures are named.

    Raises:
      DataError: a folder is missing, a split is empty, names do not match the pattern (all listed at once), or no query could
        be matched.
    """
    roles = [role for role in FOLDERS if role != "train" or need_train or (root / FOLDERS["train"]).is_dir()]
    require_folders(root, tuple(FOLDERS[role] for role in roles), naming.tree)
    splits, notes = read_splits(root, roles, cameras, naming)
    if "train" not in roles:
        splits["train"], note = without_train(root, FOLDERS["train"])
        notes = (*notes, note)
    return check_dataset(Dataset(name, protocol, **splits, truth=truth, notes=notes), need_train)


def read_splits(
    root: Path, roles: Sequence[str], cameras: str, naming: Naming = MARKET, folders: Mapping[str, str] = FOLDERS
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of ``roles`` (keys of ``folders``) and notes on what was left out.

    Raises:
      DataError: names do not match the pattern (all listed at once).
    """
    strangers: list[str] = []
    notes: list[str] = []
    splits = {}
    for role in roles:
        folder = folders[role]
        skipped = collections.Counter()
        names, pids, camids = [], [], []
        for base in list_pictures(root / folder, skipped):
            parsed = naming.parse(base)
            if parsed is None:
                strangers.append(f"{folder}/{base}")
                continue
            pid, camid = parsed
            if pid == -1:
                skipped["junk images (identity -1)"] += 1
            elif pid == 0 and role != "gallery":
                skipped["distractors (identity 0000), which belong in the gallery only"] += 1
            else:
                names.append(f"{folder}/{base}")
                pids.append(pid)
                camids.append(camid)
        notes += skipped_notes(folder, skipped)
        splits[role] = Split(root, tuple(names), np.array(pids, np.int32), np.array(camids, np.int32), cameras)
    if strangers:
        raise DataError(
            f"{root}: {len(strangers):,} pictures are not named {naming.pattern}: {listed(strangers)}; "
            "rename or remove them, or use the folder reader for a set sorted into one folder per identity"
        )
    return splits, tuple(notes)
