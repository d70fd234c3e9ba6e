"""Small trees of real picture files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size=(16, 32)) -> Image.Image:
    """A coarse random RGB picture; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


@pytest.fixture
def write_picture():
    """write(path, seed): writes a picture and its folders."""

    def write(path, seed: int = 0, size=(16, 32)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, size).save(path)

    return write


@pytest.fixture
def market_tree(tmp_path, write_picture):
    """make(train=..., query=..., gallery=...) writes files of these names in Market-1501's folders and returns the root."""

    def make(train=None, query=None, gallery=None, root="market"):
        names = {
            "bounding_box_train": train or [f"{pid:04d}_c{cam}_0.jpg" for pid in (2, 7, 11) for cam in (1, 2)],
            "query": query or ["0005_c1_0.jpg", "0009_c2_0.jpg"],
            "bounding_box_test": gallery or ["0005_c2_0.jpg", "0005_c1_1.jpg", "0009_c1_0.jpg", "0000_c1_0.jpg"],
        }
        seed = 0
        for folder, files in names.items():
            (tmp_path / root / folder).mkdir(parents=True)
            for name in files:
                seed += 1
                write_picture(tmp_path / root / folder / name, seed)
        return tmp_path / root

    return make
