"""The samplers against the originals' rule, written out slowly."""

import collections
import time
import types

import numpy as np
import pytest

from occreid_jax.data import DataError
from occreid_jax.data.sampler import (
    identity_batches,
    make_sampler,
    notes,
    steps_per_epoch,
    training_labels,
    uniform_batches,
)


def make_labels(seed=0, identities=60, low=1, high=20):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), generator.integers(low, high, identities))
    return generator.permutation(labels).astype(np.int32)


def plain_rule(labels, p, k, generator):
    """RandomIdentitySampler.__iter__ of the PyTorch originals, with lists."""
    groups = {}
    for pid in np.unique(labels):
        rows = list(np.flatnonzero(labels == pid))
        if len(rows) < k:
            rows = list(generator.choice(rows, size=k, replace=True))
        generator.shuffle(rows)
        groups[pid] = [rows[i : i + k] for i in range(0, len(rows) - k + 1, k)]
    available, batches = list(groups), []
    while len(available) >= p:
        batch = []
        for pid in generator.choice(available, p, replace=False):
            batch += groups[pid].pop(0)
            if not groups[pid]:
                available.remove(pid)
        batches.append(batch)
    return np.array(batches)


def test_batches_hold_p_identities_with_k_images():
    labels, p, k = make_labels(), 8, 4
    counts = np.bincount(labels)
    for epoch in range(5):
        batches = identity_batches(labels, p, k, seed=1, epoch=epoch)
        assert batches.dtype == np.int32 and batches.shape[1] == p * k
        uses = np.bincount(batches.reshape(-1), minlength=len(labels))
        for batch in batches:
            groups = labels[batch].reshape(p, k)
            assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) == p
        groups_used = np.bincount(labels[batches[:, ::k]].reshape(-1), minlength=len(counts))
        assert (groups_used <= np.maximum(counts // k, 1)).all()
        # without replacement, except in identities that are too small
        assert (uses[counts[labels] >= k] <= 1).all()
        # it went on for as long as P identities had a group left
        assert (groups_used < np.maximum(counts // k, 1)).sum() < p


def test_short_identities_draw_with_replacement():
    labels = np.array([0, 1, 1, 2, 2, 2, 2])
    seen = collections.Counter()
    for epoch in range(400):
        batches = identity_batches(labels, 3, 4, seed=0, epoch=epoch)
        assert batches.shape == (1, 12)
        groups = {labels[g[0]]: g for g in batches.reshape(3, 4)}
        assert groups[0].tolist() == [0, 0, 0, 0] and sorted(groups[2]) == [3, 4, 5, 6]
        seen[int((groups[1] == 1).sum())] += 1
    # binomial(4, 1/2): both constant groups come up 1 time in 16
    assert seen.keys() == {0, 1, 2, 3, 4} and 8 <= seen[0] <= 50 and 110 <= seen[2] <= 190


def test_same_distribution_as_the_plain_rule():
    labels, p, k, epochs = make_labels(identities=12, high=14), 4, 2, 400
    generator = np.random.default_rng(5)
    plain = [plain_rule(labels, p, k, generator) for _ in range(epochs)]
    ours = [identity_batches(labels, p, k, seed=3, epoch=epoch) for epoch in range(epochs)]

    def statistics(runs):
        steps = np.array([len(run) for run in runs])
        uses = np.sum([np.bincount(run.reshape(-1), minlength=len(labels)) for run in runs], axis=0) / epochs
        first = np.sum([np.bincount(labels[run[0, ::k]], minlength=12) for run in runs], axis=0) / epochs
        place = np.mean([np.mean(labels[run[:, 0]]) for run in runs])
        return steps, uses, first, place

    (steps_a, uses_a, first_a, place_a), (steps_b, uses_b, first_b, place_b) = statistics(plain), statistics(ours)
    assert abs(steps_a.mean() - steps_b.mean()) < 4 * np.hypot(steps_a.std(), steps_b.std()) / np.sqrt(epochs) + 0.02
    np.testing.assert_allclose(uses_a, uses_b, atol=0.2)
    np.testing.assert_allclose(first_a, first_b, atol=0.15)
    assert abs(place_a - place_b) < 0.4


def test_pure_and_different_each_epoch():
    labels = make_labels()
    first = identity_batches(labels, 8, 4, seed=1, epoch=2)
    identity_batches(labels, 8, 4, seed=9, epoch=9)
    np.testing.assert_array_equal(first, identity_batches(labels.copy(), 8, 4, seed=1, epoch=2))
    for other in ((1, 3), (2, 2)):
        assert not np.array_equal(first[:5], identity_batches(labels, 8, 4, *other)[:5])


def test_the_order_is_pinned():
    """A change here changes every training run: it needs a reason and a word in the change log."""
    labels = np.repeat(np.arange(4), 3)
    assert identity_batches(labels, 2, 2, seed=0, epoch=0).tolist() == [[8, 7, 10, 11], [5, 3, 0, 1]]
    assert uniform_batches(7, 3, seed=0, epoch=0).tolist() == [[2, 4, 3], [6, 5, 0]]


def test_uniform():
    batches = uniform_batches(10, 4, seed=0, epoch=1)
    assert batches.shape == (2, 4) and batches.dtype == np.int32 and len(set(batches.reshape(-1))) == 8
    padded = uniform_batches(10, 4, seed=0, epoch=1, remainder="pad")
    assert sorted(padded.reshape(-1)) == [-1, -1, *range(10)] and (padded[-1, -2:] == -1).all()
    np.testing.assert_array_equal(padded[:2], batches)
    assert uniform_batches(8, 4, 0, 0, remainder="pad").shape == (2, 4)
    assert uniform_batches(10, 4, seed=0, epoch=1, most=1).tolist() == batches[:1].tolist()
    assert uniform_batches(10, 4, seed=0, epoch=1, most=9).tolist() == batches.tolist()


def block(**settings):
    return types.SimpleNamespace(**settings)


def test_steps_are_known_beforehand():
    labels = make_labels(2)
    for settings in (
        block(name="identity", batch_size=32, images_per_identity=4),
        block(name="uniform", batch_size=32),
        block(name="uniform", batch_size=32, remainder="pad"),
        block(name="uniform", batch_size=32, most=3),
        block(name="uniform", batch_size=32, most=1000),
    ):
        sampler = make_sampler(settings, labels)
        assert steps_per_epoch(settings, labels, 7, 6) == tuple(len(sampler(7, epoch)) for epoch in range(6))
        assert steps_per_epoch(settings, labels, 7, range(2, 4)) == tuple(len(sampler(7, epoch)) for epoch in (2, 3))
    varied = steps_per_epoch(block(name="identity", batch_size=32, images_per_identity=4), labels, 7, 40)
    assert len(set(varied)) > 1


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(name="identity", batch_size=64, images_per_identity=4), "has 3: set sampler.batch_size to 12 or less"),
        (dict(name="identity", batch_size=10, images_per_identity=4), "should be a multiple of sampler.images_per_identity, 4"),
        (dict(name="uniform", batch_size=64), "the training set has 6: lower sampler.batch_size"),
        (dict(name="uniform", batch_size=2, remainder="keep"), 'should be "drop" or "pad"'),
        (dict(name="random", batch_size=2), 'should be "identity" or "uniform"'),
        (dict(name="uniform", batch_size=0), "should be 1 or more"),
        (dict(name="uniform", batch_size=2, most=-1), "sampler.most is -1: it should be"),
        (
            dict(name="identity", batch_size=4, images_per_identity=1),
            "sampler.images_per_identity is 1: a batch has no two pictures of a person to bring together; set it to 2 or more, "
            "or, where no pictures are compared, sampler.name to uniform",
        ),
        (
            dict(name="identity", batch_size=4, images_per_identity=4),
            "sampler.batch_size is 4 with 4 images of each identity: a batch has one person and nobody to tell apart; set it to "
            "8 or more, or, where no pictures are compared, sampler.name to uniform",
        ),
    ],
)
def test_settings_that_cannot_be_met(settings, words):
    with pytest.raises(DataError) as error:
        make_sampler(block(**settings), np.repeat(np.arange(3), 2))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("identities", [0, 1])
def test_nobody_to_tell_apart(identities):
    with pytest.raises(DataError, match=f"^the training set has {identities} identities: there is nobody to tell apart, add"):
        make_sampler(block(name="identity", batch_size=8, images_per_identity=4), np.zeros(5 * identities, int))


def test_single_pictures_are_told():
    by_identity, uniform = block(name="identity", batch_size=8, images_per_identity=4), block(name="uniform", batch_size=2)
    labels = np.array([0, 0, 1, 2, 2, 3])
    assert notes(by_identity, np.array([0, 0, 1, 1])) == notes(uniform, labels) == ()
    assert notes(by_identity, labels) == (
        "2 of 4 training identities have a single picture: a batch holds 4 copies of it, and no pair of different pictures to "
        "bring together",
    )


def test_labels_follow_the_identity_numbers():
    labels = training_labels(np.array([7140, 3, 3, 25], np.int32))
    assert labels.dtype == np.int32 and labels.tolist() == [2, 0, 0, 1]


def test_an_epoch_of_market_size_is_quick():
    labels = make_labels(0, identities=751, low=2, high=34)
    assert len(labels) > 12_000
    identity_batches(labels, 16, 4, 0, 0)
    started = time.process_time()
    identity_batches(labels, 16, 4, 0, 1)
    assert time.process_time() - started < 0.05
