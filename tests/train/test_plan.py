"""The run as numbers: what is refused and what is told before anything is compiled."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from occreid_jax.errors import UserError
from occreid_jax.train.plan import Position, make_plan
from occreid_jax.types import Stage


def stage(epochs=3, **sampler) -> Stage:
    block = ConfigDict({"name": "uniform", "batch_size": 4} | sampler)
    return Stage(name="main", epochs=epochs, sampler=block, updates=(), augment=None)


LABELS = np.repeat(np.arange(11), 2)  # 22 pictures: 5 batches of 4 in every epoch


def test_what_does_not_fill_an_update_is_told_once():
    plan = make_plan((stage(),), LABELS, 0, accumulate=2, device_count=1)
    assert plan.notes == (
        "stage 'main': 3 of 15 batches are left out, those at the end of an epoch that do not fill an update of 2 "
        "(config.loop.accumulate)",
    )
    assert plan.stages[0].epoch_ends.tolist() == [4, 8, 12] and [len(plan.stages[0].rows(epoch)) for epoch in range(3)] == [4] * 3
    assert plan.locate(5) == Position(0, 1, 1) and plan.locate(12) is None
    for accumulate in (1, 5):
        assert make_plan((stage(),), LABELS, 0, accumulate, 1).notes == ()


def test_an_update_larger_than_an_epoch():
    with pytest.raises(UserError) as told:
        make_plan((stage(),), LABELS, 0, accumulate=6, device_count=1)
    assert str(told.value) == (
        "stage 'main': config.loop.accumulate is 6, but an epoch has only 5 batches; lower loop.accumulate or the sampler's "
        "batch size"
    )
    with pytest.raises(UserError, match="^stage 'main' has no batch to train on; check epochs and the sampler's batch size$"):
        make_plan((stage(epochs=0),), LABELS, 0, 1, 1)


def test_identities_of_one_picture_are_told():
    by_identity = stage(name="identity", batch_size=4, images_per_identity=2)
    plan = make_plan((by_identity,), np.array([0, 0, 1, 1, 2]), 0, 1, 1)
    assert plan.notes == (
        "stage 'main': 1 of 3 training identities have a single picture: a batch holds 2 copies of it, and no pair of different "
        "pictures to bring together",
    )
    with pytest.raises(UserError, match="sampler.images_per_identity is 1: a batch has no two pictures of a person"):
        make_plan((stage(name="identity", batch_size=4, images_per_identity=1),), LABELS, 0, 1, 1)
