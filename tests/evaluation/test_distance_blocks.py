"""Distances and their blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import evaluation
from occreid_jax.evaluation.distance import image_count


def features(count, dim, seed):
    return (np.random.default_rng(seed).standard_normal((count, dim)) * 7).astype(np.float32)


def test_normalize():
    rows = features(5, 8, 0)
    rows[2] = 0
    normal = evaluation.normalize(jnp.asarray(rows, jnp.bfloat16))
    assert normal.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), [1, 1, 0, 1, 1], atol=1e-6)


def test_euclidean_against_float64():
    query, gallery = features(6, 32, 1), features(9, 32, 2)
    gallery[3] = 5 * query[2]
    distance = np.asarray(evaluation.euclidean(jnp.asarray(query), jnp.asarray(gallery)))
    unit_query, unit_gallery = (side / np.linalg.norm(side.astype(np.float64), axis=1)[:, None] for side in (query, gallery))
    expected = ((unit_query[:, None] - unit_gallery[None]) ** 2).sum(-1)
    assert distance.dtype == np.float32 and distance.min() >= 0
    np.testing.assert_allclose(distance, expected, atol=1e-6)
    assert distance[2].argmin() == 3 and distance[2, 3] < 1e-6


@pytest.mark.parametrize("block_rows", [1, 4, 5, 13, 100])
def test_blocks_equal_one_call(block_rows):
    query, gallery = features(13, 16, 3), features(21, 16, 4)
    expected = np.asarray(evaluation.euclidean(jnp.asarray(query), jnp.asarray(gallery)))
    pairs = list(evaluation.blocks(evaluation.euclidean, query, gallery, block_rows))
    assert [rows.start for rows, _ in pairs] == list(range(0, 13, block_rows))
    assert all(isinstance(block, np.ndarray) for _, block in pairs)
    np.testing.assert_allclose(np.concatenate([block for _, block in pairs]), expected, atol=1e-6)
    joined = np.concatenate([np.arange(13)[rows] for rows, _ in pairs])
    np.testing.assert_array_equal(joined, np.arange(13))


def test_blocks_of_a_pytree_are_traced_once():
    traces = []

    def visible_distance(query, gallery):
        traces.append(query["parts"].shape)
        shared = query["visible"][:, None] * gallery["visible"][None]
        apart = ((query["parts"][:, None] - gallery["parts"][None]) ** 2).sum(-1)
        return (shared * apart).sum(-1) / jnp.maximum(shared.sum(-1), 1)

    def side(count, seed):
        rng = np.random.default_rng(seed)
        parts = rng.standard_normal((count, 3, 4)).astype(np.float32)
        return {"parts": parts, "visible": rng.integers(0, 2, (count, 3)).astype(np.float32)}

    query, gallery = side(10, 5), side(7, 6)
    expected = np.asarray(visible_distance(query, gallery))
    traces.clear()
    result = np.concatenate([block for _, block in evaluation.blocks(visible_distance, query, gallery, 4)])
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert traces == [(4, 3, 4)]
    on_device = evaluation.blocks(visible_distance, jax.device_put(query), jax.device_put(gallery), 4)
    np.testing.assert_array_equal(np.concatenate([block for _, block in on_device]), result)


def test_blocks_feed_the_metrics():
    rng = np.random.default_rng(7)
    pids, camids = rng.integers(1, 6, 80), rng.integers(0, 3, 80)
    centres = features(6, 16, 8)
    rows = (centres[pids] + features(80, 16, 9) / 2).astype(np.float32)
    labels = pids[:20], pids[20:], camids[:20], camids[20:]
    blocked = evaluation.rank_metrics_blocks(evaluation.blocks(evaluation.euclidean, rows[:20], rows[20:], 6), *labels)
    whole = evaluation.rank_metrics(evaluation.euclidean(jnp.asarray(rows[:20]), jnp.asarray(rows[20:])), *labels)
    assert blocked.mAP == pytest.approx(whole.mAP, abs=1e-9) and blocked.mAP > 0.8


def test_errors():
    query, gallery = features(3, 4, 0), features(5, 4, 1)
    with pytest.raises(ValueError, match="no query features"):
        next(evaluation.blocks(evaluation.euclidean, query[:0], gallery))
    with pytest.raises(ValueError, match="no gallery features"):
        next(evaluation.blocks(evaluation.euclidean, query, gallery[:0]))
    with pytest.raises(ValueError, match="first axes"):
        image_count({"a": query, "b": gallery})
    with pytest.raises(ValueError, match="first axes"):
        image_count({"a": np.float32(1)})
    with pytest.raises(ValueError, match="first axes"):
        image_count({})
    with pytest.raises(ValueError, match="block_rows"):
        next(evaluation.blocks(evaluation.euclidean, query, gallery, 0))
    with pytest.raises(ValueError, match=r"shape \(5, 3\) instead of \(3, 5\)"):
        next(evaluation.blocks(lambda query, gallery: evaluation.euclidean(gallery, query), query, gallery))
