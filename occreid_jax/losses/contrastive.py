"""Contrastive losses between two sets of labelled features, such as images and texts.

Batches of an evaluation or of cached features may be padded to a fixed size; padded rows are named by validity masks and touch
neither the value nor any gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
MASKED = -1e30  # a logit whose exponential is 0; finite, so that a row with no valid column at all has no nan


def supervised_contrastive(
    anchors: Array,
    others: Array,
    anchor_labels: Array,
    other_labels: Array,
    temperature: float = 1.0,
    anchor_valid: Array | None = None,
    other_valid: Array | None = None,
) -> Array:
    """Supervised contrastive loss of anchors [A, D] against others [O, D], float32 scalar.

    For each anchor: the mean over all others of the same identity of -log softmax(a . o / temperature), the softmax over all
    others (Khosla et al. 2020, equation 2, L_out; CLIP-ReID's ``SupConLoss``, Li et al. 2023). Labels are
    int32 [A] and [O], masks bool [A] and [O].

    The features are taken as they are: CLIP-ReID does not normalise them here, and its temperature is 1. Equal rows are counted
    as often as they occur: a batch of four images of one identity holds its text four times, in the softmax and among the
    positives, as in the original. The mean is over the anchors that are valid and have a positive (the original is nan without).
    """
    anchors, others = anchors.astype(jnp.float32), others.astype(jnp.float32)
    positive = anchor_labels[:, None] == other_labels[None, :]
    if anchor_valid is not None:
        # Padding may hold anything, so it leaves before the product: 0 times infinity would be nan.
        anchors = jnp.where(anchor_valid[:, None], anchors, 0.0)
        positive = positive & anchor_valid[:, None]
    if other_valid is not None:
        others = jnp.where(other_valid[:, None], others, 0.0)
        positive = positive & other_valid[None, :]
    logits = jnp.matmul(anchors, others.T, precision=jax.lax.Precision.HIGHEST) / temperature
    if other_valid is not None:
        logits = jnp.where(other_valid[None, :], logits, MASKED)
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    positives = jnp.sum(positive, axis=1)
    sums = jnp.sum(jnp.where(positive, log_probabilities, 0.0), axis=1)
    losses = -sums / jnp.maximum(positives, 1)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(positives > 0), 1)


def image_text_contrastive(
    images: Array, texts: Array, labels: Array, temperature: float = 1.0, valid: Array | None = None
) -> Array:
    """Stage-1 loss of CLIP-ReID: image to text plus text to image (Li et al. 2023), float32 scalar.

    Row i of texts [B, D] belongs to row i of images [B, D]; labels int32 [B] and valid bool [B] hold for both.
    """
    image_to_text = supervised_contrastive(images, texts, labels, labels, temperature, valid, valid)
    text_to_image = supervised_contrastive(texts, images, labels, labels, temperature, valid, valid)
    return image_to_text + text_to_image


def paired_contrastive(images: Array, texts: Array, scale: Array, same: Array) -> tuple[Array, Array]:
    """CLIP's symmetric loss (Radford et al. 2021, figure 3): float32 scalar, and logits float32 [B, B] of images x texts.

    Row i of texts [B, D] belongs to row i of images [B, D], both of unit length; ``scale`` multiplies the cosines. ``same``
    bool [B, B] is True where text j is as good for image i as its own, or image j for text i (one identity, one sentence): such
    a pair is no negative and stands in neither softmax. It is symmetric; the diagonal does not matter.
    """
    images, texts = images.astype(jnp.float32), texts.astype(jnp.float32)
    logits = scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    own = jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(same & ~own, MASKED, logits)
    losses = [-jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=axis))) for axis in (0, 1)]
    return 0.5 * (losses[0] + losses[1]), logits
