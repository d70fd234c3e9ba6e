"""Contact sheet: one picture to look at a benchmark."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from occreid_jax.parts import OCCLUDED
from occreid_jax.synthetic.plan import GALLERY, QUERY, TRAIN

_CELL = (192, 96)
_PER_FOLDER = 8
_HEAD_AND_ARMS = [(0, 0, 0), (230, 60, 60), (60, 200, 80), (70, 110, 240)]
_TRUNK_AND_LEGS = [(240, 220, 70), (70, 220, 220), (220, 80, 220), (255, 150, 40), (150, 90, 250)]
_LABEL_COLOURS = np.array(_HEAD_AND_ARMS + _TRUNK_AND_LEGS, np.float32)


def contact_sheet(root: Path, out: Path, identities: int = 6) -> None:
    """Write a PNG with one row per identity and its images from left to right.

    The first rows are training identities; then come test identities with queries (framed red), gallery images (framed green)
    and, behind each query, its truth map laid over it; the last row shows distractors and junk.

    Args:
        root: what `generate` wrote.
        out: PNG file to write.
        identities: rows for training and for testing each.

    Raises:
        FileNotFoundError: if ``root`` holds no benchmark.
    """
    root = Path(root)
    images: dict[str, dict[int, list[str]]] = {folder: defaultdict(list) for folder in (TRAIN, QUERY, GALLERY)}
    with open(root / "truth" / "index.csv", newline="") as handle:
        for row in csv.DictReader(handle):
            images[row["folder"]][int(row["pid"])].append(row["name"])
    width = 2 * _PER_FOLDER
    sheet = []
    for pid in sorted(images[TRAIN])[:identities]:
        names = images[TRAIN][pid]
        cells = [_cell(root, TRAIN, name) for name in names[: width - 2]]
        sheet.append(_row(cells + [_overlay(root, TRAIN, name) for name in names[:2]], width))
    for pid in sorted(images[QUERY])[:identities]:
        cells = []
        for name in images[QUERY][pid][: _PER_FOLDER // 2]:
            cells += [_frame(_cell(root, QUERY, name), (220, 40, 40)), _overlay(root, QUERY, name)]
        cells += [_frame(_cell(root, GALLERY, name), (40, 190, 60)) for name in images[GALLERY][pid]]
        sheet.append(_row(cells, width))
    others = images[GALLERY][0][: width - 4] + images[GALLERY][-1][:4]
    sheet.append(_row([_cell(root, GALLERY, name) for name in others], width))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done, png = cv2.imencode(".png", np.vstack(sheet)[..., ::-1])
    if not done:
        raise OSError(f"opencv could not encode {out}")
    out.write_bytes(png.tobytes())


def _read(path: Path, flag: int) -> np.ndarray:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise FileNotFoundError(f"{path} is missing or no image")
    return image


def _cell(root: Path, folder: str, name: str) -> np.ndarray:
    image = _read(root / folder / name, cv2.IMREAD_COLOR)[..., ::-1]
    return cv2.resize(np.ascontiguousarray(image), _CELL[::-1], interpolation=cv2.INTER_CUBIC)


def _overlay(root: Path, folder: str, name: str) -> np.ndarray:
    truth = _read((root / "truth" / folder / name).with_suffix(".png"), cv2.IMREAD_GRAYSCALE)
    truth = cv2.resize(truth, _CELL[::-1], interpolation=cv2.INTER_NEAREST)
    colours = _LABEL_COLOURS[truth & 15]
    mixed = 0.4 * _cell(root, folder, name) + 0.6 * colours
    hidden = (truth & OCCLUDED) > 0
    stripes = (np.add.outer(np.arange(_CELL[0]), np.arange(_CELL[1])) % 6) < 3
    mixed[hidden & stripes] = 255
    return mixed.astype(np.uint8)


def _frame(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    image = image.copy()
    cv2.rectangle(image, (0, 0), (image.shape[1] - 1, image.shape[0] - 1), colour, 2)
    return image


def _row(cells: list[np.ndarray], count: int) -> np.ndarray:
    blank = np.full((*_CELL, 3), 255, np.uint8)
    return np.hstack((cells + [blank] * count)[:count])
