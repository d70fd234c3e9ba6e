"""Occluded-REID (Zhuo et al., ICME 2018).

::

    root/Occluded_REID/occluded_body_images/001/001_01.tif      200 identities with 5 pictures each: the queries
    root/Occluded_REID/whole_body_images/001/001_01.tif         the same identities, 5 pictures each: the gallery
    root/market1501/bounding_box_train/                         the training set, wherever the Market-1501 reader finds it

Protocols, and the names that stand beside results:

* all200, ``occluded_reid/all200-market1501@1``: all 200 identities are tested by a model that was trained on Market-1501;
* half100, ``occluded_reid/half100-trial0@1``: the older one of the set's authors. 100 identities, drawn by the number of the
  trial, are trained on with both halves, the other 100 are tested; papers give the mean of ten trials. The gallery is half as
  large, so its numbers do not compare with those of all200, also where a model that was trained elsewhere is tested on it.

The set has no camera labels (`occreid_jax.data.readers.halves`). What a model with a vector per camera is told is
``config.evaluation.camera``; it changes such a model's score, and the protocol's name ends in it. ``dpm`` is what the official
code of DPM does (``Rename.py``): queries take the vector of Market-1501's camera 1, gallery pictures that of camera 3.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from occreid_jax.data.readers import halves
from occreid_jax.data.readers.checks import check_dataset, count_notes
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.halves import CAMIDS, OCCLUDED, WHOLE
from occreid_jax.data.readers.market1501 import PUBLISHED, find_root
from occreid_jax.types import Dataset, Split

PROTOCOLS = {"": "all200", "all200": "all 200 identities", "half100": "100 of them, drawn by config.data.trial"}
NAMING = "folders are named by a number from 1, pictures begin with the same number (001/001_01.tif)"

_PLACES = ("", "Occluded_REID", "Occluded_REID/Occluded_REID", "OccludedREID", "Occluded-REID", "occluded_reid")
_TREE = (
    "occluded_body_images/ and whole_body_images/ with one folder per identity in each (001/001_01.tif), "
    "or a folder Occluded_REID/ with these"
)
_PUBLISHED = {"train": PUBLISHED["train"], "query": (1_000, 200), "gallery": (1_000, 200)}
_HALF = {"train": (1_000, 100), "query": (500, 100), "gallery": (500, 100)}


def read(root: Path, need_train: bool = True, protocol: str = "", trial: int = 0) -> Dataset:
    """Opens Occluded-REID and, for all200, the training set of Market-1501 below the same ``root``; the splits have roots of
    their own. ``trial`` counts from 0 and is for half100 alone.

    Raises:
      DataError: a folder is missing, a split is empty, or names give no identity or two (all listed at once).
    """
    halves.check_protocol("occluded_reid", protocol, PROTOCOLS)
    test = find_root(root, _PLACES, (OCCLUDED, WHOLE))
    require_folders(test, (OCCLUDED, WHOLE), _TREE)
    half = protocol == "half100"
    train, notes = (None, ()) if half else halves.market_training(root, need_train, "Occluded_REID")
    strangers: list[str] = []
    query, query_notes = halves.read_half(test, OCCLUDED, CAMIDS["query"], strangers)
    gallery, gallery_notes = halves.read_half(test, WHOLE, CAMIDS["gallery"], strangers)
    halves.refuse(test, strangers, NAMING)
    notes += (*query_notes, *gallery_notes, halves.UNKNOWN_CAMERAS)
    if half:
        train, query, gallery = drawn(query, gallery, trial)
    name = f"half100-trial{trial}" if half else "all200-market1501"
    dataset = Dataset("occluded_reid", f"occluded_reid/{name}@1", train, query, gallery, notes=notes)
    return dataclasses.replace(
        check_dataset(dataset, need_train), notes=(*notes, *count_notes(dataset, _HALF if half else _PUBLISHED))
    )


def drawn(query: Split, gallery: Split, trial: int) -> tuple[Split, Split, Split]:
    """(train, query, gallery): half of the identities, drawn by ``trial``, are trained on with the pictures of both halves."""
    identities = np.union1d(query.pids, gallery.pids)
    trained = np.random.default_rng((0x0CC, trial)).permutation(identities)[: len(identities) // 2]
    rows = [np.isin(split.pids, trained) for split in (query, gallery)]
    train = halves.joined(*(chosen(split, each) for split, each in zip((query, gallery), rows, strict=True)))
    return train, chosen(query, ~rows[0]), chosen(gallery, ~rows[1])


def chosen(split: Split, rows: np.ndarray) -> Split:
    """The pictures of a split that ``rows`` bool [N] picks."""
    names = tuple(name for name, row in zip(split.names, rows, strict=True) if row)
    return dataclasses.replace(split, names=names, pids=split.pids[rows], camids=split.camids[rows])
