"""Partial-REID (Zheng et al., ICCV 2015), tested by a model that was trained on Market-1501.

::

    root/Partial_REID/whole_body_images/001_01.jpg        60 identities with 5 pictures each: the gallery
    root/Partial_REID/partial_body_images/001_01.jpg      crops of them by hand: the queries of "partial"
    root/Partial_REID/occluded_body_images/001_01.jpg     pictures with occluders: the queries of "occluded"
    root/market1501/bounding_box_train/                   the training set, wherever the Market-1501 reader finds it

Pictures may also lie in a folder per identity. Two query sets go by the name of Partial-REID and do not compare: fast-reid and
BPBreID take the crops, PVPM and KPR the occluded pictures. The protocol says which: ``partial_reid/partial-market1501@1`` or
``partial_reid/occluded-market1501@1``. There are no camera labels (`occreid_jax.data.readers.halves`); fast-reid takes the
number of a picture for its camera and so leaves the whole picture of the same number out, which these protocols do not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from occreid_jax.data.readers import halves
from occreid_jax.data.readers.checks import check_dataset, count_notes
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.halves import CAMIDS, OCCLUDED, PARTIAL, WHOLE
from occreid_jax.data.readers.market1501 import PUBLISHED, find_root
from occreid_jax.types import Dataset, Split

PROTOCOLS = {"": "partial", "partial": "crops by hand are the queries", "occluded": "occluded pictures are"}
_PLACES = ("", "Partial_REID", "Partial-REID", "Partial-REID_Dataset", "PartialREID", "partial_reid")
_TREE = "partial_body_images/ (or occluded_body_images/) and whole_body_images/ with pictures like 001_01.jpg, or a folder "
_PUBLISHED = {"train": PUBLISHED["train"], "query": (300, 60), "gallery": (300, 60)}


def read(root: Path, need_train: bool = True, protocol: str = "") -> Dataset:
    """Opens Partial-REID and the training set of Market-1501 below the same ``root``; the splits have roots of their own.

    Raises:
      DataError: a folder is missing, a split is empty, or names give no identity or two (all listed at once).
    """
    halves.check_protocol("partial_reid", protocol, PROTOCOLS)
    protocol = protocol or "partial"
    folders = {"query": OCCLUDED if protocol == "occluded" else PARTIAL, "gallery": WHOLE}
    test = find_root(root, _PLACES, (OCCLUDED, PARTIAL, WHOLE))
    require_folders(test, tuple(folders.values()), f"{_TREE}Partial_REID/ with these")
    train, notes = halves.market_training(root, need_train, "Partial_REID")
    strangers: list[str] = []
    splits = {}
    for role, folder in folders.items():
        splits[role], more = read_any_half(test, folder, CAMIDS[role], strangers)
        notes += more
    halves.refuse(test, strangers, "pictures begin with a number from 1 and _ (001_01.jpg)")
    notes = (*notes, halves.UNKNOWN_CAMERAS)
    name = f"partial_reid/{protocol}-market1501@1"
    dataset = check_dataset(Dataset("partial_reid", name, train, **splits, notes=notes), need_train)
    return dataclasses.replace(dataset, notes=(*notes, *count_notes(dataset, _PUBLISHED)))


def read_any_half(root: Path, half: str, camid: int, strangers: list[str]) -> tuple[Split, tuple[str, ...]]:
    """One half, whichever way it is laid out: pictures directly in it, or folders of them."""
    flat = any(path.is_file() and path.name[:1].isdigit() for path in (root / half).iterdir())
    return (halves.read_flat_half if flat else halves.read_half)(root, half, camid, strangers)
