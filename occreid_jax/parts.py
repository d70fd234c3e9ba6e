"""Body-part labels: one uint8 per pixel, with the part in the low four bits and the occluder in the fifth; and how pictures are
cut into cells.

The part is *amodal*: it names the person's part at that pixel even where something stands in front of it, and `OCCLUDED` is
added there. A pixel of an occluder over the background is ``OCCLUDED`` alone. Left and right are the person's own. Things
that a person carries are background.
"""

from __future__ import annotations

import functools
import operator

import jax
import numpy as np

PARTS = ("background", "head", "left_arm", "right_arm", "torso", "left_leg", "right_leg", "left_foot", "right_foot")
OCCLUDED = 16
PART_BITS = 15

_LEFT = {2: 3, 5: 6, 7: 8}  # the left part -> its counterpart on the right, always the next number
_MIRROR = _LEFT | {right: left for left, right in _LEFT.items()}
FLIP_PARTS = np.array([value & ~PART_BITS | _MIRROR.get(value & PART_BITS, value & PART_BITS) for value in range(256)], np.uint8)
"""uint8 [256]: the label that a label becomes in a mirrored picture; the picture's columns must be reversed as well."""
FLIP_PARTS.setflags(write=False)


def flip_parts(parts):
    """Labels uint8 [...] -> uint8 [...] with left and right exchanged (numpy or JAX array). Columns are not reversed here."""
    if not isinstance(parts, jax.Array):
        return FLIP_PARTS[parts]
    part = parts & PART_BITS  # no table here: on a TPU that would be a gather of single bytes
    left, right = (functools.reduce(operator.or_, [part == value for value in side]) for side in (_LEFT, _LEFT.values()))
    return parts + left.astype(parts.dtype) - right.astype(parts.dtype)


def visible_person(parts):
    """Labels uint8 [...] -> bool [...]: a part of the person that nothing covers (numpy or JAX array)."""
    return ((parts & PART_BITS) > 0) & ((parts & OCCLUDED) == 0)


def overlaps(pixels: int, cells: int) -> np.ndarray:
    """float64 [cells, pixels]: how much of every pixel a cell covers along one side, in units of a pixel's ``cells``-th part."""
    cell, pixel = np.arange(cells)[:, None] * pixels, np.arange(pixels) * cells
    shared = np.minimum(cell + pixels, pixel + cells) - np.maximum(cell, pixel)
    return np.maximum(shared, 0).astype(np.float64)
