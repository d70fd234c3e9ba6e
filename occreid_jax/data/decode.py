"""One image file -> uint8 [H, W, 3], and in words what is wrong with a file that cannot be used.

Pillow decodes and resizes. Its bicubic and bilinear filters widen when they shrink a picture (antialiasing), which is what
torchvision's ``Resize`` does on PIL images in the PyTorch originals; OpenCV's do not, and differ by up to 4 grey levels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from occreid_jax.data.formats import without_metadata

RESIZE_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SMALLEST_SIDE = 8  # pixels; below this there is no person to see

_KINDS = {
    "1": "black and white",
    "L": "grey",
    "P": "palette",
    "CMYK": "CMYK",
    "RGBA": "alpha",
    "LA": "alpha",
    "PA": "alpha",
    "RGBX": "padded",
}
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's numbers
_DAMAGED = "damaged metadata left out"


class Decoded(NamedTuple):
    """``pixels`` uint8, or None if ``problem`` says why the file cannot be used. ``size`` is (height, width) in the file."""

    pixels: np.ndarray | None
    kind: str = ""  # what was converted, for example "CMYK"; empty for plain RGB
    problem: str = ""
    size: tuple[int, int] = (0, 0)


def decode_image(
    path: Path | str, image_size: tuple[int, int] | None, resize_filter: str = "bicubic", bits: int = 16
) -> Decoded:
    """Reads an image file as RGB.

    Grey, palette, CMYK, 16-bit and other images are converted, alpha is dropped (as ``Image.convert("RGB")`` in the originals),
    and a picture that a camera stored on its side is turned upright. Damaged metadata is left out where the pixels are sound.

    Args:
      path: the file.
      image_size: (height, width) in pixels to resize to, or None. A picture that has the size already is not touched.
      resize_filter: a key of `RESIZE_FILTERS`.
      bits: how many bits of a 16-bit file's values are used, 8 to 16 (`occreid_jax.data.table.bits`); the upper 8 of them are
        kept, that is value // 2^(bits - 8).

    Returns:
      uint8 [H, W, 3] pixels, or a problem. Nothing is raised for a bad file, so that all bad files can be told at once.
    """
    try:
        data = Path(path).read_bytes()
        if not data:
            return Decoded(None, problem="zero bytes")
        try:
            return _decode(data, image_size, resize_filter, bits)
        except Exception:
            # Pillow refuses some files for a damaged text or profile beside the pixels.
            bare = without_metadata(data)
            decoded = bare and _tried(bare, image_size, resize_filter, bits)
            if not decoded:
                raise
            return decoded._replace(kind=", ".join(filter(None, (decoded.kind, _DAMAGED))))
    except Exception as error:  # decoders raise almost any type on damaged bytes (OSError, SyntaxError, struct.error, zlib.error)
        return Decoded(None, problem=reason(error))


def _tried(*arguments: Any) -> Decoded | None:
    """`_decode`, or None where it fails."""
    try:
        return _decode(*arguments)
    except Exception:  # as above
        return None


def _decode(data: bytes, image_size: tuple[int, int] | None, resize_filter: str, bits: int) -> Decoded:
    image = Image.open(io.BytesIO(data))
    deep = is_deep(image)
    image.load()
    orientation, damaged = _orientation(image)  # of a PNG file it may stand behind the pixels
    size = (image.height, image.width)
    if min(size) < SMALLEST_SIDE:
        return Decoded(None, problem=f"{size[1]}x{size[0]} pixels", size=size)
    image, kind = _to_rgb(image, data, deep, bits)
    if image is None:
        return Decoded(None, problem=kind, size=size)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image_size is not None and image.size != (image_size[1], image_size[0]):
        image = image.resize((image_size[1], image_size[0]), RESIZE_FILTERS[resize_filter])
    words = (kind, "turned upright" if orientation in _UPRIGHT else "", _DAMAGED if damaged else "")
    return Decoded(np.asarray(image), ", ".join(filter(None, words)), size=size)


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """How a camera held the picture (EXIF's number, 1: upright), and whether that cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1), False
    except Exception:  # as for pixels
        return 1, True


def is_deep(image: Image.Image) -> bool:
    """Whether a file that is opened, but not loaded, has 16 bits a value; loading colours, Pillow keeps the upper 8 of them."""
    return image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)


def used_bits(path: Path | str) -> int:
    """How many bits the largest value of a 16-bit file has, 0 to 16; 0 for any other file, and for one that cannot be read."""
    try:
        with Image.open(path) as image:
            if not is_deep(image):
                return 0
            image.load()
            values = np.asarray(image) if image.mode.startswith("I") else _deep_colour(Path(path).read_bytes())
        return min(16, int(values.max()).bit_length())
    except Exception:  # told when the table is made
        return 0


def _deep_colour(data: bytes) -> np.ndarray:
    """uint16 [H, W, 3] RGB of a file with 16-bit colours, which Pillow has no mode for."""
    import cv2

    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ValueError("16-bit colours that cannot be decoded")
    return values[..., 2::-1]


def decode_parts(path: Path | str, image_size: tuple[int, int]) -> Decoded:
    """Reads a label map (8-bit, one channel) and resizes it to (height, width) by nearest neighbour: uint8 [H, W]."""
    try:
        image = Image.open(path)
        image.load()
        if image.mode not in ("L", "P"):
            return Decoded(None, problem=f"mode {image.mode} instead of 8-bit labels")
        size = (image.height, image.width)
        labels = Image.fromarray(np.asarray(image))  # a palette's indices are the labels
        if size != tuple(image_size):
            labels = labels.resize((image_size[1], image_size[0]), Image.Resampling.NEAREST)
        return Decoded(np.asarray(labels), size=size)
    except Exception as error:  # as above
        return Decoded(None, problem=reason(error))


def _to_rgb(image: Image.Image, data: bytes, deep: bool, bits: int) -> tuple[Image.Image | None, str]:
    """(RGB image, kind); or (None, problem)."""
    kind = _KINDS.get(image.mode, image.mode) if image.mode != "RGB" else ""
    if image.mode == "F":
        return None, "floating-point image"
    if deep:
        kind = "16-bit" if bits == 16 else f"16-bit, of which the lower {bits} bits are used (the set has no larger value)"
        if image.mode.startswith("I"):
            # Image.convert would clip every value above 255 to white.
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                return None, "32-bit image"
            image = Image.fromarray(_upper(values, bits))
        elif bits < 16:
            image = Image.fromarray(_upper(_deep_colour(data), bits))
    return image.convert("RGB") if image.mode != "RGB" else image, kind


def _upper(values: np.ndarray, bits: int) -> np.ndarray:
    """The upper 8 of the ``bits`` bits that are used, as uint8."""
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8)


def reason(error: Exception) -> str:
    """What an error says of a file, in a few words and without its path."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which stands before it
    return " ".join(str(error).split()) or type(error).__name__


class _Source:
    """What Grain reads from: element i is ``function(items[i])``."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._function(self._items[index])


def in_order(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """``function(item)`` for every item, in order, computed ahead by Grain's threads (Pillow works outside Python's lock)."""
    Image.init()  # the plugins register themselves on first use, which threads should not do at the same time
    options = grain.ReadOptions(num_threads=min(16, 2 * (os.cpu_count() or 1)), prefetch_buffer_size=64)
    return iter(grain.MapDataset.source(_Source(function, items)).to_iter_dataset(options))
