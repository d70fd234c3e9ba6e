"""Image tables: conversion, damage, the cache."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from occreid_jax.data import DataError, build_parts_table, build_table, open_dataset, table
from occreid_jax.data.decode import decode_image
from occreid_jax.types import Dataset, Split


@pytest.fixture
def make_split(tmp_path):
    def make(images: dict) -> Split:
        """``images``: name -> PIL image, bytes, or (image, save options)."""
        root = tmp_path / "pictures"
        root.mkdir(exist_ok=True)
        for name, image in images.items():
            if isinstance(image, bytes):
                (root / name).write_bytes(image)
            else:
                image, options = image if isinstance(image, tuple) else (image, {})
                image.save(root / name, **options)
        names = tuple(sorted(images))
        return Split(root, names, np.arange(len(names), dtype=np.int32), np.zeros(len(names), np.int32))

    return make


def coarse(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 16, 3), dtype=np.uint8))


def test_pixels_are_those_of_pillow(make_split, tmp_path):
    split = make_split({"a.png": coarse(1), "b.png": coarse(2).resize((30, 50))})
    for resize_filter, flag in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        built = build_table(split, (32, 16), resize_filter, tmp_path / "cache")
        assert built.images.shape == (2, 32, 16, 3) and built.images.dtype == np.uint8 and len(built) == 2
        np.testing.assert_array_equal(built.images[0], np.asarray(coarse(1)))  # has the size already
        with Image.open(split.root / "b.png") as image:
            np.testing.assert_array_equal(built.images[1], np.asarray(image.resize((16, 32), flag)))
        assert isinstance(built.images, np.memmap) and not built.images.flags.writeable
        assert built.names == split.names and built.pids is split.pids and built.camids is split.camids
        assert table.damage(built.path) == ""


def test_all_kinds_become_rgb_and_are_counted(make_split, tmp_path):
    ramp = np.linspace(0, 65535, 32 * 16).astype(np.uint16).reshape(32, 16)
    rgba = coarse(3).convert("RGBA")
    rgba.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    split = make_split(
        {
            "alpha.png": rgba,
            "cmyk.jpg": coarse().convert("CMYK"),
            "grey.png": coarse(4).convert("L"),
            "one.png": coarse().convert("1"),
            "palette.png": coarse().quantize(16),
            "plain.bmp": coarse(),
            "sixteen.png": Image.fromarray(ramp),
            "sixteen.TIF": (Image.fromarray(ramp), {"format": "TIFF"}),
            "turned.jpg": (coarse().transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
        }
    )
    built = build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    rows = dict(zip(built.names, built.images, strict=True))
    np.testing.assert_array_equal(rows["alpha.png"], np.asarray(coarse(3)))  # the colours under the alpha, as in the originals
    np.testing.assert_array_equal(rows["grey.png"][..., 1], np.asarray(coarse(4).convert("L")))
    for name in ("sixteen.png", "sixteen.TIF"):
        np.testing.assert_array_equal(rows[name], np.repeat((ramp >> 8)[..., None], 3, axis=2))
    counts = {note.split(": ")[1]: int(note.split()[0]) for note in built.notes}
    assert counts == {"alpha": 1, "CMYK": 1, "grey": 1, "black and white": 1, "palette": 1, "16-bit": 2, "turned upright": 1}


def test_bad_files_are_named_all_at_once(make_split, tmp_path):
    whole = make_split({"good.jpg": coarse().resize((64, 128))})
    data = (whole.root / "good.jpg").read_bytes()
    split = make_split(
        {
            "cut.jpg": data[: len(data) // 2],
            "empty.jpg": b"",
            "float.tif": Image.fromarray(np.zeros((32, 16), np.float32)),
            "good.jpg": data,
            "text.jpg": b"<html>not found</html>",
            "tiny.png": coarse().resize((7, 40)),
        }
    )
    with pytest.raises(DataError) as error:
        build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    message = str(error.value)
    assert "\n" not in message and message.startswith("5 of 6 images cannot be used")
    for words in (
        "cut.jpg (image file is truncated",
        "empty.jpg (zero bytes)",
        "text.jpg (not an image)",
        "tiny.png (7x40 pixels)",
        "float.tif (floating-point image)",
    ):
        assert words in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_bad_files_are_counted(make_split, tmp_path):
    with pytest.raises(DataError, match="25 of 25 .* and 5 more"):
        build_table(make_split({f"{i:02d}.jpg": b"" for i in range(25)}), (32, 16), "bicubic", tmp_path / "cache")


def test_missing_files_and_settings(make_split, tmp_path):
    split = make_split({"a.png": coarse()})
    with pytest.raises(DataError, match="should be one of bicubic, bilinear"):
        build_table(split, (32, 16), "lanczos", tmp_path / "cache")
    (split.root / "a.png").unlink()
    with pytest.raises(DataError, match="1 files are missing"):
        build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    with pytest.raises(DataError, match="no images"):
        build_table(Split(tmp_path, (), np.zeros(0, np.int32), np.zeros(0, np.int32)), (32, 16), "bicubic", tmp_path)
    assert decode_image(tmp_path / "none.jpg", None).problem == "missing"


def test_cache_is_used_and_follows_the_files(make_split, tmp_path, monkeypatch):
    split = make_split({"a.png": coarse(1), "b.png": coarse(2)})
    seen = []
    first = build_table(split, (32, 16), "bicubic", tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(table, "_write", lambda *_: pytest.fail("the table should have been found"))
        again = build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert again.path == first.path and again.sha256 == first.sha256

    coarse(3).save(split.root / "b.png")
    os.utime(split.root / "b.png", ns=(1, 1))
    changed = build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert changed.path != first.path
    np.testing.assert_array_equal(changed.images[1], np.asarray(coarse(3)))
    assert build_table(split, (16, 8), "bicubic", tmp_path / "cache").path != changed.path


@pytest.mark.parametrize("fault", ["short", "long", "index", "no_index"])
def test_damaged_tables_are_built_again(make_split, tmp_path, fault):
    split = make_split({"a.png": coarse(1), "b.png": coarse(2)})
    path = build_table(split, (32, 16), "bicubic", tmp_path / "cache").path
    pixels, index = path / "images.npy", path / "index.json"
    if fault == "short":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif fault == "long":
        pixels.write_bytes(pixels.read_bytes() + b"x")
    elif fault == "index":
        index.write_text(index.read_text()[:40])
    else:
        index.unlink()
    assert table.damage(path) == "incomplete"
    built = build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert built.path == path and table.damage(path) == ""
    np.testing.assert_array_equal(built.images[1], np.asarray(coarse(2)))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [path.name]


def test_changed_pixels_are_noticed_by_the_hash(make_split, tmp_path):
    path = build_table(make_split({"a.png": coarse(1)}), (32, 16), "bicubic", tmp_path / "cache").path
    pixels = bytearray((path / "images.npy").read_bytes())
    pixels[-1] ^= 1
    (path / "images.npy").write_bytes(pixels)
    assert "not those that were written" in table.damage(path)


def test_full_disk(make_split, tmp_path, monkeypatch):
    split = make_split({"a.png": coarse(1)})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(table.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device.*make room") as error:
            build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert "\n" not in str(error.value) and list((tmp_path / "cache").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(table.shutil, "disk_usage", lambda _: table.shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(DataError, match="needs 0.00 GB but .* has 0.00 GB free"):
            build_table(split, (32, 16), "bicubic", tmp_path / "cache")


def test_cache_that_cannot_be_a_folder(make_split, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="choose a cache folder that can be written"):
        build_table(make_split({"a.png": coarse(1)}), (32, 16), "bicubic", tmp_path / "file")


def test_stale_temporary_folders_go(make_split, tmp_path):
    split = make_split({"a.png": coarse(1)})
    path = build_table(split, (32, 16), "bicubic", tmp_path / "cache").path
    (path / "index.json").unlink()
    old, fresh = (tmp_path / "cache" / f"{path.name}.tmp-host-{pid}" for pid in (1, 2))
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "images.npy").write_bytes(b"")
    os.utime(old / "images.npy", (1, 1))
    build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert not old.exists() and fresh.exists()


def test_parts_table(market_tree, tmp_path):
    dataset = open_dataset("market1501", market_tree())
    with pytest.raises(DataError, match="only synthetic sets"):
        build_parts_table(dataset, "query", (8, 4), tmp_path / "cache")
    truth = tmp_path / "truth"
    labels = np.random.default_rng(0).integers(0, 25, (2, 32, 16), dtype=np.uint8)
    for name, row in zip(dataset.query.names, labels, strict=True):
        path = (truth / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row).save(path)
    dataset = Dataset("s", "s", dataset.train, dataset.query, dataset.gallery, truth=truth)
    built = build_parts_table(dataset, "query", (32, 16), tmp_path / "cache")
    np.testing.assert_array_equal(built.images, labels)
    small = build_parts_table(dataset, "query", (16, 8), tmp_path / "cache").images
    assert small.shape == (2, 16, 8) and set(np.unique(small)) <= set(np.unique(labels))
    assert json.loads((built.path / "index.json").read_text())["resize_filter"] == "nearest"
    with pytest.raises(DataError, match="files are missing"):
        build_parts_table(dataset, "gallery", (8, 4), tmp_path / "cache")
