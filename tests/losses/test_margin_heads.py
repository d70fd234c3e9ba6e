"""ArcFace, CosFace, AM-softmax and Circle: the sheets' oracles, the branches of ArcFace, gradients at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.losses.margin import am_softmax, arcface, circle, cosface, cosine_logits

AXIS = jnp.array([[1.0, 0.0]])
ZERO = jnp.array([0])


def at(cosine):
    """A feature [1, 2], not of unit length, with this cosine to `AXIS`."""
    return 3.0 * jnp.array([[cosine, np.sqrt(1.0 - cosine**2)]])


@pytest.mark.parametrize(
    ("margin", "cosine", "expected"),
    [(0.5, 0.7, 8.1579), (0.5, 0.2, -8.8267), (0.5, -0.95, -35.6914), (0.3, 0.7, 13.7308), (0.3, 0.2, -2.9545),
     (0.3, -0.95, -29.9954)],
)  # fmt: skip
def test_arcface_oracle(margin, cosine, expected):
    """DPM sheet, oracle 7: with margin 0.5 the cosine -0.95 lies beyond pi - margin, with 0.3 it does not."""
    assert float(arcface(at(cosine), AXIS, ZERO, 30.0, margin)[0, 0]) == pytest.approx(expected, abs=2e-4)


def test_arcface_rows_oracle():
    """DPM sheet, oracle 7: rows of logits and their cross entropy."""
    cosines = np.array([[0.5, 0.670820, 0.5], [0.6, 0.424264, 0.64]])
    for row, label, logits, loss in (
        (0, 0, [0.7079, 20.1246, 15.0], 19.4226),
        (1, 2, [18.0, 12.7279, 5.7982], 12.2069),
    ):
        weights = jnp.array([[c, np.sqrt(1 - c * c)] for c in cosines[row]])
        found = arcface(AXIS, weights, jnp.array([label]), 30.0, 0.5)
        np.testing.assert_allclose(found[0], logits, atol=5e-4)
        assert float(cross_entropy(found, jnp.array([label]))) == pytest.approx(loss, abs=5e-4)


def test_arcface_beyond_the_threshold():
    far = at(-0.95)
    angle = np.arccos(-0.95)
    assert float(arcface(far, AXIS, ZERO, 1.0, 0.5, beyond="wrap")[0, 0]) == pytest.approx(np.cos(angle + 0.5), abs=1e-5)
    # Falling, not rising, with the angle is what "linear" is for.
    assert arcface(at(-0.99), AXIS, ZERO, 1.0, 0.5)[0, 0] < arcface(at(-0.9), AXIS, ZERO, 1.0, 0.5)[0, 0]
    assert float(arcface(at(0.1), AXIS, ZERO, 1.0, 0.5, easy=True)[0, 0]) < 0.1
    assert float(arcface(at(-0.1), AXIS, ZERO, 1.0, 0.5, easy=True)[0, 0]) == pytest.approx(-0.1, abs=1e-6)
    with pytest.raises(UserError, match="beyond"):
        arcface(far, AXIS, ZERO, 1.0, 0.5, beyond="bounce")


def test_margins_against_numpy():
    rng = np.random.default_rng(0)
    features, weights, labels = rng.normal(size=(6, 4)), rng.normal(size=(5, 4)), rng.integers(0, 5, 6)
    cosines = features @ weights.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(weights, axis=1)
    arguments = jnp.asarray(features, jnp.float32), jnp.asarray(weights, jnp.float32), jnp.asarray(labels)
    hot = np.eye(5)[labels]
    np.testing.assert_allclose(cosine_logits(*arguments[:2]), cosines, atol=1e-6)
    np.testing.assert_allclose(cosface(*arguments, 30.0, 0.35), 30 * (cosines - 0.35 * hot), atol=3e-5)
    np.testing.assert_array_equal(am_softmax(*arguments, 30.0, 0.35), cosface(*arguments, 30.0, 0.35))
    positive = np.maximum(1.25 - cosines, 0) * (cosines - 0.75)
    negative = np.maximum(cosines + 0.25, 0) * (cosines - 0.25)
    np.testing.assert_allclose(circle(*arguments, 64.0, 0.25), 64 * np.where(hot > 0, positive, negative), atol=1e-4)
    angles = np.arccos(cosines)
    np.testing.assert_allclose(arcface(*arguments, 30.0, 0.3, beyond="wrap"), 30 * np.cos(angles + 0.3 * hot), atol=1e-4)
    share = 0.9 * hot + 0.1 / 5
    mixed = 30 * (share * np.cos(angles + 0.1) + (1 - share) * cosines)
    np.testing.assert_allclose(arcface(*arguments, 30.0, 0.1, smoothing=0.1, beyond="wrap"), mixed, atol=1e-4)


@pytest.mark.parametrize("head", [arcface, cosface, am_softmax, circle])
def test_no_margin_and_the_ends(head):
    features = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    weights = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    labels = jnp.array([0, 0, 1])
    if head is not circle:
        np.testing.assert_allclose(head(features, weights, labels, 30.0, 0.0), 30 * cosine_logits(features, weights), atol=1e-5)

    def loss(features, weights):
        return cross_entropy(head(features, weights, labels, 30.0, 0.3), labels)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(features, weights)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def test_circle_weights_carry_no_gradient():
    cosine, step = 0.4, 1e-3
    slope = jax.grad(lambda c: circle(jnp.stack([c, jnp.sqrt(1 - c * c)])[None], AXIS, ZERO, 1.0, 0.25)[0, 0])(cosine)
    assert float(slope) == pytest.approx(1.25 - cosine, abs=step)
