"""Re-ranking and query expansion against the definition, and against stored outputs of the official implementations.

torchreid = KaiyangZhou/deep-person-reid (bitwise equal to the numpy version in JDAI-CV/fast-reid), float32 throughout.
transreid = damo-cv/TransReID, which keeps V and the Jaccard distance in float16. What float16 alone changes is shown by running
the definition below with float16 in the same places.
"""

from pathlib import Path

import numpy as np
import pytest

from occreid_jax import evaluation
from occreid_jax.evaluation.expansion import average_query_expansion
from occreid_jax.evaluation.rerank import PRESETS, k_reciprocal, k_reciprocal_from_blocks

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
SETTINGS = {"k20_6_l0.3": (20, 6, 0.3), "k50_15_l0.3": (50, 15, 0.3), "k10_1_l0.5": (10, 1, 0.5)}


def stored(name):
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def small():
    return stored("rerank")


@pytest.fixture(scope="module")
def large():
    return stored("metrics")


def squared_distances(features, normalize):
    features = features.astype(np.float64)
    if normalize:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return ((features[:, None] - features[None]) ** 2).sum(-1)


def by_definition(distance, query_count, k1, k2, lambda_value, kept=np.float64):
    """k-reciprocal re-ranking of a full matrix [N, N] in float64; ``kept`` is the type that V and J are stored in."""
    distance = distance / distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")

    def mutual(k):
        lists = [set(row) for row in order[:, : k + 1].tolist()]
        return [{other for other in own if image in lists[other]} for image, own in enumerate(lists)]

    code = np.zeros(distance.shape, kept)
    halves = mutual(int(np.around(k1 / 2)))
    for image, own in enumerate(mutual(k1)):
        whole = own.union(*(halves[c] for c in own if len(halves[c] & own) > 2 / 3 * len(halves[c])))
        columns = sorted(whole)
        weights = np.exp(-distance[image, columns])
        code[image, columns] = weights / weights.sum()
    if k2 > 1:
        code = np.stack([code[order[image, :k2]].mean(axis=0) for image in range(len(distance))])
    result = []
    for image in range(query_count):
        shared = np.zeros(len(distance), kept)
        for column in np.flatnonzero(code[image]):
            shared += np.minimum(code[image, column], code[:, column])
        jaccard = (1 - shared / (2 - shared)).astype(kept)
        result.append((1 - lambda_value) * jaccard + lambda_value * distance[image])  # a float16 product if J is float16
    return np.array(result)[:, query_count:]


def identities(seed, count=150, dim=24):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((15, dim))
    return (centres[rng.integers(0, 15, count)] + 1.3 * rng.standard_normal((count, dim))).astype(np.float32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("settings", [*SETTINGS.values(), (7, 9, 0.0), (1, 2, 1.0), (15, 3, 0.2), (200, 200, 0.3)])
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


@pytest.mark.parametrize("kind", ["norm", "raw"])
@pytest.mark.parametrize("key", SETTINGS)
def test_stored_outputs(small, kind, key):
    features, settings = small["in.feat"], SETTINGS[key]
    result = k_reciprocal(features[:60], features[60:], *settings, normalize=kind == "norm")
    np.testing.assert_allclose(result, small[f"out.torchreid_fp32.{kind}.{key}"], atol=2e-6)
    # float16 sums over up to 250 entries: half a step is 2.4e-4 near 1, and the roundings add up with the length of the codes.
    in_half = small[f"out.transreid_fp16.{kind}.{key}"]
    np.testing.assert_allclose(result, in_half, atol=7e-3 if settings[0] == 50 else 2.5e-3)
    assert np.sqrt(np.mean((result - in_half) ** 2)) < 7e-4


@pytest.mark.parametrize("kind", ["norm", "raw"])
@pytest.mark.parametrize("key", SETTINGS)
def test_float16_explains_what_is_left(small, kind, key):
    in_half = by_definition(squared_distances(small["in.feat"], kind == "norm"), 60, *SETTINGS[key], kept=np.float16)
    apart = np.abs(in_half - small[f"out.transreid_fp16.{kind}.{key}"])
    # A weight exactly between two float16 numbers may fall to either side: at most a few of 12,000 values.
    assert np.count_nonzero(apart > 1e-6) <= 3 and apart.max() < 1e-3


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_metrics_after_reranking(large, kind):
    labels = [large[f"in.{name}"] for name in ("q_pid", "g_pid", "q_cam", "g_cam")]
    features, key = large["in.feat"], f"out.transreid.{kind}_rerank50_15"
    expected = float(large[f"{key}.mAP_f64"])
    distance = k_reciprocal(features[:200], features[200:], **PRESETS["50,15,0.3"], normalize=kind == "norm")
    result = evaluation.rank_metrics(distance, *labels)
    assert result.mAP == pytest.approx(expected, abs=4e-4)  # float16 ties and swaps neighbours in the list
    np.testing.assert_allclose(result.cmc, large[f"{key}.cmc"], atol=2.1 / 192)  # two of 192 valid queries
    if kind == "norm":
        in_half = by_definition(squared_distances(features, True), 200, 50, 15, 0.3, kept=np.float16)
        result = evaluation.rank_metrics(in_half, *labels)
        assert result.mAP == pytest.approx(expected, abs=5e-6)
        np.testing.assert_allclose(result.cmc, large[f"{key}.cmc"], atol=1e-7)


def test_squared_distances_squared_again(small):
    """torchreid's engine hands squared distances to a function that squares them; here that is just another distance."""
    features = small["in.feat"]
    fourth = squared_distances(features, True) ** 2
    result = k_reciprocal_from_blocks(lambda rows: fourth[rows], 60, 200)
    np.testing.assert_allclose(result, by_definition(fourth, 60, 20, 6, 0.3), atol=2e-6)
    assert np.abs(result - k_reciprocal(features[:60], features[60:])).max() > 0.05


def test_stored_query_expansion(large):
    features, key = large["in.feat"], "out.fastreid.aqe5_3"
    query, gallery = average_query_expansion(features[:200], features[200:], k=5, alpha=3.0, block_rows=128)
    assert query.dtype == gallery.dtype == np.float32 and gallery.shape == (1000, 64)
    np.testing.assert_allclose(query, large[f"{key}.query_feat"], atol=3e-6)
    np.testing.assert_allclose(gallery[:50], large[f"{key}.gallery_feat_rows0_50"], atol=3e-6)
    labels = [large[f"in.{name}"] for name in ("q_pid", "g_pid", "q_cam", "g_cam")]
    result = evaluation.rank_metrics_blocks(evaluation.blocks(evaluation.euclidean, query, gallery), *labels)
    np.testing.assert_allclose(result.cmc, large[f"{key}.cmc"], atol=1e-7)
    assert result.mAP == pytest.approx(float(large[f"{key}.mAP_f64"]), abs=1e-6)
    assert result.mINP == pytest.approx(float(large[f"{key}.mINP_f64"]), abs=1e-6)
