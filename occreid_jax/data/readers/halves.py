"""Sets of two halves, occluded and whole pictures of the same people, and the training set of Market-1501 for those without one.

Such sets have no camera labels. Queries and gallery pictures get two made-up numbers, so that the protocol leaves no gallery
picture out. They never reach a network.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from occreid_jax.data.readers.checks import without_train
from occreid_jax.data.readers.files import list_folders, list_pictures, require_folders, skipped_notes
from occreid_jax.data.readers.market1501 import CAMERAS, FOLDERS, find_root, read_splits
from occreid_jax.errors import DataError, listed
from occreid_jax.types import Split

OCCLUDED, WHOLE, PARTIAL = "occluded_body_images", "whole_body_images", "partial_body_images"
CAMIDS = {"query": 0, "gallery": 1}  # made up
UNKNOWN_CAMERAS = "cameras of query and gallery are not known: every gallery picture counts"
# Market-1501 and these sets all number people from 1. Added to the training identities, so that different people have different
# numbers; the tested identities keep the numbers of their folders.
TRAINING_OFFSET = 10_000

_NUMBER = re.compile("[0-9]{1,9}")
_BEGINNING = re.compile("([0-9]{1,9})_")


def read_half(root: Path, half: str, camid: int, strangers: list[str]) -> tuple[Split, tuple[str, ...]]:
    """The pictures of the folder ``half`` below ``root``, one folder per identity in it, and notes on what was passed over.

    Folders are named by a number from 1; what gives no identity, or two, goes to ``strangers``.
    """
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
    return split_of(root, names, pids, camid), skipped_notes(half, skipped)


def read_flat_half(root: Path, half: str, camid: int, strangers: list[str]) -> tuple[Split, tuple[str, ...]]:
    """`read_half` for pictures that lie directly in ``half`` and begin with their identity: ``001_01.jpg``."""
    skipped = collections.Counter()
    names, pids = [], []
    for picture in list_pictures(root / half, skipped):
        beginning = _BEGINNING.match(picture)
        if beginning is None or int(beginning[1]) == 0:
            strangers.append(f"{half}/{picture}")
            continue
        names.append(f"{half}/{picture}")
        pids.append(int(beginning[1]))
    return split_of(root, names, pids, camid), skipped_notes(half, skipped)


def split_of(root: Path, names: Sequence[str], pids: Sequence[int], camid: int) -> Split:
    """A split whose pictures all have one made-up camera."""
    return Split(root, tuple(names), np.array(pids, np.int32), np.full(len(names), camid, np.int32))


def joined(*splits: Split) -> Split:
    """Splits of one root as one, sorted by name."""
    names = [name for split in splits for name in split.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    pids, camids = (np.concatenate([getattr(split, name) for split in splits])[order] for name in ("pids", "camids"))
    return Split(splits[0].root, tuple(names[row] for row in order), pids, camids)


def refuse(root: Path, strangers: Sequence[str], naming: str) -> None:
    """Raises `DataError` if there are ``strangers``; ``naming`` tells how folders and pictures should be called."""
    if strangers:
        raise DataError(
            f"{root}: {len(strangers):,} entries give no identity: {listed(strangers)}; rename or remove them: {naming}"
        )


def check_protocol(name: str, protocol: str, known: Mapping[str, str]) -> None:
    """Raises `DataError` unless ``protocol`` is one of ``known``, {name: what it is}."""
    if protocol not in known:
        told = "; ".join(f'"{each}": {what}' for each, what in known.items())
        raise DataError(f"{name} has no protocol {protocol!r} (config.data.protocol): {told}")


def market_training(root: Path, need_train: bool, beside: str) -> tuple[Split, tuple[str, ...]]:
    """The training set of Market-1501 below ``root``, and notes; an empty one if there is none and none is needed. ``beside``
    names the set that it is wanted for."""
    market = find_root(root)
    if not need_train and not (market / FOLDERS["train"]).is_dir():
        train, note = without_train(market, FOLDERS["train"])
        return train, (note,)
    tree = (
        f"the training set of Market-1501 beside {beside}/: bounding_box_train/, "
        "or a folder market1501/ or Market-1501-v15.09.15/ with it"
    )
    require_folders(market, (FOLDERS["train"],), tree)
    splits, notes = read_splits(market, ("train",), CAMERAS)
    return dataclasses.replace(splits["train"], pids=splits["train"].pids + np.int32(TRAINING_OFFSET)), notes
