"""The third stage of DPM++: an image compared with prototypes of the identities, plainly and under a mask of what it shows.

Source: DPM++ (arXiv 2605.06637) Eq. 8 to 21, 24; Tan et al., "Dynamic Prototype Mask for Occluded Person Re-identification",
ACM MM 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.losses import prototypes
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.margin import BEYOND, angular_margin
from occreid_jax.losses.regularisers import REDUCTIONS, head_enrich
from occreid_jax.losses.totals import clip_reid_terms
from occreid_jax.methods.base import SIDES, with_statistics
from occreid_jax.methods.prompt_learning import PromptLearning
from occreid_jax.methods.salient_transfer import Recombination
from occreid_jax.nn.layers import run
from occreid_jax.nn.mask_generator import POOLINGS
from occreid_jax.types import Aux, Batch, Extra, Params, PrepareContext, Stage
from occreid_jax.vectors import unit_vectors

Array = jax.Array
STARTS = ("xavier", "means")
CHOICES = {
    "anchor_logits": ("product", "cosine"),
    "beyond": BEYOND,
    "head_reduction": REDUCTIONS,
    "mask_pooling": POOLINGS,
    "mask_space": ("visual", "text"),
    "mask_side": prototypes.SIDES,
    "mask_order": prototypes.ORDERS,
    "masked_feature": SIDES,
    "prototype_start": STARTS,
}
"""What the settings of the stage may be, as `MethodBase.choices` of the method that has it."""
RANGES = (("anchor_epochs", 0, None),)
COSINE_SCALE = 100.0  # of anchor_logits "cosine"


class Encoded(NamedTuple):
    """What the encoder gives for a batch, float32 unless said."""

    feature: Array  # [B, D] cls token after the final norm
    projected: Array | None  # [B, E] the same in the space of the texts; None without one
    early: Array  # [B, D] cls token before the last block
    maps: Array  # [B, h, w, L D] patch tokens of several blocks, before any norm; in the compute type
    cls_logits: Array  # [B, heads, N] what the last block's cls token says to the patches, before the softmax


class Terms(NamedTuple):
    """Some terms of the stage's loss."""

    weighted: tuple[tuple[float, Array], ...]  # weight and value of each
    metrics: dict[str, Array]
    statistics: dict[str, Params]  # what of the batch statistics has changed


class MaskedMetric(PromptLearning):
    """Parameters ``neck``, ``prototypes/weight`` [identities, D], ``mask_generator`` and ``projected_head`` of a method, and what
    the stage does with them. ``extra``: ``prototype_start``, the prototypes as the stage began.

    A subclass has the networks of these names, says in ``generates`` and ``in_text_space`` which masks there are, and defines
    `encode` and `recombination`.
    """

    def encode(
        self,
        params: Params,
        batch: Batch,
        rng: Array | None = None,
        salient: Array | None = None,
        partner: Array | None = None,
        cameras: bool = True,
    ) -> Encoded:
        """Runs the encoder; with ``salient`` bool [B, N] and ``partner`` int32 [B] on recombined patch tokens."""
        raise AttributeError(f"{type(self).__name__} must define encode")

    def recombination(self, params: Params, batch: Batch, rng: Array) -> Recombination:
        """How the images of a batch are recombined."""
        raise AttributeError(f"{type(self).__name__} must define recombination")

    def mask(self, params: Params, extra: Extra, maps: Array, train: bool = False) -> tuple[Array, Params]:
        """Masks float32 [B, D] in (0, 1), or of ones with ``unit_mask``, and the generator's new statistics."""
        if not self.generates:
            return jnp.ones((len(maps), self.mask_generator.features)), {}
        return run(self.mask_generator, params["mask_generator"], extra["batch_stats"]["mask_generator"], maps, train=train)

    def after_neck(self, params: Params, extra: Extra, feature: Array, train: bool = False) -> tuple[Array, Params]:
        """Features [B, D] after the neck and its new statistics."""
        return run(self.neck, params["neck"], extra["batch_stats"]["neck"], feature, train=train)

    # Prototypes -------------------------------------------------------------------------------------------------------

    def prepare_prototypes(self, context: PrepareContext) -> Extra:
        """Before the stage: ``prototype_start``, what the parameters hold or, with "means", the directions of the identities'
        mean features after a neck that knows the training set, as long as the parameters are."""
        weight = np.asarray(context.params["prototypes"]["weight"])
        if self.settings.prototype_start == "means":
            features = context.pass_(lambda params, extra, batch: self.encode(params, batch).feature)
            length = np.sqrt(np.mean(np.sum(weight.astype(np.float64) ** 2, axis=1)))
            weight = class_directions(features, context.labels, len(weight)) * length
        return context.extra | {"prototype_start": jnp.asarray(weight, jnp.float32)}

    def prototype_drift(self, params: Params, extra: Extra) -> Array:
        """Mean cosine of the prototypes to where they started: 1 if they have not learned. Weights of others know no start."""
        now, start = (unit_vectors(x) for x in (params["prototypes"]["weight"], extra["prototype_start"]))
        return jnp.mean(jnp.sum(now * start, axis=-1))

    # Losses -----------------------------------------------------------------------------------------------------------

    def metric_loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """The third stage (Eq. 24): plain and masked prototypes, triplet, head enrichment, anchors, each with its weight."""
        key_transfer, key_encoder = jax.random.split(rng)
        mixed = self.recombination(params, batch, key_transfer)
        encoded = self.encode(params, batch, key_encoder, mixed.salient, mixed.partner)
        feature, neck = self.after_neck(params, extra, encoded.feature, True)
        found = [self.identity_terms(params, extra, encoded, feature, batch["label"], mixed)]
        if self.settings.mask:
            found.append(self.masked_terms(params, extra, encoded, feature, batch["label"], mixed))
        found.append(self.head_term(encoded))
        if self.settings.text:
            found.append(self.anchor_term(extra, encoded, batch["label"], mixed, t * stage.epochs))
        total = sum(weight * value for terms in found for weight, value in terms.weighted)
        statistics = {"neck": neck}
        metrics = {"prototype_drift": self.prototype_drift(params, extra)} if "prototype_start" in extra else {}
        for terms in found:
            metrics |= terms.metrics
            statistics |= terms.statistics
        if mixed.transfer is not None:
            metrics |= {"transferred": jnp.mean(mixed.transfer.used), "selected": jnp.mean(mixed.salient)}
        return total, Aux(with_statistics(extra, **statistics), metrics)

    def identity_terms(
        self, params: Params, extra: Extra, encoded: Encoded, feature: Array, labels: Array, mixed: Recombination
    ) -> Terms:
        """Cross entropy against the prototypes and triplet (Eq. 14, 17); with ``clip_reid_heads`` CLIP-ReID's sums of both.

        ``feature`` [B, D] is the one after the neck, which the prototypes are compared with; triplets take it before.
        """
        settings, statistics = self.settings, {}
        logits = [jnp.matmul(feature, params["prototypes"]["weight"].T, precision=jax.lax.Precision.HIGHEST)]
        features = [encoded.feature]
        if settings.clip_reid_heads:
            name = "projected_head"
            old = extra["batch_stats"][name]
            (_, more), statistics[name] = run(self.projected_head, params[name], old, encoded.projected, train=True)
            logits, features = [*logits, more], [*features, encoded.early, encoded.projected]
        identity, triplet, _ = clip_reid_terms(
            logits, features, None, labels, settings.margin, settings.label_smoothing, mixed.left_out, mixed.ignored
        )
        weighted = (settings.identity_weight, identity), (settings.triplet_weight, triplet)
        metrics = {"identity": identity, "triplet": triplet, "accuracy": accuracy(logits[0], labels)}
        return Terms(weighted, metrics, statistics)

    def masked_terms(
        self, params: Params, extra: Extra, encoded: Encoded, feature: Array, labels: Array, mixed: Recombination
    ) -> Terms:
        """ArcFace of masked prototypes, or of masked texts (Eq. 15, 16).

        ``feature`` [B, D] is the one after the neck; ``masked_feature`` says which side of it is compared.
        """
        settings = self.settings
        masks, statistics = self.mask(params, extra, encoded.maps, True)
        visual = feature if settings.masked_feature == "after" else encoded.feature, params["prototypes"]["weight"]
        compared, centres = (encoded.projected, extra["texts"]) if self.in_text_space else visual
        cosines = prototypes.masked_cosines(compared, centres, masks, settings.mask_side, settings.mask_order)
        margined = angular_margin(cosines, labels, settings.cosine_scale, settings.cosine_margin, beyond=settings.beyond)
        masked = cross_entropy(margined, labels, settings.masked_smoothing, left_out=mixed.left_out)
        metrics = {"masked_identity": masked, "masked_accuracy": accuracy(cosines, labels)}
        if not self.generates:
            return Terms(((settings.masked_weight, masked),), metrics, {})
        metrics |= {"mask_mean": jnp.mean(masks), "mask_deviation": jnp.mean(jnp.std(masks, axis=-1))}
        return Terms(((settings.masked_weight, masked),), metrics, {"mask_generator": statistics})

    def head_term(self, encoded: Encoded) -> Terms:
        """Head enrichment (Eq. 18, 19)."""
        attention = jax.nn.softmax(encoded.cls_logits, axis=-1) if self.settings.head_softmax else encoded.cls_logits
        enrich = head_enrich(attention, self.settings.head_reduction)
        return Terms(((self.settings.head_weight, enrich),), {"head_enrich": enrich}, {})

    def anchor_term(self, extra: Extra, encoded: Encoded, labels: Array, mixed: Recombination, epoch: Array) -> Terms:
        """Cross entropy against the texts (Eq. 13), in the first ``anchor_epochs`` of the stage's epochs if that is not 0."""
        settings, logits = self.settings, self.anchor_logits(encoded.projected, extra)
        anchor = cross_entropy(logits, labels, settings.label_smoothing, left_out=mixed.left_out)
        acting = jnp.where(epoch < settings.anchor_epochs, anchor, 0.0) if settings.anchor_epochs else anchor
        metrics = {"anchor": anchor, "anchor_accuracy": accuracy(logits, labels)}
        return Terms(((settings.anchor_weight, acting),), metrics, {})

    def anchor_logits(self, projected: Array, extra: Extra) -> Array:
        """Logits [B, identities] against the texts: plain products (Eq. 13 as CLIP-ReID's code has it), or scaled cosines."""
        if self.settings.anchor_logits == "product":
            return self.image_text_logits(projected, extra)
        texts = unit_vectors(extra["texts"])
        return COSINE_SCALE * jnp.matmul(unit_vectors(projected), texts.T, precision=jax.lax.Precision.HIGHEST)


def class_directions(features: np.ndarray, labels: np.ndarray, identities: int) -> np.ndarray:
    """Unit vectors float64 [identities, D]: the mean of every identity's features [N, D], each dimension first brought to mean 0
    and variance 1 over all images, as a neck does that has seen them. ``labels`` int [N]; each identity has an image."""
    features = np.asarray(features, np.float64)
    features = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-5)
    sums = np.zeros((identities, features.shape[1]))
    np.add.at(sums, labels, features)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
