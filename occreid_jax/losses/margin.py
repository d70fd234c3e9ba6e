"""Classification heads on cosine logits: ArcFace, CosFace / AM-softmax and Circle, as functions.

Every head takes features [B, D], class weights [C, D] (one row a class, whatever their lengths) and labels int32 [B], and
returns logits [B, C], float32, which go into `occreid_jax.losses.identity.cross_entropy`. The margin is applied to the label's
logit only, so these logits are for training; for a prediction use ``scale * cosine_logits(features, weights)``.

TransReID's heads are reproduced by the defaults of the options; where fast-reid's differ, an option says so.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from occreid_jax.errors import UserError
from occreid_jax.vectors import unit_vectors

Array = jax.Array
BEYOND = ("linear", "wrap")


def cosine_logits(features: Array, weights: Array) -> Array:
    """Cosines [B, C] between rows of features [B, D] and of class weights [C, D], float32."""
    return jnp.matmul(unit_vectors(features), unit_vectors(weights).T, precision=jax.lax.Precision.HIGHEST)


def add_angle(cosines: Array, margin: float) -> Array:
    """cos(theta + margin) for cosines of any shape, float32, with a finite gradient at |cos| = 1.

    The sine's square is held above 1e-12: rounding may push |cos| over 1, and the root's slope is infinite at 0.
    """
    sines = jnp.sqrt(jnp.maximum(1.0 - cosines * cosines, 1e-12))
    return cosines * math.cos(margin) - sines * math.sin(margin)


def on_label(target: Array, others: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """``target`` at the label and ``others`` elsewhere, all [B, C], labels int32 [B]; mixed by a smoothed one-hot if asked."""
    share = jax.nn.one_hot(labels, others.shape[-1], dtype=jnp.float32)
    if smoothing:
        share = (1.0 - smoothing) * share + smoothing / others.shape[-1]
    return share * target + (1.0 - share) * others


def arcface(
    features: Array,
    weights: Array,
    labels: Array,
    scale: float,
    margin: float,
    easy: bool = False,
    smoothing: float = 0.0,
    beyond: str = "linear",
) -> Array:
    """ArcFace (Deng et al. 2019, equation 3): the label's logit is cos(theta + margin). Logits [B, C], times ``scale``.

    cos(theta + margin) turns upwards again beyond theta = pi - margin. ``beyond="linear"`` takes cos(theta) - margin *
    sin(margin) there, as TransReID and the ArcFace authors do; ``"wrap"`` leaves it, as fast-reid does. ``easy`` applies the
    margin only where cos(theta) > 0 and leaves the cosine elsewhere; ``beyond`` then has no effect. ``smoothing`` mixes logits
    with and without margin by the smoothed one-hot (1 - eps) + eps / C, an option of TransReID's head.
    """
    return angular_margin(cosine_logits(features, weights), labels, scale, margin, easy, smoothing, beyond)


def angular_margin(
    cosines: Array,
    labels: Array,
    scale: float,
    margin: float,
    easy: bool = False,
    smoothing: float = 0.0,
    beyond: str = "linear",
) -> Array:
    """`arcface` from cosines [B, C] that were computed elsewhere, for example `prototypes.masked_cosines`."""
    if beyond not in BEYOND:
        raise UserError(f"ArcFace knows {', '.join(BEYOND)} beyond the angle pi - margin, not {beyond!r}")
    target = add_angle(cosines, margin)
    if easy:
        target = jnp.where(cosines > 0.0, target, cosines)
    elif beyond == "linear":
        target = jnp.where(cosines > math.cos(math.pi - margin), target, cosines - margin * math.sin(math.pi - margin))
    return scale * on_label(target, cosines, labels, smoothing)


def cosface(features: Array, weights: Array, labels: Array, scale: float, margin: float) -> Array:
    """CosFace (Wang, Wang et al. 2018, equation 4): the label's logit is cos(theta) - margin. Logits [B, C], times ``scale``."""
    cosines = cosine_logits(features, weights)
    return scale * on_label(cosines - margin, cosines, labels)


def am_softmax(features: Array, weights: Array, labels: Array, scale: float, margin: float) -> Array:
    """AM-softmax (Wang, Cheng et al. 2018, "Additive margin softmax"): the same function as `cosface`.

    The official module keeps its weights as [D, C]; here they are [C, D] like everywhere else.
    """
    return cosface(features, weights, labels, scale, margin)


def circle(features: Array, weights: Array, labels: Array, scale: float, margin: float) -> Array:
    """Circle loss with class labels (Sun et al. 2020, section 3, with O_p = 1 + m, O_n = -m). Logits [B, C].

    Label: scale * a_p (cos - (1 - margin)) with a_p = max(0, 1 + margin - cos); others: scale * a_n (cos - margin) with
    a_n = max(0, cos + margin). No gradient flows through a_p and a_n: they only say how far a similarity is from its optimum.
    """
    cosines = cosine_logits(features, weights)
    fixed = jax.lax.stop_gradient(cosines)
    positive = jax.nn.relu(1.0 + margin - fixed) * (cosines - (1.0 - margin))
    negative = jax.nn.relu(fixed + margin) * (cosines - margin)
    return scale * on_label(positive, negative, labels)
