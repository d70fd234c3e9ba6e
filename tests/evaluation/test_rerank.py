"""Behaviour of re-ranking and query expansion beyond the numbers: blocks, pytrees, ties, unusual distances, errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import evaluation
from occreid_jax.evaluation.expansion import average_query_expansion
from occreid_jax.evaluation.rerank import PRESETS, k_reciprocal, k_reciprocal_from_blocks, rerank_blocks


def identities(count, seed=0, dim=16):
    rng = np.random.default_rng(seed)
    pids = rng.integers(1, 13, count)
    centres = rng.standard_normal((13, dim))
    features = (centres[pids] + 0.9 * rng.standard_normal((count, dim))).astype(np.float32)
    return features, pids, rng.integers(0, 4, count)


def test_presets_name_their_settings():
    assert dict(PRESETS["20,6,0.3"]) == {"k1": 20, "k2": 6, "lambda_value": 0.3}
    assert dict(PRESETS["50,15,0.3"]) == {"k1": 50, "k2": 15, "lambda_value": 0.3}
    features, *_ = identities(60)
    standard = k_reciprocal(features[:20], features[20:])
    np.testing.assert_array_equal(k_reciprocal(features[:20], features[20:], **PRESETS["20,6,0.3"]), standard)


def test_features_are_normalised_unless_told_otherwise():
    features, *_ = identities(80)
    lengths = np.random.default_rng(1).uniform(0.5, 4, (80, 1)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    standard = k_reciprocal(unit[:30], unit[30:], normalize=False)
    scaled = features * lengths
    np.testing.assert_allclose(k_reciprocal(scaled[:30], scaled[30:]), standard, atol=2e-6)
    assert np.abs(k_reciprocal(scaled[:30], scaled[30:], normalize=False) - standard).max() > 0.05


@pytest.mark.parametrize("block_rows", [1, 7, 30, 1000])
def test_blocks_equal_the_whole(block_rows):
    features, *_ = identities(90, 2)
    expected = k_reciprocal(features[:30], features[30:], 8, 3)
    pairs = list(rerank_blocks(evaluation.euclidean, features[:30], features[30:], 8, 3, block_rows=block_rows))
    assert [rows.start for rows, _ in pairs] == list(range(0, 30, min(block_rows, 90)))
    assert all(block.dtype == np.float32 for _, block in pairs)
    np.testing.assert_allclose(np.concatenate([block for _, block in pairs]), expected, atol=2e-6)


def test_blocks_feed_the_metrics_and_help():
    features, pids, camids = identities(300, 3)
    labels = pids[:60], pids[60:], camids[:60], camids[60:]
    plain = evaluation.rank_metrics_blocks(evaluation.blocks(evaluation.euclidean, features[:60], features[60:]), *labels)
    blocks = rerank_blocks(evaluation.euclidean, features[:60], features[60:], block_rows=25)
    better = evaluation.rank_metrics_blocks(blocks, *labels)
    whole = evaluation.rank_metrics(k_reciprocal(features[:60], features[60:]), *labels)
    assert better.mAP == pytest.approx(whole.mAP, abs=1e-4)
    assert better.mAP > plain.mAP + 0.05


def test_a_pytree_with_an_asymmetric_distance():
    """The gallery is masked by the query's mask; blocks of a jitted function and single pairs must agree with the full matrix."""
    rng = np.random.default_rng(4)
    features, *_ = identities(70, 4)
    both = {"feature": features, "mask": rng.integers(0, 2, features.shape).astype(np.float32)}

    def masked(query, gallery):
        apart = (query["feature"][:, None] - gallery["feature"][None]) ** 2
        return (query["mask"][:, None] * apart).sum(-1) / jnp.maximum(query["mask"].sum(-1), 1)[:, None]

    matrix = np.asarray(masked(*({name: jnp.asarray(leaf) for name, leaf in both.items()},) * 2))
    assert np.abs(matrix - matrix.T).max() > 1
    query, gallery = ({name: leaf[part] for name, leaf in both.items()} for part in (slice(20), slice(20, None)))
    result = np.concatenate([block for _, block in rerank_blocks(masked, query, gallery, 6, 3, block_rows=16)])
    expected = k_reciprocal_from_blocks(lambda rows: matrix[rows], 20, 50, 6, 3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_every_call_asks_for_the_same_number_of_rows():
    features, *_ = identities(50, 5)
    matrix = np.asarray(evaluation.euclidean(jnp.asarray(features), jnp.asarray(features)))
    asked = []

    def distances(rows):
        asked.append((len(rows), rows.dtype))
        return matrix[rows]

    k_reciprocal_from_blocks(distances, 20, 30, 5, 2, block_rows=16)
    assert set(asked) == {(16, np.dtype(np.int32))}
    asked.clear()
    k_reciprocal_from_blocks(distances, 20, 30, 5, 2, 0.0, pairs=lambda i, j: matrix[i, j], block_rows=16)
    assert len(asked) == 4  # with lambda 0 and `pairs` every row is needed once


def test_equal_distances_fall_in_order_of_index():
    same = np.ones((40, 8), np.float32)
    collapsed = k_reciprocal(same[:10], same[10:])
    assert np.isfinite(collapsed).all()
    np.testing.assert_array_equal(collapsed, k_reciprocal(same[:10], same[10:], block_rows=3))
    zeros = np.zeros((12, 12), np.float32)
    for sign in (1, -1):  # -0 is no nearer than 0
        result = k_reciprocal_from_blocks(lambda rows, sign=sign: sign * zeros[rows], 4, 8, 3, 1)
        # Images 0 to 3 are nearest to all, and only they are mutual: equal codes among them, none elsewhere.
        np.testing.assert_array_equal(result, np.full((4, 8), 0.7, np.float32))


def test_infinite_distances():
    """Pairs with nothing in common: they are never neighbours, and stay infinite unless lambda is 0."""
    features, *_ = identities(60, 6)
    matrix = np.array(evaluation.euclidean(jnp.asarray(features), jnp.asarray(features)))
    matrix[:, 50:] = matrix[50:, :] = np.inf  # images that share nothing with any other, nor with themselves
    result = k_reciprocal_from_blocks(lambda rows: matrix[rows], 20, 40, 8, 3)
    np.testing.assert_allclose(result[:, :30], k_reciprocal(features[:20], features[20:50], 8, 3), atol=2e-6)
    assert np.isposinf(result[:, 30:]).all()
    np.testing.assert_array_equal(k_reciprocal_from_blocks(lambda rows: matrix[rows], 20, 40, 8, 3, 0.0)[:, 30:], 1)


def test_few_images():
    features, *_ = identities(3, 7)
    result = k_reciprocal(features[:1], features[1:])
    assert result.shape == (1, 2) and np.isfinite(result).all()
    plain = evaluation.euclidean(jnp.asarray(features[:1]), jnp.asarray(features[1:]))
    np.testing.assert_array_equal(np.argsort(result), np.argsort(plain))


@pytest.mark.parametrize("settings", [(0, 6, 0.3), (20, 0, 0.3), (20, 6, -0.1), (20, 6, 1.1)])
def test_settings_out_of_range(settings):
    features, *_ = identities(30)
    with pytest.raises(ValueError, match="k1 >= 1"):
        k_reciprocal(features[:10], features[10:], *settings)


def test_wrong_distances():
    matrix = np.random.default_rng(8).uniform(size=(30, 30))
    cases = {
        "contain NaN": np.where(np.arange(30) == 17, np.nan, matrix),
        "has the distance -": matrix - 0.5,
        "instead of": matrix[:, :20],
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            k_reciprocal_from_blocks(lambda rows, wrong=wrong: wrong[rows], 10, 20)
    with pytest.raises(ValueError, match="one of each"):
        k_reciprocal_from_blocks(lambda rows: matrix[rows], 0, 30)
    with pytest.raises(ValueError, match="block_rows"):
        k_reciprocal_from_blocks(lambda rows: matrix[rows], 10, 20, block_rows=0)


def test_features_that_do_not_fit():
    features, *_ = identities(30)
    with pytest.raises(ValueError, match="no query features"):
        k_reciprocal(features[:0], features)
    with pytest.raises(ValueError, match="do not fit together"):
        k_reciprocal(features[:10], features[10:, :8])
    broken = features.copy()
    broken[20] = np.nan
    with pytest.raises(ValueError, match="contain NaN"):
        k_reciprocal(broken[:10], broken[10:])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_expansion_is_the_weighted_mean(alpha):
    features, *_ = identities(60, 9)
    unit = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    similarity = unit @ unit.T
    expected = np.empty(features.shape)
    for image, row in enumerate(similarity):
        nearest = np.argsort(-row, kind="stable")[:4]
        expected[image] = (np.maximum(row[nearest], 0) ** alpha) @ features[nearest].astype(np.float64) / 4
    query, gallery = average_query_expansion(features[:25], features[25:], 4, alpha, block_rows=16)
    np.testing.assert_allclose(np.concatenate([query, gallery]), expected, atol=2e-6)


def test_expansion_by_the_image_alone_changes_nothing():
    features, *_ = identities(20, 10)
    query, gallery = average_query_expansion(features[:5], features[5:], 1, 3.0)
    np.testing.assert_allclose(np.concatenate([query, gallery]), features, rtol=1e-5)


@pytest.mark.parametrize("settings", [(0, 1.0), (31, 1.0), (5, -1.0)])
def test_expansion_settings_out_of_range(settings):
    features, *_ = identities(30)
    with pytest.raises(ValueError, match="use k from 1"):
        average_query_expansion(features[:10], features[10:], *settings)


def test_expansion_of_wrong_features():
    features, *_ = identities(30)
    with pytest.raises(ValueError, match="of one length"):
        average_query_expansion(features[:10], features[10:, :8], 3)
    broken = features.copy()
    broken[20] = np.inf
    with pytest.raises(ValueError, match="image 20 .* not finite"):
        average_query_expansion(broken[:10], broken[10:], 3)
