"""Dynamic selection of tokens and adaptive pooling, against the sheet's numbers and against one image at a time in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn.pooling import bin_weights, bounds, part_pool, pool
from occreid_jax.nn.selection import ORDERS, select_tokens

SCORES = (0.50, 0.93, 1.0, 0.45, 0.90, 0.40, 0.88, 0.55)


def on_circle(scores):
    """Unit tokens [1, N, 2] with these cosines to the first axis, and that axis as cls token [1, 2]."""
    scores = np.asarray(scores, np.float64)
    tokens = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    return jnp.array([[1.0, 0.0]]), jnp.asarray(tokens[None], jnp.float32)


def one_image(scores: np.ndarray, tokens: np.ndarray, k: int, parts: int, order: str) -> np.ndarray:
    """The k best tokens pooled as torch's adaptive average pooling does, [parts, D]: sorted, gathered, sliced. Or inside the
    stripes that this pooling cuts all tokens into."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    if order == "stripes":
        stripes = [range(p * len(scores) // parts, -(-(p + 1) * len(scores) // parts)) for p in range(parts)]
        return np.stack([tokens[[i for i in stripe if i in best] or list(stripe)].mean(axis=0) for stripe in stripes])
    kept = tokens[sorted(best) if order == "spatial" else best]
    bounds = [(int(np.floor(p * k / parts)), int(np.ceil((p + 1) * k / parts))) for p in range(parts)]
    return np.stack([kept[start:end].mean(axis=0) for start, end in bounds])


# The sheet's numbers ------------------------------------------------------------------------------------------------------


def test_widest_gap():
    found = select_tokens(*on_circle(SCORES), least=0, parts=4)
    np.testing.assert_allclose(found.scores[0], SCORES, atol=1e-6)
    assert (int(found.proxy[0]), int(found.by_gap[0]), int(found.count[0])) == (2, 4, 4)
    np.testing.assert_array_equal(np.flatnonzero(found.selected[0]), [1, 2, 4, 6])


@pytest.mark.parametrize(
    ("least", "order", "expected"),
    [
        (0, "spatial", [10, 20, 40, 60]),
        (0, "rank", [20, 10, 40, 60]),
        (6, "spatial", [5, 15, 50, 65]),
        (6, "rank", [15, 25, 65, 35]),
    ],
)
def test_both_orders(least, order, expected):
    found = select_tokens(*on_circle(SCORES), least=least, parts=4, order=order)
    parts = pool(found.weights, 10 * jnp.arange(8.0)[None, :, None])
    np.testing.assert_allclose(parts[0, :, 0], expected, rtol=1e-6)
    if least:
        np.testing.assert_array_equal(np.flatnonzero(found.selected[0]), [0, 1, 2, 4, 6, 7])
        assert (int(found.by_gap[0]), int(found.count[0])) == (4, 6)
    if least and order == "spatial":
        rows = np.zeros((4, 8))
        for row, pair in enumerate(((0, 1), (1, 2), (4, 6), (6, 7))):
            rows[row, pair] = 0.5
        np.testing.assert_array_equal(found.weights[0], rows)


def test_stripes_keep_their_tokens():
    """The best four of eight tokens are 1, 2, 4 and 6 (`test_widest_gap`); the last case leaves two stripes without any."""
    for least, fixed, expected in ((0, 0, [10, 20, 40, 60]), (6, 0, [5, 20, 40, 65]), (0, 2, [10, 20, 45, 65])):
        found = select_tokens(*on_circle(SCORES), least=least, parts=4, order="stripes", fixed=fixed)
        parts = pool(found.weights, 10 * jnp.arange(8.0)[None, :, None])
        np.testing.assert_allclose(parts[0, :, 0], expected, rtol=1e-6)


def test_other_scores_rank_as_many_tokens():
    ranked_by = jnp.asarray([[0.1, 0.1, 0, 0.9, 0, 0.8, 0.1, 0]])
    found, learned = (select_tokens(*on_circle(SCORES), least=0, parts=4, ranked_by=given) for given in (ranked_by, None))
    assert int(found.count[0]) == int(learned.count[0]) == 4
    np.testing.assert_array_equal(np.flatnonzero(found.selected[0]), [0, 1, 3, 5])  # ties in their own order
    np.testing.assert_array_equal(found.scores, ranked_by)


def test_proxy_needs_unit_vectors():
    cls, tokens = jnp.array([[1.0, 1.0]]), jnp.array([[[2, 0], [3, 3.3], [0, 1], [1, 0.9], [-1, 0.2], [5, 4]]])
    found = select_tokens(cls, tokens, least=0, parts=2)
    assert (int(found.proxy[0]), int(found.by_gap[0])) == (1, 5)  # one outlier takes the widest gap
    np.testing.assert_allclose(found.scores[0], [0.672673, 1, 0.73994, 0.994988, -0.514496, 0.987506], atol=1e-6)
    gaps = -np.diff(np.sort(found.scores[0])[::-1])
    np.testing.assert_allclose(gaps, [0.005012, 0.007481, 0.247566, 0.067267, 1.187169], atol=1e-6)
    by_cls = select_tokens(cls, tokens, least=0, parts=2, proxy="cls")
    np.testing.assert_allclose(by_cls.scores[0], [0.707107, 0.998868, 0.707107, 0.998618, -0.5547, 0.993884], atol=1e-6)
    raw = select_tokens(cls, tokens, least=0, parts=2, proxy="cls", normalise=False)
    np.testing.assert_allclose(raw.scores[0], [2, 6.3, 1, 1.9, -0.8, 9], rtol=1e-6)
    assert int(raw.proxy[0]) == 5


def test_gap_behind_the_proxy():
    arrays = on_circle((1, 0.82, 0.81, 0.80, 0.74, 0.60, 0.59, 0.58))
    found = select_tokens(*arrays, least=3, parts=4)
    assert (int(found.by_gap[0]), int(found.count[0])) == (1, 3)
    assert int(select_tokens(*arrays, least=3, parts=4, ignore_first_gap=True).by_gap[0]) == 5


@pytest.mark.parametrize(
    ("k", "bins"),
    [
        (1, [(0, 1)] * 4),
        (2, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (3, [(0, 1), (0, 2), (1, 3), (2, 3)]),
        (5, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (7, [(0, 2), (1, 4), (3, 6), (5, 7)]),
        (10, [(0, 3), (2, 5), (5, 8), (7, 10)]),
        (48, [(0, 12), (12, 24), (24, 36), (36, 48)]),
        (49, [(0, 13), (12, 25), (24, 37), (36, 49)]),
        (50, [(0, 13), (12, 25), (25, 38), (37, 50)]),
        (51, [(0, 13), (12, 26), (25, 39), (38, 51)]),
        (127, [(0, 32), (31, 64), (63, 96), (95, 127)]),
        (98, [(0, 25), (24, 49), (49, 74), (73, 98)]),
        (128, [(0, 32), (32, 64), (64, 96), (96, 128)]),
    ],
)
def test_bins(k, bins):
    """Those of torch's AdaptiveAvgPool1d, as slices and as a matrix."""
    expected = np.zeros((4, k), np.float32)
    for row, (start, end) in enumerate(bins):
        expected[row, start:end] = np.float32(1) / np.float32(end - start)
    assert [bounds(part, k, 4) for part in range(4)] == bins
    np.testing.assert_array_equal(bin_weights(jnp.arange(k), jnp.ones(k, bool), jnp.int32(k), 4), expected)
    tokens = np.random.default_rng(k).normal(size=(2, k, 3)).astype(np.float32)
    np.testing.assert_allclose(part_pool(jnp.asarray(tokens), 4), expected @ tokens, atol=1e-6)


# Properties ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("total", [8, pytest.param(32, marks=pytest.mark.slow), pytest.param(128, marks=pytest.mark.slow)])
def test_every_k_equals_one_image_at_a_time(total, order):
    """Numbers of tokens given from outside, and found in the gaps, in one compiled function."""
    rng = np.random.default_rng(total)
    tokens = rng.normal(size=(2, total, 24)).astype(np.float32)
    select = jax.jit(lambda c, t, k: select_tokens(c, t, least=0, parts=4, order=order, fixed=k))
    cls = jnp.asarray(rng.normal(size=(2, 24)), jnp.float32)
    for k in range(1, total + 1):
        found = select(cls, tokens, k)
        assert found.count.tolist() == [k, k]
        parts = pool(found.weights, tokens)
        for image in range(2):
            expected = one_image(np.asarray(found.scores[image]), tokens[image], k, 4, order)
            np.testing.assert_allclose(parts[image], expected, atol=1e-5)
    for k in range(1, total):
        scores = np.linspace(1, 0.7, total)
        scores[k:] -= 0.5
        shuffled = rng.permutation(total)
        cls, flat = on_circle(scores[shuffled])
        found = select_again(select, cls, flat)
        assert int(found.by_gap[0]) == int(found.count[0]) == k
        expected = one_image(scores[shuffled], np.asarray(flat[0]), k, 4, order)
        np.testing.assert_allclose(pool(found.weights, flat)[0], expected, atol=1e-5)
    assert select._cache_size() == 2  # one program for each width of the tokens


def select_again(select, cls, tokens):
    return select(cls, tokens, 0)


def test_proxy_has_the_best_score_and_rows_sum_to_one():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(16, 32, 48)), jnp.float32)
    found = select_tokens(tokens[:, 3] + 0.1, tokens, least=5, parts=4)
    np.testing.assert_array_equal(found.proxy, 3)
    np.testing.assert_array_equal(jnp.argmax(found.scores, axis=1), found.proxy)
    np.testing.assert_allclose(found.scores.max(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.selected.sum(axis=1), found.count)
    assert bool((found.count >= 5).all())


def test_gradients_reach_the_selected_tokens_alone():
    rng = np.random.default_rng(1)
    tokens, cls = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 16, 8), (4, 8)))

    def total(cls, tokens):
        found = select_tokens(cls, tokens, least=6, parts=4)
        return jnp.sum(pool(found.weights, tokens) ** 3) + jnp.sum(found.scores) + jnp.sum(found.weights), found.selected

    (to_cls, to_tokens), selected = jax.grad(total, (0, 1), has_aux=True)(cls, tokens)
    np.testing.assert_array_equal(jnp.any(to_tokens != 0, axis=-1), selected)
    assert not to_cls.any()
    assert 0 < int(selected.sum()) < selected.size


def test_ties_keep_the_order_of_the_tokens():
    found = select_tokens(jnp.ones((1, 3)), jnp.ones((1, 6, 3)), least=4, parts=2, order="rank")
    np.testing.assert_array_equal(found.selected[0], [True] * 4 + [False] * 2)
    np.testing.assert_array_equal(found.weights[0], [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0]])


def test_one_image_does_not_know_the_others():
    rng = np.random.default_rng(2)
    tokens, cls = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 16, 8), (5, 8)))
    whole = select_tokens(cls, tokens, least=6, parts=4)
    for image in range(5):
        alone = select_tokens(cls[image : image + 1], tokens[image : image + 1], least=6, parts=4)
        for one, other in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one[0], other[image], atol=1e-6)


def test_numbers_beyond_the_tokens():
    cls, tokens = on_circle(SCORES)
    assert int(select_tokens(cls, tokens, least=48, parts=4).count[0]) == 8
    assert int(select_tokens(cls, tokens, least=0, parts=4, fixed=99).count[0]) == 8
    all_of_them = select_tokens(cls, tokens, least=0, parts=4, fixed=8)
    np.testing.assert_array_equal(all_of_them.weights[0], np.repeat(np.eye(4), 2, axis=1) / 2)


def test_what_cannot_work():
    cls, tokens = on_circle(SCORES)
    with pytest.raises(ValueError, match="unknown proxy 'mean'; it must be one of patch, cls"):
        select_tokens(cls, tokens, least=0, parts=4, proxy="mean")
    with pytest.raises(ValueError, match="unknown order 'random'; it must be one of spatial, rank"):
        select_tokens(cls, tokens, least=0, parts=4, order="random")
    with pytest.raises(ValueError, match="1 tokens have no gap"):
        select_tokens(cls, tokens[:, :1], least=0, parts=4)


# Slips of the official code -----------------------------------------------------------------------------------------------


def test_zero_based_is_one_too_few():
    found = select_tokens(*on_circle(SCORES), least=0, parts=4, zero_based=True)
    assert (int(found.by_gap[0]), int(found.count[0])) == (3, 3)
    np.testing.assert_array_equal(np.flatnonzero(found.selected[0]), [1, 2, 4])
    arrays = on_circle((1, 0.82, 0.81, 0.80, 0.74, 0.60, 0.59, 0.58))
    for ignored, by_gap in ((False, 0), (True, 4)):  # where the gap behind the proxy wins, nothing is left
        found = select_tokens(*arrays, least=3, parts=4, zero_based=True, ignore_first_gap=ignored)
        assert (int(found.by_gap[0]), int(found.count[0])) == (by_gap, max(by_gap, 3))
    assert int(select_tokens(*arrays, least=0, parts=4, zero_based=True).count[0]) == 1  # of nothing there is no mean


def averaged(tokens: np.ndarray, bins: int) -> np.ndarray:
    """Adaptive average pooling of [k, D] as torch does it, [bins, D]."""
    k = len(tokens)
    edges = [(b * k // bins, -(-(b + 1) * k // bins)) for b in range(bins)]
    return np.stack([tokens[start:end].mean(axis=0) for start, end in edges])


def by_batch_one_by_one(scores, tokens, counts, parts, order, valid):
    """Sorted, gathered, pooled to the least number of the batch, and pooled again."""
    fewest, result = min(count for count, use in zip(counts, valid, strict=True) if use), []
    for own, image, count in zip(scores, tokens, counts, strict=True):
        best = np.argsort(-own, kind="stable")[:count]
        kept = image[np.sort(best) if order == "spatial" else best]
        result.append(averaged(averaged(kept, fewest), parts))
    return fewest, np.stack(result)


@pytest.mark.parametrize("order", ("spatial", "rank"))
@pytest.mark.parametrize("least", [0, 6])
def test_pooled_by_batch(order, least):
    rng = np.random.default_rng(5)
    tokens, whole = rng.normal(size=(6, 24, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    for valid in (np.ones(6, bool), np.arange(6) != 3):
        select = jax.jit(lambda w, t, v: select_tokens(w, t, least=least, parts=4, order=order, by_batch=True, valid=v))
        found = select(whole, tokens, valid)
        fewest, expected = by_batch_one_by_one(np.asarray(found.scores), tokens, found.count.tolist(), 4, order, valid)
        np.testing.assert_array_equal(found.between, fewest)
        used = np.flatnonzero(valid)  # what only pads a batch may have fewer tokens than bins
        np.testing.assert_allclose(np.asarray(pool(found.weights, tokens))[used], expected[used], atol=1e-5)
        np.testing.assert_allclose(found.weights.sum(-1)[used], 1, atol=1e-5)


def test_pooled_by_batch_depends_on_the_batch():
    rng = np.random.default_rng(6)
    tokens, whole = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 24, 8), (3, 8)))

    def pooled(rows, valid=None):
        found = select_tokens(whole[rows], tokens[rows], least=0, parts=4, fixed=jnp.array([22, 22, 6])[rows], by_batch=True,
                              valid=valid)  # fmt: skip
        return found.between[0], pool(found.weights, tokens[rows])[0]

    (pair, first), (three, other) = pooled(np.array([0, 1])), pooled(np.array([0, 1, 2]))
    assert (int(pair), int(three)) == (22, 6) and float(jnp.abs(first - other).max()) > 1e-2
    padded, same = pooled(np.array([0, 1, 2]), jnp.array([True, True, False]))
    assert int(padded) == 22
    np.testing.assert_allclose(same, first, atol=1e-6)
    once = select_tokens(whole[:2], tokens[:2], least=0, parts=4, fixed=22)
    np.testing.assert_allclose(first, pool(once.weights, tokens[:2])[0], atol=1e-6)  # as many bins as tokens change nothing


def test_gradients_by_batch_reach_the_selected_tokens_alone():
    rng = np.random.default_rng(7)
    tokens, whole = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 24, 8), (3, 8)))

    def total(tokens):
        found = select_tokens(whole, tokens, least=4, parts=4, order="rank", by_batch=True, zero_based=True, normalise=False)
        return jnp.sum(pool(found.weights, tokens) ** 3), found.selected

    slopes, selected = jax.grad(total, has_aux=True)(tokens)
    np.testing.assert_array_equal(jnp.any(slopes != 0, axis=-1), selected)
