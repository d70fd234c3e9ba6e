"""Metrics and distances against outputs of the official PyTorch implementations, stored in third_party/reference.

transreid = damo-cv/TransReID, torchreid = KaiyangZhou/deep-person-reid, fastreid = JDAI-CV/fast-reid. They store CMC in float32.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import evaluation

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
FLOAT32_SHARE = 6e-8  # rounding of a share stored as float32


@pytest.fixture(scope="module")
def stored():
    with np.load(REFERENCE / "metrics.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def exact():
    with np.load(REFERENCE / "metrics_exact.npz", allow_pickle=False) as file:
        return dict(file)


def labels(file):
    return tuple(file[f"in.{name}"] for name in ("q_pid", "g_pid", "q_cam", "g_cam"))


def compare(result, file, key, with_queries):
    np.testing.assert_allclose(result.cmc, file[f"out.{key}.cmc"], atol=FLOAT32_SHARE)
    assert result.mAP == pytest.approx(float(file[f"out.{key}.mAP_f64"]), abs=1e-12)
    if with_queries:
        valid = result.queries[result.queries["valid"]]
        np.testing.assert_allclose(valid["average_precision"], file[f"out.{key}.AP_f64"], atol=1e-12)
        np.testing.assert_allclose(valid["inverse_negative_penalty"], file[f"out.{key}.INP_f64"], atol=1e-12)
        assert result.mINP == pytest.approx(float(file[f"out.{key}.mINP_f64"]), abs=1e-12)


def test_given_distances(exact):
    result = evaluation.rank_metrics(exact["in.distmat"], *labels(exact))
    compare(result, exact, "transreid", with_queries=False)
    compare(result, exact, "fastreid", with_queries=True)
    np.testing.assert_allclose(result.cmc[:20], exact["out.torchreid.cmc20"], atol=FLOAT32_SHARE)
    assert result.mAP == pytest.approx(float(exact["out.torchreid.mAP_f64"]), abs=1e-12)
    assert result.tied_first_hits == 0
    short = evaluation.rank_metrics(exact["in.distmat"], *labels(exact), max_rank=20)
    np.testing.assert_array_equal(short.cmc, result.cmc[:20])


def test_normalised_features(stored):
    """Squared Euclidean of normalised features and cosine rank alike, so one run answers to all four sets of numbers."""
    query, gallery = stored["in.feat"][:200], stored["in.feat"][200:]
    distance = np.concatenate([block for _, block in evaluation.blocks(evaluation.euclidean, query, gallery, 64)])
    np.testing.assert_allclose(distance[:10], stored["out.transreid.norm.dist_rows0_10"], atol=1e-6)
    np.testing.assert_allclose(distance[:10] / 2, stored["out.torchreid.cosine.dist_rows0_10"], atol=1e-6)
    result = evaluation.rank_metrics(distance, *labels(stored))
    for key in ("transreid.norm", "torchreid.cosine", "float64_distances.norm"):
        compare(result, stored, key, with_queries=False)
    compare(result, stored, "fastreid.cosine", with_queries=True)
    np.testing.assert_array_equal(result.queries["valid"], stored["out.valid_query"])
    assert result.skipped_queries == 8


def test_raw_features(stored):
    query, gallery = stored["in.feat"][:200], stored["in.feat"][200:]

    def raw(query, gallery):
        squares = (query * query).sum(-1)[:, None] + (gallery * gallery).sum(-1)[None]
        return squares - 2 * jnp.matmul(query, gallery.T, precision="highest")

    distance = np.concatenate([block for _, block in evaluation.blocks(raw, query, gallery, 200)])
    np.testing.assert_allclose(distance[:10], stored["out.transreid.raw.dist_rows0_10"], rtol=1e-5)
    in_double = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(-1)
    for result in (evaluation.rank_metrics(values, *labels(stored)) for values in (distance, in_double)):
        for key in ("transreid.raw", "torchreid.euclidean", "float64_distances.raw"):
            compare(result, stored, key, with_queries=False)
        compare(result, stored, "fastreid.euclidean", with_queries=True)
