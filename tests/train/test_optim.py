"""Optimisers over several steps against torch's update rules, restated in numpy; and the groups that the rules give."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from occreid_jax.errors import UserError
from occreid_jax.train.optim import Group, make_optimizer, parameter_groups
from occreid_jax.train.schedules import learning_rates, rates_at

STEPS = 5
PATHS = ("body/kernel", "body/bias", "head/kernel")
SCHEDULE = dict(name="multistep", warmup_epochs=2, warmup_factor=0.1, milestones=(4,), gamma=0.1)


def torch_sgd(values, gradients, rates, decay, momentum=0.9):
    """torch.optim.SGD without dampening: the first buffer is the gradient itself."""
    buffer, seen = 0.0, []
    for gradient, rate in zip(gradients, rates, strict=True):
        buffer = momentum * buffer + gradient + decay * values
        values = values - rate * buffer
        seen.append(values)
    return seen


def torch_adam(values, gradients, rates, decay, first=0.9, second=0.999, epsilon=1e-8):
    """torch.optim.Adam: the decay is part of the gradient, and epsilon is added to the corrected root."""
    mean, square, seen = 0.0, 0.0, []
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient + decay * values
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        root = np.sqrt(square) / np.sqrt(1 - second**step) + epsilon
        values = values - rate / (1 - first**step) * mean / root
        seen.append(values)
    return seen


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        (common.sgd(learning_rate=0.05, weight_decay=0.02, bias_weight_decay=0.01), torch_sgd),
        (common.adam(learning_rate=0.01, weight_decay=0.02, bias_weight_decay=0.01, bias_factor=2.0), torch_adam),
    ],
)
def test_steps_equal_torch(block, rule):
    """One epoch a step, so that warm-up and milestone pass; both to the rounding of float32."""
    block = ml_collections.ConfigDict(block | {"schedule": SCHEDULE, "groups": (("^head/", 3.0),)})
    rng = np.random.default_rng(0)
    start = {path: rng.standard_normal((4, 3)) for path in PATHS}
    gradients = [{path: rng.standard_normal((4, 3)) for path in PATHS} for _ in range(STEPS)]
    optimizer = make_optimizer(block, PATHS, np.arange(1, STEPS + 1))
    params = {path: jnp.asarray(value, jnp.float32) for path, value in start.items()}
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update({path: jnp.asarray(g, jnp.float32) for path, g in gradient.items()}, state, params)
        params = {path: params[path] + updates[path] for path in PATHS}
        seen.append(params)
    for path, factor, decay in zip(PATHS, (1.0, block.bias_factor, 3.0), (0.02, 0.01, 0.02), strict=True):
        rates = learning_rates(block.schedule, block.learning_rate * factor, STEPS)
        expected = rule(start[path], [gradient[path] for gradient in gradients], rates, decay)
        for step in range(STEPS):
            np.testing.assert_allclose(seen[step][path], expected[step], rtol=5e-7, atol=5e-7)


def test_groups_of_parameters():
    block = ml_collections.ConfigDict(common.sgd(weight_decay=1e-3, bias_weight_decay=0.0, groups=(("^head/", 10.0),)))
    groups = parameter_groups(block, ("head/bias", "body/bias_table", "body/kernel", "head/kernel"))
    assert groups == {
        "head/bias": Group("group0_bias", 0.008 * 10 * 2, 0.0),
        "body/bias_table": Group("group1_bias", 0.016, 0.0),
        "body/kernel": Group("group1", 0.008, 1e-3),
        "head/kernel": Group("group0", 0.08, 1e-3),
    }


def test_rates_outside_a_training():
    """Before its first epoch and behind its last one."""
    cosine = ml_collections.ConfigDict(common.sgd()["schedule"])
    np.testing.assert_allclose(rates_at(cosine, 0.008, 10, np.array([0, 10, 11, 20])), [8e-5, 1.6e-5, 1.6e-5, 1.6e-5])
    steps = ml_collections.ConfigDict(SCHEDULE)
    np.testing.assert_allclose(rates_at(steps, 1.0, 3, np.array([0, 1, 3, 9])), [0.1, 0.55, 1.0, 0.1])
    steps.warmup_method = "constant"
    np.testing.assert_allclose(rates_at(steps, 1.0, 3, np.array([0, 1, 2])), [0.1, 0.1, 1.0])
    steps.warmup_method = "quadratic"
    with pytest.raises(ValueError, match="known: constant, linear"):
        rates_at(steps, 1.0, 3, np.array([0]))


def test_parts_of_one_update_move_by_their_own_rules():
    """The first pattern that fits a path chooses the block; beside others it moves as it would alone."""
    blocks = {
        "body/": ml_collections.ConfigDict(common.sgd(learning_rate=0.05, schedule=SCHEDULE)),
        "": ml_collections.ConfigDict(common.adam(learning_rate=0.01, schedule=SCHEDULE)),
    }
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.standard_normal(3), jnp.float32) for path in PATHS}
    gradients = {path: jnp.asarray(rng.standard_normal(3), jnp.float32) for path in PATHS}
    ends = np.arange(1, STEPS + 1)

    def steps(block, paths):
        optimizer = make_optimizer(block, paths, ends)
        chosen, state = {path: params[path] for path in paths}, None
        state = optimizer.init(chosen)
        for _ in range(3):
            updates, state = optimizer.update({path: gradients[path] for path in paths}, state, chosen)
            chosen = {path: chosen[path] + updates[path] for path in paths}
        return chosen

    together = steps(tuple(blocks.items()), PATHS)
    alone = steps(blocks["body/"], PATHS[:2]) | steps(blocks[""], PATHS[2:])
    for path in PATHS:
        np.testing.assert_array_equal(together[path], alone[path])


def test_parts_that_cannot_work():
    sgd, adam = (ml_collections.ConfigDict(block) for block in (common.sgd(), common.adam(clip_norm=1.0)))
    with pytest.raises(UserError, match="no optimiser of this stage is for the parameter head/kernel"):
        make_optimizer((("body/", sgd),), PATHS, np.array([1]))
    with pytest.raises(UserError, match=r"clips all its gradients together; \[0.0, 1.0\] must be one number"):
        make_optimizer((("body/", sgd), ("", adam)), PATHS, np.array([1]))
