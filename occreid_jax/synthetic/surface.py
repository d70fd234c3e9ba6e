"""Textured garments: a pattern wrapped round a tube of cloth, drawn where the camera sees it.

A tube is a stack of elliptic rings. A pixel on it has the angle ``theta`` round the body (0 at the front, positive to the
person's left) and the height ``v`` (0 at the neck, 1 at the hip), so a pattern turns with the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

SHIFT = 4  # bits of sub-pixel accuracy in what opencv draws

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(theta [h, w], v [h, 1]) -> int [h, w], the number of the colour."""


class Surface(NamedTuple):
    """What fills a tube."""

    rows: np.ndarray  # float [n], picture rows of the rings, rising
    centre: np.ndarray  # float [n], columns of the ring centres
    half: np.ndarray  # float [n], half widths in pixels
    length: float  # pixels from v = 0 (the first ring) to v = 1
    yaw: float
    colours: np.ndarray  # float32 [k, 3]
    paint: Paint


def fixed(points: np.ndarray) -> np.ndarray:
    """Turn pixels [n, 2] into the fixed-point int32 numbers that opencv draws with ``shift=SHIFT``."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


def paint_surface(image: np.ndarray, outline: np.ndarray, surface: Surface, dx: float, dy: float) -> None:
    """Draw a textured polygon into ``image`` uint8 [H, W, 3] in place; (dx, dy) moves it."""
    height, width = image.shape[:2]
    low = np.floor(outline.min(axis=0) + (dx, dy)).astype(int) - 1
    high = np.ceil(outline.max(axis=0) + (dx, dy)).astype(int) + 2
    x0, y0 = max(low[0], 0), max(low[1], 0)
    x1, y1 = min(high[0], width), min(high[1], height)
    if x1 <= x0 or y1 <= y0:
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(mask, [fixed(outline + (dx - x0, dy - y0))], 255, cv2.LINE_AA, SHIFT)
    rows = np.arange(y0, y1, dtype=np.float32) - dy
    centre = np.interp(rows, surface.rows, surface.centre)
    half = np.interp(rows, surface.rows, surface.half)
    columns = np.arange(x0, x1, dtype=np.float32) - dx
    across = np.clip((columns[None] - centre[:, None]) / half[:, None], -0.999, 0.999).astype(np.float32)
    theta = np.arcsin(across) - np.float32(surface.yaw)
    theta -= np.float32(2 * np.pi) * np.rint(theta / np.float32(2 * np.pi))
    v = ((rows - np.float32(surface.rows[0])) / np.float32(surface.length))[:, None]
    colours = surface.colours[surface.paint(theta, v)]
    shade = np.float32(1.04) - np.float32(0.30) * (across + np.float32(0.25)) ** 2
    region = image[y0:y1, x0:x1]
    weight = (mask * np.float32(1 / 255))[..., None]
    region[:] = np.clip(region + (colours * shade[..., None] - region) * weight, 0, 255)


def plain(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One colour."""
    return np.zeros(theta.shape, np.intp)


def _horizontal(theta, v):
    return np.broadcast_to((np.floor(v * 8) % 2).astype(np.intp), theta.shape)


def _vertical(theta, v):
    return (np.floor(theta * (14 / (2 * np.pi)) + 0.5) % 2).astype(np.intp)


def _checked(theta, v):
    return ((np.floor(theta * (12 / (2 * np.pi)) + 0.5) + np.floor(v * 7)) % 2).astype(np.intp)


def _dotted(theta, v):
    around = theta * (12 / (2 * np.pi))
    down = v * 7
    around = around + 0.5 * (np.floor(down) % 2)
    return (((around % 1) - 0.5) ** 2 + ((down % 1) - 0.5) ** 2 < 0.1).astype(np.intp)


def _two_tone(theta, v):
    return np.broadcast_to((v > 0.5).astype(np.intp), theta.shape)


def _banded(theta, v):
    return np.broadcast_to(((v > 0.26) & (v < 0.5)).astype(np.intp), theta.shape)


def _logo(theta, v):
    front = (np.abs(theta) < 0.55) & (v > 0.2) & (v < 0.52)
    back = (np.abs(theta) > np.pi - 0.8) & (v > 0.16) & (v < 0.36)
    return (front | back).astype(np.intp)


def _sash(theta, v):
    return (np.abs(np.sin(theta) - (2.2 * v - 1.1)) < 0.34).astype(np.intp)


def _panels(theta, v):
    return (np.abs(np.cos(theta)) < 0.62).astype(np.intp)


PAINTS: dict[str, Paint] = {
    "plain": plain,
    "horizontally striped": _horizontal,
    "vertically striped": _vertical,
    "checked": _checked,
    "dotted": _dotted,
    "two-tone": _two_tone,
    "banded": _banded,
    "logo": _logo,
    "sash": _sash,
    "side-panelled": _panels,
}
"""Pattern name in `people.PATTERNS` -> painter of colours 0 (main) and 1 (second)."""
