"""Where the location of a method comes from, in training and at test time: what it learned, or one of three references.

Many methods weigh, select or move places of a picture by scores of its cells. What such scores are worth is told by others in
their place: those of the renderer's ground truth ("truth", what a perfect localisation would bring), the mean of the truth over
the training set ("constant", the best map that never looks at a picture) and chance ("random"). All sources act through the same
rule as the learned scores; what is equal and what is not stands in the method. Pure functions of arrays with static shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.parts import OCCLUDED, PART_BITS, overlaps, visible_person

Array = jax.Array
SOURCES = ("learned", "random", "constant", "truth")
MEAN = "location_mean"
"""The table that "constant" needs: float32 [N, h, w], the same map for every picture."""
TABLES = {"learned": (), "random": (), "constant": (MEAN,), "truth": ("parts",)}
"""Tables beside the pictures that a source needs."""
ROLES = ("train", "query", "gallery")


class Localised(NamedTuple):
    """What a method localises."""

    what: str  # in words
    when: tuple[str, ...] = ("train", "test")  # where it acts: keys of ``config.method.location``


def cell_shares(pixels: Array, grid: tuple[int, int]) -> Array:
    """float32 [..., h, w]: the share of each cell's area that ``pixels`` bool or float [..., H, W] fill; ``grid`` is (h, w).

    A pixel that a cell's border cuts counts with the part inside. Two matrix products of whole numbers, exact in float32.
    """
    (height, width), exact = pixels.shape[-2:], jax.lax.Precision.HIGHEST
    rows, columns = (overlaps(side, cells).astype(np.float32) for side, cells in zip((height, width), grid, strict=True))
    across = jnp.einsum("...yx,wx->...yw", pixels.astype(jnp.float32), columns, precision=exact)
    return jnp.einsum("hy,...yw->...hw", rows, across, precision=exact) / (height * width)


def visible_shares(parts: Array, grid: tuple[int, int]) -> Array:
    """float32 [..., h, w]: the share of each cell that shows the visible person. ``parts`` uint8 [..., H, W]."""
    return cell_shares(visible_person(parts), grid)


def uncovered_shares(parts: Array, grid: tuple[int, int]) -> Array:
    """float32 [..., h, w]: the share of the person in each cell that nothing covers; of the cell where there is no person in it.

    ``parts`` uint8 [..., H, W] names the person behind an occluder too. A picture without occluders has 1 everywhere.
    """
    person = cell_shares((parts & PART_BITS) > 0, grid)
    covered = cell_shares((parts & OCCLUDED) > 0, grid)
    return jnp.where(person > 0, visible_shares(parts, grid) / jnp.where(person > 0, person, 1.0), 1.0 - covered)


def random_scores(key: Array, index: Array, grid: tuple[int, int]) -> Array:
    """float32 [B, h, w], even in [0, 1): those of a picture depend on ``key`` and its ``index`` int32 [B], not on the batch."""
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), grid))(index)


def role_key(seed: int, role: str) -> Array:
    """The key of "random" outside of a training step; query and gallery number their pictures alike and get different scores."""
    return jax.random.fold_in(jax.random.key(seed), ROLES.index(role))


def share_of_gap(learned: float, constant: float, truth: float) -> float | None:
    """(learned - constant) / (truth - constant): 0 for no better than a fixed map, 1 for as good as the truth. None where the
    truth is no better than a fixed map, so that there is no gap."""
    return round((learned - constant) / (truth - constant), 4) if truth > constant else None
