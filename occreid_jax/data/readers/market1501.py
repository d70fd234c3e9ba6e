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
from pathlib import Path

import numpy as np

from occreid_jax.data.readers.checks import check_dataset
from occreid_jax.data.readers.files import list_pictures, require_folders, skipped_notes
from occreid_jax.errors import DataError, listed
from occreid_jax.types import Dataset, Split

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TREE = "bounding_box_train/, query/ and bounding_box_test/ with names like 0001_c1s1_000151_01.jpg"
_PLACES = ("", "market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15")
_PUBLISHED = {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, 751)}

# The camera may have several digits, and only the base name is searched: a root such as exp_10_c2/ would match as well.
_NAME = re.compile(r"([-\d]+)_c(\d+)")
_LARGEST = np.iinfo(np.int32).max


def read(root: Path) -> Dataset:
    """Opens Market-1501. ``root`` holds the three folders, or ``market1501/`` or ``Market-1501-v15.09.15/`` that does.

    Raises:
      DataError: see `read_market_layout`.
    """
    dataset = read_market_layout(find_root(root), name="market1501", protocol="market1501/std@1")
    notes = list(dataset.notes)
    for role, (images, identities) in _PUBLISHED.items():
        split = getattr(dataset, role)
        found = (len(split), len(np.unique(split.pids)))
        if found != (images, identities):
            notes.append(
                f"{role}: {found[0]:,} images of {found[1]:,} identities; the published set has {images:,} of {identities:,}, "
                "so results do not compare with published ones"
            )
    return dataclasses.replace(dataset, notes=tuple(notes))


def find_root(root: Path) -> Path:
    """The known place under ``root`` that holds most of the three folders; ``root`` itself if none holds any."""
    places = [root / place for place in _PLACES]
    return max(places, key=lambda place: sum((place / folder).is_dir() for folder in FOLDERS.values()))  # the first of equals


def read_market_layout(root: Path, name: str, protocol: str, truth: Path | None = None) -> Dataset:
    """Reads a tree of Market-1501's shape.

    Args:
      root: the folder that holds bounding_box_train/, query/ and bounding_box_test/.
      name: the data set's name.
      protocol: what stands beside every result.
      truth: folder of ground truth, if any.

    Raises:
      DataError: a folder is missing, a split is empty, names do not match the pattern (all listed at once), or no query could
        be matched.
    """
    require_folders(root, tuple(FOLDERS.values()), TREE)
    strangers: list[str] = []
    notes: list[str] = []
    splits = {}
    for role, folder in FOLDERS.items():
        skipped = collections.Counter()
        names, pids, camids = [], [], []
        for base in list_pictures(root / folder, skipped):
            parsed = parse_name(base)
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
        splits[role] = Split(root, tuple(names), np.array(pids, np.int32), np.array(camids, np.int32))
    if strangers:
        raise DataError(
            f"{root}: {len(strangers):,} pictures are not named <identity>_c<camera from 1>...: {listed(strangers)}; "
            "rename or remove them, or use the folder reader for a set sorted into one folder per identity"
        )
    return check_dataset(Dataset(name, protocol, **splits, truth=truth, notes=tuple(notes)))


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
