"""Learning rates against the sheet's oracles, and optimisers against its closed forms."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from occreid_jax.errors import UserError
from occreid_jax.train.optim import by_epoch, make_optimizer
from occreid_jax.train.schedules import learning_rates


def block(**values):
    return ml_collections.ConfigDict(values)


def test_transreid_cosine():
    """Baselines sheet, oracle 3."""
    schedule = common.sgd()["schedule"]
    weights = learning_rates(block(**schedule), 0.008, 120)
    biases = learning_rates(block(**schedule), 0.016, 120)
    epochs = np.array([1, 4, 5, 60, 119, 120]) - 1
    np.testing.assert_allclose(weights[epochs], [0.001664, 0.006416, 0.00796585, 0.004008, 1.7368e-5, 1.6e-5], rtol=1e-4)
    np.testing.assert_allclose(biases[epochs], [0.003264, 0.012816, 0.0159316, 0.008008, 1.87387e-5, 1.6e-5], rtol=1e-4)


def test_clip_reid_schedules():
    """Baselines sheet, oracle 4."""
    cosine = block(name="cosine", warmup_epochs=5, warmup_start=1e-5, floor=1e-6)
    epochs = np.array([1, 5, 60, 120]) - 1
    np.testing.assert_allclose(learning_rates(cosine, 3.5e-4, 120)[epochs], [7.8e-5, 3.48507e-4, 1.755e-4, 1e-6], rtol=1e-4)
    steps = block(name="multistep", warmup_epochs=10, warmup_factor=0.1, milestones=(30, 50), gamma=0.1)
    epochs = np.array([1, 5, 10, 30, 50]) - 1
    np.testing.assert_allclose(learning_rates(steps, 5e-6, 60)[epochs], [9.5e-7, 2.75e-6, 5e-6, 5e-7, 5e-8], rtol=1e-6)


def test_unknown_schedule():
    with pytest.raises(UserError, match="known: constant, cosine, multistep"):
        learning_rates(block(name="step"), 0.1, 2)


def run(optimizer_block, gradients, path="kernel", value=1.0, epoch_ends=(100,), accumulate=1):
    optimizer = make_optimizer(block(**optimizer_block), (path,), np.array(epoch_ends), accumulate)
    params = {path: jnp.array(value, jnp.float32)}
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update({path: jnp.array(gradient, jnp.float32)}, state, params)
        params = {path: params[path] + updates[path]}
        seen.append(float(params[path]))
    return seen


CONSTANT = dict(name="constant")


def test_sgd_and_adam_have_coupled_decay():
    """Baselines sheet, oracle 11."""
    sgd = run(common.sgd(schedule=CONSTANT), [0.5, 0.5])
    np.testing.assert_allclose(sgd, [0.9959992, 0.9883976832], rtol=1e-6)
    adam = run(common.adam(schedule=CONSTANT, learning_rate=3.5e-4), [0.0])
    np.testing.assert_allclose(adam, [0.9996500350], rtol=1e-6)
    adamw = run(common.adam(schedule=CONSTANT, learning_rate=3.5e-4, name="adamw"), [0.0])
    np.testing.assert_allclose(adamw, [0.999999965], rtol=1e-7)


def test_bias_and_group_rates():
    plain = common.sgd(schedule=CONSTANT, momentum=0.0, weight_decay=0.0, bias_weight_decay=0.0)
    assert run(plain, [1.0])[0] == pytest.approx(1 - 0.008)
    assert run(plain, [1.0], path="block/bias")[0] == pytest.approx(1 - 0.016)
    grouped = plain | {"groups": (("^head/", 10.0),)}
    assert run(grouped, [1.0], path="head/kernel")[0] == pytest.approx(1 - 0.08)
    assert run(grouped, [1.0], path="head/bias")[0] == pytest.approx(1 - 0.16)
    assert run(grouped, [1.0], path="body/head")[0] == pytest.approx(1 - 0.008)


def test_the_rate_of_a_step_is_found_without_a_loop():
    """A loop of its own for every group of parameters is what a search would be on an accelerator."""
    rate = jax.jit(by_epoch(np.array([0.4, 0.3, 0.2]), np.array([2, 3, 6]), accumulate=1))
    np.testing.assert_allclose([rate(jnp.int32(done)) for done in range(8)], [0.4, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert "while" not in rate.lower(jnp.int32(0)).as_text()


def test_the_rate_changes_at_epoch_ends():
    schedule = dict(name="multistep", warmup_epochs=0, warmup_factor=1.0, milestones=(2, 3), gamma=0.1)
    plain = common.sgd(schedule=schedule, momentum=0.0, weight_decay=0.0, learning_rate=1.0)
    values = run(plain, [1.0] * 6, value=0.0, epoch_ends=(2, 3, 6))
    np.testing.assert_allclose(np.diff([0.0, *values]), [-1, -1, -0.1, -0.01, -0.01, -0.01], rtol=1e-4)


def test_accumulated_gradients_equal_their_mean():
    plain = common.sgd(schedule=CONSTANT, weight_decay=0.0)
    many = run(plain, [0.2, 0.4, 0.6, 0.8], accumulate=2)
    once = run(plain, [0.3, 0.7])
    assert many[0] == 1.0 and many[1] == pytest.approx(once[0]) and many[3] == pytest.approx(once[1])


def test_clipping():
    plain = common.sgd(schedule=CONSTANT, weight_decay=0.0, clip_norm=1.0, learning_rate=1.0)
    assert run(plain, [10.0])[0] == pytest.approx(0.0, abs=1e-6)


def test_unknown_optimizer():
    with pytest.raises(UserError, match="known: sgd, adam, adamw"):
        run(common.sgd(name="lamb"), [1.0])
