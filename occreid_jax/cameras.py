"""Which camera a network is told: the one rule for training, evaluation, report, embedding and comparison.

A network with a camera embedding has a row for every camera of its training set. A picture of such a camera is told its row
(0 .. C - 1, in ascending order of the camera numbers, so that row and number agree in sets that number their cameras without
gaps). Any other picture has no row, and is never given another camera's: it is told `MEAN` or `ZERO`, which
`occreid_jax.nn.vit.camera_vectors` turns into the mean of the rows or into no vector at all.

What the protocol leaves out of a ranking is another matter: it compares the numbers in `Split.camids` with each other, made-up
ones included, and nothing here changes it. Numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from occreid_jax.errors import UserError

if TYPE_CHECKING:  # config.py asks for `CHOICES` before jax is imported
    from occreid_jax.types import Dataset, Meta, Split

MEAN, ZERO = -1, -2  # what a picture is told in place of a row: the mean of all rows, no vector

# Made-up cameras of published codes for test sets that have none, 0-based. DPM's ``Rename.py`` calls Occluded-REID's queries c1
# and its gallery c3; the readers of PVPM, BPBreID, KPR and light-reid number the two sides in a row.
CONVENTIONS = {"dpm": {"query": 0, "gallery": 2}, "pvpm": {"query": 0, "gallery": 1}}
CHOICES = ("auto", "own", "mean", "zero", "number", *CONVENTIONS)
"""``config.evaluation.camera``: what query and gallery pictures are told.

* ``auto``: their own camera if it was in training, otherwise the mean,
* ``own``: their own camera; one that was not in training is an error,
* ``mean``, ``zero``: all of them the mean of the trained vectors, or none,
* ``number``: the training camera of the same number whatever set it belongs to, as the official codes of TransReID, CLIP-ReID
  and DPM do; a number that no training camera has is an error,
* ``dpm``, ``pvpm``: one training camera for all queries and one for the gallery, see `CONVENTIONS`.
"""
REMEDY = "choose config.evaluation.camera=auto, mean or zero"


@dataclasses.dataclass(frozen=True)
class Cameras:
    """The cameras that a network has vectors for, and the choice for pictures it is tested on."""

    numbers: tuple[int, ...] = ()  # of the training cameras, ascending: entry i is row i; empty: no camera embedding
    network: str = ""  # whose cameras they are, see `Split.cameras`; "": not recorded, so equal numbers are the same camera
    choice: str = "auto"

    def rows(self, split: Split, role: str) -> np.ndarray:
        """What the network is told of every picture, int32 [N]: rows, `MEAN` or `ZERO`.

        ``role`` is "train", "query" or "gallery"; training pictures are always told their own camera. Raises `UserError` if the
        choice asks for a camera that the network has no vector for.
        """
        count, choice = len(split), "auto" if role == "train" else self.choice
        if not self.numbers or choice == "mean":
            return np.full(count, MEAN, np.int32)
        if choice == "zero":
            return np.full(count, ZERO, np.int32)
        if choice in CONVENTIONS:
            return self.by_number(np.full(count, CONVENTIONS[choice][role]), f"config.evaluation.camera={choice}")
        if choice == "number" and split.cameras:
            return self.by_number(split.camids, f"{role} of {split.cameras}")
        if choice == "auto":
            return np.where(self.known(split), self.places(split.camids), MEAN).astype(np.int32)
        if not split.cameras:
            raise UserError(f"config.evaluation.camera={choice}: the {role} pictures have no cameras; {REMEDY}")
        if not (known := self.known(split)).all():
            strange = f"{listed(split.camids[~known])} of {split.cameras} ({role})"
            raise UserError(f"config.evaluation.camera={choice}: {strange} had no picture in training {self.trained()}; {REMEDY}")
        return self.places(split.camids)

    def known(self, split: Split) -> np.ndarray:
        """bool [N]: the picture's camera was in training. Equal numbers in another network of cameras are other cameras."""
        same = bool(split.cameras) and self.network in ("", split.cameras)
        return np.isin(split.camids, self.numbers) & same

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Rows int32 [N] of camera numbers; what stands there for a camera that is not in training means nothing."""
        return np.searchsorted(self.numbers, numbers).astype(np.int32)

    def by_number(self, numbers: np.ndarray, source: str, remedy: str = REMEDY) -> np.ndarray:
        """Rows int32 [N] of the training cameras with these numbers; `UserError` naming those that do not exist."""
        absent = np.setdiff1d(numbers, self.numbers)
        if len(absent):
            raise UserError(f"{source}: the model has no vector for {listed(absent)} {self.trained()}; {remedy}")
        return self.places(numbers)

    def suffix(self, dataset: Dataset) -> str:
        """What the protocol's name ends in: nothing if every test picture is told its own camera, or there is no embedding."""
        if not self.numbers:
            return ""
        if self.choice not in ("auto", "own"):
            return f"+camera={self.choice}"
        known = np.concatenate([self.known(split) for split in (dataset.query, dataset.gallery)])
        return "" if known.all() else "+camera=auto" if known.any() else "+camera=mean"

    def notes(self, dataset: Dataset) -> tuple[str, ...]:
        """One sentence on test pictures without a vector of their own, or none."""
        if not self.numbers or self.choice != "auto":
            return ()
        unknown = {role: split.camids[~self.known(split)] for role, split in tested(dataset) if split.cameras}
        strange = np.concatenate([np.zeros(0, np.int32), *unknown.values()])
        without = [role for role, split in tested(dataset) if not split.cameras]
        told = []
        if len(strange):
            told.append(f"{listed(strange)} ({' and '.join(role for role in unknown if len(unknown[role]))}) had no picture in "
                        f"training {self.trained()}")  # fmt: skip
        if without:
            told.append(f"{' and '.join(without)} pictures have no cameras")
        if not told:
            return ()
        return (f"{'; '.join(told)}: they get the mean of the trained camera vectors (config.evaluation.camera)",)

    def trained(self) -> str:
        """The training cameras in words."""
        owner = f" of {self.network}" if self.network else ""
        return f"(with {listed(self.numbers)}{owner})"


def tested(dataset: Dataset) -> tuple[tuple[str, Split], ...]:
    return ("query", dataset.query), ("gallery", dataset.gallery)


def count(split: Split) -> int:
    """How many cameras took the pictures of a split; 0 where that is not known."""
    return len(np.unique(split.camids)) if split.cameras else 0


def training_cameras(train: Split) -> tuple[tuple[int, ...], str]:
    """``(numbers, network)`` of a training set: its cameras in ascending order; none where cameras are not known."""
    return (tuple(np.unique(train.camids).tolist()), train.cameras) if train.cameras else ((), "")


def of_network(meta: Meta, embedding: bool, choice: str = "auto") -> Cameras:
    """The cameras of a network that was trained on ``meta``; ``embedding``: whether the method has one switched on."""
    if not embedding:
        return Cameras()
    return Cameras(meta.camera_numbers or tuple(range(meta.cameras)), meta.camera_network, choice)


def listed(numbers: Sequence[int] | np.ndarray) -> str:
    """0-based numbers as file names count them: "camera 3", "cameras 1 to 4, 7"."""
    values = np.unique(np.asarray(numbers, np.int64)) + 1
    runs = np.split(values, 1 + np.flatnonzero(np.diff(values) > 1))
    words = [text for run in runs for text in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    return f"camera{'s' if len(values) > 1 else ''} {', '.join(words)}"
