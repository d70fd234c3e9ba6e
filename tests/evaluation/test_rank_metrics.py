"""Rank metrics against the definition, written as a plain loop, and against cases worked out by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import evaluation
from occreid_jax.evaluation import JUNK, RIGHT, WRONG


def brute_force(distance, query_pids, gallery_pids, query_camids, gallery_camids, max_rank):
    """The protocol one gallery image at a time. Returns cmc, mAP, mINP, one dict per query and the flagged ranked lists."""
    rows, lists = [], []
    for query in range(len(query_pids)):
        order = sorted(range(len(gallery_pids)), key=lambda index: (distance[query, index], index))
        flags, ranks, rank = [], [], 0
        for index in order:
            same = gallery_pids[index] == query_pids[query]
            if same and gallery_camids[index] == query_camids[query]:
                flags.append(JUNK)
                continue
            rank += 1
            flags.append(RIGHT if same else WRONG)
            if same:
                ranks.append(rank)
        tied = False
        if ranks:
            nearest = min(distance[query, index] for index, flag in zip(order, flags, strict=True) if flag == RIGHT)
            tied = any(flag == WRONG and distance[query, index] == nearest for index, flag in zip(order, flags, strict=True))
        rows.append(
            {
                "average_precision": sum((k + 1) / r for k, r in enumerate(ranks)) / len(ranks) if ranks else np.nan,
                "inverse_negative_penalty": len(ranks) / ranks[-1] if ranks else np.nan,
                "first_hit": ranks[0] if ranks else 0,
                "matches": len(ranks),
                "junk": flags.count(JUNK),
                "valid": bool(ranks),
                "tied_first_hit": tied,
            }
        )
        lists.append((order, flags))
    valid = [row for row in rows if row["valid"]]
    cmc = [sum(row["first_hit"] <= rank for row in valid) / len(valid) for rank in range(1, max_rank + 1)]
    mean_ap = sum(row["average_precision"] for row in valid) / len(valid)
    return cmc, mean_ap, sum(row["inverse_negative_penalty"] for row in valid) / len(valid), rows, lists


def random_case(seed):
    """A small case; depending on the seed with ties, duplicates, infinities, few images, one identity or float64."""
    rng = np.random.default_rng(seed)
    queries, gallery = int(rng.integers(1, 12)), int(rng.integers(1, 60))
    identities, cameras = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    dtype = np.float32 if seed % 2 else np.float64
    distance = rng.random((queries, gallery)).astype(dtype)
    if seed % 3 == 0:
        distance = np.round(distance * rng.integers(1, 12)).astype(dtype)
    if seed % 5 == 0:  # duplicates of gallery images
        copies = rng.integers(0, gallery, gallery)
        distance = distance[:, copies]
    if seed % 7 == 0:
        distance[rng.random(distance.shape) < 0.2] = np.inf
    labels = (
        rng.integers(1, identities + 1, queries),
        rng.integers(0, identities + 1, gallery),  # 0 = distractors
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )
    return distance, labels


def has_match(labels):
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    same = query_pids[:, None] == gallery_pids
    return (same & (query_camids[:, None] != gallery_camids)).any()


def assert_equal_results(first, second):
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


@pytest.mark.parametrize("few_values", [64, 0], ids=["scan", "sort"])
def test_agrees_with_brute_force(monkeypatch, few_values):
    monkeypatch.setattr("occreid_jax.evaluation.metrics._FEW_VALUES", few_values)  # both ways to resolve ties
    checked = 0
    for seed in range(300):
        distance, labels = random_case(seed)
        if not has_match(labels):
            continue
        checked += 1
        result = evaluation.rank_metrics(distance, *labels, max_rank=20, keep_ranked=25, threads=1)
        cmc, mean_ap, mean_inp, rows, lists = brute_force(distance, *labels, max_rank=20)
        np.testing.assert_allclose(result.cmc, cmc, rtol=1e-14)
        np.testing.assert_allclose([result.mAP, result.mINP], [mean_ap, mean_inp], rtol=1e-12)
        for query, row in enumerate(rows):
            for name, value in row.items():
                np.testing.assert_allclose(result.queries[name][query], value, rtol=1e-12, err_msg=f"{seed} {query} {name}")
            order, flags = lists[query]
            np.testing.assert_array_equal(result.ranked_indices[query], order[:25])
            np.testing.assert_array_equal(result.ranked_flags[query], flags[:25])
        assert result.skipped_queries == sum(not row["valid"] for row in rows)
        assert result.tied_first_hits == sum(row["tied_first_hit"] for row in rows)
    assert checked > 200


def test_worked_example():
    """Ranking (id 1 cam 1), (id 2 cam 2), (id 1 cam 2), (id 1 cam 3) for a query id 1 cam 1: hits 0, 1, 1 once junk is out."""
    result = evaluation.rank_metrics(
        np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), [1], [1, 2, 1, 1], [1], [1, 2, 2, 3], max_rank=5, keep_ranked=4
    )
    assert result.cmc.tolist() == [0, 1, 1, 1, 1]
    assert result.mAP == pytest.approx((1 / 2 + 2 / 3) / 2) == pytest.approx(0.583333, abs=1e-6)
    assert result.mINP == pytest.approx(2 / 3)
    (record,) = result.queries
    assert (record["first_hit"], record["matches"], record["junk"]) == (2, 2, 1)
    assert result.ranked_indices.tolist() == [[0, 1, 2, 3]]
    assert result.ranked_flags.tolist() == [[JUNK, WRONG, RIGHT, RIGHT]]


def test_result_types_and_short_gallery():
    result = evaluation.rank_metrics(np.array([[1.0, 0.5]], np.float32), [1], [1, 2], [0], [1, 1], keep_ranked=9)
    assert result.cmc.dtype == np.float64 and result.cmc.shape == (50,)
    assert result.cmc[0] == 0 and (result.cmc[1:] == 1).all()
    assert isinstance(result.mAP, float) and isinstance(result.mINP, float)
    assert result.queries.dtype == evaluation.QUERY_RECORD
    assert result.ranked_indices.dtype == np.int32 and result.ranked_indices.shape == (1, 2)
    assert evaluation.rank_metrics(np.ones((1, 2)), [1], [1, 2], [0], [1, 1]).ranked_flags.shape == (1, 0)


def test_distractors_stay_and_unmatched_queries_are_skipped():
    distance = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    result = evaluation.rank_metrics(distance, [1, 7, 1], [0, 1, 1], [0, 0, 1], [0, 1, 2], max_rank=3)
    assert result.cmc.tolist() == [0, 1, 1]  # pid 0 stands before the matches although it shares the query's camera
    assert result.skipped_queries == 1
    assert result.queries["valid"].tolist() == [True, False, True]
    assert np.isnan(result.queries["average_precision"][1]) and result.queries["first_hit"][1] == 0
    assert result.queries["junk"].tolist() == [0, 0, 1]
    assert result.mAP == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)


@pytest.mark.parametrize("value", [0.0, 1.5, np.inf])
def test_collapsed_model_is_reported(value):
    """All distances equal: the gallery order decides everything, and the result says so."""
    rng = np.random.default_rng(0)
    query_pids, gallery_pids = rng.integers(1, 5, 30), rng.integers(0, 5, 200)
    query_camids, gallery_camids = rng.integers(0, 3, 30), rng.integers(0, 3, 200)
    labels = query_pids, gallery_pids, query_camids, gallery_camids
    collapsed = evaluation.rank_metrics(np.full((30, 200), value, np.float32), *labels)
    by_index = evaluation.rank_metrics(np.tile(np.arange(200.0), (30, 1)), *labels)
    assert collapsed.tied_first_hits == 30 and by_index.tied_first_hits == 0
    np.testing.assert_array_equal(collapsed.queries["average_precision"], by_index.queries["average_precision"])
    np.testing.assert_array_equal(collapsed.cmc, by_index.cmc)


def test_ties_between_matches_or_with_junk_are_no_tied_hits():
    result = evaluation.rank_metrics(np.array([[0.5, 0.5, 0.5, 0.9]]), [1], [1, 1, 1, 2], [0], [0, 1, 2, 0])
    assert result.tied_first_hits == 0 and result.mAP == 1


def test_gallery_permutation_changes_nothing_without_ties():
    rng = np.random.default_rng(3)
    distance = rng.permuted(np.tile(np.arange(300.0), (40, 1)), axis=1)
    query_pids, gallery_pids = rng.integers(1, 9, 40), rng.integers(0, 9, 300)
    query_camids, gallery_camids = rng.integers(0, 4, 40), rng.integers(0, 4, 300)
    plain = evaluation.rank_metrics(distance, query_pids, gallery_pids, query_camids, gallery_camids, keep_ranked=5)
    order = rng.permutation(300)
    moved = evaluation.rank_metrics(
        distance[:, order], query_pids, gallery_pids[order], query_camids, gallery_camids[order], keep_ranked=5
    )
    np.testing.assert_array_equal(plain.queries, moved.queries)
    np.testing.assert_array_equal(plain.cmc, moved.cmc)
    np.testing.assert_array_equal(plain.ranked_indices, order[moved.ranked_indices])
    assert (np.diff(plain.cmc) >= 0).all() and 0 < plain.cmc[0] and plain.cmc[-1] <= 1


def test_blocks_of_any_size_and_order_equal_one_block(monkeypatch):
    monkeypatch.setattr("occreid_jax.evaluation.metrics._CHUNK_VALUES", 70)  # several chunks per block
    rng = np.random.default_rng(4)
    distance = np.round(rng.random((23, 31)), 1)
    labels = rng.integers(1, 4, 23), rng.integers(0, 4, 31), rng.integers(0, 3, 23), rng.integers(0, 3, 31)
    whole = evaluation.rank_metrics(distance, *labels, keep_ranked=7, threads=1)
    slices = [(slice(first, first + 5), distance[first : first + 5]) for first in (20, 0, 15, 5, 10)]
    assert_equal_results(whole, evaluation.rank_metrics_blocks(slices, *labels, keep_ranked=7, threads=3))
    order = rng.permutation(23)
    rows = ((part, distance[part]) for part in np.split(order, [4, 4, 20]))
    assert_equal_results(whole, evaluation.rank_metrics_blocks(rows, *labels, keep_ranked=7))


def test_number_types():
    rng = np.random.default_rng(5)
    integers = rng.integers(0, 50, (9, 40)).astype(np.int16)
    labels = rng.integers(1, 4, 9), rng.integers(0, 4, 40), rng.integers(0, 3, 9), rng.integers(0, 3, 40)
    expected = evaluation.rank_metrics(integers.astype(np.float64), *labels)
    for distance in (
        integers,
        integers.astype(np.float16),
        integers.astype(np.float32),
        np.asfortranarray(integers, np.float32),
        jnp.asarray(integers, jnp.float32),
        jnp.asarray(integers, jnp.bfloat16),
    ):
        assert_equal_results(expected, evaluation.rank_metrics(distance, *labels))


LABELS = dict(query_pids=[1, 2], gallery_pids=[1, 2, 3], query_camids=[0, 0], gallery_camids=[1, 1, 1])


@pytest.mark.parametrize(
    ("distance", "changes", "message"),
    [
        (np.zeros(6), {}, "matrix"),
        (np.zeros((2, 4)), {}, r"\(2, 4\).*\(2, 3\)"),
        (np.zeros((3, 3)), {}, r"\(3, 3\)|no block|\(2, 3\)"),
        (np.zeros((2, 3), "S3"), {}, "real numbers"),
        (np.zeros((2, 3)), {"query_pids": [1, 2, 3]}, "3 query_pids but 2 query_camids"),
        (np.zeros((2, 3)), {"gallery_camids": [1]}, "3 gallery_pids but 1 gallery_camids"),
        (np.zeros((2, 3)), {"query_pids": [[1, 2]]}, "query_pids has shape"),
        (np.zeros((2, 3)), {"query_pids": ["a", "b"]}, "one integer per image"),
        (np.zeros((0, 3)), {"query_pids": [], "query_camids": []}, "query split is empty"),
        (np.zeros((2, 0)), {"gallery_pids": [], "gallery_camids": []}, "gallery split is empty"),
        (np.zeros((2, 3)), {"query_pids": [8, 9]}, "share no identity"),
        (np.zeros((2, 3)), {"gallery_camids": [0, 0, 1]}, "own camera"),
        (np.zeros((2, 3)), {"max_rank": 0}, "max_rank"),
        (np.zeros((2, 3)), {"keep_ranked": -1}, "keep_ranked"),
    ],
)
def test_errors_are_one_clear_line(distance, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluation.rank_metrics(distance, **{**LABELS, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_nan_names_the_first_query_row():
    rng = np.random.default_rng(6)
    labels = rng.integers(1, 4, 50), rng.integers(0, 4, 40), rng.integers(0, 3, 50), rng.integers(0, 3, 40)
    for column in (0, 17, 39):
        distance = rng.random((50, 40)).astype(np.float32)
        distance[:, 3] = np.inf
        distance[[31, 47], column] = np.nan
        with pytest.raises(ValueError, match="query row 31 contain NaN"):
            evaluation.rank_metrics(distance, *labels)


def test_block_errors():
    with pytest.raises(ValueError, match="no block holds query row 1"):
        evaluation.rank_metrics_blocks([(slice(0, 1), np.zeros((1, 3)))], **LABELS)
    with pytest.raises(ValueError, match="query row 0 comes twice"):
        evaluation.rank_metrics_blocks([(slice(0, 2), np.zeros((2, 3))), (np.array([0]), np.zeros((1, 3)))], **LABELS)
    with pytest.raises(ValueError, match="query row 1 comes twice"):
        evaluation.rank_metrics_blocks([(np.array([1, 1]), np.zeros((2, 3)))], **LABELS)


def test_labels_are_checked_before_any_distance_is_computed():
    def blocks():
        raise AssertionError("asked for a block")
        yield

    with pytest.raises(ValueError, match="own camera"):
        evaluation.rank_metrics_blocks(blocks(), [1, 2], [1, 2], [0, 0], [0, 0])
