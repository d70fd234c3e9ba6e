"""What a data set holds and what is odd about it, in words."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from occreid_jax import cameras
from occreid_jax.data.decode import decode_image, in_order
from occreid_jax.data.fingerprint import fingerprint
from occreid_jax.data.readers.checks import match_counts
from occreid_jax.data.readers.files import LEFT_OUT
from occreid_jax.data.table import bits, damage
from occreid_jax.distributed import is_lead
from occreid_jax.errors import UserError, listed
from occreid_jax.files import read_json, write_json
from occreid_jax.types import Dataset, Split

_ROLES = ("train", "query", "gallery")


def examine(dataset: Dataset, cache: Path | None = None, decode: bool = True) -> list[str]:
    """Looks at a data set from all sides.

    Args:
      dataset: as a reader gave it.
      cache: folder of image tables to compare with their hashes, or None.
      decode: open every image as well (the slow part: a thousand or more a second).

    Returns:
      Sentences, one a line. Those that tell of something wrong begin with ``problem:``; the rest is plain description.
    """
    lines = [f"{dataset.name}, protocol {dataset.protocol}"]
    for role in _ROLES:
        lines += _describe(role, getattr(dataset, role))
    lines += _matches(dataset)
    lines += _shared_identities(dataset)
    lines += _duplicates(dataset)
    if decode:
        for role in _ROLES:
            lines += _images(role, getattr(dataset, role))
        if any("16-bit" in line for line in lines):
            lines.append(f"16-bit images: the largest value of the set has {bits(dataset)} bits, of which the upper 8 are kept")
    lines += [f"{'problem' if LEFT_OUT in note else 'note'}: {note}" for note in dataset.notes]
    if cache is not None:
        lines += examine_cache(cache)
    return lines


PROBLEM = "problem: "  # begins what makes results worthless or smaller than they look


def problems(dataset: Dataset, cache: Path) -> list[str]:
    """What of `examine` is a problem and needs no picture to be decoded, for a training or an evaluation to tell.

    What a comparison of all files found is kept in the folder ``cache``, once it is there, until a picture changes.
    """
    path = Path(cache) / f"copies-{_state(dataset)}.json"
    copies = None
    with contextlib.suppress(UserError, OSError):  # a file that was cut short or may not be read is as good as none
        copies = read_json(path)["lines"] if path.is_file() else None
    if copies is None:
        copies = _duplicates(dataset)
        with contextlib.suppress(UserError, OSError):  # where nothing can be kept, the same time is taken once more
            if is_lead() and path.parent.is_dir():  # a command that ends in a mistake leaves nothing behind
                write_json(path, {"lines": copies})
    lines = [*_matches(dataset), *_shared_identities(dataset), *copies]
    return [line for line in lines if line.startswith(PROBLEM)]


def _state(dataset: Dataset) -> str:
    """Changes with every picture that is added, removed, renamed or written again."""
    digest = hashlib.sha256(fingerprint(dataset.train, dataset.query, dataset.gallery).encode())
    for role in _ROLES:
        split = getattr(dataset, role)
        for name in split.names:
            with contextlib.suppress(OSError):
                digest.update(f"{(split.root / name).stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _describe(role: str, split: Split) -> list[str]:
    if len(split) == 0:
        return [f"{role}: no images"]
    identities, counts = np.unique(split.pids[split.pids != 0], return_counts=True)
    distractors = int((split.pids == 0).sum())
    line = f"{role}: {len(split):,} images, {len(identities):,} identities, {cameras.count(split) or 'no'} cameras"
    if distractors:
        line += f"; {distractors:,} of the images are distractors (identity 0)"
    lines = [line]
    if len(counts):
        lines.append(
            f"{role}: images per identity: {counts.min()} at least, {np.median(counts):g} in the middle, {counts.max()} at most"
        )
    if split.cameras:
        per_camera = zip(*np.unique(split.camids, return_counts=True), strict=True)
        lines.append(f"{role}: {', '.join(f'camera {camera + 1}: {pictures:,}' for camera, pictures in per_camera)}")
    if role == "train" and (singles := int((counts == 1).sum())):
        lines.append(f"train: {singles:,} identities have a single image, so they give a batch no positive pair but copies")
    return lines


def _matches(dataset: Dataset) -> list[str]:
    elsewhere, same_camera = match_counts(dataset.query, dataset.gallery)
    lines = []
    if len(elsewhere):
        lines.append(
            f"query: matches in the gallery at another camera: {elsewhere.min()} at least, {np.median(elsewhere):g} in the "
            f"middle, {elsewhere.max()} at most; {same_camera.mean():.1f} a query at its own camera, which do not count"
        )
    lost = np.flatnonzero(elsewhere == 0)
    if len(lost):
        names = [dataset.query.names[i] for i in lost]
        lines.append(f"problem: {len(lost):,} queries have no match at another camera and will be skipped: {listed(names)}")
    return lines


def _shared_identities(dataset: Dataset) -> list[str]:
    train = np.unique(dataset.train.pids)
    test = np.union1d(dataset.query.pids, dataset.gallery.pids)
    shared = np.intersect1d(train, test[test != 0])
    if not len(shared):
        return ["train and test share no identity"]
    return [f"problem: {len(shared):,} identities are in the training set and in the test set: {listed(shared.tolist())}"]


def _duplicates(dataset: Dataset) -> list[str]:
    """Files with the same bytes. Only files of equal size are hashed."""
    by_size: dict[int, list[tuple[str, int]]] = collections.defaultdict(list)
    for role in _ROLES:
        split = getattr(dataset, role)
        for row, name in enumerate(split.names):
            try:
                by_size[(split.root / name).stat().st_size].append((role, row))
            except OSError:
                continue  # told by the decoding pass
    by_hash: dict[bytes, list[tuple[str, int]]] = collections.defaultdict(list)
    for group in by_size.values():
        if len(group) == 1:
            continue
        for role, row in group:
            split = getattr(dataset, role)
            with contextlib.suppress(OSError):  # told by the decoding pass
                by_hash[hashlib.sha256((split.root / split.names[row]).read_bytes()).digest()].append((role, row))

    counts: collections.Counter = collections.Counter()
    examples: dict[str, str] = {}
    for copies in by_hash.values():
        for kind, example in _kinds_of_copies(dataset, copies):
            counts[kind] += 1
            examples.setdefault(kind, example)
    if not counts:
        return ["no file occurs twice"]
    return [f"{kind}: {count:,} (for example {examples[kind]})" for kind, count in sorted(counts.items())]


def overlaps(dataset: Dataset, other: Dataset) -> list[str]:
    """Pictures that are in two sets, byte for byte: what of one set's training is in the other's test set is a problem, since a
    model of the one must not be tested on the other."""
    owners: dict[bytes, list[tuple[int, str, str]]] = collections.defaultdict(list)
    sizes = [{size for role in _ROLES for _, size in _sizes(getattr(each, role))} for each in (dataset, other)]
    for number, each in enumerate((dataset, other)):
        for role in _ROLES:
            split = getattr(each, role)
            for row, size in _sizes(split):
                if size in sizes[1 - number]:
                    with contextlib.suppress(OSError):
                        digest = hashlib.sha256((split.root / split.names[row]).read_bytes()).digest()
                        owners[digest].append((number, role, split.names[row]))
    counts, examples = collections.Counter(), {}
    for copies in owners.values():
        ours, theirs = ([(role, name) for each, role, name in copies if each == number] for number in (0, 1))
        for (role, name), (their_role, their_name) in itertools.product(dict(ours).items(), dict(theirs).items()):
            counts[role, their_role] += 1
            examples.setdefault((role, their_role), f"{name} = {their_name}")
    lines = []
    for (role, their_role), count in sorted(counts.items()):
        problem = PROBLEM if (role == "train") != (their_role == "train") else ""
        where = f"{role} of {dataset.name} and in {their_role} of {other.name}"
        lines.append(f"{problem}{count:,} files are in {where} (for example {examples[role, their_role]})")
    return lines or [f"{dataset.name} and {other.name} have no file in common"]


def _sizes(split: Split) -> Iterator[tuple[int, int]]:
    """(row, bytes) of every picture that is there."""
    for row, name in enumerate(split.names):
        with contextlib.suppress(OSError):
            yield row, (split.root / name).stat().st_size


def _kinds_of_copies(dataset: Dataset, copies: list[tuple[str, int]]):
    """What a group of equal files means: pairs (sentence, example)."""
    if len(copies) < 2:
        return
    rows = {role: [row for r, row in copies if r == role] for role in _ROLES}
    names = {role: [getattr(dataset, role).names[row] for row in rows[role]] for role in _ROLES}
    for role in _ROLES:
        if len(rows[role]) > 1:
            split = getattr(dataset, role)
            yield f"files that occur more than once in {role}", listed(names[role], 2)
            if len({int(split.pids[row]) for row in rows[role]}) > 1:
                yield f"problem: the same file under different identities in {role}", listed(names[role], 2)
    for role in ("query", "gallery"):
        if rows["train"] and rows[role]:
            yield f"problem: files that are in train and in {role}", f"{names['train'][0]} = {names[role][0]}"
    if rows["query"] and rows["gallery"]:
        example = f"{names['query'][0]} = {names['gallery'][0]}"
        query, gallery = dataset.query, dataset.gallery
        hidden = all(
            query.pids[q] == gallery.pids[g] and query.camids[q] == gallery.camids[g]
            for q in rows["query"]
            for g in rows["gallery"]
        )
        if hidden:
            yield "files that are in query and in gallery, left out of the ranking as same identity and camera", example
        else:
            yield "problem: files that are in query and in gallery and that the camera rule does not leave out", example


def _images(role: str, split: Split) -> list[str]:
    kinds, problems, sizes = collections.Counter(), [], []
    for name, decoded in zip(split.names, in_order(_decode, [split.root / name for name in split.names]), strict=True):
        if decoded.problem:
            problems.append(f"{name} ({decoded.problem})")
        else:
            sizes.append(decoded.size)
            if decoded.kind:
                kinds[decoded.kind] += 1
    lines = []
    if sizes:
        heights, widths = np.array(sizes).T
        lines.append(
            f"{role}: {heights.min()} to {heights.max()} pixels high, {widths.min()} to {widths.max()} wide, "
            f"{np.median(heights):g} x {np.median(widths):g} in the middle"
        )
    lines += [f"{role}: {count:,} images have to be converted: {kind}" for kind, count in sorted(kinds.items())]
    if problems:
        lines.append(f"problem: {role}: {len(problems):,} images cannot be used: {listed(problems, 20)}")
    return lines


def _decode(path: Path):
    return decode_image(path, None)._replace(pixels=None)  # the pixels themselves are not wanted


def examine_cache(cache: Path) -> list[str]:
    """Compares every image table in a cache folder with the hash that was written beside it."""
    folders = sorted(path.parent for path in Path(cache).glob("*/images.npy") if ".tmp-" not in path.parent.name)
    if not folders:
        return ["no image tables yet"]
    damages = [(folder.name, words) for folder in folders if (words := damage(folder))]
    return [
        f"{len(folders) - len(damages):,} image tables are as they were written",
        *(f"problem: image table {name}: {words}; remove it and it will be built again" for name, words in damages),
    ]
