"""Small-kernel aggregation of LSNet: every position of a map is summed up over its 3x3 neighbours by a kernel of its own.

Source: Wang et al., "LSNet: See Large, Focus Small", CVPR 2025, and jameslahm/lsnet ``model/ska.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.nn.precision import at_least_float32

Array = jax.Array

SIDE = 3
TAPS = SIDE * SIDE
SHARED = 8  # channels that one dynamic kernel serves


def aggregate(x: Array, kernels: Array) -> Array:
    """Dynamic convolution [B, H, W, C] with ``kernels`` [B, H, W, 9, G] -> float32 [B, H, W, C]; zeros stand outside the map.

    Tap 3 i + j multiplies the neighbour at (i - 1, j - 1). Kernels are shared by channels that lie G apart: channel c takes
    kernel c mod G. ValueError where G does not divide C.

    The nine shifted maps are cut, weighted and summed one after the other, so that a compiler may keep the sum in registers;
    nothing nine times as large as the map is ever asked for.
    """
    batch, height, width, channels = x.shape
    kinds = kernels.shape[-1]
    if channels % kinds:
        raise ValueError(f"{kinds} kernels do not divide {channels} channels")
    # c = s G + g, so that channels with one kernel are told by a reshape that moves nothing.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, height + 2, width + 2, channels // kinds, kinds)
    total: Array | float = 0.0
    for tap in range(TAPS):
        row, column = divmod(tap, SIDE)
        shifted = padded[:, row : row + height, column : column + width]
        total += at_least_float32(shifted) * at_least_float32(kernels[..., tap, None, :])
    return total.reshape(x.shape)
