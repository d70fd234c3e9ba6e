"""REINFORCE against numbers by hand and against the gradient that is exactly enumerated; distillation and maps by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.losses import distillation, policy
from occreid_jax.losses.identity import cross_entropy

OBSERVED = np.array([[0.8, 0.1], [-0.2, 0.6]], np.float32)


def logits(params, observed=OBSERVED):
    return observed @ params[:2] + params[2]


PARAMS = jnp.asarray([0.5, -1.0, 0.0])  # G and b


def test_log_probability_and_its_slope():
    """Oracle 5, for the action (keep, replace)."""
    kept = jnp.asarray([True, False])
    value, slope = jax.value_and_grad(lambda p: policy.log_probability(logits(p)[None], kept[None], "sum")[0])(PARAMS)
    assert float(value) == pytest.approx(-0.957541, abs=1e-6)
    np.testing.assert_allclose(slope, [0.406808, -0.156532, 0.0937453], atol=1e-6)
    for reduction, share in (("sum", 1.0), ("mean", 0.5)):
        found = jax.grad(lambda p, r=reduction: policy.policy_loss(logits(p)[None], kept[None], jnp.asarray([0.2]), r))(PARAMS)
        np.testing.assert_allclose(found[:2], share * np.array([-0.0813617, 0.0313063]), atol=1e-7)
    with pytest.raises(ValueError, match="unknown reduction 'max'"):
        policy.log_probability(logits(PARAMS)[None], kept[None], "max")


def exact(observed, rewards) -> tuple[float, np.ndarray]:
    """The expected reward and its gradient, every action counted by its probability; ``rewards`` by action."""

    def expected(params):
        total = 0.0
        for action, value in rewards.items():
            each = policy.log_probability(logits(params, observed)[None], jnp.asarray([action]), "sum")
            total = total + value * jnp.exp(each[0])
        return total

    return jax.value_and_grad(expected)(PARAMS)


def sampled(observed, rewards, count: int) -> np.ndarray:
    """What `policy_loss` gives for each of ``count`` draws, [count, 3], with the sign of an ascent."""
    table = jnp.asarray([rewards[action] for action in itertools.product((False, True), repeat=len(observed))])
    weights = 2 ** np.arange(len(observed))[::-1]

    def one(key):
        kept = jax.random.bernoulli(key, jax.nn.sigmoid(logits(PARAMS, observed)))
        gain = table[jnp.sum(kept * weights)]
        return -jax.grad(lambda p: policy.policy_loss(logits(p, observed)[None], kept[None], gain[None], "sum"))(PARAMS)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)))


def test_two_patches_are_unbiased():
    """Oracle 6."""
    rewards = {(False, False): 0.0, (True, False): 1.0, (False, True): -0.5, (True, True): 0.25}
    value, slope = exact(OBSERVED, rewards)
    assert float(value) == pytest.approx(0.360885, abs=1e-6)
    np.testing.assert_allclose(slope[:2], [0.207883, -0.0632001], atol=1e-6)
    np.testing.assert_allclose(sampled(OBSERVED, rewards, 200_000).mean(axis=0), slope, atol=1e-2)


def test_three_patches_are_within_three_standard_errors(capsys):
    observed = np.array([[0.8, 0.1], [-0.2, 0.6], [0.4, -0.9]], np.float32)
    rewards = {action: float(np.sin(1 + number)) for number, action in enumerate(itertools.product((False, True), repeat=3))}
    _, slope = exact(observed, rewards)
    draws = sampled(observed, rewards, 10_000)
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    with capsys.disabled():
        mean, told = np.round(draws.mean(axis=0), 4), np.round(error, 4)
        print(f"\nexact {np.round(slope, 4)}, mean of 10,000 {mean}, standard errors {told}")
    assert (np.abs(draws.mean(axis=0) - slope) < 3 * error).all() and (np.abs(slope) > 6 * error).any()


@pytest.mark.parametrize(
    "score, baseline, expected",
    [(0.8, 0.5, 0.6), (0.4, 0.5, -0.2), (1, 0.5, 1), (0.95, 0.9, 0.5), (0, 0.9, -1), (0.5, 0.99, -1)],
)
def test_rewards(score, baseline, expected):
    """Oracle 7 with both guards."""
    found = policy.reward(jnp.asarray([score], jnp.float32), jnp.float32(baseline))
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_guards_of_the_reward():
    score = jnp.asarray([0.0, 0.5, 0.8])
    found = policy.reward(score, jnp.asarray([0.9, 0.99, 0.5]), bound=100.0)
    np.testing.assert_allclose(found, [-9.0, -9.8, 0.6], rtol=1e-5)
    np.testing.assert_allclose(policy.reward(score[1:2], jnp.float32(0.99), 1e-9, 100.0), [-49.0], rtol=1e-4)
    centred = policy.reward(score, jnp.float32(0.5), centred=True)
    np.testing.assert_allclose(centred, np.array([-1.0, 0.0, 0.6]) + 0.4 / 3, atol=1e-6)
    assert not jax.grad(lambda s: jnp.sum(policy.reward(s, jnp.float32(0.5))))(score).any()


def test_running_mean_of_the_baseline():
    """Oracle 8."""
    value, seen = jnp.float32(0), []
    for count, new in enumerate((0.2, 0.6, 0.9)):
        value = policy.running_mean(value, jnp.float32(new), jnp.float32(count))
        seen.append(float(value))
    np.testing.assert_allclose(seen, [0.2, 0.4, 0.566667], atol=1e-6)


def test_entropy():
    np.testing.assert_allclose(policy.entropy(jnp.zeros((2, 3))), np.log(2), rtol=1e-6)
    p = 1 / (1 + np.exp(-2.197))
    np.testing.assert_allclose(policy.entropy(jnp.full((4,), 2.197)), -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-5)
    assert float(policy.entropy(jnp.asarray([80.0, -80.0]))) == pytest.approx(0, abs=1e-6)


# Distillation and maps ----------------------------------------------------------------------------------------------------


def test_distillation_by_hand():
    """Oracle 10."""
    teacher, student = jnp.asarray([[1.0, 0], [0, 2]]), jnp.asarray([[1.0, 1], [0, 1]])
    assert float(distillation.cosine_distance(teacher, student)) == pytest.approx(0.146447, abs=1e-6)
    assert float(distillation.mean_squared(teacher, student)) == pytest.approx(0.5)
    one, two, label = jnp.asarray([[2.0, 0]]), jnp.asarray([[1.0, 0]]), jnp.zeros(1, jnp.int32)
    kl, ce = distillation.divergence(one, two), cross_entropy(two, label)
    assert float(kl) == pytest.approx(0.0671308, abs=1e-6) and float(ce) == pytest.approx(0.313262, abs=1e-6)
    assert float(distillation.divergence(two, one)) == pytest.approx(0.0826077, abs=1e-6)
    assert float(0.3 * ce + 0.4 * kl) == pytest.approx(0.120831, abs=1e-6)
    assert float(distillation.divergence(2 * one, 2 * two, 2.0)) == pytest.approx(0.0671308, abs=1e-6)


def test_floor_of_the_maps_loss():
    """Oracle 11: one cosine 1 and eight -1."""
    maps = jnp.full((1, 9, 1, 1), -1.0).at[0, 3].set(1.0)
    own = jnp.full((1, 1, 1), 3)
    assert float(distillation.map_cross_entropy(maps, own)) == pytest.approx(0.733657, abs=1e-6)
    assert float(distillation.map_cross_entropy(maps, own, 10.0)) == pytest.approx(1.6e-8, abs=2e-8)
    assert float(distillation.map_cross_entropy(0 * maps, own)) == pytest.approx(2.197225, abs=1e-6)


def test_pictures_without_labels_are_left_out_of_the_maps_loss():
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.normal(size=(4, 9, 5, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 9, (4, 5, 3)))
    each = [float(distillation.map_cross_entropy(maps[i : i + 1], labels[i : i + 1], 3.0)) for i in range(4)]
    logs = np.log(np.exp(3 * maps) / np.exp(3 * maps).sum(1, keepdims=True))
    np.testing.assert_allclose(each[0], -np.mean([logs[0, labels[0, y, x], y, x] for y in range(5) for x in range(3)]), rtol=1e-5)
    counts = jnp.asarray([True, False, False, True])
    found, slope = jax.value_and_grad(lambda m: distillation.map_cross_entropy(m, labels, 3.0, counts))(maps)
    np.testing.assert_allclose(found, (each[0] + each[3]) / 2, rtol=1e-5)
    assert not slope[1:3].any() and slope[0].any()
    assert float(distillation.map_cross_entropy(maps, labels, 3.0, jnp.zeros(4, bool))) == 0
