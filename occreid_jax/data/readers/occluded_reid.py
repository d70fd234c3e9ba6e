"""Occluded-REID (Zhuo et al., ICME 2018), tested by a model that was trained on Market-1501.

::

    root/Occluded_REID/occluded_body_images/001/001_01.tif      200 identities with 5 pictures each: the queries
    root/Occluded_REID/whole_body_images/001/001_01.tif         the same identities, 5 pictures each: the gallery
    root/market1501/bounding_box_train/                         the training set, wherever the Market-1501 reader finds it

The protocol's name ``occluded_reid/all200-market1501@1`` says what may differ between papers:

* all200: all 200 identities are tested; an older protocol draws 100 of them,
* market1501: the training set is Market-1501's.

The set has no camera labels: queries and gallery pictures get two made-up numbers, so that the protocol leaves no gallery picture
out. They never reach a network. What a model with a vector per camera is told instead is ``config.evaluation.camera``; it changes
such a model's score, and the protocol's name ends in it. ``dpm`` is what the official code of DPM does (``Rename.py``): queries
take the vector of Market-1501's camera 1, gallery pictures that of camera 3.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np

from occreid_jax.data.readers.checks import check_dataset, count_notes, without_train
from occreid_jax.data.readers.files import list_folders, list_pictures, require_folders, skipped_notes
from occreid_jax.data.readers.market1501 import CAMERAS, FOLDERS, PUBLISHED, find_root, read_splits
from occreid_jax.errors import DataError, listed
from occreid_jax.types import Dataset, Split

HALVES = {"query": "occluded_body_images", "gallery": "whole_body_images"}
CAMIDS = {"query": 0, "gallery": 1}  # made up
# Market-1501 and this set both number people from 1. Added to the training identities, so that different people have different
# numbers; the tested identities keep the numbers of their folders.
TRAINING_OFFSET = 10_000

_PLACES = ("", "Occluded_REID", "Occluded_REID/Occluded_REID", "OccludedREID", "Occluded-REID", "occluded_reid")
_TREE = (
    "occluded_body_images/ and whole_body_images/ with one folder per identity in each (001/001_01.tif), "
    "or a folder Occluded_REID/ with these"
)
_TRAINING_TREE = (
    "the training set of Market-1501 beside Occluded_REID/: bounding_box_train/, "
    "or a folder market1501/ or Market-1501-v15.09.15/ with it"
)
_PUBLISHED = {"train": PUBLISHED["train"], "query": (1_000, 200), "gallery": (1_000, 200)}
_NUMBER = re.compile("[0-9]{1,9}")
_BEGINNING = re.compile("([0-9]{1,9})_")


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens Occluded-REID and the training set of Market-1501 below the same ``root``; the splits have roots of their own.

    Raises:
      DataError: a folder is missing, a split is empty, or names give no identity or two (all listed at once).
    """
    test = find_root(root, _PLACES, tuple(HALVES.values()))
    require_folders(test, tuple(HALVES.values()), _TREE)
    splits, notes = _read_train(root, need_train)
    strangers: list[str] = []
    for role in HALVES:
        splits[role], more = _read_half(test, role, strangers)
        notes += more
    if strangers:
        raise DataError(
            f"{test}: {len(strangers):,} entries give no identity: {listed(strangers)}; rename or remove them: folders are named "
            "by a number from 1, pictures begin with the same number (001/001_01.tif)"
        )
    notes += ("cameras of query and gallery are not known: every gallery picture counts",)
    dataset = check_dataset(Dataset("occluded_reid", "occluded_reid/all200-market1501@1", **splits, notes=notes), need_train)
    return dataclasses.replace(dataset, notes=(*notes, *count_notes(dataset, _PUBLISHED)))


def _read_train(root: Path, need_train: bool) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The training set of Market-1501, and notes; an empty one if there is none and none is needed."""
    market = find_root(root)
    if not need_train and not (market / FOLDERS["train"]).is_dir():
        train, note = without_train(market, FOLDERS["train"])
        return {"train": train}, (note,)
    require_folders(market, (FOLDERS["train"],), _TRAINING_TREE)
    splits, notes = read_splits(market, ("train",), CAMERAS)
    return {"train": dataclasses.replace(splits["train"], pids=splits["train"].pids + np.int32(TRAINING_OFFSET))}, notes


def _read_half(root: Path, role: str, strangers: list[str]) -> tuple[Split, tuple[str, ...]]:
    """Query or gallery, and notes on what was passed over; what gives no identity, or two, goes to ``strangers``."""
    half = HALVES[role]
    skipped = collections.Counter()
    names, pids = [], []
    for identity in list_folders(root / half, skipped):
        number = int(identity) if _NUMBER.fullmatch(identity) else 0
        pictures = list_pictures(root / half / identity, skipped)
        if not pictures:
            skipped["identity folders without a picture"] += 1
        elif number == 0:
            strangers.append(f"{half}/{identity}/")
            continue
        for picture in pictures:
            beginning = _BEGINNING.match(picture)
            if beginning and int(beginning[1]) != number:
                strangers.append(f"{half}/{identity}/{picture}")
            names.append(f"{half}/{identity}/{picture}")
            pids.append(number)
    cameras = np.full(len(names), CAMIDS[role], np.int32)
    return Split(root, tuple(names), np.array(pids, np.int32), cameras), skipped_notes(half, skipped)
