"""Which files count as pictures, which bits of them are kept, and what damage beside the pixels costs: nothing."""

from __future__ import annotations

import collections
import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from occreid_jax.data import DataError, build_table, examine, open_dataset, table
from occreid_jax.data.decode import decode_image
from occreid_jax.data.formats import overlooked, suffixes, without_metadata
from occreid_jax.data.readers.files import list_folders, list_pictures, skipped_notes
from occreid_jax.types import Dataset, Split

UPRIGHT = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)

# Which files -----------------------------------------------------------------------------------------------------------


def test_every_format_of_the_decoder_that_has_pixels():
    found = suffixes()
    assert {".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".jp2"} <= found
    assert not {".h5", ".eps", ".mpg", ".pdf", ".txt", ".json", ".npy", ".heic", ""} & found


def test_what_is_read_and_what_is_told(tmp_path):
    for name in ("a.webp", "B.WEBP", "c.tif", "d.gif", "e.ppm", "f.Jpg"):
        Image.fromarray(UPRIGHT).save(tmp_path / name)
        assert decode_image(tmp_path / name, None).problem == ""
    Image.fromarray(UPRIGHT).save(tmp_path / "plain", "PNG")
    Image.fromarray(UPRIGHT).save(tmp_path / "old.jpg~", "JPEG")
    for name in ("g.HEIC", "h.heic", "notes.txt", "labels.csv", "features.npy", "P6.mat"):
        (tmp_path / name).write_bytes(b"P6 no picture")
    (tmp_path / "inside" / "deeper").mkdir(parents=True)
    Image.fromarray(UPRIGHT).save(tmp_path / "inside" / "deeper" / "z.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    skipped = collections.Counter()
    assert list_pictures(tmp_path, skipped) == ["B.WEBP", "a.webp", "c.tif", "d.gif", "e.ppm", "f.Jpg"]
    assert skipped_notes("query", skipped) == (
        "query: ignored 2 broken links, 4 files that are no pictures, 1 subfolders",
        "query: PICTURES LEFT OUT: 2 .heic files cannot be decoded: save them as .png or .jpg, 1 JPEG pictures are called .jpg~: "
        "rename them, 1 PNG pictures have no ending: rename them, 1 pictures in folders inside: move them up",
    )
    skipped = collections.Counter()
    assert list_folders(tmp_path, skipped) == ["empty", "inside"]
    assert skipped_notes("query", skipped) == (
        "query: ignored 2 broken links, 4 files that are no pictures",
        "query: PICTURES LEFT OUT: 10 pictures outside an identity folder: move them into one",
    )
    assert overlooked(tmp_path / "notes.txt") == ""


def test_half_a_set_in_another_format(market_tree):
    root = market_tree()
    whole = open_dataset("market1501", root).train
    for path in sorted((root / "bounding_box_train").iterdir())[::2]:
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    half = open_dataset("market1501", root)
    assert len(half.train) == len(whole) and {name[-4:] for name in half.train.names} == {".jpg", "webp"}
    assert np.array_equal(half.train.pids, whole.pids) and np.array_equal(half.train.camids, whole.camids)
    (root / "query" / "0005_c3_0.heif").write_bytes(b"x")
    loud = "query: PICTURES LEFT OUT: 1 .heif files cannot be decoded: save them as .png or .jpg"
    dataset = open_dataset("market1501", root)
    assert loud in dataset.notes and f"problem: {loud}" in examine(dataset)


@pytest.mark.parametrize("number, remedy", [
    (errno.EACCES, "give yourself permission to read it, or name another place"),
    (errno.ELOOP, "a link there leads nowhere, or back to itself: remove it, or name what it should lead to"),
])  # fmt: skip
def test_folders_that_cannot_be_listed(market_tree, monkeypatch, number, remedy):
    """The superuser may read everything, so the system's refusal is played."""
    root, scandir = market_tree(), os.scandir

    def refuse(folder):
        if str(folder).endswith("query"):
            raise OSError(number, os.strerror(number), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError) as told:
        open_dataset("market1501", root)
    assert str(told.value) == f"{root / 'query'}: cannot be read ({os.strerror(number)}); {remedy}"


# Bits ------------------------------------------------------------------------------------------------------------------


def deep_set(root, largest: dict[str, int], colour: bool = False) -> Dataset:
    """Two 16-bit PNG files a split, a ramp up to ``largest`` of the split."""
    import cv2

    splits = {}
    for number, (role, most) in enumerate(largest.items()):
        (root / role).mkdir(parents=True)
        ramp = np.linspace(0, most, 32 * 16).astype(np.uint16).reshape(32, 16)
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(root / role / name), np.stack([ramp, ramp // 2, ramp // 4], axis=-1) if colour else ramp)
        names = (f"{role}/a.png", f"{role}/b.png")
        splits[role] = Split(root, names, np.full(2, number, np.int32), np.zeros(2, np.int32))
    return Dataset("own", "own@1", **splits)


@pytest.mark.parametrize("most, used", [(100, 8), (255, 8), (256, 9), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
@pytest.mark.parametrize("colour", [False, True])
def test_the_largest_value_of_the_whole_set_decides(tmp_path, most, used, colour):
    dataset = deep_set(tmp_path, {"train": most // 3, "query": most, "gallery": most // 2}, colour)
    assert table.bits(dataset) == table.bits(dataset, tmp_path / "cache") == used
    for role, top in (("train", most // 3), ("query", most), ("gallery", most // 2)):
        split = getattr(dataset, role)
        built = build_table(split, (32, 16), "bicubic", tmp_path / "cache", bits=used)
        ramp = np.linspace(0, top, 32 * 16).astype(np.uint16).reshape(32, 16)
        channels = [ramp // 4, ramp // 2, ramp] if colour else [ramp] * 3  # OpenCV writes blue first
        np.testing.assert_array_equal(built.images[0], np.stack(channels, axis=-1) >> (used - 8))
        words = "16-bit" if used == 16 else f"16-bit, of which the lower {used} bits are used (the set has no larger value)"
        assert built.notes == (f"2 images converted to RGB: {words}",)


def test_the_bits_are_remembered_and_follow_the_files(tmp_path, monkeypatch):
    dataset = deep_set(tmp_path, {"train": 900, "query": 1000, "gallery": 700})
    assert table.bits(dataset, tmp_path / "cache") == 10
    with monkeypatch.context() as patch:
        patch.setattr(table, "used_bits", lambda path: pytest.fail("the answer should have been found"))
        assert table.bits(dataset, tmp_path / "cache") == 10
    Image.fromarray(np.full((32, 16), 5000, np.uint16)).save(tmp_path / "gallery" / "b.png")
    os.utime(tmp_path / "gallery" / "b.png", ns=(1, 1))
    assert table.bits(dataset, tmp_path / "cache") == 13
    ten, thirteen = (build_table(dataset.train, (32, 16), "bicubic", tmp_path / "cache", bits=bits) for bits in (10, 13))
    assert ten.path != thirteen.path
    assert "16-bit images: the largest value of the set has 13 bits, of which the upper 8 are kept" in examine(dataset)


def test_sets_of_eight_bits_keep_their_tables(market_tree, tmp_path):
    dataset = open_dataset("market1501", market_tree())
    assert table.bits(dataset) == 16
    plain = build_table(dataset.train, (32, 16), "bicubic", tmp_path / "cache")
    assert build_table(dataset.train, (32, 16), "bicubic", tmp_path / "cache", bits=16).path == plain.path


# Orientation and damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["grey 16", "RGB"])
def test_every_orientation(tmp_path, orientation, kind):
    """The stored picture is made from the upright one by the inverse of what EXIF's number asks for."""
    upright = UPRIGHT if kind == "RGB" else (UPRIGHT[..., 0].astype(np.uint16) << 8)
    undo = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    decoded = decode_image(tmp_path / "a.png", None)
    np.testing.assert_array_equal(decoded.pixels, UPRIGHT if kind == "RGB" else np.repeat(UPRIGHT[..., :1], 3, axis=-1))
    words = ["16-bit"] * (kind != "RGB") + ["turned upright"] * (orientation != 1)
    assert decoded.kind == ", ".join(words)


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(UPRIGHT).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


GARBAGE = bytes(range(200, 256)) * 3
TIFF_NOWHERE = b"II*\0" + struct.pack("<I", 0x7FFFFFF0)
TIFF_ENDLESS = b"II*\0" + struct.pack("<IH", 8, 9999) + b"\x12\x01\x03\0"
PNG_CHUNKS = {
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0words", 1),
    "compressed text that is none": chunk(b"zTXt", b"Comment\0\0" + GARBAGE),
    "compressed text of another kind": chunk(b"zTXt", b"Comment\0\x07" + GARBAGE),
    "text that explodes": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
    "international text cut short": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
    "profile that is none": chunk(b"iCCP", b"name\0\0" + GARBAGE),
    "profile of another kind": chunk(b"iCCP", b"name\0\x05" + GARBAGE),
    "profile without a name": chunk(b"iCCP", b""),
    "resolution cut short": chunk(b"pHYs", b"\0"),
    "gamma cut short": chunk(b"gAMA", b"\0"),
    "colours cut short": chunk(b"cHRM", b"\0\0\0"),
    "rendering intent cut short": chunk(b"sRGB", b""),
    "EXIF that is none": chunk(b"eXIf", GARBAGE),
    "EXIF that leads nowhere": chunk(b"eXIf", TIFF_NOWHERE),
    "EXIF without an end": chunk(b"eXIf", TIFF_ENDLESS),
    "animation cut short": chunk(b"acTL", b"\0\0"),
    "a private chunk": chunk(b"zzZz", GARBAGE, 0),
}
JPEG_SEGMENTS = {
    "EXIF that is none": segment(0xE1, b"Exif\0\0" + GARBAGE),
    "EXIF that leads nowhere": segment(0xE1, b"Exif\0\0" + TIFF_NOWHERE),
    "EXIF without an end": segment(0xE1, b"Exif\0\0" + TIFF_ENDLESS),
    "EXIF cut short": segment(0xE1, b"Exif\0\0"),
    "XMP that is none": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:" + GARBAGE),
    "profile cut short": segment(0xE2, b"ICC_PROFILE\0"),
    "profile in a wrong order": segment(0xE2, b"ICC_PROFILE\0\x09\x02" + GARBAGE),
    "several pictures that are none": segment(0xE2, b"MPF\0" + GARBAGE),
    "several pictures that lead nowhere": segment(0xE2, b"MPF\0" + TIFF_NOWHERE),
    "Photoshop's block": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01" + GARBAGE[:9]),
    "a comment": segment(0xFE, GARBAGE),
}
WEBP_CHUNKS = {
    "EXIF that is none": (0x08, riff(b"EXIF", GARBAGE)),
    "EXIF without an end": (0x08, riff(b"EXIF", TIFF_ENDLESS)),
    "XMP that is none": (0x04, riff(b"XMP ", GARBAGE)),
    "profile that is none": (0x20, riff(b"ICCP", GARBAGE)),
}


def damaged_files():
    png = encoded("PNG")
    for name, extra in PNG_CHUNKS.items():
        yield f"PNG: {name}", png[:33] + extra + png[33:], UPRIGHT
        yield f"PNG, after the pixels: {name}", png[:-12] + extra + png[-12:], UPRIGHT
    jpeg = encoded("JPEG")
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    for name, extra in JPEG_SEGMENTS.items():
        yield f"JPEG: {name}", jpeg[:2] + extra + jpeg[2:], pixels
    webp = encoded("WEBP", lossless=True)
    for name, (flag, extra) in WEBP_CHUNKS.items():
        head = riff(b"VP8X", bytes([flag, 0, 0, 0]) + (15).to_bytes(3, "little") + (31).to_bytes(3, "little"))
        parts = [head, extra, webp[12:]] if flag == 0x20 else [head, webp[12:], extra]
        body = b"WEBP" + b"".join(parts)
        yield f"WebP: {name}", b"RIFF" + struct.pack("<I", len(body)) + body, UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = 1
    tiff = encoded("TIFF", tiffinfo={34665: 0x7FFFFFF0, 34675: GARBAGE, 700: GARBAGE, 33723: GARBAGE})
    yield "TIFF: tags that lead nowhere", tiff, UPRIGHT


FILES = list(damaged_files())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name, data, pixels", FILES, ids=[name for name, *_ in FILES])
def test_damage_beside_the_pixels_is_a_note(tmp_path, name, data, pixels):
    (tmp_path / "a").write_bytes(data)
    decoded = decode_image(tmp_path / "a", None)
    assert decoded.problem == "" and decoded.kind in ("", "damaged metadata left out")
    np.testing.assert_array_equal(decoded.pixels, pixels)


def test_the_note_and_the_refusal(tmp_path):
    """Of what Pillow refuses as a whole the pixels are read; of a file whose pixels are damaged as well, nothing is made up."""
    png = encoded("PNG")
    damage = PNG_CHUNKS["text with a wrong checksum"]
    (tmp_path / "note.png").write_bytes(png[:33] + damage + png[33:])
    with pytest.raises(Exception):  # noqa: B017  whatever Pillow says
        Image.open(tmp_path / "note.png").load()
    split = Split(tmp_path, ("note.png",), np.zeros(1, np.int32), np.zeros(1, np.int32))
    built = build_table(split, (32, 16), "bicubic", tmp_path / "cache")
    assert built.notes == ("1 images converted to RGB: damaged metadata left out",)
    np.testing.assert_array_equal(built.images[0], UPRIGHT)
    (tmp_path / "note.png").write_bytes(png[:33] + damage + png[33 : len(png) // 2])
    assert decode_image(tmp_path / "note.png", None).problem != ""
    for place in (60, len(png) - 20, 20):  # a row of pixels, their checksum, the size
        spoiled = bytearray(png)
        spoiled[place] ^= 255
        (tmp_path / "note.png").write_bytes(spoiled)
        assert decode_image(tmp_path / "note.png", None).problem != ""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_that_are_cut_inside_their_headers(tmp_path):
    for name, data, _ in FILES[::5]:
        for length in (4, 9, 13, 21, 30):
            without_metadata(data[:length])  # gives bytes or None, and raises nothing
            (tmp_path / "cut").write_bytes(data[:length])
            assert decode_image(tmp_path / "cut", None).problem, name
