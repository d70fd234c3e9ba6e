"""Body-part labels that lie in files beside the pictures of a set: which file is whose, and how each kind is read.

Two kinds are known; both become labels as `occreid_jax.parts` numbers them, without the OCCLUDED bit unless a map has it.

* "fields": ``.npy`` files as BPBreID gives them out, float [36, h, w] in 0 .. 1, the confidences of 17 key points and 19 limbs of
  COCO in OpenPifPaf's order. They are grouped to eight parts (`parts_of_fields`).
* "label_map": 8-bit pictures whose grey values or palette indices are numbers of classes (`CLASSES`).

A folder may hold ``labels.json``, ``{"classes": NAME}`` or ``{"classes": {"0": "background", "1": "hat", ...}}``, which says what
the values of its maps are. Files come from anywhere: nothing in them is executed, and one that does not fit is named.
"""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy import ndimage

from occreid_jax.data.decode import Decoded, reason
from occreid_jax.errors import DataError, listed
from occreid_jax.files import read_json
from occreid_jax.parts import OCCLUDED, PARTS
from occreid_jax.types import Dataset

KINDS = ("fields", "label_map")
FORMATS = ("auto", *KINDS, "lip", "atr")
"""``config.data.parsing_format``: "auto" looks at the folder; "lip" and "atr" are label maps with the classes of these sets."""
ROLES = ("train", "query", "gallery")
TRUTH, NONE = "truth", "none"
"""Kinds of `Parsing` without files: the renderer's labels, and none at all. The second is also a value of ``config.data.parsing``
for a synthetic set that is to be used as if nobody had labelled it."""
_LARGEST = 4096  # cells along a side of a confidence field; a header that tells of more is not read

# Channels of the eight parts: key points 0 .. 16, limbs 17 .. 35. BPBreID also counts the limb from hip to hip, 21, to the left
# leg, but not to the right one; here it belongs to the torso alone.
GROUPS = {
    "head": (0, 1, 2, 3, 4, 29, 30, 31, 32, 33, 34, 35),
    "left_arm": (5, 7, 9, 25, 27),
    "right_arm": (6, 8, 10, 26, 28),
    "torso": (11, 12, 21, 22, 23, 24),
    "left_leg": (13, 17, 18),
    "right_leg": (14, 19, 20),
    "left_foot": (15,),
    "right_foot": (16,),
}
CHANNELS, THRESHOLD = 36, 0.5

# Classes of human parsing -> our part, or a pair of parts where the class does not tell the side.
_SIDELESS = {"arm": ("left_arm", "right_arm"), "leg": ("left_leg", "right_leg"), "foot": ("left_foot", "right_foot")}
_CODES = {name: 32 + place for place, name in enumerate(_SIDELESS)}
_UNKNOWN = 255
_MEANING = {
    "background": ("background", "bag", "others"),
    "head": ("head", "hat", "hair", "face", "sunglasses", "neck"),
    "torso": ("torso", "upper-clothes", "dress", "coat", "jumpsuits", "scarf", "belt", "torso-skin", "tie"),
    "arm": ("arm", "glove", "gloves"),
    "leg": ("leg", "pants", "skirt", "legs"),
    "foot": ("foot", "socks", "shoe", "shoes"),
} | {
    f"{side}_{part}": (f"{side}-{part}", *more)
    for side in ("left", "right")
    for part, more in (("arm", (f"{side}-hand",)), ("leg", ()), ("foot", (f"{side}-shoe", f"{side}-sock")))
}  # fmt: skip
CLASSES = {
    "ours": tuple(name.replace("_", "-") for name in PARTS),
    "lip": (
        "background", "hat", "hair", "glove", "sunglasses", "upper-clothes", "dress", "coat", "socks", "pants", "jumpsuits",
        "scarf", "skirt", "face", "left-arm", "right-arm", "left-leg", "right-leg", "left-shoe", "right-shoe",
    ),
    "atr": (
        "background", "hat", "hair", "sunglasses", "upper-clothes", "skirt", "pants", "dress", "belt", "left-shoe", "right-shoe",
        "face", "left-leg", "right-leg", "left-arm", "right-arm", "bag", "scarf",
    ),
}  # fmt: skip
"""Names of the values 0, 1, 2, ... of label maps: ours (`occreid_jax.parts`), LIP's and ATR's."""


@dataclasses.dataclass(frozen=True)
class Parsing:
    """Where the labels of a set come from."""

    kind: str  # `TRUTH`, `NONE` or one of `KINDS`
    paths: Mapping[str, tuple[Path | None, ...]]  # by role, in the split's order; None for a picture without labels
    decode: Callable[..., Decoded] | None = None  # (path, image_size=...) -> labels uint8 [H, W]; None where no file is read
    words: str = ""  # changes with the meaning of what is read

    def parsed(self, role: str) -> np.ndarray:
        """bool [N]: which pictures of a split have labels."""
        return np.array([self.kind == TRUTH or path is not None for path in self.paths[role]], bool)


def find_labels(dataset: Dataset, folder: str, file_format: str = "auto") -> Parsing:
    """Which label file belongs to which picture of a set.

    ``folder`` is ``config.data.parsing``: "" for the renderer's labels, or for none where there are none; `NONE`; or a folder.
    A file is named as the picture, with ``.jpg.confidence_fields.npy``, ``.npy``, ``.jpg.npy`` or, for maps, ``.png`` behind the
    name or in place of its ending, and lies in a folder that is called as the picture's path below the set's root, as the folder
    that the picture is in, or as the one around that.

    Raises:
      DataError: no such folder, no labels in it, or one file for two pictures.
    """
    names = {role: getattr(dataset, role).names for role in ROLES}
    if file_format not in FORMATS:
        raise DataError(f"config.data.parsing_format is '{file_format}'; it must be one of {', '.join(FORMATS)}")
    if not folder or folder == NONE:
        kind = TRUTH if dataset.truth is not None and not folder else NONE
        return Parsing(kind, {role: (None,) * len(names[role]) for role in ROLES})
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"config.data.parsing: {root} is not a folder; it should hold body-part labels (docs/datasets.md)")
    files = {
        os.path.relpath(os.path.join(place, name), root).replace(os.sep, "/")
        for place, _, found in os.walk(root, followlinks=True)
        for name in found
        if name.endswith((".npy", ".png"))
    }
    kind, decode, words = reader(root, files, file_format)
    paths = {role: tuple(_file_of(root, files, kind, name) for name in names[role]) for role in ROLES}
    if not any(path for found in paths.values() for path in found):
        raise DataError(
            f"config.data.parsing: none of the {len(files):,} files under {root} is named after a picture of {dataset.name}, "
            f"such as {_candidates(names['query'][0], kind)[0]} (docs/datasets.md says which names are known)"
        )
    _check_unshared(dataset, paths)
    return Parsing(kind, paths, decode, words)


def reader(root: Path, files: set[str], file_format: str) -> tuple[str, Callable[..., Decoded], str]:
    """(kind, what decodes a file, words that tell it from others) of a folder of labels."""
    told = read_json(root / "labels.json") if (root / "labels.json").is_file() else {}
    kinds = {kind for kind, ending in zip(KINDS, (".npy", ".png"), strict=True) if any(name.endswith(ending) for name in files)}
    if file_format == "auto":
        if len(kinds) != 1:
            what = "both .npy and .png files" if kinds else "neither .npy nor .png files"
            raise DataError(f"config.data.parsing: {root} holds {what}; say with config.data.parsing_format which to read")
        file_format = kinds.pop()
    if file_format == "fields":
        return "fields", decode_fields, "fields"
    chosen = told.get("classes", "ours") if file_format == "label_map" else file_format
    table = class_table(chosen, f"{root / 'labels.json'}")
    digest = hashlib.sha256(table).hexdigest()[:12]
    return "label_map", functools.partial(decode_label_map, table=table.tobytes()), f"label map {digest}"


def _candidates(name: str, kind: str) -> list[str]:
    """Where the labels of a picture may lie below their folder, the likeliest first."""
    path = PurePosixPath(name)
    endings = (
        (f"{path.name}.confidence_fields.npy", f"{path.stem}.npy", f"{path.name}.npy")
        if kind == "fields" else (f"{path.stem}.png", f"{path.name}.png")
    )  # fmt: skip
    around = dict.fromkeys((str(path.parent), path.parent.name, path.parent.parent.name))
    return [f"{place}/{ending}" if place not in ("", ".") else ending for place in around for ending in endings]


def _file_of(root: Path, files: set[str], kind: str, name: str) -> Path | None:
    found = next((each for each in _candidates(name, kind) if each in files), None)
    return root / found if found else None


def _check_unshared(dataset: Dataset, paths: Mapping[str, Sequence[Path | None]]) -> None:
    """Raises `DataError` where one file would label two pictures that differ."""
    owners: dict[Path, Path] = {}
    for role in ROLES:
        split = getattr(dataset, role)
        for name, path in zip(split.names, paths[role], strict=True):
            picture = split.root / name
            if path is None or owners.setdefault(path, picture) == picture:
                continue
            if not filecmp.cmp(owners[path], picture, shallow=False):
                raise DataError(
                    f"{path} is named after two pictures, {owners[path]} and {picture}: put labels into folders that are called "
                    "as the pictures' own"
                )


# Confidence fields ----------------------------------------------------------------------------------------------------


def parts_of_fields(fields: np.ndarray) -> np.ndarray:
    """Confidences float [36, h, w] -> labels uint8 [h, w]: the part with the largest confidence, background where none reaches
    0.5; a part's confidence is the largest of its channels (BPBreID's grouping "eight")."""
    confidence = np.stack([fields[list(channels)].max(axis=0) for channels in GROUPS.values()])
    part = np.array([PARTS.index(name) for name in GROUPS], np.uint8)[confidence.argmax(axis=0)]
    return np.where(confidence.max(axis=0) < THRESHOLD, 0, part).astype(np.uint8)


def decode_fields(path: Path | str, image_size: tuple[int, int]) -> Decoded:
    """Reads confidence fields (.npy, float [36, h, w]) as labels, resized to (height, width) by nearest neighbour."""
    try:
        fields = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(fields, np.ndarray) or fields.ndim != 3 or fields.shape[0] != CHANNELS:
            return Decoded(None, problem=f"{getattr(fields, 'shape', 'an archive')} instead of (36, height, width)")
        if not np.issubdtype(fields.dtype, np.floating) or not 0 < min(fields.shape[1:]) <= max(fields.shape[1:]) <= _LARGEST:
            return Decoded(None, problem=f"{fields.dtype} {fields.shape} instead of confidences")
        fields = np.asarray(fields, np.float32)
        if not (np.isfinite(fields).all() and fields.min() >= -1e-3 and fields.max() <= 1.001):
            return Decoded(None, problem="values that are no confidences between 0 and 1")
        return resized(parts_of_fields(fields), image_size)
    except Exception as error:  # damaged bytes, as for pictures
        objects = any(word in str(error) for word in ("pickle", "Python objects"))
        told = "Python objects, which are not loaded" if objects else reason(error)
        return Decoded(None, problem=told)


# Label maps -----------------------------------------------------------------------------------------------------------


def meaning(name: str) -> str | None:
    """What a class of human parsing is for us: a part, "arm", "leg" or "foot" where it does not tell the side; None: unknown."""
    name = name.strip().lower().replace("_", "-").replace(" ", "-")
    return next((ours for ours, names in _MEANING.items() if name in names), None)


def class_table(classes: str | Mapping[str, str] | Sequence[str], source: str) -> np.ndarray:
    """uint8 [256]: our label, or a code of a part without a side, for every value of a label map; 255 for values without a class.

    ``classes`` is a name of `CLASSES`, or the classes' own names by value. Raises `DataError` for a name that says nothing.
    """
    if isinstance(classes, str):
        if classes not in CLASSES:
            raise DataError(f"{source}: classes {classes!r} are not known; name {', '.join(CLASSES)}, or give every value's name")
        names = dict(enumerate(CLASSES[classes]))
    else:
        try:
            pairs = classes.items() if isinstance(classes, Mapping) else enumerate(classes)
            names = {int(value): str(name) for value, name in pairs}
        except (TypeError, ValueError):
            names = {-1: ""}
        if not names or not all(0 <= value < _UNKNOWN for value in names):
            raise DataError(f'{source}: "classes" should give names to values 0 to 254, such as {{"0": "background"}}')
    if strange := [name for name in names.values() if meaning(name) is None]:
        known = sorted(each for names in _MEANING.values() for each in names)
        raise DataError(f"{source}: classes {listed(strange)} are no part of a person that is known; use {', '.join(known)}")
    table = np.full(256, _UNKNOWN, np.uint8)
    for value, name in names.items():
        part = meaning(name)
        table[value] = _CODES[part] if part in _CODES else PARTS.index(part)
        if classes == "ours":
            table[value | OCCLUDED] = value | OCCLUDED
    return table


def decode_label_map(path: Path | str, image_size: tuple[int, int], table: bytes) -> Decoded:
    """Reads a label map (8-bit grey or palette) as labels, resized to (height, width) by nearest neighbour.

    ``table`` is a `class_table`'s bytes. Raises nothing: what is wrong with a file stands in ``problem``.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P"):
                return Decoded(None, problem=f"mode {image.mode} instead of 8-bit numbers of classes")
            values = np.asarray(image)  # a palette's indices
        labels = np.frombuffer(table, np.uint8)[values]
        if (labels == _UNKNOWN).any():
            return Decoded(None, problem=f"values that are no class: {listed(np.unique(values[labels == _UNKNOWN]).tolist())}")
        return resized(with_sides(labels), image_size)
    except Exception as error:  # as above
        return Decoded(None, problem=reason(error))


def with_sides(labels: np.ndarray) -> np.ndarray:
    """Labels uint8 [h, w] in which every pixel of a part without a side belongs to one.

    Trousers say nothing of left and right; their pixels go to the side of the nearest pixel of a leg or foot that does. Where
    there is none the pixels left of their middle column become the right part, as of a person who faces the camera.
    """
    result = labels.copy()
    for name, code in _CODES.items():
        where = labels == code
        if not where.any():
            continue
        left, right = (PARTS.index(part) for part in _SIDELESS[name])
        kin = ("left_arm", "right_arm") if name == "arm" else ("left_leg", "right_leg", "left_foot", "right_foot")
        sided = np.isin(labels, [PARTS.index(part) for part in kin])
        if sided.any():
            nearest = ndimage.distance_transform_edt(~sided, return_distances=False, return_indices=True)
            on_left = np.isin(labels[tuple(nearest)], [PARTS.index(part) for part in kin if part.startswith("left")])
        else:
            columns = np.nonzero(where)[1]
            on_left = np.broadcast_to(np.arange(labels.shape[1]) > columns.mean(), labels.shape)
        result[where] = np.where(on_left, left, right)[where]
    return result


def resized(labels: np.ndarray, image_size: tuple[int, int]) -> Decoded:
    """Labels uint8 [h, w] resized to (height, width) by nearest neighbour."""
    size = labels.shape
    if size != tuple(image_size):
        image = Image.fromarray(labels)
        labels = np.asarray(image.resize((image_size[1], image_size[0]), Image.Resampling.NEAREST))
    return Decoded(labels, size=size)
