"""Which coarse parts of the person a picture does not show: the occlusion label estimator of OGFR (Eq. 1 and 2).

Source: "Occlusion-Guided Feature Purification via Reinforced Knowledge Distillation" (arXiv 2507.08520), section 3.1.1. Pure
functions of body-part labels (`occreid_jax.parts`) with static shapes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.parts import OCCLUDED, PART_BITS, PARTS

Array = jax.Array
GROUPS = {
    1: (tuple(range(1, len(PARTS))),),
    4: ((1,), (2, 3), (4,), (5, 6, 7, 8)),
    8: tuple((part,) for part in range(1, len(PARTS))),
}
"""Numbers of the parts in each coarse part, by how many coarse parts there are: the person; head, arms, torso and legs with feet;
every part by itself (the ablation of figure 4)."""
GROUP_NAMES = {1: ("person",), 4: ("head", "arms", "torso", "legs"), 8: PARTS[1:]}


def label_map(parts: Array, grid: tuple[int, int]) -> Array:
    """The visible part at the centre of every cell of a grid, 0 where none is: uint8 [B, H, W] -> uint8 [B, h, w].

    A side of ``grid`` that is longer than the picture's is cut to it, so that every label is read from the picture.
    """
    height, width = parts.shape[1:]
    rows, columns = (min(cells, side) for cells, side in zip(grid, (height, width), strict=True))
    if height % rows == 0 and width % columns == 0:  # a strided slice; a TPU gathers single bytes slowly
        step = height // rows, width // columns
        parts = parts[:, step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
    else:
        centres = [(2 * np.arange(cells) + 1) * side // (2 * cells) for cells, side in ((rows, height), (columns, width))]
        parts = parts[:, centres[0]][:, :, centres[1]]
    return jnp.where((parts & OCCLUDED) > 0, 0, parts & PART_BITS).astype(jnp.uint8)


def shown_groups(shares: Array, count: int) -> Array:
    """The coarse part that each cell of maps shows, told by the number of its first part: uint8 [B, h, w], 0 for the background.

    ``shares`` float32 [B, 9, h, w] of background and parts are summed over each of ``count`` coarse parts first: two arms that
    cannot be told apart share a cell, and either alone would lose it to the torso.
    """
    groups = ((0,), *GROUPS[count])
    sums = jnp.stack([sum(shares[:, part] for part in group) for group in groups], axis=1)
    won = jnp.argmax(sums, axis=1)  # selected by comparison: a TPU gathers single bytes slowly
    return jnp.select([won == number for number in range(len(groups))], [jnp.uint8(group[0]) for group in groups])


def hidden_groups(labels: Array, count: int, threshold: int, inclusive: bool = False) -> Array:
    """bool [B, C]: which of ``count`` coarse parts (a key of `GROUPS`) the maps ``labels`` uint8 [B, h, w] do not show.

    One is hidden that has fewer than ``threshold`` cells (Eq. 2), with ``inclusive`` not more than that: without it none could
    be hidden at a threshold of 0.
    """
    counts = jnp.stack(
        [sum(jnp.sum(labels == part, axis=(1, 2), dtype=jnp.int32) for part in group) for group in GROUPS[count]], axis=1
    )
    return counts <= threshold if inclusive else counts < threshold


def pattern_index(hidden: Array) -> Array:
    """Row of a pattern in its table, int32 [B], of bool [B, C]: the first coarse part counts most, 8 z0 + 4 z1 + 2 z2 + z3."""
    weights = 2 ** np.arange(hidden.shape[1])[::-1]
    return jnp.sum(jnp.where(hidden, weights, 0), axis=1).astype(jnp.int32)
