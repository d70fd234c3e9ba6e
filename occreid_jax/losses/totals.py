"""The sums of losses that TransReID and CLIP-ReID train with, over several heads and features.

The two differ in how they add up: TransReID gives its global branch the same say as all its part branches together, CLIP-ReID
plainly sums. The order of a list matters for TransReID only: the global branch comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from occreid_jax.losses.identity import cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet

Array = jax.Array


def global_and_parts(losses: Sequence[Array]) -> Array:
    """Half the first loss plus half the mean of the others (scalars); the loss itself if there is only one."""
    first, *parts = losses
    return 0.5 * first + 0.5 * jnp.mean(jnp.stack(parts)) if parts else first


def transreid_terms(
    logits: Sequence[Array], features: Sequence[Array], labels: Array, margin: float | None = None, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """(identity, triplet) of TransReID, float32 scalars before their weights.

    logits: [B, C] for the global branch, then for each part (four with the jigsaw patch module, none without); features: the
    [B, D] of the same branches before their BatchNorm; labels int32 [B]. ``margin=None`` is the soft margin, as in the official
    configurations.
    """
    identity = global_and_parts([cross_entropy(each, labels, smoothing) for each in logits])
    triplet = global_and_parts([batch_hard_triplet(each, labels, margin) for each in features])
    return identity, triplet


def transreid_total(
    logits: Sequence[Array],
    features: Sequence[Array],
    labels: Array,
    margin: float | None = None,
    smoothing: float = 0.0,
    identity_weight: float = 1.0,
    triplet_weight: float = 1.0,
) -> Array:
    """Loss of TransReID (He et al. 2021, as weighted by the official code), float32 scalar; see `transreid_terms`."""
    identity, triplet = transreid_terms(logits, features, labels, margin, smoothing)
    return identity_weight * identity + triplet_weight * triplet


def clip_reid_total(
    logits: Sequence[Array],
    features: Sequence[Array],
    image_text_logits: Array | None,
    labels: Array,
    margin: float | None = 0.3,
    smoothing: float = 0.1,
    identity_weight: float = 0.25,
    triplet_weight: float = 1.0,
    image_text_weight: float = 1.0,
) -> Array:
    """Loss of CLIP-ReID's second stage (Li et al. 2023, official code), float32 scalar; sums over heads, not means.

    logits: [B, C] of each head (two); features: [B, D] of each place a triplet is mined (three); image_text_logits [B, C] are
    image features times the frozen text features of all C identities, or None for the one-stage baselines; labels int32 [B].
    ``smoothing`` holds for both cross entropies. The official ``identity_weight`` is 0.25 for the ViT and 1.0 for the ResNet-50.
    """
    identity = sum(cross_entropy(each, labels, smoothing) for each in logits)
    triplet = sum(batch_hard_triplet(each, labels, margin) for each in features)
    total = identity_weight * identity + triplet_weight * triplet
    if image_text_logits is None:
        return total
    return total + image_text_weight * cross_entropy(image_text_logits, labels, smoothing)
