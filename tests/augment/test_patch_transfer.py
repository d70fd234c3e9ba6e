"""Patch transfer against the sheet's worked example and against a slow restatement, one image at a time, in plain numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.augment import patch_transfer

ROWS = ("01100110", "00110010", "11001100", "11110000", "00010000")
MASKS = np.array([[int(bit) for bit in row] for row in ROWS], bool)  # sheet, oracle 3: a grid of 2 x 4
GRID = (2, 4)
LABELS = np.array([0, 1, 2, 3, 4])


def choose(masks, labels, grid, seed=0, **settings):
    settings = dict(probability=1.0) | settings
    return patch_transfer.choose_partners(jax.random.key(seed), jnp.asarray(masks), grid, jnp.asarray(labels), **settings)


def test_overlaps_of_the_worked_example():
    found = patch_transfer.rolled_overlaps(jnp.asarray(MASKS), GRID)[0]
    expected = [[1, 2 / 3, 1 / 2, 1 / 2, 0], [1 / 2, 1, 0, 1 / 2, 1], [0, 1 / 3, 1 / 2, 1 / 2, 1], [1 / 2, 0, 1, 1 / 2, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.max(axis=0), [1, 1, 1, 0.5, 1])


def test_partner_and_sample_of_the_worked_example():
    for seed in range(20):
        transfer = choose(MASKS, LABELS, GRID, seed, top_share=0.6, threshold=0.6)
        assert int(transfer.partner[0]) == 1 and bool(transfer.used[0])
    tokens = jnp.stack([jnp.arange(10.0, 18.0) + 10 * number for number in range(5)])[..., None]
    partner = jnp.array([1, 1, 2, 3, 4])
    made = patch_transfer.recombine(tokens, jnp.asarray(MASKS), partner)
    assert made[0, :, 0].tolist() == [20, 21, 12, 13, 24, 25, 16, 27]
    np.testing.assert_array_equal(made[1:], tokens[1:])  # whoever is its own partner stays as it is


def slow_overlap(target, candidate, grid, shift):
    """OIoU of one pair under one shift, pixel by pixel."""
    height, width = grid
    shared = area = 0
    for row in range(height):
        for column in range(width):
            area += candidate[row * width + column]
            shared += candidate[row * width + column] and target[row * width + (column - shift) % width]
    return shared / area if area else -1.0


def slow_candidates(target, masks, labels, grid, share, threshold, rolling, rolling_threshold, same_identity):
    """Who may serve one target, from the sheet's words: best score over shifts, the best 10 % of the batch without itself, OIoU
    unrolled above the threshold. Returns the set that is certain and the set that ties leave open."""
    shifts = range(grid[1]) if rolling else (0,)
    best = {}
    for other in range(len(masks)):
        if other == target or not masks[other].any() or (same_identity and labels[other] == labels[target]):
            continue
        best[other] = max(slow_overlap(masks[target], masks[other], grid, shift) for shift in shifts)
    places = max(1, int(share * len(masks)))
    border = sorted(best.values(), reverse=True)[:places][-1] if best else 0.0

    def accepted(other):
        return slow_overlap(masks[target], masks[other], grid, 0) > threshold and best[other] > rolling_threshold

    within = {other for other, score in best.items() if score >= border and accepted(other)}
    certain = {other for other, score in best.items() if score > border and accepted(other)}
    return certain, within


@pytest.mark.parametrize("rolling", [True, False])
@pytest.mark.parametrize("same_identity", [True, False])
def test_choice_equals_the_slow_restatement(rolling, same_identity):
    rng = np.random.default_rng(3)
    grid, count = (4, 3), 20
    masks = rng.random((count, 12)) < rng.uniform(0.0, 0.9, (count, 1))
    masks[5] = False
    labels = np.repeat(np.arange(5), 4)
    chosen = [set() for _ in range(count)]
    settings = dict(threshold=0.5, rolling=rolling, rolling_threshold=0.6, exclude_same_identity=same_identity, top_share=0.2)
    pick = jax.jit(lambda key: patch_transfer.choose_partners(
        key, jnp.asarray(masks), grid, jnp.asarray(labels), probability=1.0, **settings))  # fmt: skip
    for seed in range(150):
        transfer = pick(jax.random.key(seed))
        for target in range(count):
            chosen[target].add(int(transfer.partner[target]) if bool(transfer.used[target]) else -1)
    for target in range(count):
        certain, within = slow_candidates(target, masks, labels, grid, 0.2, 0.5, rolling, 0.6, same_identity)
        found = chosen[target] - {-1}
        assert found <= within and certain <= found, target
        assert 5 not in found  # an empty mask never serves
        if not within:
            assert chosen[target] == {-1}


def test_recombination_equals_the_slow_restatement():
    rng = np.random.default_rng(0)
    tokens, masks = rng.normal(size=(6, 12, 5)).astype(np.float32), rng.random((6, 12)) < 0.4
    partner = np.array([3, 1, 0, 5, 4, 2], np.int32)
    for hole_of in patch_transfer.HOLES:
        made = patch_transfer.recombine(jnp.asarray(tokens), jnp.asarray(masks), jnp.asarray(partner), hole_of)
        for image in range(6):
            for patch in range(12):
                hole = masks[partner[image] if hole_of == "partner" else image, patch]
                source = image if hole or partner[image] == image else partner[image]
                np.testing.assert_array_equal(made[image, patch], tokens[source, patch])


def test_probability_is_that_of_a_sample():
    masks, labels = np.ones((40, 4), bool), np.arange(40)
    used = np.mean([np.mean(choose(masks, labels, (2, 2), seed, probability=0.3).used) for seed in range(40)])
    assert abs(used - 0.3) < 0.03
    assert not choose(masks, labels, (2, 2), probability=0.0).used.any()


def test_choices_of_the_official_code():
    """Ranks 1 to k - 1 of all (shift, candidate) pairs, accepted by the unrolled OIoU; without an accepted one, rank 0."""
    rng = np.random.default_rng(1)
    grid, count, threshold = (4, 4), 60, 0.5
    masks, labels = rng.random((count, 16)) < 0.5, np.arange(count)
    scores = np.asarray(patch_transfer.rolled_overlaps(jnp.asarray(masks), grid))
    places, chosen = int(0.1 * count), [set() for _ in range(count)]
    for seed in range(40):
        transfer = choose(masks, labels, grid, seed, partners="official", fallback="first", threshold=threshold)
        for target in range(count):
            chosen[target].add(int(transfer.partner[target]))
    kinds = set()
    for target in range(count):
        first, *ranked = np.argsort(-scores[target].reshape(-1), kind="stable")[:places] % count
        accepted = {int(j) for j in ranked if j != target and scores[target, 0, j] > threshold}
        assert chosen[target] == (accepted or {int(first)})
        refused = {int(j) for j in ranked} - accepted - {target}
        kinds |= {("first left out", bool(accepted) and int(first) not in accepted), ("threshold", bool(refused and accepted))}
        kinds.add(("first serves", not accepted))
    assert {(name, True) for name in ("first left out", "threshold", "first serves")} <= kinds  # the example has all of them
    none = choose(masks, labels, grid, partners="official", threshold=1.1)
    assert not none.used.any() and (np.asarray(none.partner) == np.arange(count)).all()


def test_an_empty_mask_serves_nobody():
    masks = np.zeros((30, 8), bool)
    masks[:3] = True
    for settings in (dict(partners="random"), dict(partners="official", fallback="first"), dict(fallback="first", threshold=1.1)):
        found = choose(masks, np.arange(30), GRID, **settings)
        assert (np.asarray(found.partner)[np.asarray(found.used)] < 3).all() and found.used.any()
        nobody = choose(np.zeros((30, 8), bool), np.arange(30), GRID, **settings)
        assert not nobody.used.any() and (np.asarray(nobody.partner) == np.arange(30)).all()


def test_random_partners_are_others():
    found = choose(MASKS, LABELS, GRID, partners="random")
    assert found.used.all() and (np.asarray(found.partner) != np.arange(5)).all()
    labels = np.array([0, 0, 1, 1, 1])
    for seed in range(10):
        found = choose(MASKS, labels, GRID, seed, partners="random", exclude_same_identity=True)
        assert (labels[np.asarray(found.partner)] != labels).all()


def test_options_change_who_serves():
    """Each option against what the plain rule does on the worked example (target 0, threshold 0.6, three places)."""

    def partners(**changes):
        settings = dict(top_share=0.6, threshold=0.6) | changes
        return {int(choose(MASKS, LABELS, GRID, seed, **settings).partner[0]) for seed in range(30)}

    assert partners() == {1}
    assert partners(threshold_on="rolled") == {1, 2, 4}
    assert partners(least_area=3 / 8) == {1} and partners(least_area=0.38) == {0}  # candidate 1 has three patches of eight
    assert partners(threshold=1.1) == {0} and partners(threshold=1.1, fallback="first") <= {1, 2, 4}
    scores = patch_transfer.rolled_overlaps(jnp.asarray(MASKS), GRID, 2)[0]  # shifts 0 and 2 alone
    np.testing.assert_allclose(scores.max(axis=0), [1, 2 / 3, 1 / 2, 1 / 2, 1], atol=1e-6)


def test_who_is_ignored():
    transfer = patch_transfer.Transfer(jnp.array([4, 1, 2, 3, 0, 5]), jnp.array([True, False, False, False, True, False]))
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    assert patch_transfer.left_out_identity(labels, transfer).tolist() == [2, -1, -1, -1, 0, -1]
    rows = np.zeros((6, 6), bool)
    rows[0, [4, 5]] = rows[4, [0, 1]] = True
    np.testing.assert_array_equal(patch_transfer.ignored_negatives(labels, transfer, symmetric=False), rows)
    np.testing.assert_array_equal(patch_transfer.ignored_negatives(labels, transfer), rows | rows.T)
    same = patch_transfer.Transfer(jnp.array([1, 1, 2, 3, 4, 5]), jnp.arange(6) == 0)  # a partner of the same identity
    assert patch_transfer.left_out_identity(labels, same).tolist() == [-1] * 6
    assert not patch_transfer.ignored_negatives(labels, same).any()


def test_unknown_choices():
    for wrong in (dict(partners="worst"), dict(fallback="second"), dict(threshold_on="none")):
        with pytest.raises(ValueError, match="it must be one of"):
            choose(MASKS, LABELS, GRID, **wrong)


# Shares of a batch ------------------------------------------------------------------------------------------------------------


def test_how_many_shares():
    whole = [(64, 64, 4), (64, 0, 4), (2048, 0, 4), (12, 64, 4), (2, 64, 4)]
    assert [patch_transfer.fewest_shares(*case) for case in whole] == [1] * 5
    cut = {(128, 64, 4): 2, (2048, 64, 4): 32, (64, 8, 4): 8, (64, 15, 4): 8, (96, 64, 4): 2, (60, 24, 4): 3, (60, 24, 1): 3}
    assert {case: patch_transfer.fewest_shares(*case) for case in cut} == cut
    alone = [(64, 4, 4), (92, 64, 4), (64, 7, 4), (6, 2, 2)]  # 92 images of 23 people; shares of one identity
    assert [patch_transfer.fewest_shares(*case) for case in alone] == [None] * 4


def shared_batch(shares=4, size=6):
    rng = np.random.default_rng(7)
    masks = rng.random((shares * size, 12)) < 0.5
    return masks, np.arange(shares * size) // 2, rng.normal(size=(shares * size, 12, 5)).astype(np.float32)


@pytest.mark.parametrize(
    "partners", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("best", "official"))]
)
def test_a_share_chooses_as_a_batch_of_its_own(partners):
    masks, labels, tokens = map(jnp.asarray, shared_batch())
    settings = dict(probability=0.8, partners=partners, threshold=0.2, top_share=0.4)

    @jax.jit
    def choose(key):
        found = patch_transfer.choose_in_shares(key, masks, (4, 3), labels, shares=4, **settings)
        rows = [slice(first, first + 6) for first in range(0, 24, 6)]
        keys = jax.random.split(key, 4)
        alone = [patch_transfer.choose_partners(own, masks[r], (4, 3), labels[r], **settings)
                 for own, r in zip(keys, rows, strict=True)]  # fmt: skip
        made = [[patch_transfer.recombine(tokens, masks, found.partner, hole_of, shares) for shares in (1, 4)]
                for hole_of in patch_transfer.HOLES]  # fmt: skip
        whole = patch_transfer.choose_in_shares(key, masks, (4, 3), labels, **settings)
        return found, alone, made, (whole, patch_transfer.choose_partners(key, masks, (4, 3), labels, **settings))

    found, alone, made, whole = choose(jax.random.key(3))
    np.testing.assert_array_equal(found.partner, np.concatenate([6 * n + each.partner for n, each in enumerate(alone)]))
    np.testing.assert_array_equal(found.used, np.concatenate([each.used for each in alone]))
    assert found.used.any() and not found.used.all()
    for pair in (*made, *zip(*whole, strict=True)):
        np.testing.assert_array_equal(*pair)


@pytest.mark.slow
def test_no_device_fetches_the_tokens_of_others():
    """Eight devices, there and back: tokens stay where they are if a share is one device's, and numbers are one device's."""
    masks, labels, tokens = shared_batch(8)

    def program(devices, shares):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        whole, rows = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",)))

        def made(weight, tokens, masks, labels):
            chosen = patch_transfer.choose_in_shares(
                jax.random.key(0), masks, (4, 3), labels, shares=shares, probability=0.8, threshold=0.2
            )
            return jnp.sum(jnp.sin(patch_transfer.recombine(tokens @ weight, masks, chosen.partner, shares=shares)))

        function = jax.jit(jax.value_and_grad(made), in_shardings=(whole, rows, rows, rows), out_shardings=whole)
        compiled = function.lower(jnp.eye(5, dtype=jnp.float32), tokens, masks, labels).compile()
        moved = re.findall(r" = (\S+) (?:all|collective|reduce)-\w+[\w-]*\(", compiled.as_text())
        return function(jnp.eye(5, dtype=jnp.float32), tokens, masks, labels), any("12,5]" in shape for shape in moved)

    (one, _), (eight, moved), (_, moved_whole) = program(1, 8), program(8, 8), program(8, 1)
    assert moved_whole and not moved
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], eight[1], atol=1e-4)
