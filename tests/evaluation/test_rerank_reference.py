"""Re-ranking against its definition, step by step in float64. Stored outputs of official code: tests/numerics."""

from pathlib import Path

import numpy as np
import pytest

from occreid_jax.evaluation.rerank import k_reciprocal, k_reciprocal_from_blocks
from occreid_jax.numerics.rankings import by_definition

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
SETTINGS = ((20, 6, 0.3), (50, 15, 0.3), (10, 1, 0.5))


def squared_distances(features, normalize):
    features = features.astype(np.float64)
    if normalize:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return ((features[:, None] - features[None]) ** 2).sum(-1)


def identities(seed, count=150, dim=24):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((15, dim))
    return (centres[rng.integers(0, 15, count)] + 1.3 * rng.standard_normal((count, dim))).astype(np.float32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("settings", [*SETTINGS, (7, 9, 0.0), (1, 2, 1.0), (15, 3, 0.2), (200, 200, 0.3)])
def test_equals_the_definition(settings, normalize):
    features = identities(3)
    expected = by_definition(squared_distances(features, normalize), 40, *settings)
    result = k_reciprocal(features[:40], features[40:], *settings, normalize=normalize, block_rows=32)
    assert result.dtype == np.float32 and result.shape == (40, 110)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_an_asymmetric_distance_equals_the_definition():
    distance = squared_distances(identities(4), True) * np.random.default_rng(0).uniform(0.7, 1.3, (150, 150))
    expected = by_definition(distance, 50, 10, 4, 0.3)
    with_pairs = k_reciprocal_from_blocks(lambda rows: distance[rows], 50, 100, 10, 4, pairs=lambda i, j: distance[i, j])
    np.testing.assert_allclose(with_pairs, expected, atol=2e-6)
    rows_alone = k_reciprocal_from_blocks(lambda rows: distance[rows].astype(np.float32), 50, 100, 10, 4, block_rows=64)
    np.testing.assert_allclose(rows_alone, expected, atol=2e-6)
    turned = k_reciprocal_from_blocks(lambda rows: distance.T[rows], 50, 100, 10, 4)
    assert np.abs(turned - expected).max() > 0.05


def test_squared_distances_squared_again():
    """torchreid's engine hands squared distances to a function that squares them; here that is just another distance."""
    with np.load(REFERENCE / "rerank.npz", allow_pickle=False) as file:
        features = file["in.feat"]
    fourth = squared_distances(features, True) ** 2
    result = k_reciprocal_from_blocks(lambda rows: fourth[rows], 60, 200)
    np.testing.assert_allclose(result, by_definition(fourth, 60, 20, 6, 0.3), atol=2e-6)
    assert np.abs(result - k_reciprocal(features[:60], features[60:])).max() > 0.05
