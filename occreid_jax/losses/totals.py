"""The sums of losses that TransReID and CLIP-ReID train with, over several heads and features.

The two differ in how they add up: TransReID gives its global branch the same say as all its part branches together, CLIP-ReID
plainly sums. The order of a list matters for TransReID only: the global branch comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class ClipReIDTerms(NamedTuple):
    """The three parts of CLIP-ReID's second loss, float32 scalars before their weights."""

    identity: Array
    triplet: Array
    image_text: Array


def clip_reid_terms(
    logits: Sequence[Array],
    features: Sequence[Array],
    image_text_logits: Array | None,
    labels: Array,
    margin: float | None = 0.3,
    smoothing: float = 0.1,
    left_out: Array | None = None,
    ignored: Array | None = None,
) -> ClipReIDTerms:
    """Sums over heads and features, not means (Li et al. 2023, official code).

    logits: [B, C] of each head (two); features: [B, D] of each place a triplet is mined (three); image_text_logits [B, C] are
    image features times the frozen text features of all C identities, or None for the one-stage baselines, whose term is 0;
    labels int32 [B]. ``smoothing`` and ``left_out`` hold for all cross entropies, see `identity.cross_entropy`, and ``ignored``
    for all triplets, see `metric.hardest_pairs`.
    """

    def classify(each: Array) -> Array:
        return cross_entropy(each, labels, smoothing, left_out=left_out)

    identity = sum(classify(each) for each in logits)
    triplet = sum(batch_hard_triplet(each, labels, margin, ignored=ignored) for each in features)
    image_text = jnp.float32(0) if image_text_logits is None else classify(image_text_logits)
    return ClipReIDTerms(identity, triplet, image_text)


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
    """Loss of CLIP-ReID's second stage, float32 scalar; see `clip_reid_terms`.

    The official ``identity_weight`` is 0.25 for the ViT and 1.0 for the ResNet-50.
    """
    terms = clip_reid_terms(logits, features, image_text_logits, labels, margin, smoothing)
    return identity_weight * terms.identity + triplet_weight * terms.triplet + image_text_weight * terms.image_text
