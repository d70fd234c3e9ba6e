"""The distance by parts that both pictures show: by hand, against the direct formula, in blocks, in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.evaluation import blocks, visibility_weighted


def side(count: int, parts: int, dim: int, seed: int) -> dict[str, np.ndarray]:
    """Random features and visibilities; of every third picture no part is visible."""
    rng = np.random.default_rng(seed)
    visible = (rng.random((count, parts)) < 0.5).astype(np.float32)
    visible[::3] = 0
    shapes = {"global": (count, dim), "parts": (count, parts, dim)}
    return {name: rng.standard_normal(shape).astype(np.float32) * 3 for name, shape in shapes.items()} | {"visible": visible}


def direct(query: dict, gallery: dict) -> np.ndarray:
    """The formula pair by pair in float64."""
    result = np.empty((len(query["global"]), len(gallery["global"])))

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        one, other = (vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64)) for vector in (one, other))
        return np.sqrt(((one - other) ** 2).sum())

    for q, g in np.ndindex(result.shape):
        shared = query["visible"][q].astype(np.float64) * gallery["visible"][g]
        total = apart(query["global"][q], gallery["global"][g])
        total += sum(weight * apart(query["parts"][q, k], gallery["parts"][g, k]) for k, weight in enumerate(shared))
        result[q, g] = total / (shared.sum() + 1)
    return result


def at(distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors that are so far apart once they have length 1; their own lengths differ."""
    angle = 2 * np.arcsin(distance / 2)
    return np.array([2.0, 0.0], np.float32), 5 * np.array([np.cos(angle), np.sin(angle)], np.float32)


@pytest.mark.parametrize("seen, expected", [
    (([1, 1, 0, 1], [1, 0, 1, 1]), (0.4 + 2.0 + 0.9) / 3),
    (([1, 1, 0, 0], [0, 0, 1, 1]), 0.9),
    (([1, 1, 1, 1], [1, 1, 1, 1]), 1.02),
])  # fmt: skip
def test_by_hand(seen, expected):
    """Part distances 0.4, 1.2, 0.6 and 2.0, the whole 0.9."""
    whole, parts = at(0.9), [at(distance) for distance in (0.4, 1.2, 0.6, 2.0)]
    pair = [
        {"global": whole[i], "parts": np.stack([part[i] for part in parts]), "visible": np.array(seen[i], np.float32)}
        for i in (0, 1)
    ]
    pair = [{name: values[None] for name, values in picture.items()} for picture in pair]
    assert float(visibility_weighted(*pair)[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_against_the_direct_formula():
    query, gallery = side(9, 8, 24, 0), side(14, 8, 24, 1)
    query["visible"][1] *= 0.3  # a share, not yes or no
    expected = direct(query, gallery)
    got = visibility_weighted(query, gallery)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    joined = np.concatenate([block for _, block in blocks(visibility_weighted, query, gallery, 4)])
    np.testing.assert_allclose(joined, expected, atol=1e-5)


def test_the_mean_of_squares_would_rank_otherwise():
    """A pair with distances 0 and 1 is nearer than one with 0.6 and 0.6; by squares it is farther."""
    pairs = [(at(0.0), at(1.0)), (at(0.6), at(0.6))]
    query = {"global": pairs[0][0][0][None], "parts": pairs[0][1][0][None, None], "visible": np.ones((1, 1), np.float32)}
    gallery = {
        "global": np.stack([whole[1] for whole, _ in pairs]),
        "parts": np.stack([part[1][None] for _, part in pairs]),
        "visible": np.ones((2, 1), np.float32),
    }
    np.testing.assert_allclose(visibility_weighted(query, gallery)[0], [0.5, 0.6], atol=1e-3)


def test_vectors_of_zeros_stay_zeros():
    query, gallery = side(3, 2, 4, 0), side(5, 2, 4, 1)
    query["global"][0] = 0
    gallery["global"][2:4] = 0
    query["visible"][:] = 0
    got = np.asarray(visibility_weighted(query, gallery))
    assert got[0, 2] == got[0, 3] == 0 and np.all(got[0, [0, 1, 4]] == 1) and np.all(got[1:, 2:4] == 1)


def test_no_stack_of_distances():
    """The working memory does not hold a matrix [Q, G] for each of the eight parts."""
    shapes = [{name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in side(*each, 0).items()}
              for each in ((64, 8, 16), (5000, 8, 16))]  # fmt: skip
    memory = jax.jit(visibility_weighted).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 64 * 5000 * 4
