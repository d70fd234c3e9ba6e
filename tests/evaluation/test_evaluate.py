"""From parameters to results: embedding with a padded last batch, flipping, devices, and the summary."""

import jax
import numpy as np
import pytest

from occreid_jax import distributed
from occreid_jax.errors import UserError
from occreid_jax.evaluation import rank_metrics
from occreid_jax.evaluation.embed import embed_split
from occreid_jax.evaluation.evaluate import Evaluation, evaluate, inspect_split, mean_cosine, parameters_hash, per_group, tenths
from occreid_jax.train.log import Reporter
from occreid_jax.train.setup import open_setup


@pytest.fixture
def opened(tiny_config, tmp_path):
    setup = open_setup(tiny_config(data__cache=str(tmp_path / "tables"), mesh__devices=1), Reporter(quiet=True))
    params, extra = jax.jit(setup.method.init)(jax.random.key(0))
    return setup, params, extra, {role: setup.columns(role, ("image",), "bilinear") for role in ("query", "gallery")}


def embed(setup, params, extra, columns, batch_size, devices=None, flip=False):
    return embed_split(setup.method, params, extra, columns, "gallery", batch_size, devices or setup.devices, flip)


def test_batches_and_devices_do_not_change_features(opened):
    setup, params, extra, columns = opened
    whole = embed(setup, params, extra, columns["gallery"], 48)
    assert whole.shape == (48, 32) and whole.dtype == np.float32
    np.testing.assert_allclose(embed(setup, params, extra, columns["gallery"], 20), whole, atol=1e-5)  # 8 rows in the last
    eight = distributed.devices(8)
    params, extra = distributed.place((params, extra), eight.replicated)
    np.testing.assert_allclose(embed(setup, params, extra, columns["gallery"], 20, eight), whole, atol=1e-5)


def test_flipping_exchanges_left_and_right_in_labels():
    """A mirrored picture's left arm is on the other side, and called right."""
    parts = np.zeros((2, 2, 4), np.uint8)
    parts[:, 0, 0], parts[:, 1, 3] = 2, 16 | 5

    class Shown:
        transform = staticmethod(lambda batch: batch)
        embed = staticmethod(lambda params, extra, batch, role: batch["parts"].astype("float32"))

    columns = {"image": np.zeros((2, 2, 4, 3), np.uint8), "parts": parts, "camid": np.zeros(2, np.int32)}
    both = embed_split(Shown(), {}, {}, columns, "query", 2, distributed.devices(1), flip=True)
    expected = np.zeros((2, 2, 4), np.uint8)
    expected[:, 0, 3], expected[:, 1, 0] = 3, 16 | 6
    np.testing.assert_array_equal(both, (parts + expected.astype(np.float32)) / 2)


def test_flipping_averages_both_views(opened):
    setup, params, extra, columns = opened
    mirrored = columns["gallery"] | {"image": np.asarray(columns["gallery"]["image"])[:, :, ::-1]}
    plain, other = (embed(setup, params, extra, c, 48) for c in (columns["gallery"], mirrored))
    both = embed(setup, params, extra, columns["gallery"], 48, flip=True)
    np.testing.assert_allclose(both, (plain + other) / 2, atol=1e-5)


def test_results_have_the_promised_names(opened):
    setup, params, extra, columns = opened
    evaluation = evaluate(
        setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, setup.reporter.task
    )
    assert list(evaluation.results) == [
        "protocol", "mAP", "mINP", "rank1", "rank5", "rank10", "queries", "gallery", "skipped_queries", "tied_first_hits",
        "per_occlusion", "per_covered", "selection", "comparisons", "parameters_sha256", "seconds",
    ]  # fmt: skip
    assert evaluation.results["queries"] == 24 and evaluation.results["gallery"] == 48
    assert evaluation.metrics.ranked_indices.shape == (24, 20)


def test_evaluating_again_traces_nothing(opened, monkeypatch):
    setup, params, extra, columns = opened
    embed, inspect, traced = setup.method.embed, setup.method.inspect, []
    monkeypatch.setattr(setup.method, "embed", lambda *given: traced.append(given[-1]) or embed(*given))
    monkeypatch.setattr(setup.method, "inspect", lambda *given: traced.append("maps") or inspect(*given))
    task = setup.reporter.task
    for _ in range(2):
        evaluate(setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, task)
        inspect_split(setup.method, params, extra, columns["query"], 24, setup.devices, task)  # `evaluate` does with a truth
        assert sorted(traced) == ["gallery", "maps", "maps", "query"]  # the maps' shapes are asked for first


def test_reranking_and_expansion_are_settings_and_change_the_protocol(opened):
    from occreid_jax.evaluation import average_query_expansion, euclidean, rank_metrics, rerank_blocks

    setup, params, extra, columns = opened

    def run():
        evaluation = evaluate(
            setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, setup.reporter.task
        )
        return evaluation.results

    query, gallery = (embed(setup, params, extra, columns[role], 24) for role in ("query", "gallery"))
    labels = [getattr(getattr(setup.dataset, role), name) for name in ("pids", "camids") for role in ("query", "gallery")]
    plain = setup.dataset.protocol
    setup.config.evaluation.rerank = "5,2,0.4"
    distance = np.concatenate([block for _, block in rerank_blocks(euclidean, query, gallery, 5, 2, 0.4)])
    results = run()
    assert results["protocol"] == f"{plain}+rerank=5,2,0.4"
    assert results["mAP"] == pytest.approx(100 * rank_metrics(distance, *labels).mAP, abs=0.5)
    setup.config.evaluation.update(rerank="", expansion="4,3")
    query, gallery = average_query_expansion(query, gallery, 4, 3.0)
    results = run()
    assert results["protocol"] == f"{plain}+expansion=4,3"
    assert results["mAP"] == pytest.approx(100 * rank_metrics(np.asarray(euclidean(query, gallery)), *labels).mAP, abs=0.5)


def test_features_that_are_not_finite_are_an_error(opened):
    setup, params, extra, columns = opened
    params = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(UserError, match="contain NaN"):
        evaluate(setup.method, params, extra, setup.dataset, columns, setup.config.evaluation, setup.devices, setup.reporter.task)


def test_the_hash_sees_every_bit():
    tree = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    changed = {"a": np.zeros(3, np.float32), "b": np.nextafter(np.ones(2, np.float32), 2)}
    assert parameters_hash(tree) == parameters_hash({name: x.copy() for name, x in tree.items()})
    assert parameters_hash(tree) != parameters_hash(changed)
    assert parameters_hash({"a": tree["a"]}) != parameters_hash({"c": tree["a"]})


def test_the_mean_cosine_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(2.0, 1.0, (5, 8)).astype(np.float32), rng.normal(2.0, 1.0, (7, 8)).astype(np.float32)
    unit = np.concatenate([query, gallery])
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    expected = (unit @ unit.T).mean()
    assert mean_cosine({"query": query, "gallery": gallery}) == pytest.approx(expected, rel=1e-5)
    several = {
        role: {"feature": x, "mask": np.ones((len(x), 4), np.float32), "index": np.zeros((len(x), 2), int), "score": x[:, :1]}
        for role, x in (("query", query), ("gallery", gallery))
    }
    assert mean_cosine(several) == pytest.approx(expected, rel=1e-5)
    masked = {"query": {"feature": query, "mask": np.ones((5, 4), np.float32)}, "gallery": {"feature": gallery}}  # as DPM++ has
    assert mean_cosine(masked) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(mean_cosine({"query": query[:, :1], "gallery": gallery[:, :1]}))


def test_a_network_that_gives_every_picture_the_same_is_told(opened):
    setup, params, extra, columns = opened
    arguments = setup.dataset, columns, setup.config.evaluation, setup.devices, setup.reporter.task
    assert evaluate(setup.method, params, extra, *arguments).doubts == ()
    blind = jax.tree_util.tree_map_with_path(lambda path, x: x * ("patch_embed" not in str(path)), params)
    collapsed = evaluate(setup.method, blind, extra, *arguments)
    assert collapsed.doubts == (
        "note: the features of all pictures are nearly equal (mean cosine 1.000000); 24 of 24 first hits are exactly as far as "
        "another person's picture: their order is chance",
    )


@pytest.mark.parametrize("likeness, tied, told", [
    (0.9998, 0, None),
    (0.99995, 0, "note: the features of all pictures are nearly equal (mean cosine 0.999950)"),
    (0.5, 3, "note: 3 of 1,200 first hits are exactly as far as another person's picture: their order is chance"),
    (float("nan"), 0, None),
])  # fmt: skip
def test_what_casts_doubt_on_a_ranking(likeness, tied, told):
    results = {"tied_first_hits": tied, "queries": 1234, "skipped_queries": 34}
    assert Evaluation(results, None, likeness).doubts == ((told,) if told else ())


def test_results_by_the_covered_share():
    """Queries of two tenths, one without a match: the mean of each tenth's own precisions."""
    assert tenths(np.array([0, 0.0999, 0.1, 0.3, 0.95, 1.0])).tolist() == [0, 0, 1, 3, 9, 9]
    labels = np.array([1, 2, 3, 4]), np.array([1, 1, 2, 5, 3]), np.array([0] * 4), np.array([1] * 5)
    distance = np.array([[1, 3, 2, 4, 5], [2, 1, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], np.float32)
    found = per_group(rank_metrics(distance, *labels), ["a", "b", "b", "b"])
    assert found["a"] == {"queries": 1, "mAP": round(100 * (1 + 2 / 3) / 2, 4), "rank1": 100.0}
    assert found["b"] == {"queries": 2, "mAP": round(100 * (1 / 3 + 1 / 5) / 2, 4), "rank1": 0.0}
