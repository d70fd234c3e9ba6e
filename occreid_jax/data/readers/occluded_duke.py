"""Occluded-Duke (Miao et al., ICCV 2019): DukeMTMC-reID sorted anew so that every query is occluded.

Folders, names and cameras are those of DukeMTMC-reID. The gallery is unchanged, and 1,870 of the 2,210 queries lie in it too, as
the very same file: the rule that leaves out gallery pictures of the query's own identity and camera hides them, so the camera
numbers of the names must be kept.
"""

from __future__ import annotations

from pathlib import Path

from occreid_jax.data.readers.dukemtmc import read_duke_layout
from occreid_jax.types import Dataset

_PLACES = ("", "Occluded_Duke", "occluded_duke", "dukemtmcreid/Occluded_Duke")  # the last is CLIP-ReID's
_PUBLISHED = {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)}  # of the authors' lists


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens Occluded-Duke. ``root`` holds the three folders, or ``Occluded_Duke/`` that does.

    Raises:
      DataError: see `read_duke_layout`.
    """
    return read_duke_layout(root, need_train, _PLACES, "Occluded_Duke", "occluded_duke", _PUBLISHED)
