"""Identity classification losses.

Two conventions of label smoothing are in use, and they differ by a factor K / (K - 1) in the share that leaves the target:

* ``"all"``: 1 - eps on the label plus eps / K on each of the K classes (Szegedy et al. 2016, section 7; TransReID, CLIP-ReID,
  torchreid),
* ``"rest"``: 1 - eps on the label and eps / (K - 1) on each other class (fast-reid).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.errors import UserError

Array = jax.Array
CONVENTIONS = ("all", "rest")
ABSENT = -1e30  # a logit whose exponential is 0; finite, so that its gradient is 0 and not nan


def cross_entropy(
    logits: Array, labels: Array, smoothing: float | Array = 0.0, convention: str = "all", left_out: Array | None = None
) -> Array:
    """Mean softmax cross entropy of logits [B, C] against labels int32 [B], in nats, float32.

    ``smoothing`` is the share eps that label smoothing moves away from the label: a number, or float32 [B] with one share a row
    (see `adaptive_smoothing`). ``convention`` says where it goes: ``"all"`` spreads it evenly over all C classes, the label
    among them; ``"rest"`` over the other C - 1 classes, which needs C >= 2.

    ``left_out`` int32 [B] names one class per row (never the label; -1 for none) that does not exist for that row: neither its
    logit nor any share of the smoothing counts, and no gradient reaches it. SPT and DPM++ leave out the identity that a
    recombined image has borrowed patches from.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"label smoothing knows the conventions {', '.join(CONVENTIONS)}, not {convention!r}")
    logits, classes = logits.astype(jnp.float32), logits.shape[-1]
    if left_out is not None:
        absent = jnp.arange(logits.shape[-1]) == left_out[:, None]
        classes = classes - jnp.any(absent, axis=-1)
        logits = jnp.where(absent, ABSENT, logits)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    if left_out is not None:
        log_probabilities = jnp.where(absent, 0.0, log_probabilities)  # an empty summand below
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    if convention == "all":
        return -jnp.mean((1.0 - smoothing) * picked + smoothing * jnp.sum(log_probabilities, axis=-1) / classes)
    if logits.shape[-1] < 2:
        raise UserError("label smoothing over the other classes needs at least two classes")
    others = (jnp.sum(log_probabilities, axis=-1) - picked) / (classes - 1)
    return -jnp.mean((1.0 - smoothing) * picked + smoothing * others)


def adaptive_smoothing(logits: Array, labels: Array, share: float = 0.2) -> Array:
    """Smoothing float32 [B] that grows with the confidence: ``share`` times the probability of the label.

    fast-reid's adaptive label smoothing (its ``eps=-1``), to be used with ``convention="rest"``. logits [B, C], labels int32
    [B]. No gradient flows through it: it sets the target, and a target is no function of the parameters.
    """
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)
    return share * jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of rows of logits [B, C] whose largest entry is the label, float32."""
    return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
