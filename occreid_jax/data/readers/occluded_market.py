"""Occluded-Market (the lists of LiuDHS/Occluded-Market-Dataset): Market-1501 and frames of MARS, so that every query is occluded.

::

    root/Occluded_Market/occluded_train/       bounding_box_train/ will do
    root/Occluded_Market/occluded_query/       query/ will do
    root/Occluded_Market/bounding_box_test/    the gallery of Market-1501

98 % of the queries are frames of MARS, renamed to Market-1501's pattern (``0001_c1s0004_011.jpg``); `launch/prepare_data.py
derive` makes the folders of both sets and the lists. People and cameras are Market-1501's. 29 people of the training lists occur
in the gallery, though none of them as a query: the doctor and every run say so. The distractors, identity 0000, stay in the
gallery; one public reader drops them, and its numbers do not compare.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from occreid_jax.data.readers.checks import check_dataset, count_notes, without_train
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.market1501 import CAMERAS, find_root, read_splits
from occreid_jax.types import Dataset

FOLDERS = {"train": "occluded_train", "query": "occluded_query", "gallery": "bounding_box_test"}
_OTHERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_PLACES = ("", "Occluded_Market", "Occluded-Market", "occluded_market", "OccludedMarket")
_TREE = "occluded_train/, occluded_query/ and bounding_box_test/, or a folder Occluded_Market/ with these"
_PUBLISHED = {"train": (9_287, 780), "query": (2_343, 533), "gallery": (15_913, 751)}  # of the authors' lists


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens Occluded-Market. ``root`` holds the three folders, or ``Occluded_Market/`` that does.

    Raises:
      DataError: as `occreid_jax.data.readers.market1501.read_market_layout`.
    """
    place = find_root(root, _PLACES, (FOLDERS["train"], FOLDERS["query"]))
    if not any((place / FOLDERS[role]).is_dir() for role in ("train", "query")):
        place = find_root(root, (*_PLACES[1:], ""))  # by Market-1501's names; that set itself may lie in the root
    folders = {role: FOLDERS[role] if (place / FOLDERS[role]).is_dir() else _OTHERS[role] for role in FOLDERS}
    folders = {role: name if (place / name).is_dir() else FOLDERS[role] for role, name in folders.items()}
    roles = [role for role in FOLDERS if role != "train" or need_train or (place / folders["train"]).is_dir()]
    require_folders(place, tuple(folders[role] for role in roles), _TREE)
    splits, notes = read_splits(place, roles, CAMERAS, folders=folders)
    if "train" not in splits:
        splits["train"], note = without_train(place, folders["train"])
        notes = (*notes, note)
    dataset = check_dataset(Dataset("occluded_market", "occluded_market/std@1", **splits, notes=notes), need_train)
    return dataclasses.replace(dataset, notes=(*notes, *count_notes(dataset, _PUBLISHED)))
