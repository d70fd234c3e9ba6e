"""Pictures of the report as arrays and as data URIs. Every picture is uint8 [H, W, 3]."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

QUALITY = 85  # of the JPEG files: no visible loss on pictures of this size
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# Black, violet, red, orange, pale yellow: brightness rises all the way, so the map also reads in greys.
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)
OUTLINE = np.array([40, 220, 120], np.uint8)
BARS = 160  # pixels, width of named bars
COVERING = np.array([60, 120, 240], np.float32)


def data_uri(picture: np.ndarray, height: int = 0) -> str:
    """A picture as ``data:image/jpeg;base64,...``, made smaller if it is higher than ``height`` pixels (0: as it is)."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if height and image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def denormalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Network input float32 [..., 3] -> uint8 [..., 3]; values outside the range of pictures (erased noise) are clipped."""
    image = np.asarray(image, np.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.rint(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0).astype(np.uint8)


def resized(values: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """A map [h, w] brought to ``size`` (height, width), float32."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), method), np.float32)


def greys(picture: np.ndarray) -> np.ndarray:
    """The picture without its colours, float32 [H, W, 3]."""
    return np.repeat((picture.astype(np.float32) @ LUMA)[..., None], 3, axis=-1)


def heat_overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map float [h, w] in colours over the grey picture.

    The scale is the map's own: from 0 (or the least value, if that is negative) to the value that 2 % of the cells exceed, so
    that a single extreme cell does not darken all others; but at least to twice the mean, so that an even map is red all over
    and its noise does not look like a choice.
    """
    values = np.nan_to_num(np.asarray(values, np.float32))
    low = min(0.0, float(values.min()))
    high = max(float(np.quantile(values, 0.98)), 2.0 * float(values.mean()) - low)
    level = np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)
    level = np.clip(resized(level, picture.shape[:2], Image.Resampling.BILINEAR), 0.0, 1.0)
    steps = np.linspace(0.0, 1.0, len(HEAT))
    colour = np.stack([np.interp(level, steps, HEAT[:, channel]) for channel in range(3)], axis=-1)
    opacity = (0.35 + 0.35 * level)[..., None]
    return np.clip((1.0 - opacity) * greys(picture) + opacity * colour, 0, 255).astype(np.uint8)


def mask_overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The cells of a mask bool [h, w] in colour, the others dark and grey."""
    chosen = resized(mask, picture.shape[:2], Image.Resampling.NEAREST) > 0.5
    return np.where(chosen[..., None], picture, (0.35 * greys(picture)).astype(np.uint8))


def bars(words: Sequence[str], values: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Numbers between 0 and 1 as named bars, uint8 [rows, `BARS`, 3]; a green line marks what is true, where that is known."""
    rows, left = 14, BARS // 2
    image = Image.new("RGB", (BARS, rows * len(words) + 4), (255, 255, 255))
    draw = ImageDraw.Draw(image)

    def place(value: float) -> int:
        return left + round((BARS - 6 - left) * min(1.0, max(0.0, float(value))))

    for row, word in enumerate(words):
        top = rows * row + 3
        draw.text((2, top), word, fill=(40, 40, 40))
        draw.rectangle((left, top + 1, place(1.0), top + rows - 4), fill=(228, 228, 228))
        if np.isfinite(values[row]) and values[row] > 0:
            draw.rectangle((left, top + 1, place(values[row]), top + rows - 4), fill=tuple(int(c) for c in COVERING))
        if truth is not None:
            across = place(truth[row])
            draw.line((across, top - 1, across, top + rows - 2), fill=tuple(int(c) for c in OUTLINE), width=2)
    return np.asarray(image)


def truth_overlay(picture: np.ndarray, visible: np.ndarray, covering: np.ndarray) -> np.ndarray:
    """Ground truth over a picture: the visible person (bool [H, W]) in colour with an outline, what covers the person
    (bool [H, W]) in blue, the rest dark and grey."""
    grey = greys(picture)
    rest = np.where(covering[..., None], 0.45 * grey + 0.55 * COVERING, 0.45 * grey)
    out = np.where(visible[..., None], picture, rest.astype(np.uint8))
    padded = np.pad(visible, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    out[visible & ~inside] = OUTLINE
    return out
