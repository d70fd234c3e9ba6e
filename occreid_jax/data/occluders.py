"""Libraries of occluders: pictures with opacity, in one format on disk, and what makes them.

A library is a folder of two files. ``pictures.npy`` is uint8 [K, S, S, 4], RGB and opacity; colours are not multiplied by the
opacity. A "cutout" is the tight bounding box of an object, an "overlay" a whole frame; both are stretched to S x S.
``library.json`` holds the format's name and version, S, the hash of the pictures, what was left out and why, and for every
picture its name, kind, height and width in pixels before it was stretched, source and licence.

The builders below yield `Occluder`, `write_library` stores them. They count what they leave out in ``left_out`` (reason ->
number), stop after ``limit`` occluders (0: never), and call ``progress(files done, files in all)``.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from occreid_jax.data.decode import decode_image
from occreid_jax.data.formats import has_suffix
from occreid_jax.errors import DataError, UserError
from occreid_jax.files import read_json, remedy, write_json

FORMAT, VERSION = "occreid_jax occluders", 1
SIDE = 96  # pixels; 9,913 pictures, as many as DPEFormer cuts out of 100, then take 365 MB
FRAME_SIDE = 128  # of rendered whole frames; of photographs for pictures of 256 pixels, 256
KINDS = ("cutout", "overlay")
TABLES = ("occluders", "occluder_sides")  # names of `Library.table` and `Library.sides` in ``Stage.shared``
BUILD = "build one with launch/prepare_data.py occluders"
Progress = Callable[[int, int], None]
Counts = collections.Counter


class Occluder(NamedTuple):
    """One occluder before it is stretched."""

    name: str
    pixels: np.ndarray  # uint8 [h, w, 4], RGB and opacity
    source: str
    licence: str
    kind: str = "cutout"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What ``library.json`` says of one picture."""

    name: str
    kind: str
    height: int
    width: int
    source: str
    licence: str


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """A library as it was read."""

    pictures: np.ndarray  # uint8 [K, S, S, 4], read-only
    sides: np.ndarray  # int32 [K, 2], height and width in pixels before stretching
    kinds: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def table(self) -> np.ndarray:
        """`pictures` as devices keep them, uint8 [K, S, S * 4]: with so short a last side as 4, a TPU lays a library out by the
        number of the object and copies all of it at every step to read a few."""
        return self.pictures.reshape(*self.pictures.shape[:2], -1)


# The format -----------------------------------------------------------------------------------------------------------------


def read_library(folder: Path | str) -> Library:
    """Opens a library. Raises `DataError` if it is missing, damaged or empty."""
    folder = Path(folder)
    if not (folder / "library.json").is_file():
        what = "library.json is missing" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: no library of occluders there ({what}); {BUILD}")
    index = read_json(folder / "library.json")
    try:
        if (index["format"], index["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{index['format']!r} version {index['version']} instead of '{FORMAT}' version {VERSION}")
        entries = tuple(Entry(**entry) for entry in index["entries"])
        sides = np.array([(entry.height, entry.width) for entry in entries], np.int32).reshape(-1, 2)
        shape = (len(entries), index["side"], index["side"], 4)
        if (sides < 1).any() or not {entry.kind for entry in entries} <= set(KINDS):
            raise ValueError("an entry has no size or an unknown kind")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}/library.json cannot be used ({error}); restore the folder or {BUILD}") from None
    if not entries:
        raise DataError(f"{folder}: the library holds no occluders; {BUILD}")
    try:
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        if pictures.shape != shape or pictures.dtype != np.uint8:
            raise ValueError(f"{pictures.dtype} {pictures.shape} instead of uint8 {shape}")
        if hashlib.sha256(pictures).hexdigest() != index.get("sha256"):
            raise ValueError("the pixels are not those that were written")
    except (OSError, ValueError, EOFError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{folder}/pictures.npy is damaged ({problem}); restore the folder or {BUILD}") from None
    return Library(pictures, sides, tuple(entry.kind for entry in entries), entries)


def write_library(folder: Path | str, occluders: Iterable[Occluder], side: int = SIDE, left_out: Counts | None = None) -> Library:
    """Stretches and stores occluders; ``folder`` appears when it is complete, under a name that must be free.

    Raises `DataError` if there are no occluders or ``folder`` holds something, `UserError` if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something already; remove it or choose another folder")
    pictures, entries = [], []
    for occluder in occluders:
        entries.append(Entry(occluder.name, occluder.kind, *occluder.pixels.shape[:2], occluder.source, occluder.licence))
        pictures.append(stretch(occluder.pixels, side))
    reasons = dict(sorted((left_out or {}).items()))
    if not entries:
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        raise DataError(f"no occluders found{f' (left out: {told})' if told else ''}; choose another source")
    table = np.stack(pictures)
    index = {"format": FORMAT, "version": VERSION, "side": side, "sha256": hashlib.sha256(table).hexdigest()}
    index |= {"left_out": reasons, "entries": [dataclasses.asdict(entry) for entry in entries]}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with open(temporary / "pictures.npy", "wb") as file:
            np.save(file, table)
            file.flush()
            os.fsync(file.fileno())
        write_json(temporary / "library.json", index)
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process wrote one meanwhile
            raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {remedy(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_library(folder)


def stretch(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w, 4] -> uint8 [side, side, 4], antialiased bilinear. Colours are mixed in proportion to their opacity; where
    all are transparent, evenly, so that the box can be pasted whole."""

    def resize(channel: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BILINEAR))

    *colours, opacity = np.moveaxis(pixels.astype(np.float32), 2, 0)
    alpha = resize(opacity)
    mixed = [np.where(alpha < 0.5, resize(colour), resize(colour * opacity) / np.maximum(alpha, 0.5)) for colour in colours]
    return np.rint(np.stack([*mixed, alpha], axis=-1)).clip(0, 255).astype(np.uint8)


def cut_out(pixels: np.ndarray) -> np.ndarray | None:
    """The tight bounding box of what is not transparent in uint8 [h, w, 4]; None if there is nothing."""
    rows, columns = (np.flatnonzero(pixels[..., 3].any(axis=axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else None


# Builders -------------------------------------------------------------------------------------------------------------------


def from_folder(
    folder: Path, source: str, licence: str, kind: str = "cutout", *, limit: int = 0, left_out: Counts, progress: Progress
) -> Iterator[Occluder]:
    """Every picture with transparency below a folder: its tight bounding box ("cutout") or the whole frame ("overlay")."""
    found = 0
    for path in pictures_below(folder, progress):
        try:
            image = Image.open(path)
            opaque = not image.has_transparency_data
            pixels = np.asarray(image.convert("RGBA"))
        except Exception:  # decoders raise almost any type on damaged bytes
            left_out["unreadable"] += 1
            continue
        box = cut_out(pixels)
        if opaque or box is None:
            left_out["without transparency" if opaque else "wholly transparent"] += 1
            continue
        yield Occluder(path.relative_to(folder).as_posix(), box if kind == "cutout" else pixels, source, licence, kind)
        found += 1
        if found == limit:
            return


def from_annotations(
    annotations: Path, folder: Path, source: str = "", licence: str = "", *, smallest: int = 32, limit: int = 0, seed: int = 0,
    left_out: Counts, progress: Progress,
) -> Iterator[Occluder]:  # fmt: skip
    """Objects of a COCO-style JSON file, whose pictures lie in ``folder``; under a ``limit``, in a random order of pictures.

    Crowds are left out, and boxes with a side below ``smallest`` pixels. Without ``source`` and ``licence`` the file's own are
    stored. Raises `DataError` if the file is not COCO's.
    """
    content = read_json(annotations)
    try:
        images = {image["id"]: image for image in content["images"]}
        categories = {entry["id"]: entry["name"] for entry in content.get("categories", ())}
        licences = {entry["id"]: f"{entry['name']} {entry.get('url', '')}".strip() for entry in content.get("licenses", ())}
        of_image: dict[Any, list] = {}
        for entry in content["annotations"]:
            crowd, small = bool(entry.get("iscrowd", 0)), min(entry["bbox"][2:]) < smallest
            if crowd or small:
                left_out["crowds" if crowd else f"smaller than {smallest} pixels"] += 1
            else:
                of_image.setdefault(entry["image_id"], []).append(entry)
        order = sorted(of_image)
        names = {number: Path(images[number]["file_name"]) for number in order}
        origin = source or content.get("info", {}).get("description") or Path(annotations).name
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{annotations}: not annotations in COCO's format ({error!r}); choose another file") from None
    if limit:
        order = [order[number] for number in np.random.default_rng(seed).permutation(len(order))]
    found = 0
    for done, number in enumerate(order, start=1):
        decoded, facts = decode_image(Path(folder) / names[number], None), images[number]
        size = np.shape(decoded.pixels)[:2]
        if decoded.problem or size != (facts.get("height", size[0]), facts.get("width", size[1])):
            left_out["in pictures that are missing or do not fit"] += len(of_image[number])
            continue
        for entry in of_image[number]:
            box = masked_box(decoded.pixels, decode_segmentation(entry.get("segmentation"), size))
            if box is None:
                left_out["without a readable mask"] += 1
                continue
            name = f"{names[number].as_posix()} {entry.get('id', '')} {categories.get(entry.get('category_id'), '')}".strip()
            yield Occluder(name, box, origin, licence or licences.get(facts.get("license"), "unknown"))
            found += 1
            if found == limit:
                return
        progress(done, len(order))


def from_list(path: Path, source: str, licence: str, *, limit: int = 0, progress: Progress) -> Iterator[Occluder]:
    """Opaque rectangles named in a text file, one a line: ``path`` for a whole picture or ``path x y width height`` in pixels.

    Paths count from the file's folder; empty lines and those that begin with # say nothing. Raises `DataError`, with the line's
    number, for a picture that cannot be read or a rectangle outside it.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a text file with one crop a line") from None
    wanted = [(number, line) for number, line in enumerate(lines, start=1) if line and not line.startswith("#")]
    for done, (number, line) in enumerate(wanted[: limit or None], start=1):
        words = line.rsplit(maxsplit=4)
        boxed = len(words) == 5 and all(word.lstrip("-").isdigit() for word in words[1:])
        decoded = decode_image(Path(path).parent / (words[0] if boxed else line), None)
        if decoded.problem:
            raise DataError(f"{path}, line {number}: {words[0] if boxed else line} cannot be used ({decoded.problem})")
        height, width = decoded.pixels.shape[:2]
        x, y, across, down = map(int, words[1:]) if boxed else (0, 0, width, height)
        if min(x, y) < 0 or min(across, down) < 1 or x + across > width or y + down > height:
            raise DataError(f"{path}, line {number}: {words[1:]} is not inside the {width}x{height} pixels of {words[0]}")
        crop = decoded.pixels[y : y + down, x : x + across]
        yield Occluder(line, np.dstack([crop, np.full(crop.shape[:2], 255, np.uint8)]), source, licence)
        progress(done, len(wanted))


def from_masks(
    folder: Path, generate: Callable[[Image.Image], Iterable[np.ndarray]], source: str, licence: str, *, smallest: int = 1,
    limit: int = 0, left_out: Counts, progress: Progress,
) -> Iterator[Occluder]:  # fmt: skip
    """Every mask that ``generate(picture)`` -> bool [H, W] each (see `sam`) finds in the pictures below a folder."""
    found = 0
    for path in pictures_below(folder, progress):
        decoded = decode_image(path, None)
        if decoded.problem:
            left_out["unreadable"] += 1
            continue
        for number, mask in enumerate(generate(Image.fromarray(decoded.pixels))):
            box = masked_box(decoded.pixels, np.asarray(mask) > 0)
            if box is None or min(box.shape[:2]) < smallest:
                left_out[f"smaller than {smallest} pixels"] += 1
                continue
            yield Occluder(f"{path.relative_to(folder).as_posix()} {number}", box, source, licence)
            found += 1
            if found == limit:
                return


def sam(model: Path, points_per_batch: int = 64) -> Callable[[Image.Image], list[np.ndarray]]:
    """Segment Anything in its automatic mode with default thresholds: picture -> masks bool [H, W].

    ``model`` is a local folder in transformers' format; nothing is downloaded. Raises `UserError` without it, or without the
    packages that it needs.
    """
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"{model}: no SAM model there (config.json is missing); give a folder in transformers' format")
    if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
        raise UserError("cutting out with SAM needs PyTorch and torchvision: pip install 'occreid_jax[sam]'")
    import torch
    from transformers import AutoImageProcessor, SamModel, pipeline

    try:
        network = SamModel.from_pretrained(model, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{model}: not a SAM model ({' '.join(str(error).split())[:200]})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = pipeline("mask-generation", model=network, image_processor=processor, device=device)
    return lambda image: [np.asarray(mask, bool) for mask in run(image, points_per_batch=points_per_batch)["masks"]]


def pictures_below(folder: Path, progress: Progress) -> Iterator[Path]:
    """Picture files below a folder in the order of their names. Raises `DataError` if there are none."""
    paths = sorted(path for path in Path(folder).rglob("*") if has_suffix(path.name) and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no pictures there; name a folder that holds some")
    for done, path in enumerate(paths, start=1):
        yield path
        progress(done, len(paths))


def masked_box(pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """uint8 [H, W, 3] and bool [H, W] -> uint8 [h, w, 4], the box round the mask; None without one."""
    return None if mask is None else cut_out(np.dstack([pixels, mask.astype(np.uint8) * 255]))


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """COCO's mask bool [H, W]: polygons [[x, y, x, y, ...], ...] or run lengths {"size", "counts"}; None if it is neither."""
    try:
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            counts = unpack_counts(counts) if isinstance(counts, str) else counts
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # column by column, background first
            return inside.reshape(size[1], size[0]).T if tuple(segmentation["size"]) == size else None
        canvas = Image.new("1", size[::-1])
        for polygon in segmentation:
            ImageDraw.Draw(canvas).polygon(list(map(float, polygon)), fill=1)
        return np.asarray(canvas)
    except (KeyError, TypeError, ValueError):
        return None


def unpack_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed text: five bits a character, from the third on as differences to two before."""
    counts, value, shift = [], 0, 0
    for code in (byte - 48 for byte in text.encode("ascii")):
        value, shift = value | (code & 31) << shift, shift + 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts
