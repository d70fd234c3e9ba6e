"""What every reader checks before it hands a data set over: can a result be computed on it at all?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from occreid_jax.errors import DataError
from occreid_jax.types import Dataset, Split


def match_counts(query: Split, gallery: Split) -> tuple[np.ndarray, np.ndarray]:
    """Per query, how many gallery images show the same identity.

    Returns:
      (at another camera, at the same camera): two int64 [Q] arrays. Only the first kind counts as a match in the Market-1501
      protocol; the second kind is left out of that query's ranking.
    """
    everywhere = _occurrences(query.pids.astype(np.int64), gallery.pids.astype(np.int64))
    cameras, places = np.unique(np.concatenate([query.camids, gallery.camids]), return_inverse=True)
    places = places[: len(query)], places[len(query) :]
    both = [
        split.pids.astype(np.int64) * len(cameras) + place for split, place in zip((query, gallery), places, strict=True)
    ]
    same_camera = _occurrences(*both)
    return everywhere - same_camera, same_camera


def _occurrences(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, side="right") - np.searchsorted(ordered, values, side="left")


def without_train(root: Path, folder: str) -> tuple[Split, str]:
    """The training set of a set that has none, an empty split, and a note on it."""
    nothing = np.zeros(0, np.int32)
    return Split(root, (), nothing, nothing), f"there is no {folder}/, so this set can be evaluated and not trained on"


def check_dataset(dataset: Dataset, need_train: bool = True) -> Dataset:
    """Returns ``dataset`` if it can be trained on (unless ``need_train`` is False) and evaluated.

    Raises:
      DataError: an empty split; no query identity in the gallery; or no query with a match at another camera.
    """
    for role in ("train", "query", "gallery"):
        split = getattr(dataset, role)
        if len(split) == 0 and (role != "train" or need_train):
            raise DataError(
                f"{dataset.name}: the {role} split under {split.root} has no usable picture "
                f"(.jpg, .png, .webp, .tif or another kind that is decoded){_because(dataset)}"
            )
    query, gallery = dataset.query, dataset.gallery
    elsewhere, same_camera = match_counts(query, gallery)
    if not (elsewhere + same_camera).any():
        raise DataError(
            f"{dataset.name}: none of the {len(np.unique(query.pids)):,} query identities occurs in the gallery under "
            f"{gallery.root}: both splits must name the same people by the same identity"
        )
    if not elsewhere.any():
        raise DataError(
            f"{dataset.name}: no query has a match at another camera, so there is nothing to rank "
            f"(gallery images of the query's own camera do not count): the pictures under {query.root} need camera "
            'numbers that differ, or, in a set without cameras, use the folder reader with camera="none"'
        )
    return dataset


def count_notes(dataset: Dataset, published: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """One note for each role of ``published``, {role: (images, identities)}, that was found with other numbers."""
    notes = []
    for role, (images, identities) in published.items():
        split = getattr(dataset, role)
        found = (len(split), len(np.unique(split.pids)))
        if len(split) and found != (images, identities):
            notes.append(
                f"{role}: {found[0]:,} images of {found[1]:,} identities; the published set has {images:,} of {identities:,}, "
                "so results do not compare with published ones"
            )
    return tuple(notes)


def _because(dataset: Dataset) -> str:
    return f"; {'; '.join(dataset.notes)}" if dataset.notes else ""
