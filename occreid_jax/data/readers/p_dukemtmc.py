"""P-DukeMTMC-reID (Zhuo et al., ICME 2018): DukeMTMC-reID's pictures, sorted by whether the person is occluded.

::

    root/P-DukeMTMC-reid/train/occluded_body_images/0005/0005_1.jpg     whole_body_images/ beside it
    root/P-DukeMTMC-reid/test/occluded_body_images/...                  the queries
    root/P-DukeMTMC-reid/test/whole_body_images/...                     the gallery

Protocols, and the names that stand beside results:

* supervised, ``p_dukemtmc/supervised@1``: trained on both halves of ``train``;
* market1501, ``p_dukemtmc/market1501@1``: tested by a model that was trained on Market-1501, which lies below the same root.

Every public reader makes cameras up, and so do these: other pictures of the query's own camera count as hits. The pictures and
people are Duke's, so no model that was trained on DukeMTMC-reID or Occluded-Duke may be tested here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from occreid_jax.data.readers import halves
from occreid_jax.data.readers.checks import check_dataset, count_notes, without_train
from occreid_jax.data.readers.dukemtmc import NOTICE
from occreid_jax.data.readers.files import require_folders
from occreid_jax.data.readers.halves import CAMIDS, OCCLUDED, WHOLE
from occreid_jax.data.readers.market1501 import PUBLISHED, find_root
from occreid_jax.types import Dataset

PROTOCOLS = {"": "supervised", "supervised": "trained on its own training set", "market1501": "trained on Market-1501"}
NAMES = ("P-DukeMTMC-reid", "P-DukeMTMC-reID", "P_DukeMTMC-reid", "P_DukeMTMC_reid", "P-DukeMTMC", "p_dukemtmc")
_PLACES = ("", *NAMES, *(f"{name}/P-DukeMTMC-reid" for name in NAMES))
_TREE = (
    "train/ and test/, in each occluded_body_images/ and whole_body_images/ with one folder per identity (0005/0005_1.jpg), "
    "or a folder P-DukeMTMC-reid/ with these"
)
_PUBLISHED = {"train": (12_927, 665), "query": (2_163, 634), "gallery": (9_053, 634)}


def read(root: Path, need_train: bool = True, protocol: str = "") -> Dataset:
    """Opens P-DukeMTMC-reID. ``root`` holds train/ and test/, or a folder such as ``P-DukeMTMC-reid/`` that does.

    Raises:
      DataError: a folder is missing, a split is empty, or names give no identity or two (all listed at once).
    """
    halves.check_protocol("p_dukemtmc", protocol, PROTOCOLS)
    folders = {part: (f"{part}/{OCCLUDED}", f"{part}/{WHOLE}") for part in ("train", "test")}
    place = find_root(root, _PLACES, (*folders["test"], *folders["train"]))
    require_folders(place, folders["test"], _TREE)
    strangers: list[str] = []
    query, notes = halves.read_half(place, folders["test"][0], CAMIDS["query"], strangers)
    gallery, more = halves.read_half(place, folders["test"][1], CAMIDS["gallery"], strangers)
    notes += more
    published = dict(_PUBLISHED)
    if protocol == "market1501":
        train, more = halves.market_training(root, need_train, "P-DukeMTMC-reid")
        published["train"] = PUBLISHED["train"]
    elif not need_train and not (place / "train").is_dir():
        train, note = without_train(place, "train")
        more = (note,)
    else:
        require_folders(place, folders["train"], _TREE)
        pieces = [halves.read_half(place, folder, camid, strangers) for camid, folder in enumerate(folders["train"])]
        train, more = halves.joined(*(split for split, _ in pieces)), tuple(note for _, told in pieces for note in told)
    halves.refuse(place, strangers, "folders are named by a number from 1, pictures begin with the same number (0005/0005_1.jpg)")
    notes = (NOTICE, *notes, *more, halves.UNKNOWN_CAMERAS)
    name = f"p_dukemtmc/{protocol or 'supervised'}@1"
    dataset = check_dataset(Dataset("p_dukemtmc", name, train, query, gallery, notes=notes), need_train)
    return dataclasses.replace(dataset, notes=(*notes, *count_notes(dataset, published)))
