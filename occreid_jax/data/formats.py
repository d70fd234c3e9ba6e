"""Which files are pictures, and what of a picture file is pixels: the only place that knows file formats by name.

Pillow decodes (`occreid_jax.data.decode`), so it is asked which formats it reads.
"""

from __future__ import annotations

import functools
import os
import struct
from pathlib import Path

from PIL import Image, ImageFile, features

# Formats that Pillow opens without pixels of its own: they need a program or a library beside it.
_WITHOUT_PIXELS = ("EPS", "MPEG")
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # those that a Pillow may be built without
_SIGNED = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "AVIF", "JPEG2000")  # known for sure by their first bytes
# Pictures that cameras and browsers write and Pillow does not read.
_UNREADABLE = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".exr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the files that are decoded, in small letters with their dot."""
    Image.init()
    missing = {name for name, feature in _OPTIONAL.items() if not features.check(feature)}
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    readable = set(Image.OPEN) - stubs - missing - set(_WITHOUT_PIXELS)
    return frozenset(suffix.lower() for suffix, name in Image.registered_extensions().items() if name in readable)


def has_suffix(name: str) -> bool:
    """Whether a file of this name is decoded."""
    return os.path.splitext(name)[1].lower() in suffixes()


def overlooked(path: Path | str) -> str:
    """Why a file that `has_suffix` turns down should not have been: empty for one that is no picture."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _UNREADABLE:
        return f"{suffix} files cannot be decoded: save them as .png or .jpg"
    try:
        with Image.open(path, formats=_SIGNED) as image:
            kind = image.format
    except Exception:  # decoders raise almost any type on other files
        return ""
    return f"{kind} pictures {f'are called {suffix}' if suffix else 'have no ending'}: rename them"


# Pixels without what stands beside them --------------------------------------------------------------------------------


def without_metadata(data: bytes) -> bytes | None:
    """A PNG, JPEG or WebP file without texts, EXIF, colour profiles and the like, which are no part of the pixels.

    None for other files, and where there is nothing to leave out."""
    for start, strip in ((b"\x89PNG\r\n\x1a\n", _bare_png), (b"\xff\xd8\xff", _bare_jpeg), (b"RIFF", _bare_webp)):
        if data.startswith(start):
            try:
                bare = strip(data)
            except (struct.error, IndexError):  # too short for its own headers
                return None
            return bare if bare != data else None
    return None


def _bare_png(data: bytes) -> bytes:
    """Critical chunks (a capital first letter), and the transparency of palettes."""
    kept, place = [data[:8]], 8
    while place + 8 <= len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[place:end])
        if kind == b"IEND":
            break
        place = end
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    """All segments but comments and those of applications; JFIF's and Adobe's stay, since they say how colours are stored."""
    kept, place = [data[:2]], 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:  # from here on pixels
            break
        if marker == 0xFF:  # filling
            place += 1
            continue
        end = place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _bare_webp(data: bytes) -> bytes:
    """All chunks but EXIF, XMP and colour profiles, whose flags are taken back."""
    kept, place = [], 12
    while place + 8 <= len(data):
        kind, (length,) = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])
        end = place + 8 + length + length % 2
        chunk = data[place:end]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]
        if kind not in (b"EXIF", b"XMP ", b"ICCP"):
            kept.append(chunk)
        place = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + data[8:12] + body
