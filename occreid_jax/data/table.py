"""A split decoded once: one uint8 [N, H, W, 3] array on disk, opened as a memory map.

``<cache>/<key>/images.npy`` holds the pixels and ``index.json`` says what they are, with the pixels' own hash. The key is a
hash of the file names, sizes and times of change, the image size, the filter and the format, so that a changed picture or
setting makes a new table and nothing is ever stale. A table is written under another name and renamed when complete: two
processes may build the same one at the same time, and an interrupted build leaves nothing that could be mistaken for a table.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL

from occreid_jax.data.decode import RESIZE_FILTERS, Decoded, decode_image, decode_parts, in_order, used_bits
from occreid_jax.errors import DataError, UserError, listed
from occreid_jax.files import FULL, dead_link, write_text

if TYPE_CHECKING:
    from occreid_jax.types import Dataset, Split

TABLE_FORMAT = 2  # goes up when the same files give other pixels
_STALE_SECONDS = 3600.0  # a temporary folder that nobody wrote to for this long was left by a killed process
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One split's pixels and labels, in the split's order."""

    images: np.memmap  # uint8 [N, H, W, 3], or [N, H, W] for body-part labels; read-only
    pids: np.ndarray  # int32 [N]
    camids: np.ndarray  # int32 [N]
    names: tuple[str, ...]
    path: Path  # the folder of images.npy and index.json
    sha256: str  # of the pixels
    notes: tuple[str, ...] = ()  # what was converted

    def __len__(self) -> int:
        return len(self.names)


def build_table(
    split: Split,
    image_size: tuple[int, int],
    resize_filter: str,
    cache: Path | str,
    progress: Progress | None = None,
    bits: int = 16,
) -> Table:
    """Decodes and resizes every image of a split, or opens the table if that was done before.

    Processes that share the cache folder may call it at the same time, but each then does the work: let one go first.

    Args:
      split: the images.
      image_size: (height, width) in pixels.
      resize_filter: ``"bicubic"`` (the originals train on it) or ``"bilinear"`` (they test on it).
      cache: folder for tables; may be shared by any number of data sets. Needs H * W * 3 bytes an image.
      progress: called with (done, in all) while images are decoded.
      bits: of 16-bit files, see `bits`; the same for every split of a set.

    Raises:
      DataError: files that cannot be used (all of them named at once; nothing is kept), a folder that cannot be written, or a
        full disk.
    """
    if resize_filter not in RESIZE_FILTERS:
        raise DataError(f"resize filter {resize_filter!r}: it should be one of {', '.join(RESIZE_FILTERS)}")
    height, width = image_size
    decode = functools.partial(decode_image, image_size=(height, width), resize_filter=resize_filter, bits=bits)
    paths = [split.root / name for name in split.names]
    # The key tells how many bits were used, where it is not all of them.
    words = resize_filter if bits == 16 else f"{resize_filter}, {bits} bits"
    return _build(split, paths, (height, width, 3), words, decode, Path(cache), progress)


def bits(dataset: Dataset, cache: Path | str | None = None) -> int:
    """How many bits of the 16-bit files of a set are used, 8 to 16: as many as the largest value in any of its splits has.

    Infrared cameras write 10 or 12 bits into 16: without the rule two or four grey levels would be left of a person. It holds
    for the whole set, so that equal values stay equal grey in training, query and gallery. 16 for a set without such files.
    With ``cache`` the answer is remembered there, under the names, sizes and times of the files.
    """
    if dataset.truth is not None:
        return 16  # rendered, in 8 bits
    splits = [getattr(dataset, role) for role in ("train", "query", "gallery")]
    paths = [split.root / name for split in splits for name in split.names]
    if cache is None:
        return _used_bits(paths)
    memory = Path(cache) / f"bits-{_key(tuple(map(str, paths)), paths, (), 'bits')}.txt"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return int(memory.read_text())
    found = _used_bits(paths)
    with contextlib.suppress(UserError):  # the table that is written next tells what is wrong with the folder
        write_text(memory, f"{found}\n")
    return found


def _used_bits(paths: list[Path]) -> int:
    found = [number for number in in_order(used_bits, paths) if number]
    return max(8, *found) if found else 16


def build_parts_table(
    dataset: Dataset, split_name: str, image_size: tuple[int, int], cache: Path | str, progress: Progress | None = None
) -> Table:
    """The body-part labels of a synthetic split: ``images`` is uint8 [N, H, W], resized by nearest neighbour.

    The labels are those of `occreid_jax.data.parsing`: part in the low four bits, 16 for an occluder.

    Raises:
      DataError: the set has no ground truth, or as `build_table`.
    """
    if dataset.truth is None:
        raise DataError(f"{dataset.name} has no ground truth: only synthetic sets have")
    split = getattr(dataset, split_name)
    height, width = image_size
    paths = [dataset.truth / Path(name).with_suffix(".png") for name in split.names]
    decode = functools.partial(decode_parts, image_size=(height, width))
    return _build(split, paths, (height, width), "nearest", decode, Path(cache), progress)


def build_labels_table(
    split: Split,
    paths: Sequence[Path | None],
    decode: Callable[..., Decoded],
    words: str,
    image_size: tuple[int, int],
    cache: Path | str,
    progress: Progress | None = None,
) -> Table:
    """Body-part labels that lie in files beside a split's pictures, ``images`` uint8 [N, H, W]; 0 where ``paths`` has None.

    ``decode(path, image_size=...)`` and ``words`` are those of `occreid_jax.data.labels.Parsing`. The table's key holds every
    label file's size and time, so that other labels make another table. Raises `DataError` as `build_table`.
    """
    height, width = image_size
    nothing = Decoded(np.zeros((height, width), np.uint8))
    read = functools.partial(_decode_or, nothing=nothing, decode=functools.partial(decode, image_size=(height, width)))
    return _build(split, list(paths), (height, width), words, read, Path(cache), progress, "files of body-part labels")


def _decode_or(path: Path | None, nothing: Decoded, decode: Callable[[Path], Decoded]) -> Decoded:
    if path is None:
        return nothing
    decoded = decode(path)
    return decoded._replace(problem=f"{path.name}: {decoded.problem}") if decoded.problem else decoded


def _build(
    split: Split,
    paths: list[Path | None],
    row_shape: tuple[int, ...],
    resize_filter: str,
    decode: Callable[[Path], Decoded],
    cache: Path,
    progress: Progress | None,
    what: str = "images",
) -> Table:
    if not paths:
        raise DataError(f"no images under {split.root}: there is nothing to make a table of")
    shape = (len(paths), *row_shape)
    key = _key(split.names, paths, row_shape, resize_filter)
    folder = cache / key
    index = _opened(folder, shape)
    if index is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _remove_stale(cache, key)
            needed, free = int(np.prod(shape)), shutil.disk_usage(cache).free
            if needed > free:
                raise DataError(
                    f"the table of {len(paths):,} images needs {needed / 1e9:.2f} GB but {cache} has {free / 1e9:.2f} GB free: "
                    "make room or choose another cache folder"
                )
            _write(folder, split.names, paths, shape, resize_filter, decode, progress, what)
        except OSError as error:
            full = error.errno in FULL
            remedy = "make room or choose another cache folder" if full else "choose a cache folder that can be written"
            if dead_link(cache):
                remedy = f"{cache} is a link that leads nowhere, or back to itself"
            raise DataError(f"cannot write the image table under {cache} ({error.strerror or error}): {remedy}") from None
        index = _opened(folder, shape)
        if index is None:
            raise DataError(f"the image table {folder} changed while it was being written: run the command again")
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Table(images, split.pids, split.camids, split.names, folder, index["sha256"], tuple(index["notes"]))


def _key(names: tuple[str, ...], paths: list[Path | None], row_shape: tuple[int, ...], resize_filter: str) -> str:
    stamps, missing = [], []
    for name, path in zip(names, paths, strict=True):
        if path is None:
            stamps.append((name, -1, -1))
            continue
        try:
            facts = os.stat(path)
            stamps.append((name, facts.st_size, facts.st_mtime_ns))
        except OSError:
            missing.append(str(path))
    if missing:
        raise DataError(f"{len(missing):,} files are missing or cannot be opened: {listed(missing, 20)}")
    return hashlib.sha256(json.dumps([TABLE_FORMAT, row_shape, resize_filter, stamps]).encode()).hexdigest()[:32]


def _opened(folder: Path, shape: tuple[int, ...]) -> dict | None:
    """The index of a complete table; None if there is none, or a damaged one."""
    try:
        index = json.loads((folder / "index.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r")  # raises if the file is shorter than its header says
        whole = (folder / "images.npy").stat().st_size == images.offset + images.nbytes
        fits = images.shape == shape and images.dtype == np.uint8 and index["format"] == TABLE_FORMAT
        return index if whole and fits and index["sha256"] and isinstance(index["notes"], list) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError):
        return None


def _write(
    folder: Path,
    names: tuple[str, ...],
    paths: list[Path | None],
    shape: tuple[int, ...],
    resize_filter: str,
    decode: Callable[[Path], Decoded],
    progress: Progress | None,
    what: str,
) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        started = time.monotonic()
        kinds, problems = collections.Counter(), []
        digest = hashlib.sha256()
        # Plain writes, not a memory map: a full disk is then an error here and not a crash (SIGBUS).
        with (temporary / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for done, decoded in enumerate(in_order(decode, paths), start=1):
                if decoded.problem:
                    problems.append(f"{names[done - 1]} ({decoded.problem})")
                elif not problems:  # after the first bad file we only look for more of them
                    pixels = np.ascontiguousarray(decoded.pixels)
                    file.write(pixels)
                    digest.update(pixels)
                    if decoded.kind:
                        kinds[decoded.kind] += 1
                if progress is not None:
                    progress(done, len(paths))
            file.flush()
            os.fsync(file.fileno())
        if problems:
            raise DataError(
                f"{len(problems):,} of {len(paths):,} {what} cannot be used: {listed(problems, 20)}; "
                "replace or remove these files"
            )
        index = {
            "format": TABLE_FORMAT,
            "shape": shape,
            "resize_filter": resize_filter,
            "sha256": digest.hexdigest(),
            "notes": [f"{count:,} images converted to RGB: {kind}" for kind, count in sorted(kinds.items())],
            "pillow": PIL.__version__,
            "seconds": round(time.monotonic() - started, 3),
            "names": names,
        }
        (temporary / "index.json").write_text(json.dumps(index))
        _put_in_place(temporary, folder, shape)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path, shape: tuple[int, ...]) -> None:
    for _ in range(2):
        try:
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if _opened(folder, shape) is not None:
                return  # another process was faster
            shutil.rmtree(folder, ignore_errors=True)  # the damaged table that this one replaces


def _remove_stale(cache: Path, key: str) -> None:
    for left in cache.glob(f"{key}.tmp-*"):
        pixels = left / "images.npy"
        with contextlib.suppress(OSError):
            if time.time() - (pixels if pixels.exists() else left).stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def damage(folder: Path) -> str:
    """Compares a table's pixels with the hash in its index: what is wrong with it, or an empty string."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if _opened(folder, tuple(index["shape"])) is None:
            return "incomplete"
        images = np.load(folder / "images.npy", mmap_mode="r")
        digest = hashlib.sha256()
        for row in images:
            digest.update(row)
        return "" if digest.hexdigest() == index["sha256"] else "the pixels are not those that were written"
    except (OSError, ValueError, KeyError, TypeError):
        return "incomplete"
