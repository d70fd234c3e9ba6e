"""DukeMTMC-reID (Ristani et al., ECCV workshops 2016; Zheng et al., ICCV 2017), in Market-1501's folders.

A name such as ``0005_c2_f0046985.jpg`` gives the identity (0005), the camera (2 of 8) and the frame. There is no junk and no
identity 0000: the 408 identities of the gallery that are no query's have numbers like all others. Identity numbers have gaps and
go up to 7140.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from occreid_jax.data.readers.checks import count_notes
from occreid_jax.data.readers.market1501 import Naming, find_root, read_market_layout
from occreid_jax.types import Dataset

NOTICE = "DukeMTMC was withdrawn by its authors in 2019 and cannot be downloaded; docs/datasets.md says more"
# TransReID has DukeMTMC-reID/, torchreid dukemtmc-reid/DukeMTMC-reID/, CLIP-ReID dukemtmcreid/DukeMTMC-reID/.
_PARENTS = ("dukemtmc", "dukemtmc-reid", "dukemtmcreid", "DukeMTMC-reID")
PLACES = ("", *_PARENTS, *(f"{parent}/DukeMTMC-reID" for parent in _PARENTS))
CAMERAS = "dukemtmc"  # of all sets that are made of its pictures
_PUBLISHED = {"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, 1_110)}
_NAME = re.compile(r"([0-9]{1,9})_c([1-8])_f[0-9]")


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens DukeMTMC-reID. ``root`` holds the three folders, or a folder such as ``DukeMTMC-reID/`` that does.

    Raises:
      DataError: see `read_duke_layout`.
    """
    return read_duke_layout(root, need_train, PLACES, "DukeMTMC-reID", "dukemtmc", _PUBLISHED)


def read_duke_layout(
    root: Path, need_train: bool, places: Sequence[str], folder: str, name: str, published: Mapping[str, tuple[int, int]]
) -> Dataset:
    """Reads a set that is made of DukeMTMC's pictures and keeps their names.

    Args:
      root: where data sets lie.
      need_train: whether the folder of the training set must be there.
      places: folders below it that may hold bounding_box_train/, query/ and bounding_box_test/.
      folder: the one of them that messages name.
      name: the data set's name.
      published: {role: (images, identities)}; other numbers become a note.

    Raises:
      DataError: see `read_market_layout`; names with identity 0, with a camera beyond 8 or without a frame do not match either.
    """
    tree = (
        "bounding_box_train/, query/ and bounding_box_test/ with names like 0005_c2_f0046985.jpg, "
        f"or a folder {folder}/ with these"
    )
    naming = Naming(parse_name, "<identity from 1>_c<camera from 1 to 8>_f<frame>", tree)
    dataset = read_market_layout(find_root(root, places), need_train, name, f"{name}/std@1", CAMERAS, naming=naming)
    return dataclasses.replace(dataset, notes=(NOTICE, *dataset.notes, *count_notes(dataset, published)))


def parse_name(base: str) -> tuple[int, int] | None:
    """(identity, 0-based camera) of a file name without its folder; None if the name gives none."""
    match = _NAME.match(base)
    if match is None or int(match[1]) == 0:
        return None
    return int(match[1]), int(match[2]) - 1
