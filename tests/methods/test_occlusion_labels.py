"""Which coarse parts labels say are hidden, by hand; flips, obstacles, grids and pictures without labels."""

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.methods import occlusion_labels as labels
from occreid_jax.parts import OCCLUDED, flip_parts

ROWS = ("0110", "0110", "2443", "2443", "0560", "0780")
MAP = np.array([[int(cell) for cell in row] for row in ROWS], np.uint8)[None]


def index(parts, threshold=3, count=4, inclusive=False) -> int:
    hidden = labels.hidden_groups(labels.label_map(jnp.asarray(parts), (6, 4)), count, threshold, inclusive)
    return int(labels.pattern_index(hidden)[0])


def test_by_hand():
    """Oracle 2."""
    covered = MAP.copy()
    covered[:, 3:] |= OCCLUDED
    assert index(MAP) == 0 and index(covered) == 7 and index(MAP, threshold=5) == 15
    assert int(labels.pattern_index(jnp.asarray([[True, False, False, True]]))[0]) == 9
    counts = [int((labels.label_map(jnp.asarray(covered), (6, 4)) == part).sum()) for part in range(1, 9)]
    assert counts == [4, 1, 1, 2, 0, 0, 0, 0]


def test_other_numbers_of_coarse_parts():
    covered = MAP.copy()
    covered[:, 3:] |= OCCLUDED
    assert index(covered, count=1) == 0 and index(0 * covered, count=1) == 1
    assert index(MAP, count=8, threshold=2) == sum(2 ** (8 - part) for part in (5, 6, 7, 8))
    assert index(covered, count=8, threshold=2) == sum(2 ** (8 - part) for part in (2, 3, 5, 6, 7, 8))


def test_at_a_threshold_of_nothing_only_the_inclusive_rule_hides():
    gone = np.where(MAP == 1, 0, MAP)
    assert index(gone, threshold=0) == 0 and index(gone, threshold=0, inclusive=True) == 8
    assert index(MAP, threshold=4, inclusive=True) == 15 and index(MAP, threshold=4) == 0


def test_what_maps_show_in_coarse_parts():
    """Two arms of 0.3 beat a torso of 0.4; with eight parts they do not, and with one the person of 0.6 beats a background."""
    cell = np.array([[0.0, 0, 0.3, 0.3, 0.4, 0, 0, 0, 0], [0.4, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]])
    shares = jnp.asarray(cell.T[None, :, None])  # one picture of one row and two cells
    for count, expected in ((4, [2, 0]), (8, [4, 0]), (1, [1, 1])):
        np.testing.assert_array_equal(labels.shown_groups(shares, count)[0, 0], expected)


def test_mirrored_labels_are_the_same_person():
    """Oracle 3: the row 2443, mirrored, is 3442, and 2443 once left and right have changed places."""
    mirrored = MAP[:, :, ::-1]
    np.testing.assert_array_equal(mirrored[0, 2], [3, 4, 4, 2])
    np.testing.assert_array_equal(flip_parts(jnp.asarray(mirrored))[0, 2], [2, 4, 4, 3])
    gone = np.where(MAP == 2, MAP | OCCLUDED, MAP)  # the left arm
    flipped = np.asarray(flip_parts(jnp.asarray(gone[:, :, ::-1])))
    assert index(gone, 1, 8) == 2 ** (8 - 2) and index(flipped, 1, 8) == 2 ** (8 - 3)


@pytest.mark.parametrize("size, grid", [((12, 8), (6, 4)), ((11, 7), (6, 4)), ((6, 4), (64, 32))])
def test_labels_are_read_at_the_centres_of_cells(size, grid):
    rng = np.random.default_rng(0)
    parts = (rng.integers(0, 9, (3, *size)) | OCCLUDED * rng.integers(0, 2, (3, *size))).astype(np.uint8)
    rows, columns = min(grid[0], size[0]), min(grid[1], size[1])
    found = np.asarray(labels.label_map(jnp.asarray(parts), grid))
    assert found.shape == (3, rows, columns) and found.dtype == np.uint8
    for i, j in np.ndindex(rows, columns):
        there = parts[:, int((i + 0.5) * size[0] / rows), int((j + 0.5) * size[1] / columns)]
        np.testing.assert_array_equal(found[:, i, j], np.where(there & OCCLUDED, 0, there & 15))
