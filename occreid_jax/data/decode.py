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
from PIL import Image, ImageOps

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


class Decoded(NamedTuple):
    """``pixels`` uint8, or None if ``problem`` says why the file cannot be used. ``size`` is (height, width) in the file."""

    pixels: np.ndarray | None
    kind: str = ""  # what was converted, for example "CMYK"; empty for plain RGB
    problem: str = ""
    size: tuple[int, int] = (0, 0)


def decode_image(path: Path | str, image_size: tuple[int, int] | None, resize_filter: str = "bicubic") -> Decoded:
    """Reads an image file as RGB.

    Grey, palette, CMYK, 16-bit and other images are converted, alpha is dropped (as ``Image.convert("RGB")`` in the originals),
    and a picture that a camera stored on its side is turned upright.

    Args:
      path: the file.
      image_size: (height, width) in pixels to resize to, or None. A picture that has the size already is not touched.
      resize_filter: a key of `RESIZE_FILTERS`.

    Returns:
      uint8 [H, W, 3] pixels, or a problem. Nothing is raised for a bad file, so that all bad files can be told at once.
    """
    try:
        data = Path(path).read_bytes()
        if not data:
            return Decoded(None, problem="zero bytes")
        image = Image.open(io.BytesIO(data))
        deep = any(";16" in str(tile[3]) for tile in image.tile)  # 16-bit colour becomes plain RGB while it is loaded
        image.load()
        size = (image.height, image.width)
        if min(size) < SMALLEST_SIDE:
            return Decoded(None, problem=f"{size[1]}x{size[0]} pixels", size=size)
        image, kind = _to_rgb(image, deep)
        if image is None:
            return Decoded(None, problem=kind, size=size)
        if image_size is not None and image.size != (image_size[1], image_size[0]):
            image = image.resize((image_size[1], image_size[0]), RESIZE_FILTERS[resize_filter])
        return Decoded(np.asarray(image), kind, size=size)
    except Exception as error:  # decoders raise almost any type on damaged bytes (OSError, SyntaxError, struct.error, zlib.error)
        return Decoded(None, problem=_reason(error))


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
        return Decoded(None, problem=_reason(error))


def _to_rgb(image: Image.Image, deep: bool) -> tuple[Image.Image | None, str]:
    """(RGB image, kind); or (None, problem)."""
    kinds = []
    if image.mode.startswith("I"):
        # Image.convert would clip every value above 255 to white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            return None, "32-bit image"
        image = Image.fromarray((values >> 8).astype(np.uint8))
        kinds.append("16-bit")
    elif image.mode == "F":
        return None, "floating-point image"
    elif deep:
        kinds.append("16-bit")
    if image.mode != "RGB":
        if not kinds:
            kinds.append(_KINDS.get(image.mode, image.mode))
        image = image.convert("RGB")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        kinds.append("turned upright")
    return image, ", ".join(kinds)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "missing"
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
    Image.preinit()  # the plugins register themselves on first use, which threads should not do at the same time
    options = grain.ReadOptions(num_threads=min(16, 2 * (os.cpu_count() or 1)), prefetch_buffer_size=64)
    return iter(grain.MapDataset.source(_Source(function, items)).to_iter_dataset(options))
